"""Samplers against exact solutions: Gaussian data, textbook loops, their own limits and orders."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dipddpm_jax.diffusion import denoisers, samplers, schedules
from dipddpm_jax.types import Prediction

SCHEDULE = schedules.linear(200, 1e-4, 0.06)
DENOISE = denoisers.gaussian_data(SCHEDULE, mean=0.7, std=0.3)
GRID = schedules.strided_grid
SAMPLERS = {
    "ancestral, beta": partial(samplers.ancestral, variance="beta"),
    "ancestral, posterior": partial(samplers.ancestral, variance="posterior"),
    "ddim, eta 0": samplers.ddim,
    "ddim, eta 1": partial(samplers.ddim, eta=1.0),
    "heun": samplers.heun,
    "dpmpp_2m": samplers.dpmpp_2m,
    "unipc": samplers.unipc,
    "deis": samplers.deis,
}


def draws(count, shape=(1, 1, 1), seed=0):
    return samplers.gaussian_noise(jax.random.split(jax.random.key(seed), count), shape)


@pytest.mark.parametrize("name, steps", [*zip(SAMPLERS, [200, 200, 50, 200, 25, 25, 25, 25])])
def test_the_exact_denoiser_gives_the_data_distribution(name, steps):
    noise = draws(4096)
    x = SAMPLERS[name](DENOISE, SCHEDULE, noise(200), GRID(200, steps), noise).x
    np.testing.assert_allclose(x.mean(), 0.7, atol=0.03)
    np.testing.assert_allclose(x.std(), 0.3, atol=0.03)


def test_ddim_with_eta_1_is_ancestral_with_the_posterior_variance():
    noise = draws(16)
    a, b = (SAMPLERS[name](DENOISE, SCHEDULE, noise(200), GRID(200, 40), noise).x
            for name in ("ddim, eta 1", "ancestral, posterior"))
    np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("name, order", [("ddim, eta 0", 1), ("heun", 2), ("dpmpp_2m", 2), ("unipc", 3),
                                         ("deis", 3)])
def test_deterministic_samplers_converge_at_their_order(name, order):
    """Gaussian data in float64: the probability flow maps x_T to mean + (x_T - a mean) std / sqrt(a^2 std^2 + s^2)."""
    with jax.enable_x64(True):
        schedule = schedules.cosine(4096)
        denoise = denoisers.gaussian_data(schedule, 0.7, 0.3)
        start, end = 3600, 400  # inner times: the ends have steps of their own
        x = jnp.linspace(-2, 2, 5).reshape(5, 1, 1, 1)

        def spread(t):
            return np.sqrt(schedule.alpha_bars[t] * 0.3**2 + 1 - schedule.alpha_bars[t])

        a, b = np.sqrt(schedule.alpha_bars[[start, end]])
        exact = b * 0.7 + (x - a * 0.7) * spread(end) / spread(start)
        errors = []
        for n in (60, 120, 240) if order == 3 else (40, 80, 160):  # past deis's first transitions, which have no past
            grid = np.append([start, start - 1, start - 2], GRID(start - 3, n, end)).astype(np.int32)
            errors.append(float(jnp.abs(SAMPLERS[name](denoise, schedule, x, grid, draws(5)).x - exact).max()))
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all(np.abs(rates - order) < 0.35), (errors, rates)


def test_deis_is_exact_for_an_eps_that_is_a_polynomial_in_time():
    """Of x / signal, the integral of eps d sigma: over each time, where sigma is taken as linear, by Simpson's rule."""
    with jax.enable_x64(True):
        def eps(t):
            return 0.3 - 0.02 * t + 0.0003 * t**2

        schedule, x = schedules.linear(100, 1e-4, 0.06), jnp.full((1, 1, 1, 1), 0.8)
        sigma = np.sqrt((1 - schedule.alpha_bars) / schedule.alpha_bars)
        grid = np.array([90, 89, 88, 70, 40, 13, 0])  # the first two transitions, of degrees 0 and 1, end at time 88
        out = samplers.deis(lambda x, t: Prediction(x, jnp.full_like(x, eps(t))), schedule, x, grid, jnp.zeros_like)
        middle = float(out.path[1, 0, 0, 0, 0]) / np.sqrt(schedule.alpha_bars[88])
        u = np.arange(88)
        integral = (np.diff(sigma)[:88] * (eps(u) + 4 * eps(u + 0.5) + eps(u + 1)) / 6).sum()
        np.testing.assert_allclose(float(out.x[0, 0, 0, 0]), middle - integral, atol=1e-12)


