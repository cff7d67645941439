"""What a user may get wrong: one clear line, exit status 2, nothing touched. And what they may ask for."""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import optax
import pytest
from PIL import Image

from benchmarks.places import REPO
from dipddpm_jax import checkpoints
from dipddpm_jax.commands import builders, cli
from dipddpm_jax.config import saved
from dipddpm_jax.config.presets import PRESETS
from dipddpm_jax.files import LOCK

pytestmark = pytest.mark.usefixtures("fast_compilation")

TINY = ["--network.width", "8", "--network.multipliers", "1", "--network.attention-size", "0", "--batch-size", "8",
        "--image-size", "8", "--schedule.num-steps", "20", "--sampler.num-steps", "2", "--chunk", "2", "--steps", "4"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run with labels."""
    workdir = tmp_path_factory.mktemp("cli") / "run"
    cli.train_main([*TINY, "--workdir", str(workdir), "--save-every", "2", "--sample-every", "2"])
    return workdir


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory):
    """A trained run without labels."""
    workdir = tmp_path_factory.mktemp("cli") / "plain"
    cli.train_main([*TINY, "--no-labels", "--workdir", str(workdir)])
    return workdir


def contents(folder):
    return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in Path(folder).rglob("*")
            if p.is_file() and p.name != LOCK}  # the lock is taken to look


def refused(capsys, main, args, *words, untouched=None):
    """The command ends with status 2 and one or two lines that say all of `words`; returns them."""
    before = contents(untouched) if untouched else None
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in args])
    text = capsys.readouterr().err
    assert stopped.value.code == 2
    lines = [line for line in text.splitlines() if line.strip()]
    assert 1 <= len(lines) <= 2, text
    for word in words:
        assert str(word) in text, text
    if untouched:
        assert contents(untouched) == before
    return text


@pytest.mark.parametrize("args, words", [
    (["unett"], ["unknown preset", "did you mean unet"]),
    (["--data", "mnist6k"], ["unknown data set", "mnist5k"]),
    (["--batch-size", "0"], ["--batch-size", "at least 1"]),
    (["--batch-size", "-3"], ["--batch-size"]),
    (["--batch-size", "100000"], ["--batch-size 100000", "4500"]),
    (["--steps", "0"], ["--steps"]),
    (["--steps", "99999999999"], ["--steps"]),
    (["--chunk", "0"], ["--chunk"]),
    (["--seed", "-1"], ["--seed"]),
    (["--schedule.num-steps", "-5"], ["--schedule.num-steps"]),
    (["--schedule.last-beta", "2"], ["last-beta"]),
    (["--sampler.num-steps", "1001"], ["--num-steps", "1 to 1000"]),
    (["--label-drop", "1.5"], ["--label-drop"]),
    (["--optimizer.learning-rate", "0"], ["learning-rate"]),
    (["--devices", "99"], ["--devices 99"]),
    (["--image-size", "30"], ["multiples of 4"]),
    (["small-unet", "--data", "photo_crops"], ["28x28"]),
    (["--resume", "--workdir", "nowhere"], ["nowhere", "not the directory of a training run"]),
])
def test_training_options(capsys, tmp_path, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    refused(capsys, cli.train_main, args, *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("args", [["--sampler.name", "bogus"], ["--target", "noise"], ["--steps", "many"],
                                  ["--no-such-option", "1"]])
def test_tyro_refuses_the_rest(capsys, args):
    with pytest.raises(SystemExit) as stopped:
        cli.train_main(args)
    assert stopped.value.code == 2 and "Traceback" not in capsys.readouterr().err


def test_working_directories(capsys, run, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    refused(capsys, cli.train_main, [*TINY, "--workdir", file], "is a file", untouched=tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    refused(capsys, cli.train_main, [*TINY, "--workdir", other], "is not empty", untouched=tmp_path)
    refused(capsys, cli.train_main, [*TINY, "--workdir", run], "holds another run", "--resume", untouched=run)
    refused(capsys, cli.train_main, [*TINY, "--workdir", "/proc/nothing/here"], "cannot write /proc/nothing/here")


@pytest.mark.parametrize("args, word", [
    (["--network.width", "16"], "--network.width (8 before, 16 now)"), (["--data", "photo_crops"], "--data"),
    (["--target", "eps"], "--target"), (["--seed", "3"], "--seed"), (["--batch-size", "4"], "--batch-size")])
def test_resuming_with_a_changed_configuration(capsys, run, args, word):
    args = ["--resume", "--workdir", run, *args]
    refused(capsys, cli.train_main, args, "--resume cannot change", word, untouched=run)


def test_resuming_another_preset(capsys, run):
    refused(capsys, cli.train_main, ["small-unet", "--resume", "--workdir", run], "preset unet, not small-unet")


def test_resuming_with_other_data(capsys, tmp_path, run):
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    raw = json.loads(path.read_text())
    raw["data"]["checksum"] += 1
    path.write_text(json.dumps(raw))
    refused(capsys, cli.train_main, ["--resume", "--workdir", tmp_path / "run"], "other data", "--checksum")


def damaged(run, tmp_path, change):
    copy = tmp_path / "damaged"
    shutil.copytree(run, copy)
    step = max((copy / "checkpoints").iterdir(), key=lambda p: int(p.name))
    change(step)
    return copy


def flip(step):
    """Bytes in the middle of the data of each item: Orbax itself might not notice."""
    for path in [p for item in ("weights", "train") for p in (step / item).rglob("d/*")]:
        data = bytearray(path.read_bytes())
        for i in range(len(data) // 3, len(data) // 3 + 64):
            data[i] ^= 0xFF
        path.write_bytes(bytes(data))


def truncate(step):
    for path in step.rglob("d/*"):
        path.write_bytes(path.read_bytes()[:100])


def remove_weights(step):
    shutil.rmtree(step / "weights")


@pytest.mark.parametrize("change", [flip, truncate])
def test_damaged_checkpoints(capsys, tmp_path, run, change):
    copy = damaged(run, tmp_path, change)
    text = refused(capsys, cli.sample_main, [copy, "--count", "1"], "damaged", untouched=copy)
    assert "delete" not in text, "it may be the only copy"
    refused(capsys, cli.train_main, ["--resume", "--workdir", copy, "--steps", "6"], "damaged")


def test_a_checkpoint_that_was_half_deleted_does_not_count(capsys, tmp_path, run):
    cli.sample_main([str(damaged(run, tmp_path, remove_weights)), "--count", "1"])
    assert "step 2" in capsys.readouterr().out


def test_a_half_written_checkpoint_is_ignored(capsys, tmp_path, run):
    def half(step):
        shutil.copytree(step, step.parent / "6.orbax-checkpoint-tmp")

    cli.sample_main([str(damaged(run, tmp_path, half)), "--count", "1"])
    assert "step 4" in capsys.readouterr().out


def test_a_checkpoint_of_another_network(capsys, tmp_path, run):
    copy = damaged(run, tmp_path, lambda step: None)
    path = copy / "config.json"
    path.write_text(path.read_text().replace('"width": 8', '"width": 16'))
    refused(capsys, cli.sample_main, [copy], "of another network", "stored", "wanted", untouched=copy)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"preset": "unet", "config": {"colour": 1}, "data": {}}'])
def test_a_broken_configuration(capsys, tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    refused(capsys, cli.sample_main, [tmp_path], "configuration")


@pytest.mark.parametrize("args, words", [
    (["--sampler", "bogus"], ["unknown sampler", "dpmpp_2m"]), (["--variance", "huge"], ["variance"]),
    (["--count", "0"], ["--count"]), (["--count", "-1"], ["--count"]), (["--count", "99999999"], ["--count"]),
    (["--num-steps", "21"], ["--num-steps", "1 to 20"]), (["--num-steps", "0"], ["--num-steps"]),
    (["--labels", "ten"], ["'ten' is not a label"]), (["--labels", "10"], ["not a label"]),
    (["--labels", "1,2"], ["one label a picture"]), (["--seed", "-1"], ["--seed"]), (["--eta", "2"], ["eta"]),
    (["--batch-size", "0"], ["--batch-size"]), (["--step", "3"], ["no checkpoint of step 3", "4"]),
    (["--torch-weights", "x.pt"], ["no such file of weights", "x.pt"]),
])
def test_sampling_options(capsys, run, args, words):
    refused(capsys, cli.sample_main, [run, *args], *words, untouched=run)


def test_guidance_and_labels_need_a_model_with_labels(capsys, plain_run):
    refused(capsys, cli.sample_main, [plain_run, "--guidance", "2"], "--guidance needs", untouched=plain_run)
    refused(capsys, cli.sample_main, [plain_run, "--labels", "1"], "without labels", untouched=plain_run)


def test_nothing_to_sample_from(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(capsys, cli.sample_main, [], "no run in runs/")
    refused(capsys, cli.sample_main, [tmp_path / "gone"], "not the directory of a training run")
    (tmp_path / "file").write_text("")
    refused(capsys, cli.sample_main, [tmp_path / "file"], "file")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_folders_of_pictures(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    for i in range(9):
        Image.new("L", (10, 12), i).save(tmp_path / "broken" / f"{i}.png")
    (tmp_path / "broken" / "5.png").write_bytes(b"\x89PNG broken")
    refused(capsys, cli.train_main, [*TINY, "--data", f"folder:{tmp_path}/empty"], "empty")
    refused(capsys, cli.train_main, [*TINY, "--data", f"folder:{tmp_path}/broken"], "5.png")
    refused(capsys, cli.train_main, [*TINY, "--data", f"folder:{tmp_path}/none"], "none")
    assert not (tmp_path / "runs").exists()


def test_no_space_left(capsys, tmp_path, monkeypatch):
    import orbax.checkpoint as ocp

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    with pytest.raises(SystemExit) as stopped:
        cli.train_main([*TINY, "--workdir", str(tmp_path / "run")])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert stopped.value.code == 2 and len(lines) == 1 and "No space left" in lines[0]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(builders, "make_optimizer", lambda config, steps: optax.sgd(1e30))
    with pytest.raises(SystemExit) as stopped:
        cli.train_main([*TINY, "--workdir", str(tmp_path / "run"), "--steps", "8"])
    assert stopped.value.code == 2 and "not finite in step 2" in capsys.readouterr().err
    assert checkpoints.steps(tmp_path / "run" / "checkpoints") == [1], "the step before"


def test_drawing_again_takes_a_new_folder(run):
    names = {path.name for path in run.glob("drawn-*")}
    for _ in range(2):
        cli.sample_main([str(run), "--count", "1"])
    assert len({path.name for path in run.glob("drawn-*")} - names) == 2


def test_a_run_makes_pictures_as_it_goes(run):
    assert (run / "samples" / "step_000002.png").exists()
    width, height = Image.open(run / "samples.png").size
    assert width > height > 100


def test_sampling(run, tmp_path):
    out = tmp_path / "out"
    cli.sample_main([str(run), "--count", "6", "--labels", "3", "7", "--seed", "5", "--out", str(out), "--gif"])
    held = np.load(out / "samples.npz")
    assert held["images"].shape == (6, 8, 8, 1) and held["images"].dtype == np.uint8
    assert held["labels"].tolist() == [3, 7, 3, 7, 3, 7]
    assert Image.open(out / "chain.gif").n_frames == 3  # the start, and two transitions
    record = json.loads((out / "command.json").read_text())
    assert record["command"].startswith("python sample.py") and record["versions"]["jax"]
    again = tmp_path / "again"
    cli.sample_main([str(run), "--count", "3", "--labels", "3", "7", "--seed", "5", "--out", str(again),
                     "--batch-size", "2"])
    other = np.load(again / "samples.npz")["images"]
    assert np.abs(other.astype(int) - held["images"][:3]).max() <= 1, "neither count nor batch size changes a picture"


@pytest.mark.parametrize("args", [["--sampler", "ancestral", "--variance", "posterior"],
                                  ["--sampler", "ddim", "--eta", "1"], ["--sampler", "heun", "--num-steps", "3"],
                                  ["--guidance", "1.5", "--clip", "True"]])
def test_every_sampler_runs(run, tmp_path, args):
    cli.sample_main([str(run), "--count", "2", "--out", str(tmp_path), *args])
    assert np.load(tmp_path / "samples.npz")["images"].shape == (2, 8, 8, 1)


@pytest.mark.parametrize("name", PRESETS)
def test_configurations_survive_json(name, tmp_path):
    facts = saved.Facts((28, 28, 1), ("a", "b"), True, 5, 7)
    saved.save(PRESETS[name][1], name, facts, tmp_path / "config.json")
    assert saved.load(tmp_path / "config.json") == (name, PRESETS[name][1], facts)


def test_help_is_quick():
    """Help must not import JAX: that alone is most of a second."""
    for script in ("train.py", "sample.py"):
        code = (f"import sys, runpy; sys.argv = ['x', '--help']; sys.path.insert(0, {str(REPO)!r})\n"
                f"try: runpy.run_path({str(REPO / script)!r}, run_name='__main__')\nexcept SystemExit: pass\n"
                "heavy = {'jax', 'flax', 'orbax', 'matplotlib', 'numpy'}\n"
                "print(sorted({m.split('.')[0] for m in sys.modules} & heavy))")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert done.stdout.splitlines()[-1] == "[]", done.stdout[-300:] + done.stderr[-500:]
