"""Pretrained priors: they draw what is asked for, training goes on from them, and their page is that of their cards."""
import json
import shlex
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dipddpm_jax
from benchmarks import priors
from benchmarks.places import REPO
from dipddpm_jax import pretrained
from dipddpm_jax.commands import cli, evaluate, starts
from dipddpm_jax.commands import train as training_command
from dipddpm_jax.commands.model import draw, load_run
from dipddpm_jax.commands.train import Training
from dipddpm_jax.commands.training_data import load_training_data
from dipddpm_jax.config import saved
from dipddpm_jax.config.diffusion import OptimizerConfig, RunOptions, ScheduleConfig, TrainConfig, UNet
from dipddpm_jax.config.presets import PRESETS
from dipddpm_jax.config.sampler import SamplerConfig
from dipddpm_jax.data import scenes
from dipddpm_jax.data.photographs import photograph
from dipddpm_jax.data.pictures import read_picture, write_picture
from dipddpm_jax.errors import UserError
from dipddpm_jax.inverse import operators
from dipddpm_jax.judging import judges
from dipddpm_jax.torch_files import read_state


@pytest.fixture(scope="module", autouse=True)
def quiet():
    """Compilation caches and devices are as the tests have them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dipddpm_jax.devices.set_up", lambda run=None: None)
        yield


LABELLED = [name for name in pretrained.PRIORS if pretrained.configuration_of_prior(name)[1].label_names]


@pytest.mark.parametrize("name", LABELLED)
def test_a_prior_draws_what_it_is_asked_for(name):
    """Of 60 pictures at chance 0.1, 45 right ones have probability 1e-32; their cards promise more than 0.9. Of several
    objects a picture 65 are asked for, and chance is less."""
    model = dipddpm_jax.load_prior(name)
    labels = scenes.test_labels() if model.facts.multi_hot else np.arange(60, dtype=np.int32) % 10
    few = model.config.few_step is not None  # such a model has one way to draw
    sampler = model.config.sampler if few else SamplerConfig(num_steps=8, guidance=1.0)
    drawn = draw(model, sampler, len(labels), 0, labels, batch_size=len(labels))
    assert drawn.images.shape == (len(labels), *model.facts.image_shape)
    assert judges.accuracy(judges.judge_for(model.config.data), drawn.images, labels) > 0.75


@pytest.mark.parametrize("name", pretrained.PRIORS)
def test_a_prior_is_small_and_says_how_it_was_made(name):
    path, card = pretrained.path_of_prior(name), pretrained.card_of_prior(name)
    assert path.stat().st_size <= pretrained.MOST_BYTES and path.stat().st_mode & 0o044 == 0o044
    assert (REPO / "docs" / "priors" / f"{name}.png").is_file()
    config, facts = pretrained.configuration_of_prior(name)
    assert facts.count == card["pictures"] and config.start is None
    assert sum(v.size for v in read_state(path).values()) == card["parameters"]
    if facts.label_names:
        assert card["judged"]["label_accuracy"] > (0.8 if facts.multi_hot else 0.9)
        assert set(card["judged"]["label_accuracies"]) == set(facts.label_names)
    else:
        assert all(row["turned"] > row["restored"] > row["non-local means"] + 1
                   for row in card["judged"]["denoised"].values())
    for command in card["commands"]:
        assert command.startswith("python train.py") and "/" not in command.replace("MODULE:", "")


def test_the_prior_of_photographs_denoises_a_picture_of_any_size(tmp_path, monkeypatch, capsys):
    """A part of a photograph that it was not trained on (the right fifth), of an odd size."""
    monkeypatch.chdir(tmp_path)
    clean = photograph("coffee")[100:153, -75:]
    noisy = np.clip(clean + np.random.default_rng(0).normal(0, 25, clean.shape), 0, 255).round().astype(np.uint8)
    write_picture(tmp_path / "noisy.png", noisy.astype(np.float32) / 255)
    cli.sample_main(["--prior", "photos", "--restore", "noisy.png", "--sigma", "25"])
    assert "one-step-turned: the mean of eight" in capsys.readouterr().out  # what auto is for this prior
    (file,) = tmp_path.glob("runs/*/restored.png")
    restored = read_picture(file)
    before, after = (np.mean(np.square(x.astype(float) - clean)) for x in (noisy, restored))
    assert restored.shape == clean.shape and after < before / 5  # 7 dB


@pytest.mark.parametrize("words, method", [((), "plug-and-play: one call in each"),
                                           (("--calls", "2", "--samples", "2"), "weighted: PiGDM")])
def test_the_prior_of_photographs_sharpens(tmp_path, monkeypatch, capsys, words, method):
    """In turns with the measurement, or by chains, whose spread is kept, where some are asked for."""
    monkeypatch.chdir(tmp_path)
    clean = photograph("coffee")[100:140, -64:].mean(-1, keepdims=True).astype(np.float32) / 255
    write_picture(tmp_path / "blurred.png", np.asarray(operators.blur(40, 64, 1.6).forward(jnp.asarray(clean))))
    cli.sample_main(["--prior", "photos-grey", "--restore", "blurred.png", "--task", "deblur", "--blur", "1.6", *words])
    assert method in capsys.readouterr().out
    (file,) = tmp_path.glob("runs/*/restored.png")
    before, after = (np.mean((read_picture(tmp_path / name).reshape(40, 64, -1).mean(-1) / 255 - clean[..., 0]) ** 2)
                     for name in ("blurred.png", file))
    assert words or after < 0.5 * before


def test_the_prior_of_photographs_fills_holes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    clean = photograph("coffee")[100:140, -64:].mean(-1, keepdims=True).astype(np.float32) / 255
    known = np.random.default_rng(0).uniform(size=clean.shape) < 0.5
    write_picture(tmp_path / "holes.png", clean * known)
    write_picture(tmp_path / "mask.png", known.astype(np.float32))
    cli.sample_main(["--prior", "photos-grey", "--restore", "holes.png", "--task", "inpaint", "--mask", "mask.png",
                     "--calls", "10", "--samples", "2"])
    assert "weighted: PiGDM" in capsys.readouterr().out  # what auto is for this prior
    (file,) = tmp_path.glob("runs/*/restored.png")
    restored = read_picture(file).astype(np.float32).reshape(*clean.shape[:2], -1).mean(-1, keepdims=True) / 255
    assert np.mean((restored - clean)[~known] ** 2) < np.var(clean) / 3


def test_the_page_of_priors_is_that_of_their_cards():
    assert (REPO / "docs" / "priors.md").read_text() == priors.page()


def test_sampling_from_a_prior_needs_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cli.sample_main(["--prior", "digits", "--labels", "3", "7", "--count", "2", "--num-steps", "2"])
    assert "drawn-001/grid.png: 2 pictures from the prior digits" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"drawn-001"}
    with np.load("drawn-001/samples.npz") as file:
        np.testing.assert_array_equal(file["labels"], [3, 7])
    assert json.loads((tmp_path / "drawn-001" / "command.json").read_text())["weights"] == "the prior digits"


TINY = TrainConfig(UNet(width=8, multipliers=(1,), attention_size=0), ScheduleConfig(num_steps=20),
                   OptimizerConfig(decay="constant"), SamplerConfig(num_steps=2), batch_size=4, image_size=8, steps=2)


def test_training_goes_on_from_a_run(tmp_path, fast_compilation_of_one):
    """A rate of almost 0 leaves the weights, and their average, as the first run's average was."""
    pictures = np.random.default_rng(0).random((10, 8, 8)).astype(np.float32)
    run = RunOptions(sample_every=0, devices=1)
    first = dipddpm_jax.train(pictures, np.arange(10) % 2, TINY, workdir=tmp_path / "first", run=run)
    still = replace(TINY, start=str(first), optimizer=OptimizerConfig(learning_rate=1e-30), seed=1)
    model = load_run(dipddpm_jax.train(pictures, np.arange(10) % 2, still, workdir=tmp_path / "second", run=run))
    assert model.config.start == str(first)
    for a, b in zip(jax.tree.leaves(model.weights), jax.tree.leaves(load_run(first).weights), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)


