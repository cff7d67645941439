"""train.py few-step: a run made of a run, what it draws, how it goes on after a kill, and what is refused."""
import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dipddpm_jax import pretrained
from dipddpm_jax.checkpoints import Checkpoints, steps
from dipddpm_jax.commands import builders, cli, evaluate
from dipddpm_jax.commands import train as training_command
from dipddpm_jax.commands.model import draw, load_run
from dipddpm_jax.commands.training_data import load_training_data
from dipddpm_jax.config import saved
from dipddpm_jax.config.diffusion import FewStep, ScheduleConfig, TrainConfig, UNet
from dipddpm_jax.config.few_step import sampler_of
from dipddpm_jax.config.sampler import SamplerConfig, SamplerOptions
from dipddpm_jax.diffusion import spacings
from dipddpm_jax.errors import UserError
from dipddpm_jax.types import Prediction

TINY = TrainConfig(UNet(width=8, multipliers=(1,), attention_size=0), ScheduleConfig(num_steps=40),
                   sampler=SamplerConfig(num_steps=2, guidance=0.5), batch_size=4, steps=2)
RUN = ["--devices", "1", "--sample-every", "0", "--chunk", "2"]


@pytest.fixture(scope="module", autouse=True)
def quiet(fast_compilation):
    """Compilation caches and devices are as the tests have them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dipddpm_jax.devices.set_up", lambda run=None: None)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with pictures, a teacher that has learned nothing, and a model of two calls that was made from it."""
    folder = tmp_path_factory.mktemp("few")
    rng = np.random.default_rng(0)
    np.savez(folder / "data.npz", images=rng.integers(0, 255, (16, 8, 8, 1), np.uint8), labels=np.arange(16) % 3)
    np.savez(folder / "two.npz", images=rng.integers(0, 255, (16, 8, 8, 1), np.uint8), labels=np.arange(16) % 2)
    config, teacher = replace(TINY, data=str(folder / "data.npz")), folder / "teacher"
    facts = load_training_data(config, None).facts
    state = builders.make_state(config, builders.make_network(config.network, facts, 40), facts)
    with Checkpoints(teacher / "checkpoints") as kept:
        kept.add(2, training_command.checkpoint_items(state))
    saved.save(config, "unet", facts, teacher / "config.json")
    cli.train_main(["few-step", "--from", str(teacher), "--hops", "8", "--steps", "6", "--batch-size", "4",
                    "--save-every", "2", "--workdir", str(folder / "calls2"), *RUN])
    return folder


def of_one_call(model):
    """The same weights, as if they were made to draw in one."""
    return model._replace(config=replace(model.config, few_step=FewStep(1, 8, 0.5),
                                         sampler=SamplerConfig("consistency", num_steps=2)))


def leaves(workdir):
    return jax.tree.leaves(load_run(workdir).weights)


def test_a_teacher_of_pictures_without_labels_is_not_guided(runs, tmp_path):
    """Its sampler's guidance, which drawing leaves out, is none of the new run's either; and that draws."""
    np.savez(tmp_path / "plain.npz", images=np.random.default_rng(0).integers(0, 255, (8, 8, 8, 1), np.uint8))
    config = replace(TINY, data=str(tmp_path / "plain.npz"))
    facts = load_training_data(config, None).facts
    state = builders.make_state(config, builders.make_network(config.network, facts, 40), facts)
    with Checkpoints(tmp_path / "teacher" / "checkpoints") as kept:
        kept.add(2, training_command.checkpoint_items(state))
    saved.save(config, "unet", facts, tmp_path / "teacher" / "config.json")
    cli.train_main(["few-step", "--from", str(tmp_path / "teacher"), "--hops", "8", "--steps", "2", "--batch-size", "4",
                    "--workdir", str(tmp_path / "few"), *RUN])
    assert config.sampler.guidance and saved.load(tmp_path / "few" / "config.json")[1].few_step == FewStep(2, 8, 0.0)
    assert draw(load_run(tmp_path / "few"), SamplerConfig("consistency", num_steps=2), 1, 0, None).images.any()


def test_the_run_is_the_teachers_but_for_what_is_learned(runs):
    teacher, few = (saved.load(runs / name / "config.json")[1] for name in ("teacher", "calls2"))
    assert few.few_step == FewStep(2, 8, 0.5) and few.start == str(runs / "teacher") and teacher.few_step is None
    assert (few.network, few.schedule, few.target, few.data) == (
        teacher.network, teacher.schedule, teacher.target, teacher.data)
    assert few.sampler == SamplerConfig("ddim", num_steps=2)
    pairs = zip(leaves(runs / "teacher"), leaves(runs / "calls2"), strict=True)
    moved = [float(jnp.abs(a - b).max()) for a, b in pairs]
    assert 0 < max(moved) < 0.1
    rows = [json.loads(line) for line in (runs / "calls2" / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["loss"]) for row in rows if "loss" in row)
    assert (runs / "calls2" / "samples.png").is_file()


