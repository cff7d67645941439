"""Schedules, the forward process and its targets, and denoiser wrappers."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dipddpm_jax.diffusion import denoisers, forward, schedules

S = schedules.linear(50)


def test_schedules_start_clean_and_fall():
    for schedule in (S, schedules.cosine(50), schedules.linear(1000, 1e-4, 0.01)):
        assert schedule.alpha_bars[0] == 1 and np.all(np.diff(schedule.alpha_bars) < 0)
        assert schedule.alpha_bars.dtype == np.float64
        signal, noise = schedule.signal_scale(jnp.arange(5)), schedule.noise_scale(jnp.arange(5))
        np.testing.assert_allclose(signal**2 + noise**2, 1, atol=1e-6)


def test_published_values():
    np.testing.assert_allclose(schedules.linear(1000, 1e-4, 0.01).alpha_bars[1000], 0.00630, atol=1e-5)  # system 000
    for steps, bar in [(100, 0.897), (200, 0.659), (300, 0.396), (400, 0.195), (500, 0.0786), (1000, 4.0e-5)]:
        np.testing.assert_allclose(schedules.linear(1000).alpha_bars[steps], bar, rtol=0.02)  # system 001


def test_times_drawn_evenly_are_the_noise_of_flow_matching_and_of_edm():
    u = np.arange(1, 1000) / 1000
    sigma = np.sqrt(1 / schedules.flow(1000).alpha_bars[1:-1] - 1)
    np.testing.assert_allclose(sigma, u / (1 - u), rtol=1e-9)
    levels = np.log(np.sqrt(1 / schedules.lognormal(20_000).alpha_bars[1:] - 1))
    np.testing.assert_allclose(np.exp(levels[-1]), 80, rtol=1e-9)
    middle = levels[np.abs(levels + 1.2) < 2 * 1.2]
    assert abs(np.median(middle) + 1.2) < 0.02
    assert abs(len(middle) / 20_000 - (0.95 * 0.9545 + 0.05 * 4.8 / np.log(80 / 0.002))) < 2e-3


def test_linear_betas_come_back():
    np.testing.assert_allclose(S.betas, np.linspace(1e-4, 0.02, 50), rtol=1e-9)


@pytest.mark.parametrize("betas", [[], [0.0, 0.1], [0.1, 1.0], [-0.1]])
def test_impossible_betas_are_refused(betas):
    with pytest.raises(ValueError):
        schedules.from_betas(np.array(betas, float))


def test_time_at_snr():
    t = schedules.time_at_snr(S, 5.0)
    snr = S.alpha_bars / np.maximum(1 - S.alpha_bars, 1e-12)
    assert snr[t] <= 5.0 < snr[t - 1]
    assert schedules.time_at_snr(S, 1e-9) == 50


@pytest.mark.parametrize("target", ["eps", "x0", "v"])
def test_a_perfect_network_gives_back_image_and_noise(target):
    x0, eps = (jax.random.normal(jax.random.key(i), (4, 3, 3, 1)) for i in range(2))
    t = jnp.array([1, 10, 30, 50])
    x_t, wanted = forward.training_pair(S, target, x0, t, eps)
    prediction = forward.prediction_of(S, target, wanted, x_t, t)
    np.testing.assert_allclose(prediction.x0, x0, atol=1e-4)
    np.testing.assert_allclose(prediction.eps, eps, atol=1e-4)
    np.testing.assert_allclose(x_t, forward.add_noise(S, x0, t, eps))


@pytest.mark.parametrize("target", ["eps", "x0", "v"])
def test_min_snr_counts_the_error_of_the_clean_picture_alike_for_all_targets(target):
    x0, eps, error = (jax.random.normal(jax.random.key(i), (5, 3, 3, 1)) for i in range(3))
    t = jnp.array([1, 5, 20, 35, 50])
    x_t, wanted = forward.training_pair(S, target, x0, t, eps)
    found = forward.prediction_of(S, target, wanted + error, x_t, t).x0
    of_output = forward.min_snr(S, target, t) * jnp.mean(error**2, (1, 2, 3))
    snr = S.alpha_bars[t] / (1 - S.alpha_bars[t])
    assert snr[0] > 5 > snr[-1]
    np.testing.assert_allclose(of_output, np.minimum(snr, 5) * jnp.mean((found - x0) ** 2, (1, 2, 3)), rtol=1e-3)


def apply(x, t, labels):
    return x * (labels[:, None, None, None] + 2.0)


def test_guidance():
    x, t, labels = jnp.ones((3, 4, 4, 1)), jnp.int32(5), jnp.array([1, 2, 3])
    conditional = denoisers.from_network(apply, S, labels=labels)(x, t).eps
    unconditional = denoisers.from_network(apply, S, labels=jnp.full(3, -1))(x, t).eps
    np.testing.assert_allclose(denoisers.guided(apply, S, labels, 0.0)(x, t).eps, conditional)
    np.testing.assert_allclose(denoisers.guided(apply, S, labels, 2.0)(x, t).eps, 3 * conditional - 2 * unconditional)


def test_clipping_keeps_the_image_in_range_and_the_noise_consistent():
    x, t = jax.random.normal(jax.random.key(0), (2, 4, 4, 1)) * 3, jnp.int32(20)
    prediction = denoisers.clipped(denoisers.gaussian_data(S, 0.0, 5.0), S)(x, t)
    assert float(jnp.abs(prediction.x0).max()) <= 1
    np.testing.assert_allclose(forward.add_noise(S, prediction.x0, t, prediction.eps), x, atol=1e-5)


def test_known_pixels_are_kept():
    x, t = jax.random.normal(jax.random.key(0), (2, 4, 4, 1)), jnp.int32(20)
    mask, measurement = jnp.zeros_like(x).at[:, :2].set(1), jnp.full_like(x, 0.25)
    plain = denoisers.gaussian_data(S, 0.0, 1.0)
    x0 = denoisers.consistent(plain, S, measurement, mask)(x, t).x0
    np.testing.assert_allclose(x0[:, :2], 0.25)
    np.testing.assert_allclose(x0[:, 2:], plain(x, t).x0[:, 2:])
