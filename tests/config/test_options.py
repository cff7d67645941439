"""What a command may be asked for: numbers that are numbers, options that do something, old runs as they were."""
import dataclasses
import json

import numpy as np
import pytest

from dipddpm_jax.commands import cli
from dipddpm_jax.config import ranges, saved
from dipddpm_jax.config.diffusion import OptimizerConfig, RunOptions, ScheduleConfig, TrainConfig, UNet
from dipddpm_jax.config.presets import PRESETS
from dipddpm_jax.config.sampler import SamplerConfig, SamplerOptions, chosen_sampler
from dipddpm_jax.config.saved import Facts
from dipddpm_jax.errors import UserError

OWN = SamplerConfig("dpmpp_2m", num_steps=50, guidance=2.0)


def test_naming_the_configured_sampler_changes_nothing():
    assert chosen_sampler(OWN, SamplerOptions("dpmpp_2m"), 1000) == OWN
    assert chosen_sampler(OWN, SamplerOptions(), 1000) == OWN
    spaced = dataclasses.replace(OWN, spacing="karras")
    assert chosen_sampler(spaced, SamplerOptions("dpmpp_2m"), 1000) == spaced
    other = chosen_sampler(spaced, SamplerOptions("heun"), 1000)
    assert other == SamplerConfig("heun", guidance=2.0) and other.num_steps is None


@pytest.mark.parametrize("given, words", [
    (SamplerOptions(eta=0.5), "--eta does nothing with the sampler dpmpp_2m: it belongs to ddim"),
    (SamplerOptions(eta=0.0), "--eta does nothing"),
    (SamplerOptions("ddim", variance="beta"), "--variance does nothing with the sampler ddim"),
    (SamplerOptions("random_passes", guidance=1.0), "--guidance does nothing with the sampler random_passes"),
    (SamplerOptions(guidance=float("nan")), "guidance must be a number"),
    (SamplerOptions(guidance=float("inf")), "guidance must be a number"),
    (SamplerOptions(guidance=1e30), "between -1000 and 1000; got 1e[+]30"),
    (SamplerOptions("ddim", eta=float("nan")), "eta must lie between 0 and 1"),
    (SamplerOptions("huen"), "unknown sampler 'huen': did you mean heun"),
    (SamplerOptions(spacing="karas"), "unknown spacing 'karas': did you mean karras"),
    (SamplerOptions("ancestral", variance="huge"), "unknown variance 'huge'"),
    (SamplerOptions(num_steps=1001), "--num-steps must be 1 to 1000"),
])
def test_options_of_a_sampler_that_do_nothing_or_are_no_numbers_are_refused(given, words):
    with pytest.raises(UserError, match=words):
        chosen_sampler(OWN, given, 1000)


def test_options_of_a_sampler_that_does_something_are_taken():
    assert chosen_sampler(OWN, SamplerOptions("ddim", eta=0.5), 1000).eta == 0.5
    assert chosen_sampler(OWN, SamplerOptions("mine:sampler", eta=0.5), 1000).name == "mine:sampler"


@pytest.mark.parametrize("changes, words", [
    ({"pixel_std": 0.0}, "--pixel-std must be 0.001 to 1000 .0.5 suits"),
    ({"pixel_std": float("nan")}, "--pixel-std must be a finite number"),
    ({"pixel_mean": 1e30}, "--pixel-mean must be -1000 to 1000"),
    ({"pixel_mean": float("inf")}, "--pixel-mean must be a finite number"),
    ({"label_drop": float("nan")}, "--label-drop must be a finite number"),
    ({"optimizer": OptimizerConfig(learning_rate=1e30)}, "--optimizer.learning-rate"),
    ({"optimizer": OptimizerConfig(weight_decay=float("nan"))}, "--optimizer.weight-decay must be a finite number"),
    ({"optimizer": OptimizerConfig(clip_norm=-1.0)}, "--optimizer.clip-norm must be above 0"),
    ({"schedule": ScheduleConfig("cosin")}, "unknown schedule 'cosin': did you mean cosine"),
    ({"schedule": ScheduleConfig(last_beta=float("nan"))}, "--schedule.last-beta must be a finite number"),
    ({"sampler": SamplerConfig(guidance=float("nan"))}, "--sampler.guidance must be a finite number"),
    ({"shift": 65}, "--shift must be 0 to 64 pixels"),
    ({"weighting": "min-snr", "target": "autoencode"}, "--weighting min-snr weighs noise levels"),
])
def test_numbers_that_no_run_can_have(changes, words):
    with pytest.raises(UserError, match=words):
        ranges.check(dataclasses.replace(TrainConfig(), **changes))