def test_a_killed_run_goes_on_without_its_teacher_and_ends_bitwise_equal(runs):
    whole, killed, teacher = runs / "calls2", runs / "killed", runs / "teacher"
    shutil.copytree(whole, killed)
    for step in steps(killed / "checkpoints"):
        if step > 4:
            shutil.rmtree(killed / "checkpoints" / str(step))
    teacher.rename(runs / "away")
    try:
        cli.train_main(["few-step", "--resume", "--workdir", str(killed), *RUN, "--save-every", "2"])
    finally:
        (runs / "away").rename(teacher)
    for a, b in zip(leaves(killed), leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_is_sampled_from_holds_no_teacher(runs):
    assert load_run(runs / "calls2").weights.keys() == load_run(runs / "teacher").weights.keys()


def test_a_picture_does_not_depend_on_its_batch(runs):
    model, labels = load_run(runs / "calls2"), np.arange(5, dtype=np.int32) % 3
    a, b = (draw(model, model.config.sampler, 5, 0, labels, batch_size=size).images.astype(int) for size in (2, 5))
    assert np.abs(a - b).max() <= 1 and len(np.unique(a)) > 10


def test_one_call_is_f_of_noise(runs):
    model, labels = of_one_call(load_run(runs / "calls2")), np.arange(3, dtype=np.int32)
    sampler = sampler_of(model.config, SamplerOptions(num_steps=1))
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(3))
    x = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 40), (8, 8, 1)))(keys)
    said: Prediction = model.denoiser(labels)(x, jnp.int32(spacings.start_time(model.schedule)))
    found = draw(model, sampler, 3, 0, labels).images
    assert np.abs(found.astype(int) - np.asarray(model.pixels.decode(said.x0)).astype(int)).max() <= 1


def test_samplers_of_a_few_step_model():
    prior = pretrained.configuration_of_prior("digits")[0]
    one, two = (TrainConfig(few_step=FewStep(calls), sampler=sampler) for calls, sampler in (
        (1, SamplerConfig("consistency", num_steps=2)), (2, SamplerConfig("ddim", num_steps=2))))
    assert sampler_of(one, SamplerOptions(num_steps=3)) == SamplerConfig("consistency", num_steps=3)
    assert sampler_of(one, SamplerOptions("ddim", num_steps=1)) == SamplerConfig("ddim", num_steps=1)
    assert sampler_of(two, SamplerOptions(guidance=0.0)) == two.sampler
    assert sampler_of(prior, SamplerOptions(num_steps=3)).num_steps == 3
    for config, asked, words in (
            (one, SamplerOptions("dpmpp_2m"), "draws by --sampler consistency"),
            (two, SamplerOptions(num_steps=3), "draws by --sampler ddim --num-steps 2"),
            (two, SamplerOptions("consistency"), "draws by --sampler ddim --num-steps 2"),
            (two, SamplerOptions(eta=0.5), "draws by --sampler ddim --num-steps 2"),
            (two, SamplerOptions(spacing="karras"), "draws by --sampler ddim --num-steps 2"),
            (two, SamplerOptions(guidance=1.0), "needs no --guidance")):
        with pytest.raises(UserError, match=words):
            sampler_of(config, asked)


def test_from_a_prior_the_pictures_that_are_installed_are_taken(monkeypatch):
    asked = []
    monkeypatch.setattr(training_command, "train_model", lambda *given: asked.append(given) or ("a_run", "a_picture"))
    cli.train_main(["few-step", "--from", "digits", "--calls", "1"])
    (config, _, name), = asked
    prior = pretrained.configuration_of_prior("digits")[0]
    assert (config.data, config.few_step, name) == ("mnist5k", FewStep(1, 16, prior.sampler.guidance), "few-step")
    assert config.sampler == SamplerConfig("consistency", num_steps=2)


def refused(main, args, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(args)
    text = capsys.readouterr().err
    assert stopped.value.code == 2 and len(text.strip().splitlines()) <= 2, text
    return text


@pytest.mark.parametrize("args, words", [
    ([], f"few-step needs --from: a prior ({', '.join(pretrained.PRIORS)}), a run's directory, or a file by"),
    (["--from", "digit"], "--from digit: did you mean digits"),
    (["--from", "RUNS/calls2"], "is a few-step model, from which no training starts: take the one that it was made"),
    (["--from", "RUNS/teacher", "--calls", "9", "--hops", "8"], "--calls 9 must be at least 1 and at most --hops"),
    (["--from", "RUNS/teacher", "--hops", "41"], "--hops 41 at most 40, the steps of the teacher's schedule"),
    (["--from", "RUNS/teacher", "--data", "RUNS/two.npz", "--batch-size", "4"],
     "does not fit: labels (3 before, 2 now)"),
    (["--from", "RUNS/empty", "--batch-size", "4"], "holds no checkpoints"),
    (["--from", "RUNS/restored"], "holds a restoration by a deep image prior"),
    (["--from", "RUNS/autoencoder"], "was trained to autoencode"),
    (["--from", "RUNS/teacher", "--guidance", "1e9"], "guidance must be a number between"),
])
def test_what_few_step_refuses(args, words, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "autoencoder"):
        (runs / name).mkdir(exist_ok=True)
        raw = json.loads((runs / "teacher" / "config.json").read_text())
        raw["config"]["target"] = "autoencode" if name == "autoencoder" else "v"
        (runs / name / "config.json").write_text(json.dumps(raw))
    (runs / "restored").mkdir(exist_ok=True)
    (runs / "restored" / "config.json").write_text(json.dumps({"dip": {}}))
    assert words in refused(cli.train_main, ["few-step", *(a.replace("RUNS", str(runs)) for a in args)], capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("main, args, words", [
    (cli.train_main, ["--from", "RUN"], "is a few-step model, from which no training starts"),
    (cli.sample_main, ["RUN", "--sampler", "unipc"], "draws by --sampler ddim --num-steps 2"),
    (cli.sample_main, ["RUN", "--guidance-grid", "0", "1"], "guidance of a few-step model is in its weights"),
    (cli.sample_main, ["RUN", "--restore", "picture.png"], "--restore needs a denoiser at every noise"),
    (evaluate.evaluate_main, ["RUN", "--num-steps", "10"], "draws by --sampler ddim --num-steps 2"),
])
def test_what_a_few_step_run_refuses(main, args, words, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert words in refused(main, [str(runs / "calls2") if a == "RUN" else a for a in args], capsys)
    assert not list(tmp_path.iterdir())
