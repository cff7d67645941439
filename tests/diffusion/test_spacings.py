"""Spacings of a grid, and every sampler on every preset's schedule from its end, against exact solutions."""
from functools import partial
from math import erf

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dipddpm_jax.commands import builders
from dipddpm_jax.config.diffusion import ScheduleConfig
from dipddpm_jax.config.presets import PRESETS
from dipddpm_jax.config.sampler import SAMPLERS, SPACINGS, SamplerConfig
from dipddpm_jax.diffusion import denoisers, samplers, schedules, spacings
from dipddpm_jax.types import Prediction

CONFIGS = {config.schedule: None for _, config in PRESETS.values()} | {  # four different ones
    ScheduleConfig(name): None for name in ("flow", "lognormal")}
SCHEDULES = {f"{c.name} {c.num_steps} {c.last_beta}": builders.make_schedule(c) for c in CONFIGS}
# Two sets of data, as mixtures of two Gaussians: N(0.3, 0.5^2), and two modes.
WEIGHTS = np.array([[0.5, 0.5], [0.3, 0.7]])
MEANS = np.array([[0.3, 0.3], [-0.8, 0.5]])
STDS = np.array([[0.5, 0.5], [0.15, 0.3]])
QUANTILES = np.linspace(-2, 2, 21)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("name", SPACINGS)
def test_grids_fall_from_the_start_to_0_for_every_number_of_steps(name, schedule):
    start = spacings.start_time(schedule)
    for count in (1, 2, 5, 25, 200, start):
        grid = getattr(spacings, name)(schedule, count)
        assert (len(grid), grid[0], grid[-1]) == (count + 1, start, 0) and np.all(np.diff(grid) < 0)
    np.testing.assert_array_equal(grid, np.arange(start, -1, -1))
    with pytest.raises(ValueError, match="do not fit"):
        getattr(spacings, name)(schedule, start + 1)


def test_spacings_are_even_in_what_they_say():
    """Each time is the nearest whole one to what Karras et al. 2022, eq. 5, and an even log SNR ask for."""
    schedule = schedules.linear(20_000, beta_steps=1000)
    levels = np.log(spacings.sigmas(schedule)[1:])
    first, last = np.exp(levels[[-1, 0]])
    np.testing.assert_array_equal(spacings.even_time(schedule, 10), np.arange(20_000, -1, -2000))
    for name, wanted in (("even_log_snr", first * (last / first) ** (np.arange(12) / 11)),
                         ("karras", np.linspace(first ** (1 / 7), last ** (1 / 7), 12) ** 7)):
        times = getattr(spacings, name)(schedule, 12)[:-1]
        gaps = np.append(np.diff(levels), 0)[times - 1] + np.insert(np.diff(levels), 0, 0)[times - 1]
        assert np.all(np.abs(levels[times - 1] - np.log(wanted)) <= gaps + 1e-9), name


def test_chains_start_where_noise_is_at_most_200_times_the_signal():
    for schedule in SCHEDULES.values():
        start, sigma = spacings.start_time(schedule), spacings.sigmas(schedule)
        assert sigma[start] <= 200 and (start == schedule.num_steps or sigma[start + 1] > 200)
    assert spacings.start_time(schedules.linear(1000)) == 1000  # Ho et al. 2020 start there
    assert spacings.start_time(schedules.cosine(20)) == 20  # the time before has 8 % of the signal


def noise(t):
    """Of 4096 pictures of one pixel."""
    return jax.random.normal(jax.random.fold_in(jax.random.key(0), t), (4096, 1, 1, 1))


