"""Several labels a picture: composition, lists, held-out pairs, scores of kept checkpoints, what sample.py writes."""
import json
import re
import resource
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dipddpm_jax import checkpoints, data
from dipddpm_jax.__main__ import main
from dipddpm_jax.commands import builders, cli, label_accuracy, train, training_data
from dipddpm_jax.commands import labels as labels_module
from dipddpm_jax.commands import model as model_module
from dipddpm_jax.config import saved
from dipddpm_jax.config.diffusion import ScheduleConfig, UNet
from dipddpm_jax.config.presets import PRESETS
from dipddpm_jax.config.sampler import SamplerConfig, SamplerOptions
from dipddpm_jax.config.saved import Facts
from dipddpm_jax.data import scenes
from dipddpm_jax.diffusion import denoisers, schedules
from dipddpm_jax.errors import UserError
from dipddpm_jax.experiments import conditional, labelled_runs
from dipddpm_jax.judging import judges
from dipddpm_jax.networks.layers import initial_variables
from dipddpm_jax.networks.resnet18 import ResNet18

S = schedules.linear(50)
PAIR = "red cube,blue sphere"


def apply(x, t, labels):
    """A network in which labels act together, not one by one."""
    mixed = jnp.tanh(labels @ jnp.sin(jnp.arange(30.0)).reshape(5, 6)).sum(-1)
    return jnp.sin(x * (1 + mixed[:, None, None, None])) + t[:, None, None, None] / 50


