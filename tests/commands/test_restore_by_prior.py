"""sample.py --restore: what it writes, that it restores as the exact posterior does, and what it refuses."""
import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image as Pillow

from dipddpm_jax import memory
from dipddpm_jax.commands import cli, fit_cost, restore_by_prior, sample
from dipddpm_jax.commands.model import Model
from dipddpm_jax.config import saved
from dipddpm_jax.config.diffusion import FewStep, ScheduleConfig, TrainConfig
from dipddpm_jax.config.presets import PRESETS
from dipddpm_jax.config.restore_by_prior import RestoreOptions, checked_restoring, chosen_method, refuse_other_options
from dipddpm_jax.config.saved import Facts
from dipddpm_jax.diffusion import schedules
from dipddpm_jax.dip import crossfit
from dipddpm_jax.errors import UserError
from dipddpm_jax.hybrids import estimate_start
from dipddpm_jax.networks import ConvStack

SIDE, MEAN, DEVIATION = 12, 0.5, 0.2  # the prior N(0.5, 0.2^2) of every pixel
NETWORK_DEVIATION = DEVIATION / 0.5


class Shrinking(nn.Module):
    """The exact x0 of N(0, v^2) in the network's units, as a network that was trained for x0; the bias has a size."""

    @nn.compact
    def __call__(self, x, t, labels=None, train=False):
        bias = self.param("bias", nn.initializers.zeros, (SIDE, SIDE, 1))
        bars = jnp.asarray(schedules.cosine(100).alpha_bars, jnp.float32)[t][:, None, None, None]
        v2 = NETWORK_DEVIATION**2
        return jnp.sqrt(bars) * v2 / (bars * v2 + 1 - bars) * x + bias[None]


@pytest.fixture
def model():
    config = TrainConfig(schedule=ScheduleConfig("cosine", 100), target="x0")
    return Model(config, Facts((SIDE, SIDE, 1)), Shrinking(), {"params": {"bias": jnp.zeros((SIDE, SIDE, 1))}}, 7)


@pytest.fixture
def noisy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).normal(127, 60, (SIDE, SIDE)).clip(0, 255).round().astype(np.uint8)
    Pillow.fromarray(pixels).save("noisy.png")
    return pixels


@pytest.fixture
def run(tmp_path, model, monkeypatch):
    (tmp_path / "run").mkdir()
    saved.save(PRESETS["unet"][1], "unet", model.facts, tmp_path / "run" / "config.json")
    monkeypatch.setattr(sample, "load_run", lambda workdir, step: model)
    return "run"


def test_denoising_in_one_step_shrinks_towards_the_mean(noisy, run, capsys):
    cli.sample_main([run, "--restore", "noisy.png", "--sigma", "40", "--method", "one-step", "--out", "out"])
    bars, sigma = schedules.cosine(100).alpha_bars, 40 / 255
    nearest = np.argmin(np.abs(np.log(np.sqrt(1 / bars[1:] - 1) / (sigma / 0.5)))) + 1
    level = 0.5 * np.sqrt(1 / bars[nearest] - 1)
    wanted = MEAN + DEVIATION**2 / (DEVIATION**2 + level**2) * (noisy / 255 - MEAN)
    found = np.asarray(Pillow.open("out/restored.png")) / 255
    np.testing.assert_allclose(found, wanted, atol=0.6 / 255)
    report = json.loads(open("out/results.json").read())
    assert report["pictures"][0]["calls"] == 1 and report["prior"] == "step 7 of run"
    assert "one-step" in capsys.readouterr().out
    with pytest.raises(UserError, match="no run"):
        saved.newest_run()  # what it wrote is no run to draw from
    with pytest.raises(SystemExit, match="2"):
        cli.sample_main(["out", "--restore", "noisy.png"])
    assert "a restoration by a diffusion prior" in capsys.readouterr().err


