"""The classical restorers against scikit-image, their own defining equations, and what they cannot do."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.restoration import denoise_nl_means

from dipddpm_jax import classical
from dipddpm_jax.errors import UserError
from dipddpm_jax.inverse import operators
from dipddpm_jax.inverse.measurement import Measurement
from dipddpm_jax.inverse.noises import Gaussian, Poisson

SIGMA = 0.1


def scene(channels=1):
    i, j = np.mgrid[:48, :48] / 48
    picture = 0.2 + 0.3 * i + 0.4 * ((i - 0.4) ** 2 + (j - 0.6) ** 2 < 0.05)
    return jnp.asarray(np.repeat(picture[..., None], channels, -1), jnp.float32)


def measured(noise, channels=1):
    return Measurement(noise.draw(jax.random.key(0), scene(channels)), operators.identity, noise)


def psnr(picture, clean):
    return -10 * np.log10(np.mean((np.asarray(picture) - np.asarray(clean)) ** 2))


def restorers():
    yield "non-local means", classical.non_local_means(), 7
    yield "total variation", classical.total_variation_denoising(), 7
    pytest.importorskip("pywt")
    yield "BayesShrink", classical.bayes_shrink(), 5


@pytest.mark.parametrize("noise", [Gaussian(SIGMA), Poisson(60.0)], ids=["gaussian", "poisson"])
def test_noise_is_taken_away_and_operators_are_refused(noise):
    given = measured(noise)
    for name, restore, gain in restorers():
        found = restore(given, jax.random.key(0)).picture
        assert psnr(found, scene()) > psnr(given.y, scene()) + gain, name
        with pytest.raises(UserError, match=f"{name} denoises"):
            restore(given._replace(operator=operators.blur(48, 48, 1.0), noise=Gaussian(SIGMA)), jax.random.key(0))


def test_non_local_means_is_scikit_images():
    given = measured(Gaussian(SIGMA), 3)
    expected = denoise_nl_means(np.asarray(given.y), 5, 6, 0.8 * SIGMA, sigma=SIGMA, channel_axis=-1)
    found = classical.non_local_means()(given, jax.random.key(0)).picture
    assert found == pytest.approx(expected, abs=1e-5)


def test_total_variation_takes_away_as_much_as_there_is_noise():
    given = measured(Gaussian(SIGMA))
    found = classical.total_variation_denoising()(given, jax.random.key(0)).picture
    assert float(jnp.mean(jnp.square(found - given.y))) == pytest.approx(SIGMA**2, rel=0.01)


def test_wavelets_do_not_mind_where_the_picture_begins():
    """The mean over shifts of the whole grid of one level moves with the picture."""
    pytest.importorskip("pywt")
    given = measured(Gaussian(SIGMA))
    restore = classical.bayes_shrink(shifts=1)
    moved = given._replace(y=jnp.roll(given.y, (2, 2), (0, 1)))
    apart = jnp.roll(restore(moved, jax.random.key(0)).picture, (-2, -2), (0, 1)) - restore(
        given, jax.random.key(0)).picture
    assert float(jnp.std(apart[8:-8, 8:-8])) < 0.2 * SIGMA
