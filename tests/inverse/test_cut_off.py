"""Noise that was cut off at black and white: its moments, when it is recognised, and what undoing its bias gains."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio

import dipddpm_jax
from dipddpm_jax.commands.beside import means_beside
from dipddpm_jax.inverse import cut_off, noise_level
from dipddpm_jax.inverse.cut_off import Ends
from dipddpm_jax.inverse.noises import Gaussian, Poisson

SIGMA = 0.15
NOISE = Gaussian(SIGMA)


def scene() -> jax.Array:
    """A black and a grey half with a white square in each, and a ramp."""
    x = np.zeros((48, 48, 1), np.float32)
    x[:, 24:], x[8:20, 8:20], x[28:40, 28:40] = 0.4, 1.0, 1.0
    x[44:] = np.linspace(0, 1, 48)[None, :, None]
    return jnp.asarray(x)


def cut(x: jax.Array, sigma: float | jax.Array = SIGMA) -> jax.Array:
    return jnp.clip(x + sigma * jax.random.normal(jax.random.key(1), x.shape), 0, 1)


@pytest.mark.parametrize("ends", [Ends(True, True), Ends(True, False), Ends(False, True), Ends(False, False)])
@pytest.mark.parametrize("noise", [Gaussian(0.2), Poisson(30.0, 0.05)])
def test_moments_are_those_of_noise_that_is_drawn_and_cut_off(noise, ends):
    x = jnp.asarray([0.0, 0.1, 0.5, 0.95, 1.0])
    y = np.asarray(noise.draw(jax.random.key(0), jnp.broadcast_to(x, (200000, 5))))
    y = np.clip(y, 0 if ends.black else None, 1 if ends.white else None)
    mean, variance = cut_off.mean_and_variance(x, noise, ends)
    np.testing.assert_allclose(mean, y.mean(0), atol=2e-3)
    np.testing.assert_allclose(variance, y.var(0), rtol=0.02 if isinstance(noise, Gaussian) else 0.08)  # not normal
    np.testing.assert_allclose(cut_off.before_cut_off(mean, noise, ends), x, atol=1e-3)


def test_it_is_found_and_undone_where_it_is_and_only_there():
    x = scene()
    mean = cut_off.mean_and_variance(x, NOISE, Ends(True, True))[0]
    assert cut_off.find_ends(mean, cut(x), NOISE) == Ends(True, True)
    np.testing.assert_allclose(cut_off.without_cut_off(mean, cut(x), NOISE), x, atol=2e-3)
    whole = x + SIGMA * jax.random.normal(jax.random.key(1), x.shape)
    scaled = (whole - whole.min()) / (whole.max() - whole.min())  # as a file of numbers is read
    assert cut_off.find_ends(scaled, scaled, Gaussian(SIGMA / 1.8)) == Ends(False, False)
    weak = cut(x, jnp.where(x == 0, SIGMA / 30, SIGMA)) + jnp.where(x == 0, SIGMA / 4, 0)
    assert not cut_off.find_ends(jnp.where(x == 0, SIGMA / 4, mean), weak, NOISE).black
    assert cut_off.without_cut_off(mean, jnp.clip(whole, 0.001, 0.999), NOISE) is mean


def test_its_variance_is_known_place_by_place_and_roughly():
    x = scene()
    mean, variance = cut_off.mean_and_variance(x, NOISE, Ends(True, True))
    np.testing.assert_allclose(cut_off.variance_left(mean, cut(x), NOISE), variance, rtol=0.03)
    np.testing.assert_allclose(cut_off.sigma_left(np.asarray(cut(x)), NOISE), jnp.sqrt(variance.mean()), rtol=0.1)
    assert float(jnp.sqrt(variance.mean())) < 0.85 * SIGMA
    known = np.zeros((48, 48, 1), np.float32)
    known[30:38, 4:18] = 1  # black alone
    np.testing.assert_allclose(cut_off.sigma_left(np.asarray(cut(x) * known), NOISE, known),
                               float(jnp.sqrt(variance[0, 0, 0])), rtol=0.06)
    half = jnp.full((8, 8, 1), 0.5)
    np.testing.assert_array_equal(cut_off.variance_left(half, half, NOISE), jnp.full((8, 8, 1), SIGMA**2))


def test_the_level_is_estimated_where_nothing_was_cut_off():
    x = jnp.clip(0.9 * jnp.linspace(0, 1, 96)[None, :, None] - 0.15, 0, 1) * jnp.ones((96, 1, 1))  # a fifth is black
    plain, found = noise_level.estimate_sigma(np.asarray(cut(x))), cut_off.estimate_sigma_cut_off(np.asarray(cut(x)))
    assert plain < 0.92 * SIGMA
    np.testing.assert_allclose(found, SIGMA, rtol=0.05)
    whole = np.asarray(x + SIGMA * jax.random.normal(jax.random.key(1), x.shape))
    assert cut_off.estimate_sigma_cut_off(whole) == noise_level.estimate_sigma(whole)


def test_errors_grow_as_it_says():
    x = jnp.linspace(0, 1, 96 * 96).reshape(96, 96, 1)
    mean = cut_off.mean_and_variance(x, NOISE, Ends(True, True))[0]
    wrong = mean + 0.02 * jax.random.normal(jax.random.key(3), x.shape)
    growth = cut_off.error_growth(wrong, cut(x), NOISE)
    assert growth.mean() > 1.1
    error = jnp.mean((cut_off.without_cut_off(wrong, cut(x), NOISE) - x) ** 2)
    np.testing.assert_allclose(jnp.mean(growth * (wrong - mean) ** 2), error, rtol=0.15)


def test_a_restored_picture_is_black_again_and_the_estimate_beside_counts_the_bias():
    x, y = np.asarray(scene()), np.asarray(cut(scene()))
    plain = means_beside(y, SIGMA)
    restored = dipddpm_jax.restore(np.rint(255 * y).astype(np.uint8), method="non-local-means", sigma=255 * SIGMA)
    before, after = (peak_signal_noise_ratio(x, np.float32(p), data_range=1) for p in (plain.picture, restored / 255))
    assert after > before + 2
    assert 0 < -10 * np.log10(plain.error) - before < 3  # errors near an edge that is cut off add to its bias
    assert restored[30:40, 4:20].mean() < 0.15 * 255 * SIGMA < 255 * plain.picture[30:40, 4:20].mean()