def test_inpainting_keeps_what_is_known_and_says_how_unsure_it_is(noisy, run):
    known = np.zeros((SIDE, SIDE), np.uint8)
    known[:, : SIDE // 2] = 255
    Pillow.fromarray(known).save("mask.png")
    cli.sample_main([run, "--restore", "noisy.png", "--task", "inpaint", "--mask", "mask.png", "--sigma", "1",
                     "--calls", "10", "--samples", "16", "--out", "out"])
    found = np.asarray(Pillow.open("out/restored.png")).astype(float)
    left, right = np.split(np.abs(found - noisy), 2, 1)
    assert left.max() <= 2 and right.max() > 30
    report = json.loads(open("out/results.json").read())["pictures"][0]
    assert report["calls"] == 160 and report["uncertainty"]["white"] > 0.15  # 0.2, the prior's
    for name in ("measurement", "restored", "uncertainty", "comparison"):
        assert Pillow.open(f"out/{name}.png").size[1] >= SIDE


@pytest.mark.parametrize("method, words", [
    ("adapted", ["--calls", "4", "--samples", "2"]), ("learned-start", ["--samples", "2"]), ("educated-start", []),
    ("self-diffusion", []), ("cross-fit-start", ["--calls", "4", "--samples", "2"])])
def test_methods_that_learn_from_the_picture_restore_it(noisy, run, monkeypatch, method, words):
    """White noise of 60 about the mean: whatever they learn, the picture must come nearer to it."""
    fits = crossfit.cross_fitted(lambda channels: crossfit.a_fit(lambda c: ConvStack((16,), c), channels), 3, 100)
    monkeypatch.setattr(estimate_start, "cross_fitted", lambda: fits)
    cli.sample_main([run, "--restore", "noisy.png", "--sigma", "60", "--method", method, "--out", "out", *words])
    report = json.loads(open("out/results.json").read())
    assert report["method"].startswith(method) and report["pictures"][0]["steps"] > 0
    found = np.asarray(Pillow.open("out/restored.png")).astype(float)
    assert 5 < found.std() < 0.8 * noisy.std() and abs(found.mean() - noisy.mean()) < 15


def test_a_share_of_the_measurement_is_mixed_back_in(noisy, run):
    for blend in ("0", "0.5"):
        cli.sample_main([run, "--restore", "noisy.png", "--sigma", "40", "--method", "truncated", "--blend", blend,
                         "--calls", "3", "--samples", "4", "--out", f"out{blend}"])
    alone, mixed = (np.asarray(Pillow.open(f"out{blend}/restored.png"), float) for blend in ("0", "0.5"))
    np.testing.assert_allclose(mixed, (alone + noisy) / 2, atol=1.01)
    spread, less = (json.loads(open(f"out{blend}/results.json").read())["pictures"][0]["uncertainty"]["mean"]
                    for blend in ("0", "0.5"))
    assert abs(less / spread - 0.5) < 1e-5


@pytest.mark.parametrize("words, said", [
    (["--method", "one-step"], "restoring a picture of 12x12 pixels by this prior would need about"),
    (["--method", "matched", "--samples", "3"], "of 12x12 pixels by this prior in 3 chains would need"),
])
def test_what_would_not_fit_into_memory_is_refused(noisy, run, capsys, monkeypatch, words, said):
    monkeypatch.setattr(memory, "host_memory", lambda: 600)
    with pytest.raises(SystemExit, match="2"):
        cli.sample_main([run, "--restore", "noisy.png", "--sigma", "40", "--out", "out", *words])
    error = capsys.readouterr().err
    assert said in error and "there are 600 bytes here; " in error and ("--samples" in error) == ("3" in words), error


def test_fits_that_would_not_fit_into_memory_are_refused(noisy, run, capsys, monkeypatch):
    monkeypatch.setattr(memory, "host_memory", lambda: 5_000_000)
    monkeypatch.setattr(fit_cost, "HELD_PIXELS", 0)
    with pytest.raises(SystemExit, match="2"):
        cli.sample_main([run, "--restore", "noisy.png", "--sigma", "40", "--out", "out", "--method", "cross-fit-start"])
    assert "10 fits of 12x12 pixels at once" in capsys.readouterr().err


@pytest.mark.parametrize("words, said", [
    (["--task", "inpaint"], "--task inpaint needs --mask"),
    (["--task", "superres"], "--task superres needs --factor"),
    (["--task", "deblur"], "--task deblur needs --blur"),
    (["--factor", "2"], "--factor is for --task superres"),
    (["--task", "deblur", "--blur", "1", "--method", "truncated"], "truncated can only denoise"),
    (["--method", "plug-and-play"], "plug-and-play sharpens and enlarges; for --task denoise"),
    (["--task", "deblur", "--blur", "1", "--method", "cross-fit-start"], "where the picture itself was measured"),
    (["--method", "dsp"], "did you mean dps"),
    (["--sigma", "0.01"], "out of reach"),
    (["--task", "superres", "--factor", "2"], "24x24 pixels"),
    (["--task", "superres", "--factor", "0"], "--factor must lie between 2"),
    (["--task", "deblur", "--blur", "0"], "--blur must lie between"),
    (["--gif"], "--gif does nothing with --restore"),
    (["--num-steps", "3"], "--num-steps does nothing with --restore"),
    (["--method", "one-step", "--calls", "9"], "--calls does nothing with --method one-step"),
    (["--method", "educated-start", "--samples", "9"], "--samples does nothing with --method educated-start"),
    (["--method", "learned-start", "--calls", "9"], "--calls does nothing with --method learned-start"),
    (["--samples", "0"], "--samples 1 to 1000"),
])
def test_what_is_refused_is_said_in_a_line(noisy, run, capsys, words, said):
    with pytest.raises(SystemExit, match="2"):
        cli.sample_main([run, "--restore", "noisy.png", "--out", "out", *words])
    error = capsys.readouterr().err
    assert said in error and error.count("\n") <= 2, error


def test_other_channels_and_options_of_restoring_alone_are_refused(model):
    with pytest.raises(UserError, match="the channels must be equal"):
        restore_by_prior.check_fit(model, (SIDE, SIDE, 3))
    assert restore_by_prior.check_fit(model, (SIDE, SIDE, 1)) == 1
    with pytest.raises(UserError, match="a few-step model is not"):
        model._replace(config=replace(model.config, few_step=FewStep())).prior()
    with pytest.raises(UserError, match="--task belongs to --restore"):
        refuse_other_options(RestoreOptions(task="deblur"), {})


class Halving(nn.Module):
    """x0 = 0.5 + half of x_t, for sides that are multiples of 8 and no others."""

    @nn.compact
    def __call__(self, x, t, labels=None, train=False):
        if x.shape[1] % 8 or x.shape[2] % 8:
            raise UserError("no multiple of 8")
        return 0.5 + self.param("gain", nn.initializers.constant(0.5), ()) * x


def test_pictures_of_any_size_are_padded_to_what_the_network_takes(model):
    model = model._replace(network=Halving(), weights={"params": {"gain": jnp.asarray(0.5)}})
    assert restore_by_prior.check_fit(model, (16, 24, 1)) == 1
    assert restore_by_prior.check_fit(model, (13, 17, 1)) == 8
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 13, 17, 1)), jnp.float32)
    prior = model.prior(multiple=8)
    for denoise in (prior.denoise, prior.weights().denoiser(model.weights["params"])):
        np.testing.assert_allclose(denoise(x, jnp.asarray(5)).x0, 0.5 + 0.5 * x, rtol=1e-6)
        assert denoise(x, jnp.asarray(5)).eps.shape == x.shape
    with pytest.raises(UserError, match="its network cannot take them"):
        restore_by_prior.check_fit(model, (3, 17, 1))  # too few pixels to mirror


def test_auto_is_a_method_that_can_do_the_task():
    assert chosen_method(RestoreOptions("a.png")) == "truncated"
    assert chosen_method(RestoreOptions("a.png", "inpaint")) == "matched"
    assert checked_restoring(RestoreOptions("a.png", "superres", factor=2), 3).seed == 3