def mixture(schedule):
    """The exact denoiser of both sets of data; rows of the batch are data sets x pictures."""
    def rows(values):
        return jnp.asarray(np.repeat(values, len(QUANTILES), 0)[:, None, None, None], jnp.float32)

    def denoise(x, t):
        a, s, x0, total = schedule.signal_scale(t), schedule.noise_scale(t), 0.0, 0.0
        for k in (0, 1):
            mean, var = rows(MEANS[:, k]), rows(STDS[:, k]) ** 2
            spread = a**2 * var + s**2
            weight = rows(WEIGHTS[:, k]) * jnp.exp(-0.5 * (x - a * mean) ** 2 / spread) / jnp.sqrt(spread) + 1e-30
            x0, total = x0 + weight * (mean + a * var / spread * (x - a * mean)), total + weight
        x0 = x0 / total
        return Prediction(x0, (x - a * x0) / s)

    return denoise


def exact(schedule, data):
    """Where the probability flow takes QUANTILES: in one dimension it keeps the cumulative distribution."""
    def cdf(x, a, s):
        deviations = np.sqrt(a**2 * STDS[data] ** 2 + s**2)
        below = np.vectorize(erf)((x[:, None] - a * MEANS[data]) / deviations / np.sqrt(2))
        return ((1 + below) / 2 * WEIGHTS[data]).sum(1)

    bar, clean = schedule.alpha_bars[spacings.start_time(schedule)], np.linspace(-3, 3, 4001)
    return np.interp(cdf(QUANTILES, np.sqrt(bar), np.sqrt(1 - bar)), cdf(clean, 1.0, 0.0), clean)


COUNTS = (5, 10, 25, None)
MOST = {  # largest mean error over the quantiles (deviations of the data: 0.5 and 0.65), with 5, 10, 25 and all steps
    # Five steps of heun are too few: its first one leaps from sigma 200 past the data, furthest on the flow's times.
    "ddim": (0.35, 0.2, 0.08, 0.005), "heun": (1.9, 0.2, 0.025, 0.001), "dpmpp_2m": (0.3, 0.1, 0.04, 0.001),
    "unipc": (0.3, 0.1, 0.04, 0.001), "deis": (0.3, 0.1, 0.04, 0.001)}


@pytest.fixture(scope="module")
def quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)  # chains of 42 numbers compile longer than they run
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize("name", MOST)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_samplers_follow_the_exact_flow_from_the_start(name, schedule, quick_compilation):
    x = jnp.asarray(np.tile(QUANTILES, 2).reshape(-1, 1, 1, 1), jnp.float32)
    grids = [builders.sampling_grid(SamplerConfig(name, count or schedule.num_steps), schedule) for count in COUNTS]

    @jax.jit
    def chains(x):
        return [getattr(samplers, name)(mixture(schedule), schedule, x, grid, jnp.zeros_like).x for grid in grids]

    wanted = np.concatenate([exact(schedule, data) for data in (0, 1)])
    errors = [np.abs(np.ravel(y) - wanted).reshape(2, -1).mean(1) for y in chains(x)]
    assert np.all(np.array(errors) <= np.array(MOST[name])[:, None]), errors


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_ancestral_chains_have_the_moments_of_the_data(schedule, quick_compilation):
    denoise = denoisers.gaussian_data(schedule, 0.3, 0.5)
    grids = [builders.sampling_grid(SamplerConfig("ancestral", count), schedule) for count in COUNTS]

    @jax.jit
    def chains(start):
        return [samplers.ancestral(denoise, schedule, start, grid, noise, variance=variance).x
                for variance in ("beta", "posterior") for grid in grids]

    found = np.array([(x.mean(), x.std()) for x in chains(noise(jnp.int32(0)))]).reshape(2, len(COUNTS), 2)
    left = np.sqrt(schedule.alpha_bars[spacings.start_time(schedule)])  # of the mean, which N(0, 1) does not have
    np.testing.assert_allclose(found[..., 0], 0.3, atol=0.03 + left * 0.3)
    for most, deviations in zip((0.27, 0.17, 0.1, 0.02), found[..., 1].T):  # few steps give too narrow a distribution
        np.testing.assert_allclose(deviations, 0.5, atol=most)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in (
    "random_passes", "consistency")])  # the second is for another kind of network