@pytest.fixture(scope="module", autouse=True)
def fast_compilation():
    """What is run here compiles far longer than it computes."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(0), (3, 4, 4, 1))


@pytest.mark.parametrize("target", ["eps", "x0", "v"])
@pytest.mark.parametrize("w", [0.0, 0.5, 2.0])
def test_composition_of_one_label_equals_guidance(x, target, w):
    labels, t = jnp.eye(5)[:3], jnp.int32(20)
    guided = jax.jit(denoisers.guided(apply, S, labels, w, target))(x, t)
    composed = jax.jit(denoisers.composed(apply, S, (1 + w) * labels, 1, target))(x, t)
    np.testing.assert_allclose(composed.x0, guided.x0, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(composed.eps, guided.eps, rtol=1e-4, atol=1e-4)


def test_guidance_of_weight_0_equals_the_conditional_model(x):
    labels, t = jnp.asarray(np.array([[1, 0, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 1]], np.float32)), jnp.int32(20)
    conditional = denoisers.from_network(apply, S, labels=labels)(x, t)
    for weight in (0.0, jnp.float32(0)):
        np.testing.assert_allclose(denoisers.guided(apply, S, labels, weight)(x, t).eps, conditional.eps, atol=1e-6)


def test_composition_is_its_definition_and_padding_weighs_nothing(x):
    """eps_0 + sum_i w_i (eps_i - eps_0), written with loops; weights may differ, and be negative."""
    weights = np.array([[0, 2, 0, 0, 0], [1, 0, -0.5, 3, 0], [0, 0, 0, 0, 0]], np.float32)
    t = jnp.int32(20)

    eps = jax.jit(lambda labels: apply(x, jnp.full(3, t), jnp.tile(labels, (3, 1))))
    alone, each = eps(jnp.zeros(5)), [eps(jnp.eye(5)[k]) for k in range(5)]
    for most in (3, 5):
        out = jax.jit(lambda x: denoisers.composed(apply, S, jnp.asarray(weights), most)(x, t).eps)(x)  # noqa: B023
        for i, row in enumerate(weights):
            wanted = alone[i] + sum(w * (each[k][i] - alone[i]) for k, w in enumerate(row))
            np.testing.assert_allclose(out[i], wanted, atol=1e-5)


def test_lists_to_choose_by_and_to_test_on_have_nothing_in_common():
    tested = np.concatenate([scenes.test_labels(), scenes.new_test_labels()])
    chosen, unseen, seen = scenes.validation_labels(), scenes.unseen_pairs(), scenes.seen_pairs()
    assert sorted(chosen.sum(1)) == sorted(scenes.test_labels().sum(1)) and len(np.unique(chosen, axis=0)) == 32
    assert not (chosen[:, None] == tested[None]).all(2).any()
    for pairs in (unseen, seen):
        assert (pairs.sum(1) == 2).all() and (pairs.sum(0) == 1).all()  # every object once
        both = [np.flatnonzero(row) for row in pairs]
        assert all(a // 8 != b // 8 and a % 8 != b % 8 for a, b in both)
    assert (seen @ unseen.T < 2).all()
    assert (np.concatenate([tested, chosen]) @ unseen.T < 2).all(), "a held-out pair is in no other list"


def test_pictures_with_a_combination_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "NUM_PICTURES", {"train": 3000, "test": 8})
    monkeypatch.setattr(scenes, "render", lambda labels, rng: np.zeros((len(labels), 2, 2, 3), np.uint8))
    every = data.load("scenes", "train", tmp_path)
    kept = training_data.without(every, (PAIR, "gray cube"))
    names = [{scenes.OBJECTS[k] for k in np.flatnonzero(row)} for row in kept.labels]
    assert not any({"red cube", "blue sphere"} <= shown or "gray cube" in shown for shown in names)
    assert any("red cube" in shown for shown in names) and any("blue sphere" in shown for shown in names)
    wanted = sum(not ({"red cube", "blue sphere"} <= shown or "gray cube" in shown) for shown in
                 ({scenes.OBJECTS[k] for k in np.flatnonzero(row)} for row in every.labels))
    assert len(kept.images) == len(names) == wanted < 3000
    assert training_data.without(every, ()) is every
    for groups, line in [(("red kube",), "--without.*did you mean 'red cube'"), (("",), "unknown label ''"),
                         (("red cube,red cube",), "given twice"), (scenes.OBJECTS, "leaves no pictures")]:
        with pytest.raises(UserError, match=line) as raised:
            training_data.without(every, groups)
        assert len(str(raised.value).splitlines()) == 1
    with pytest.raises(UserError, match="do not have several labels"):
        training_data.without(data.Dataset(every.images, np.zeros(3000, np.int32), ("a",), "mnist"), (PAIR,))


TINY = ["--network.width", "8", "--network.multipliers", "1", "--network.attention-size", "0", "--steps", "4",
        "--batch-size", "8", "--image-size", "16", "--chunk", "1", "--schedule.num-steps", "20",
        "--sampler.num-steps", "2", "--sample-every", "0"]
TILE = 5 * (16 + 2)  # pixels from one picture of a grid to the next: small ones are magnified


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """`python train.py scenes`, tiny, whose every checkpoint is kept, also by a resumed run that does not say so."""
    folder = tmp_path_factory.mktemp("conditional")
    where = ["--data-dir", str(folder / "data"), "--workdir", str(folder / "run")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "NUM_PICTURES", {"train": 60, "test": 8})
        cli.train_main(["scenes", *TINY, "--without", PAIR, "--keep-every", "1", *where])
        cli.train_main(["--resume", "--steps", "5", "--chunk", "1", "--sample-every", "0", *where])
    return folder / "run"


@pytest.fixture
def judge(monkeypatch):
    """One that has learnt nothing stands in for those that are shipped."""
    def load(name):
        count, shape = (24, (16, 16, 3)) if name == "scenes" else (10, (16, 16, 1))
        network = ResNet18(count, (2, 2, 2, 2))
        variables = initial_variables(network, jax.random.key(0), jnp.zeros((1, *shape)))
        return judges.Judge(name, network, variables, 0.5, shape, tuple(map(str, range(count))), name == "scenes")

    monkeypatch.setattr(judges, "load_judge", load)


def test_every_kept_checkpoint_is_scored_once(run, judge, capsys, monkeypatch):
    assert checkpoints.steps(run / "checkpoints") == [1, 2, 3, 4, 5]
    args = ["label-accuracy", str(run), "--lists", "validation", "test", "--seeds", "2", "--num-steps", "2"]
    main(args)
    table, path = capsys.readouterr().out, run / "accuracy.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 5 * 2 * 2 and {row["labels"] for row in rows} == {72}
    assert all(row["accuracy"] * 72 == pytest.approx(round(row["accuracy"] * 72)) for row in rows)
    assert "| 5 |" in table and "Chosen by the validation list: step" in table and "2 seeds" in table
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + '\n{"step": 5, "li')  # killed while writing
    drawn, draw = [], model_module.draw
    monkeypatch.setattr(label_accuracy, "draw", lambda *args, **options: drawn.append(1) or draw(*args, **options))
    main(args)
    assert len(drawn) == 1 and capsys.readouterr().out == table
    main([*args[:-4], "--seeds", "1", "--steps", "2", "--num-steps", "2"])
    assert len(drawn) == 1 and "| 5 |" not in capsys.readouterr().out
    main(["label-accuracy", str(run), "--lists", "unseen", "seen", "--seeds", "1", "--steps", "3", "--compose"])
    assert [row["labels"] for row in map(json.loads, path.read_text().splitlines())][-2:] == [2, 24]


def test_a_disturbed_run_is_scored_as_far_as_it_can_be_read(run, judge, tmp_path, capfd):
    """A kill while a checkpoint was deleted, and one while metrics.jsonl was written."""
    broken = tmp_path / "run"
    shutil.copytree(run, broken, ignore=shutil.ignore_patterns("accuracy.jsonl", ".owner"))
    whole = json.loads((broken / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    for path in sorted((broken / "checkpoints" / "2" / "weights").rglob("*"), reverse=True)[:-1]:
        path.unlink() if path.is_file() else path.rmdir()
    for path in (broken / "checkpoints" / "3" / "weights").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:100])
    args = ["label-accuracy", str(broken), "--lists", "validation", "--seeds", "1", "--num-steps", "2"]
    main(args)
    text = capfd.readouterr()
    assert "| 1 |" in text.out and f"| {whole} |" in text.out and "| 2 |" not in text.out
    assert "skipped: " in text.out and "checkpoints/3" in text.out and "Traceback" not in text.err
    assert len(text.out.splitlines()) < 15 and len(text.err.splitlines()) < 5
    with pytest.raises(SystemExit) as stopped:  # it is an error if just that one is wanted
        main([*args, "--steps", "3"])
    assert stopped.value.code == 2 and "checkpoints/3" in capfd.readouterr().err


def test_a_full_disk_is_one_line(run, judge, tmp_path, capsys):
    """A limit on the size of files stands for a full disk."""
    full = tmp_path / "run"
    shutil.copytree(run, full, ignore=shutil.ignore_patterns("accuracy.jsonl", ".owner"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50, limits[1]))
        with pytest.raises(SystemExit) as stopped:
            main(["label-accuracy", str(full), "--lists", "validation", "--seeds", "1", "--num-steps", "2"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert stopped.value.code == 2
    assert f"error: cannot write {full / 'accuracy.jsonl'}: File too large" in capsys.readouterr().err.splitlines()
    assert (full / "accuracy.jsonl").read_text() == ""


def test_the_validation_list_chooses_alone():
    rows = [{"step": step, "list": name, "seed": seed, "accuracy": value}
            for step, values in {10: (0.5, 0.9), 20: (0.7, 0.1), 30: (0.6, 0.3)}.items()
            for name, value in zip(("validation", "test"), values) for seed in (0, 1)]
    text = label_accuracy.table(rows, {10: 0.25}, ["validation", "test"])
    assert "step 20, validation 0.700 (0.000), test 0.100 (0.000)" in text
    assert "| 10 | 0.25000 | 0.500 (0.000) | 0.900 (0.000) |" in text
    assert "| mean (sd over checkpoints) | | 0.600 (0.100) | 0.433 (0.416) |" in text


@pytest.mark.parametrize("args, words", [
    (["--lists", "tests"], "no list 'tests'.*validation, test, new_test, unseen, seen"),
    (["--steps", "7"], "no checkpoint of step 7.*1, 2, 3, 4"), (["--num-steps", "21"], "1 to 20"),
    (["--sampler", "fast"], "unknown sampler"),
    (["--seeds", "0"], "--seeds must be at least 1"), (["--evaluator", "nothing.pth"], "nothing.pth")])
def test_what_cannot_be_scored_is_refused(run, judge, capsys, args, words):
    before = (run / "accuracy.jsonl").read_text() if (run / "accuracy.jsonl").exists() else None
    with pytest.raises(SystemExit) as stopped:
        main(["label-accuracy", str(run), *args])
    text = capsys.readouterr().err
    assert stopped.value.code == 2 and len(text.splitlines()) == 1
    assert re.search(words, text), text
    assert before == ((run / "accuracy.jsonl").read_text() if (run / "accuracy.jsonl").exists() else None)


def test_sampling_with_strips_and_a_grid_of_weights(run, judge, tmp_path, capsys):
    labels = ["red sphere,cyan cylinder,cyan cube", "gray cube"]
    cli.sample_main([str(run), "--labels", *labels, "--guidance", "2", "--count", "3", "--num-steps", "9", "--strip",
                     "--guidance-grid", "0", "1", "4", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "accuracy.json").read_text())
    assert record["labels"] == 3 + 1 + 3 and record["pictures"] == 3 and record["judge"] == "scenes"
    assert f"accuracy {record['accuracy']:.4f} of 7 labels" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "strips").iterdir()) == ["000.png", "001.png", "002.png"]
    assert Image.open(tmp_path / "strips" / "000.png").size == (10 * TILE + 10, TILE + 10)  # 10 frames in one row
    grid = np.asarray(Image.open(tmp_path / "guidance.png"))
    assert grid.shape == (3 * TILE + 10, 2 * TILE + 10, 3)  # weights down, different labels across
    grid = grid[::5, ::5]
    model = model_module.load_run(run)
    vectors = np.load(tmp_path / "samples.npz")["labels"][:2]
    for i, weight in enumerate((0.0, 1.0, 4.0)):
        wanted = model_module.draw(model, SamplerConfig(num_steps=9, guidance=weight), 2, 0, vectors).images
        for j in range(2):
            shown = grid[2 + 18 * i : 18 + 18 * i, 2 + 18 * j : 18 + 18 * j]
            assert np.abs(shown.astype(int) - wanted[j]).max() <= 1


def test_composition_from_the_command_line(run, judge, tmp_path):
    def pictures(name, *args):
        cli.sample_main([str(run), "--count", "2", "--out", str(tmp_path / name), *args])
        return np.load(tmp_path / name / "samples.npz")["images"].astype(int)

    one, three = ["--labels", "red sphere", "gray cube"], ["--labels", "red sphere,gray cube,cyan cube"]
    np.testing.assert_allclose(pictures("a", *one, "--guidance", "2"), pictures("b", *one, "--guidance", "2",
                                                                               "--compose"), atol=1)
    pictures("c", *three, "--guidance", "2", "--compose")


def test_a_label_file_is_scored(run, judge, tmp_path, capsys):
    file = tmp_path / "test.json"
    file.write_text(json.dumps([["red sphere"], ["cyan cube", "blue sphere"]] * 5))
    cli.sample_main([str(run), "--label-file", str(file), "--out", str(tmp_path / "out")])
    assert "of 15 labels" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "accuracy.json").read_text())["pictures"] == 10
    assert Image.open(tmp_path / "out" / "grid.png").size == (8 * TILE + 10, 2 * TILE + 10)
    ask = SimpleNamespace(label_file=Path("new_test"))
    assert (labels_module.asked_labels(ask, saved.load(run / "config.json")[2]) == scenes.new_test_labels()).all()


@pytest.mark.parametrize("args, words", [
    (["--labels", "red sphere,red sphere"], "names a label twice"), (["--labels", "red sphare"], "not a label"),
    (["--labels", "red sphere,"], "not a label"), (["--strip", "--num-steps", "6"], "at least 7")])
def test_labels_that_cannot_be_drawn(run, capsys, args, words):
    with pytest.raises(SystemExit) as stopped:
        cli.sample_main([str(run), *args])
    text = capsys.readouterr().err
    assert stopped.value.code == 2 and words in text and len(text.splitlines()) == 1


def test_a_model_with_one_label_a_picture_is_scored_by_class(judge):
    config = replace(PRESETS["unet"][1], network=UNet(8, (1,), attention_size=0), schedule=ScheduleConfig("cosine", 20))
    facts = Facts((16, 16, 1), tuple("0123456789"))
    network = builders.make_network(config.network, facts, 20)
    shapes = jnp.zeros((1, 16, 16, 1)), jnp.ones(1, jnp.int32), jnp.zeros(1, jnp.int32)
    model = model_module.Model(config, facts, network, initial_variables(network, jax.random.key(0), *shapes))
    labels = label_accuracy.lists_of(config, facts, None)["classes"]
    assert np.bincount(labels).tolist() == [10] * 10
    judge_of_it = label_accuracy.judge_of_model(config, facts, None)
    found = label_accuracy.score_list(model, judge_of_it, SamplerConfig(num_steps=1), labels, 0)
    assert found["labels"] == found["pictures"] == 100 and 0 <= found["accuracy"] <= 1
    how = SamplerOptions(guidance=2.0)
    ask = SimpleNamespace(labels=(), count=4, how=how, label_file=None, guidance_grid=())
    assert labels_module.asked_labels(ask, facts).tolist() == [0, 1, 2, 3]
    for wrong, words in (({"how": SamplerOptions(compose=True)}, "--compose needs"),
                         ({"label_file": "x.json"}, "--label-file")):
        with pytest.raises(UserError, match=words):
            labels_module.asked_labels(SimpleNamespace(**vars(ask) | wrong), facts)
    with pytest.raises(UserError, match="without labels"):
        label_accuracy.lists_of(config, replace(facts, label_names=()), None)
    with pytest.raises(UserError, match="--evaluator"):
        label_accuracy.judge_of_model(replace(config, data="iclevr"), facts, None)


def test_a_run_of_an_experiment_is_found_again(run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = saved.load(run / "config.json")[1]
    with monkeypatch.context() as patch:
        patch.setattr(train, "train_model", lambda config, options, preset: options.workdir.mkdir(parents=True))
        workdir = labelled_runs.trained_run(config, 1)
    workdir.rmdir()
    shutil.copytree(run, workdir)
    monkeypatch.setattr(train, "train_model", None)
    assert labelled_runs.trained_run(config, 1) == workdir
    with pytest.raises(TypeError):
        labelled_runs.trained_run(replace(config, seed=1), 1)


def test_rows_change_one_thing_at_a_time():
    rows = {row.name: row.setting for row in conditional.RUNS}
    size = conditional.REPORT.sizes["full"]
    base = conditional.report_config(rows[conditional.BASE], size, 0)
    changes = {name: len(saved.differences(base, conditional.report_config(setting, size, 0)))
               for name, setting in rows.items()}
    assert list(changes.values()) == [0, 1, 1, 1, 2, 1, 2]
    assert base.network.width == 128 and base.batch_size == 128 and base.optimizer.learning_rate == 1e-4
    assert base.steps == 400 * (18_009 // 128) and base.label_drop == 0


@pytest.mark.parametrize("row, printed", [(conditional.BASE, (0.5556, 0.6190)), (conditional.BOTH, (0.4861, 0.4881)),
                                          ("GELU, linear betas, 600 epochs", (0.625, 0.6904762))])
def test_printed_accuracies_are_whole_numbers_of_labels(row, printed):
    """Of the 72 and 84 labels of iCLEVR's lists: REFERENCE.md 5.5."""
    paper = next(r.paper for r in conditional.RUNS if r.name == row)
    np.testing.assert_allclose((paper["test"], paper["new"]), printed, atol=5e-5)
