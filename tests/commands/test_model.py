"""A trained model as a value: its denoiser in any sampler, a user's own code, and pictures that are not numbers."""
import inspect
import re
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dipddpm_jax.commands import builders
from dipddpm_jax.commands.model import Model, NotFinite, draw
from dipddpm_jax.config import ranges
from dipddpm_jax.config.diffusion import SCHEDULES, ScheduleConfig, TrainConfig
from dipddpm_jax.config.presets import PRESETS
from dipddpm_jax.config.sampler import SAMPLERS, Sampler, SamplerConfig, SamplerOptions, chosen_sampler
from dipddpm_jax.config.saved import Facts
from dipddpm_jax.diffusion import denoisers, samplers, schedules, spacings
from dipddpm_jax.errors import UserError

OWN = """
from dipddpm_jax.diffusion import samplers, schedules

def same(denoise, schedule, x, grid, noise, eta=0.0):
    return samplers.ddim(denoise, schedule, x, grid, noise, eta=eta)

def table(num_steps):
    return schedules.cosine(num_steps)

def rising(num_steps):
    return schedules.cosine(num_steps)._replace(alpha_bars=schedules.cosine(num_steps).alpha_bars[::-1])
"""


class Line(nn.Module):
    """v = slope x + the class's own shift; NaN where the shift is."""

    @nn.compact
    def __call__(self, x, t, labels=None, train=False):
        slope, shifts = self.param("slope", nn.initializers.zeros, ()), self.param("shifts", nn.initializers.ones, (4,))
        shift = 0.0 if labels is None else jnp.where(labels < 0, 0, shifts[labels])[:, None, None, None]
        return slope * x + shift


def model_of(slope=0.2, shifts=(0.0, 0.1, 0.2, 0.3), **changes):
    config = replace(TrainConfig(schedule=ScheduleConfig("cosine", 100)), **changes)
    weights = {"params": {"slope": jnp.float32(slope), "shifts": jnp.asarray(shifts, jnp.float32)}}
    return Model(config, Facts((4, 4, 1), tuple("abcd")), Line(), weights)


def test_a_models_denoiser_goes_into_any_sampler_and_draws_what_the_command_draws():
    model, labels = model_of(), np.arange(4)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(4))
    noise = samplers.gaussian_noise(keys, model.facts.image_shape)
    grid = spacings.karras(model.schedule, 8)
    sample = samplers.heun(model.denoiser(labels, guidance=1.5), model.schedule, noise(100), grid, noise)
    drawn = draw(model, SamplerConfig("heun", 8, guidance=1.5), 4, 0, labels)
    assert np.abs(np.asarray(model.pixels.decode(sample.x), int) - drawn.images).max() <= 1
    x, t = noise(3), jnp.int32(40)
    plain = denoisers.from_network(model.apply, model.schedule, "v", jnp.asarray(labels))(x, t)
    np.testing.assert_allclose(model.denoiser(labels)(x, t).x0, plain.x0, atol=1e-6)
    np.testing.assert_allclose(model.apply(x, 40), model.apply(x, jnp.full(4, 40), -np.ones(4, int)), atol=1e-6)


def test_what_a_models_denoiser_refuses():
    model = model_of()
    with pytest.raises(UserError, match="guidance needs labels"):
        model.denoiser(guidance=1.0)
    with pytest.raises(UserError, match="got nan"):
        model.denoiser(np.arange(4), guidance=float("nan"))
    with pytest.raises(UserError, match="without labels"):
        model._replace(facts=Facts((4, 4, 1))).denoiser(np.arange(4))


@pytest.mark.parametrize("slope, shifts, words", [
    (0.2, (0.0, 0.1, np.nan, 0.3), "picture 2 .and 1 more of its batch.*1 of the 2 arrays of weights"),
    (np.inf, (0.0, 0.1, 0.2, 0.3), "picture 0 .and 5 more of its batch.*1 of the 2 arrays of weights"),
    (1e38, (0.0, 0.1, 0.2, 0.3), "picture 0.*the weights are finite"),
])
def test_pictures_that_are_not_numbers_are_an_error_that_says_which(slope, shifts, words):
    labels = np.arange(7, dtype=np.int32) % 4
    with pytest.raises(NotFinite, match=words):
        draw(model_of(slope, shifts), SamplerConfig(num_steps=5), 7, 0, labels, batch_size=7 if slope == 0.2 else 6)


def test_frames_are_evenly_spread_over_the_chain_from_noise_to_the_picture():
    model, labels = model_of(), np.arange(3, dtype=np.int32)
    every = draw(model, SamplerConfig("ddim", 12), 3, 0, labels, num_frames=12).frames
    some = draw(model, SamplerConfig("ddim", 12), 3, 0, labels, num_frames=3)
    assert every.shape[0] == 13 and some.frames.shape[0] == 4
    np.testing.assert_array_equal(some.frames, every[[0, 1, 7, 12]])
    np.testing.assert_array_equal(some.frames[-1], some.images)


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("mine", None)


