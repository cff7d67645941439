"""Stein's estimate of a denoiser's error, where it is known in closed form."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dipddpm_jax.errors import UserError
from dipddpm_jax.inverse import operators
from dipddpm_jax.inverse.measurement import Measurement, Restoration
from dipddpm_jax.inverse.noises import Gaussian, Poisson
from dipddpm_jax.inverse.unbiased_risk import with_risk

SIGMA, SIDE = 0.2, 64


def shrink(gain):
    return lambda measurement, key: Restoration(gain * measurement.y)


def noisy(operator=operators.identity, noise=None):
    clean = jax.random.uniform(jax.random.key(0), (SIDE, SIDE, 1))
    return clean, Measurement(clean + SIGMA * jax.random.normal(jax.random.key(1), clean.shape), operator,
                              noise or Gaussian(SIGMA))


@pytest.mark.parametrize("gain", [0.0, 0.5, 1.0])
def test_the_estimate_is_the_error_of_a_shrinkage(gain):
    """Exactly (g - 1)^2 |y|^2 / n - sigma^2 + 2 sigma^2 g; that is the true error but for the draw of the noise."""
    clean, measurement = noisy()
    found = with_risk(shrink(gain))(measurement, jax.random.key(2))
    formula = (gain - 1) ** 2 * jnp.mean(measurement.y**2) - SIGMA**2 + 2 * SIGMA**2 * gain
    np.testing.assert_allclose(found.evidence.error, formula, rtol=1e-3)
    np.testing.assert_allclose(found.evidence.error, jnp.mean((found.picture - clean) ** 2), atol=0.15 * SIGMA**2)
    np.testing.assert_array_equal(found.picture, gain * measurement.y)


def test_it_is_for_gaussian_noise_on_the_picture_itself():
    for operator, noise in ((operators.masked(jnp.ones((SIDE, SIDE, 1))), None), (operators.identity, Poisson(30.0)),
                            (operators.identity, Gaussian(0.0))):
        with pytest.raises(UserError):
            with_risk(shrink(0.5))(noisy(operator, noise)[1], jax.random.key(2))
