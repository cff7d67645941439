"""What is measured: operators against convolutions written out, noise against its moments."""
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.restoration

from dipddpm_jax.inverse import noise_level, noises, operators


def picture(height=24, width=32, channels=3, seed=0):
    return np.random.default_rng(seed).uniform(size=(height, width, channels)).astype(np.float32)


def correlate(image, kernel, stride, pad):
    """Cross-correlation in plain NumPy of a picture whose border pixels repeat outwards."""
    image = np.pad(image.astype(np.float64), ((pad, pad), (pad, pad), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(image, kernel.shape, (0, 1))[::stride, ::stride]
    return np.einsum("ijcab,ab->ijc", windows, kernel)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_downsampling_is_the_dip_papers(factor):
    taps = 4 * factor
    distance = np.abs(np.arange(1, taps + 1) + 0.5 - (taps + 2) / 2) / factor  # the paper's code, kernel_width taps + 1
    one = 2 * np.sin(np.pi * distance) * np.sin(np.pi * distance / 2) / (np.pi * distance) ** 2
    kernel = np.outer(one, one) / np.outer(one, one).sum()
    image = picture()
    expected = correlate(image, kernel, factor, (taps - factor) // 2)
    observed = operators.downsample(24, 32, factor)(jnp.asarray(image))
    assert observed.shape == (24 // factor, 32 // factor, 3)
    np.testing.assert_allclose(observed, expected, atol=1e-5)


def test_blur_is_a_gaussian_that_keeps_constants():
    image = picture()
    reach = np.arange(-5, 6)
    taps = np.exp(-0.5 * (reach / 1.5) ** 2)
    kernel = np.outer(taps, taps) / taps.sum() ** 2
    blurred = operators.blur(24, 32, 1.5)(jnp.asarray(image))
    np.testing.assert_allclose(blurred, correlate(image, kernel, 1, 5), atol=1e-5)
    np.testing.assert_allclose(operators.blur(24, 32, 1.5)(jnp.full((24, 32, 1), 0.3)), 0.3, rtol=1e-5)


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="divided by 4"):
        operators.downsample(24, 30, 4)


def test_noise_has_its_moments():
    grey = jnp.full((128, 128, 3), 0.5)
    gaussian = noises.add_gaussian(jax.random.key(0), grey, 0.1) - grey
    np.testing.assert_allclose([gaussian.mean(), gaussian.std()], [0, 0.1], atol=2e-3)
    poisson = noises.add_poisson(jax.random.key(0), grey, 50.0) - grey
    np.testing.assert_allclose([poisson.mean(), poisson.std()], [0, 0.1], atol=2e-3)
    np.testing.assert_allclose(operators.random_mask(jax.random.key(0), 128, 128, 0.3).mean(), 0.3, atol=0.02)
    assert float(noises.add_gaussian(jax.random.key(0), grey, 9.0).max()) == 1


def test_poisson_misfit_is_least_at_the_measurement():
    measured = jnp.array([0.0, 0.2, 0.7])
    misfit = noises.poisson_misfit(30.0)
    np.testing.assert_allclose(misfit(measured, measured), 0, atol=1e-2)
    slope = jax.grad(lambda x: misfit(x, measured).sum())(jnp.array([0.1, 0.2, 0.9]))
    np.testing.assert_allclose(slope, 30 * (1 - measured / jnp.array([0.1, 0.2, 0.9])), atol=1e-4)


@pytest.mark.parametrize("shape", [(64, 64, 3), (61, 75, 1)])
@pytest.mark.parametrize("sigma", [0.02, 0.1])
def test_sigma_is_estimated_as_scikit_image_does(shape, sigma):
    y, x = np.mgrid[: shape[0], : shape[1]]
    smooth = 0.5 + 0.3 * np.sin(x / 9)[..., None] * np.cos(y / 7)[..., None] * np.ones(shape)
    noisy = smooth + sigma * np.random.default_rng(0).normal(size=shape)
    ours = noise_level.estimate_sigma(noisy)
    np.testing.assert_allclose(ours, sigma, rtol=0.1)
    if importlib.util.find_spec("pywt"):  # scikit-image's own needs PyWavelets
        estimate = skimage.restoration.estimate_sigma(noisy, channel_axis=-1, average_sigmas=True)
        np.testing.assert_allclose(ours, estimate, rtol=1e-6)