def test_a_sampler_and_a_schedule_of_ones_own_are_named_by_module_and_function(own):
    labels = np.arange(4, dtype=np.int32)
    theirs = draw(model_of(), SamplerConfig("ddim", 6, eta=1.0), 4, 0, labels, num_frames=2)
    model = model_of(schedule=ScheduleConfig("mine:table", 100))
    ours = draw(model, SamplerConfig("mine:same", 6, eta=1.0), 4, 0, labels, num_frames=2)
    np.testing.assert_array_equal(ours.images, theirs.images)
    np.testing.assert_array_equal(ours.frames, theirs.frames)


@pytest.mark.parametrize("config, words", [
    ({"sampler": SamplerConfig("nowhere:f")}, "--sampler nowhere:f: there is no module nowhere"),
    ({"sampler": SamplerConfig("mine:other")}, "mine has no function 'other'; it has same, table, rising"),
    ({"sampler": SamplerConfig("broken:f")}, "importing broken failed with ZeroDivisionError"),
    ({"sampler": SamplerConfig("mine:same", variance="posterior")}, "--variance does nothing"),
    ({"schedule": ScheduleConfig("mine:rising")}, "must return a NoiseSchedule whose alpha_bars fall"),
    ({"schedule": ScheduleConfig("mine:other")}, "--schedule.name mine:other"),
])
def test_code_that_cannot_be_had_is_refused_before_anything_is_written(own, config, words):
    with pytest.raises(UserError, match=words) as error:
        builders.check_names(replace(TrainConfig(), **config))
    assert len(str(error.value).splitlines()) == 1


def test_configurations_know_their_functions():
    """A sampler is its function and its row, a schedule likewise: two files each."""
    for name, row in SAMPLERS.items():
        if name != "random_passes":
            names = list(inspect.signature(getattr(samplers, name)).parameters)
            assert names[:6] == ["denoise", "schedule", "x", "grid", "noise", "keep"]
            assert set(names[6:]) == set(row.options)
            assert hasattr(spacings, row.spacing)
    for name, fields in SCHEDULES.items():
        c = ScheduleConfig(name, 400)
        assert getattr(schedules, name)(400, *(getattr(c, field) for field in fields)).num_steps == 400


def test_a_new_sampler_or_schedule_is_a_function_and_a_row(monkeypatch):
    monkeypatch.setattr(samplers, "again", samplers.ddim, raising=False)
    monkeypatch.setitem(SAMPLERS, "again", Sampler(("eta",), 7, "karras"))
    monkeypatch.setattr(schedules, "flat", lambda steps, beta: schedules.linear(steps, beta, beta), raising=False)
    monkeypatch.setitem(SCHEDULES, "flat", ("first_beta",))
    config = replace(TrainConfig(), schedule=ScheduleConfig("flat", 500, first_beta=0.02))
    ranges.check(config)
    sampler = chosen_sampler(config.sampler, SamplerOptions("again", eta=0.5), 500)
    schedule = builders.make_schedule(config.schedule)
    made = builders.make_sampler(sampler)
    assert (made.func, made.keywords) == (samplers.ddim, {"eta": 0.5})
    np.testing.assert_array_equal(builders.sampling_grid(sampler, schedule), spacings.karras(schedule, 7))


@pytest.mark.parametrize("schedule, target, words", [
    (ScheduleConfig("linear", 100, beta_steps=None), "v", ["60% of the signal left"]),
    (ScheduleConfig("linear", 100), "eps", []),
    (ScheduleConfig("cosine"), "v", []),
    (ScheduleConfig("cosine"), "eps", ["begins at time 996 of 1000.*160 times.*at 1000 it is 20291 times"]),
    (ScheduleConfig("linear_at_zero", 400), "eps", ["13% of the signal left"]),
])
def test_what_is_said_of_a_schedule_when_a_run_begins(schedule, target, words):
    said = builders.remarks(builders.make_schedule(schedule), target)
    assert len(said) == len(words)
    for line, pattern in zip(said, words):
        assert len(line.splitlines()) == 1
        assert re.search(pattern, line)


def test_the_reference_presets_keep_their_tables():
    for name, last in (("attention-unet", 0.01), ("small-unet", 0.02)):
        ours = builders.make_schedule(PRESETS[name][1].schedule)
        np.testing.assert_array_equal(ours.betas, np.linspace(1e-4, last, 1000))
    for name in ("context-unet", "teapearce"):
        np.testing.assert_array_equal(builders.make_schedule(PRESETS[name][1].schedule).alpha_bars,
                                      schedules.linear_at_zero(400).alpha_bars)


def test_two_commands_at_once_take_folders_of_their_own(tmp_path):
    from dipddpm_jax.commands.sample import _made

    wanted = tmp_path / "run" / "drawn-001"
    assert [_made(wanted, False).name for _ in range(3)] == ["drawn-001", "drawn-002", "drawn-003"]
    assert _made(wanted, True) == wanted