def test_the_options_of_a_run_from_a_prior_are_the_priors(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(training_command, "train_model", lambda *given: asked.append(given) or ("a_run", "a_picture"))
    cli.train_main(["--from", "digits", "--data", "mnist5k", "--steps", "7"])
    prior = pretrained.configuration_of_prior("digits")[0]
    (config, _, name), = asked
    assert (config, name) == (replace(prior, start="digits", data="mnist5k", steps=7), "digits")
    cli.train_main(["small-unet", "--from", "digits"])  # a preset that is named stays
    assert asked[1][0] == replace(PRESETS["small-unet"][1], start="digits")


@pytest.mark.parametrize("name", [n for n in pretrained.PRIORS if "few-step" not in
                                  pretrained.card_of_prior(n)["commands"][-1]])
def test_the_commands_on_a_card_end_at_its_configuration(name, monkeypatch, tmp_path):
    """A later command goes on from RUN, the run of the one before."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN").mkdir()

    def train(config, *others):
        saved.save(config, "a_preset", pretrained.configuration_of_prior(name)[1], tmp_path / "RUN" / "config.json")
        return "a_run", "a_picture"

    monkeypatch.setattr(training_command, "train_model", train)
    for command in pretrained.card_of_prior(name)["commands"]:
        cli.train_main(shlex.split(command)[2:])
    asked = saved.load(tmp_path / "RUN" / "config.json")[1]
    assert replace(asked, start=None) == pretrained.configuration_of_prior(name)[0]


def test_a_card_says_no_to_what_a_preset_has_on():
    config = replace(PRESETS["scenes"][1], labels=False, network=UNet(width=48), sampler=SamplerConfig(clip=True))
    words = priors.options(config, PRESETS["scenes"][1])
    assert {"--no-labels", "--network.no-label-attention", "--sampler.clip"} <= set(words)
    assert not {"True", "False"} & set(words)


def test_a_training_state_begins_with_the_prior(tmp_path):
    model = starts.load_prior("digits")
    config = replace(model.config, start="digits", data="mnist5k", batch_size=2)
    given = load_training_data(config, None)
    start = starts.starting_variables(config, model.network, given.facts)
    state = Training(config, RunOptions(devices=1), tmp_path, given, start).state
    for tree in (state.params, state.ema_params, start["params"]):
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(model.weights["params"]), strict=True):
            assert a.dtype == jnp.float32
            np.testing.assert_array_equal(a, b)
    assert int(state.step) == 0


@pytest.mark.parametrize("main, args, words", [
    (cli.sample_main, ["--prior", "digit"], ["unknown prior 'digit'", "did you mean digits"]),
    (cli.sample_main, ["--prior", "digits", "--step", "5"], ["--prior stands in place of a run"]),
    (cli.sample_main, ["a_run", "--prior", "digits"], ["--prior stands in place of a run"]),
    (cli.sample_main, ["--prior", "digits", "--labels", "eleven"], ["'eleven' is not a label of this model"]),
    (evaluate.evaluate_main, ["--prior", "digits", "--samples", "x.npz"], ["--prior stands in place of a run"]),
    (cli.train_main, ["--from", "digit"], ["--from digit: did you mean digits", "no directory of a run"]),
    (cli.train_main, ["--from", "digits", "--data", "mnist5k", "--network.width", "16"],
     ["--from digits does not fit: --network.width (32 before, 16 now)"]),
    (cli.train_main, ["--from", "digits", "--data", "mnist5k", "--no-labels"],
     ["--from digits does not fit: labels (10 before, 0 now)"]),
    (cli.train_main, ["small-unet", "--from", "digits", "--data", "mnist5k"],
     ["its network is UNet, this run's is SmallUNet"]),
    (cli.train_main, ["--from", "other.safetensors"], ["--from other.safetensors", "dipddpm-jax export"]),
])
def test_what_is_refused(main, args, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(SystemExit) as stopped:
        main(args)
    text = capsys.readouterr().err
    assert stopped.value.code == 2 and len(text.strip().splitlines()) <= 2
    for word in words:
        assert word in text, text
    assert {path.name for path in tmp_path.iterdir()} == {"other.safetensors"}


def test_weights_of_another_shape_do_not_fit():
    model = starts.load_prior("digits")
    other = saved.Facts((28, 28, 3), model.facts.label_names)
    config = replace(model.config, start="digits")
    network = training_command.builders.make_network(config.network, other, config.schedule.num_steps)
    with pytest.raises(UserError, match=r"channels \(1 before, 3 now\)"):
        starts.starting_variables(config, network, other)