@pytest.mark.parametrize("schedule", [schedules.cosine(1000), schedules.linear(20_000)], ids=["cosine", "long"])
def test_a_network_for_eps_may_err_a_little(name, schedule, quick_compilation):
    """From the last time, where sigma is 20,291 (or float32 overflows), an error of 0.01 gave pure black and white."""
    mean, std = 0.3, 0.5

    def apply(x, t, labels):
        a, s = (scale(t)[:, None, None, None] for scale in (schedule.signal_scale, schedule.noise_scale))
        return s * (x - a * mean) / (a**2 * std**2 + s**2) + 0.01 * jnp.sin(40 * x)

    config = SamplerConfig(name, 50)
    grid = builders.sampling_grid(config, schedule)
    denoise = denoisers.from_network(apply, schedule, "eps")
    run = jax.jit(lambda x: builders.make_sampler(config)(denoise, schedule, x, grid, noise).x)
    x = np.asarray(run(noise(jnp.int32(0))))
    np.testing.assert_allclose((x.mean(), x.std()), (mean, std), atol=0.06)


def test_heun_refuses_a_start_without_signal():
    schedule, x = schedules.linear(20_000), jnp.zeros((1, 1, 1, 1))
    with pytest.raises(ValueError, match="no signal is left at time 20000"):
        samplers.heun(denoisers.gaussian_data(schedule, 0.0, 1.0), schedule, x, np.array([20_000, 0]))


def test_products_of_many_betas_stay_finite():
    schedule = schedules.linear(100_000)
    t = np.array([100_000, 50_000])
    np.testing.assert_allclose(schedule.alpha_between(t, t - 1), 1 - schedule.betas[t - 1], rtol=1e-9)


@pytest.mark.parametrize("num_steps", [2, 20, 100, 400, 5000])
def test_linear_betas_spread_over_any_number_of_steps_reach_the_same_noise(num_steps):
    paper = schedules.linear(1000)
    ours = schedules.linear(num_steps, beta_steps=1000)
    np.testing.assert_allclose(np.sqrt(ours.alpha_bars[-1]), np.sqrt(paper.alpha_bars[-1]), rtol=0.03)
    half = ours.alpha_bars[num_steps // 2]
    if num_steps >= 20:
        np.testing.assert_allclose(half, paper.alpha_bars[500], rtol=0.3 if num_steps == 20 else 0.06)
    np.testing.assert_array_equal(schedules.linear(1000, beta_steps=1000).alpha_bars, paper.alpha_bars)


@pytest.mark.parametrize("name, sampler", [(name, partial(getattr(samplers, name))) for name in (*MOST, "ancestral")])
def test_chosen_frames_are_those_of_the_whole_path_in_memory_that_does_not_grow(name, sampler):
    schedule = schedules.cosine(1000)
    denoise = denoisers.gaussian_data(schedule, 0.3, 0.5)
    noise = samplers.gaussian_noise(jax.random.split(jax.random.key(0), 2), (16, 16, 1))
    keep = np.array([0, 3, 9])

    def chain(x, steps, keep):
        return sampler(denoise, schedule, x, spacings.even_time(schedule, steps), noise, keep=keep)

    x = noise(jnp.int32(1000))
    whole, some = (jax.jit(partial(chain, steps=10, keep=kept))(x) for kept in (None, keep))
    np.testing.assert_allclose(some.path, whole.path[keep], atol=1e-6)
    np.testing.assert_allclose(some.x, whole.x, atol=1e-6)

    def needs(steps):
        memory = jax.jit(partial(chain, steps=steps, keep=keep)).lower(x).compile().memory_analysis()
        return memory.temp_size_in_bytes + memory.output_size_in_bytes

    picture = 2 * 16 * 16 * 4
    assert needs(900) - needs(10) < 20 * picture, (needs(900), needs(10))
