"""Noise that neighbouring pixels share is told from white noise, on photographs."""
import functools

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from dipddpm_jax.data.photographs import PHOTOGRAPHS, photograph
from dipddpm_jax.data.pictures import square
from dipddpm_jax.inverse.noise_level import estimate_sigma
from dipddpm_jax.inverse.whiteness import is_correlated, level_at


@functools.lru_cache
def photographs():
    return [square(photograph(name), 96).astype(np.float32) / 255 for name in PHOTOGRAPHS]


def noisy(sigma, blur):
    rng = np.random.default_rng(0)
    for picture in photographs():
        for _ in range(3):
            noise = rng.normal(0, 1, picture.shape)
            noise = gaussian_filter(noise, (blur, blur, 0)) if blur else noise
            yield picture + sigma / 255 * noise / noise.std()


@pytest.mark.parametrize("sigma", [10, 25, 50])
def test_white_noise_gives_at_most_one_false_alarm_in_twenty(sigma):
    assert np.mean([is_correlated(picture) for picture in noisy(sigma, 0)]) <= 0.05


@pytest.mark.parametrize("sigma, blur", [(15, 0.6), (25, 0.6), (50, 0.6), (15, 1.0), (25, 1.0), (25, 1.5), (50, 1.5)])
def test_noise_that_was_blurred_is_found(sigma, blur):
    assert np.mean([is_correlated(picture) for picture in noisy(sigma, blur)]) >= 0.9


def test_levels_of_white_noise_agree_with_its_deviation_and_with_the_estimate():
    noise = np.random.default_rng(1).normal(0, 0.1, (256, 256, 1))
    assert level_at(noise, 1) == pytest.approx(estimate_sigma(noise), rel=1e-6)
    for stride in (1, 2, 3):
        assert level_at(noise, stride) == pytest.approx(0.1, rel=0.02)


def test_a_picture_that_is_too_small_or_flat_has_no_correlated_noise():
    assert level_at(np.ones((5, 5, 1)), 2) == 0 and not is_correlated(np.ones((5, 5, 1)))
    assert not is_correlated(np.ones((32, 32, 3)))