def test_one_transition_of_any_deterministic_sampler_is_the_clean_picture_that_it_believes_in():
    noise = draws(3)
    wanted = DENOISE(noise(200), jnp.int32(200)).x0
    for name in ("ddim, eta 0", "heun", "dpmpp_2m", "unipc", "deis"):
        np.testing.assert_allclose(SAMPLERS[name](DENOISE, SCHEDULE, noise(200), GRID(200, 1), noise).x, wanted,
                                   atol=1e-5)


def test_starting_in_the_middle_equals_the_tail_of_the_full_chain():
    noise = draws(4, (2, 2, 1))
    full = samplers.ancestral(DENOISE, SCHEDULE, noise(200), GRID(200, 200), noise)
    tail = samplers.ancestral(DENOISE, SCHEDULE, full.path[99], GRID(100, 100), noise)
    np.testing.assert_allclose(tail.x, full.x, atol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_image_does_not_depend_on_its_batch(name):
    keys = jax.random.split(jax.random.key(0), 8)

    def sample(keys):
        noise = samplers.gaussian_noise(keys, (4, 4, 1))
        return SAMPLERS[name](DENOISE, SCHEDULE, noise(200), GRID(200, 20), noise).x

    np.testing.assert_allclose(sample(keys), jnp.concatenate([sample(keys[:4]), sample(keys[4:])]), atol=1e-6)


def test_1000_ancestral_steps_equal_a_float64_textbook_loop():
    """Algorithm 2 as the PyTorch references write it: 0-based arrays, sigma^2 = beta, replayed noise."""
    rng, steps = np.random.default_rng(0), 1000
    betas = np.linspace(1e-4, 0.02, steps)
    alphas, bars = 1 - betas, np.cumprod(1 - betas)
    noise, x = rng.normal(size=(steps + 1, 2, 3, 3, 1)), rng.normal(size=(2, 3, 3, 1))
    y = x.copy()
    for t in range(steps)[::-1]:
        eps = np.sqrt(1 - bars[t]) * (y - np.sqrt(bars[t]) * 0.7) / (bars[t] * 0.3**2 + 1 - bars[t])
        y = (y - (1 - alphas[t]) / np.sqrt(1 - bars[t]) * eps) / np.sqrt(alphas[t])
        y = y + np.sqrt(betas[t]) * noise[t] * (t > 0)
    schedule = schedules.linear(steps)
    ours = samplers.ancestral(denoisers.gaussian_data(schedule, 0.7, 0.3), schedule, jnp.float32(x), GRID(steps, steps),
                              samplers.recorded_noise(jnp.float32(noise))).x
    np.testing.assert_allclose(ours, y, atol=5e-6)


def test_the_path_holds_every_transition_and_ends_in_the_sample():
    noise = draws(2)
    for sampler in SAMPLERS.values():
        sample = sampler(DENOISE, SCHEDULE, noise(200), GRID(200, 7), noise)
        assert sample.path.shape == (7, 2, 1, 1, 1)
        np.testing.assert_allclose(sample.path[-1], sample.x, atol=1e-6)


@pytest.mark.parametrize("grid", [[5], [5, 5, 0], [3, 7], [201, 0]])
def test_grids_that_do_not_decrease_within_the_schedule_are_refused(grid):
    with pytest.raises(ValueError, match="must decrease"):
        samplers.ddim(DENOISE, SCHEDULE, jnp.zeros((1, 1, 1, 1)), np.array(grid), draws(1))