def test_a_budget_that_is_no_number():
    with pytest.raises(UserError, match="--budget must be a finite number"):
        ranges.check(TrainConfig(), RunOptions(budget=float("inf")))


@pytest.mark.parametrize("preset, args, words", [
    ("unet", ["--sampler.eta", "0.5"], "--sampler.eta does nothing with the sampler dpmpp_2m"),
    ("unet", ["--schedule.last-beta", "0.01"], "--schedule.last-beta does nothing with the schedule cosine"),
    ("teapearce", ["--schedule.beta-steps", "10"], "--schedule.beta-steps does nothing"),
    ("unet", ["--optimizer.weight-decay", "0.1"], "does nothing without --optimizer.name adamw"),
    ("unet", ["--optimizer.decay-every", "10"], "does nothing without --optimizer.decay step"),
])
def test_options_of_training_that_do_nothing_are_refused(preset, args, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.train_main([preset, *args])
    text = capsys.readouterr().err
    assert stopped.value.code == 2 and words in text and len(text.splitlines()) == 1


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_sound(preset):
    config = PRESETS[preset][1]
    ranges.check(config)
    ranges.check_typed(config, config)


def test_an_old_configuration_keeps_its_table(tmp_path):
    from dipddpm_jax.commands.builders import make_schedule

    path = tmp_path / "config.json"
    saved.save(TrainConfig(schedule=ScheduleConfig("linear", 100)), "unet", Facts((4, 4, 1)), path)
    assert saved.load(path)[1].schedule.beta_steps == 1000
    record = json.loads(path.read_text())
    del record["config"]["schedule"]["beta_steps"], record["config"]["sampler"]["spacing"]
    path.write_text(json.dumps(record))
    np.testing.assert_array_equal(make_schedule(saved.load(path)[1].schedule).betas, np.linspace(1e-4, 0.02, 100))


def test_pictures_are_not_written_among_a_users_own(tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "pictures"
    run.mkdir()
    out.mkdir()
    (out / "grid.png").write_bytes(b"mine")
    saved.save(TrainConfig(), "unet", Facts((4, 4, 1)), run / "config.json")
    with pytest.raises(SystemExit) as stopped:
        cli.sample_main([str(run), "--out", str(out)])
    assert stopped.value.code == 2 and "is not empty" in capsys.readouterr().err
    assert [path.read_bytes() for path in out.iterdir()] == [b"mine"]
    with pytest.raises(SystemExit) as stopped:
        cli.sample_main([str(run), "--guidance-grid", "1", "nan"])
    assert stopped.value.code == 2 and "guidance must be a number" in capsys.readouterr().err


def test_what_old_versions_scored_and_trained_is_found_again():
    """The identities of a run in the cache, and of a row in accuracy.jsonl, without the fields that are new."""
    from dipddpm_jax.experiments import labelled_runs

    config = dataclasses.replace(PRESETS["scenes"][1], network=UNet())
    found = labelled_runs._identity(config)
    old = saved.to_json(config)
    del old["sampler"]["spacing"], old["schedule"]["beta_steps"], old["network"]["label_attention"]
    del old["start"], old["weighting"], old["mirror"], old["shift"]
    assert found == old
    for changed in (dict(weighting="min-snr"), dict(mirror=True), dict(shift=2),
                    dict(network=UNet(label_attention=True))):
        record = saved.to_json(dataclasses.replace(config, **changed))
        assert labelled_runs._identity(dataclasses.replace(config, **changed)) == {
            **old, **{name: record[name] for name in changed}}
    assert labelled_runs._identity(dataclasses.replace(config, start="digits"))["start"] == "digits"
    spaced = dataclasses.replace(config, sampler=SamplerConfig(spacing="karras"))
    assert labelled_runs._identity(spaced)["sampler"]["spacing"] == "karras"
    short = dataclasses.replace(config, schedule=ScheduleConfig("linear", 100))
    assert labelled_runs._identity(short)["schedule"]["beta_steps"] == 1000
