"""The error of a denoiser's picture, estimated from the measurement alone: Stein's unbiased risk estimate (SURE)."""
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from dipddpm_jax.errors import UserError
from dipddpm_jax.inverse.measurement import Measurement, Restoration, Restore
from dipddpm_jax.inverse.noises import gaussian_sigma
from dipddpm_jax.inverse.operators import identity

NUDGE = 0.1  # length of the step by which the divergence is taken, in standard deviations of the noise


def with_risk(restore: Restore) -> Restore:
    """The same restorer with `evidence.error` = |r(y) - y|^2 / n - sigma^2 + 2 sigma^2 div r(y) / n, whose expectation
    is the mean squared error under Gaussian noise (Stein 1981).

    The divergence is b . (r(y + h b) - r(y)) / h for one b of random signs (Ramani, Blu and Unser 2008): one more
    restoration, with the same key. Raises UserError unless the picture itself was measured, with Gaussian noise, and
    for a noise of 0.
    """
    def judged(measurement: Measurement, key: Key[Array, ""]) -> Restoration:
        y, operator, noise = measurement
        if operator != identity:
            raise UserError("Stein's estimate of the error is for denoising: the picture itself must be measured")
        sigma = float(gaussian_sigma(noise))
        if sigma <= 0:
            raise UserError("Stein's estimate of the error needs noise: without any the divergence weighs nothing")
        step = NUDGE * sigma
        signs = jax.random.rademacher(jax.random.fold_in(key, 1), y.shape, y.dtype)
        found = restore(measurement, key)
        nudged = restore(measurement._replace(y=y + step * signs), key).picture
        divergence = jnp.mean(signs * (nudged - found.picture)) / step
        error = jnp.mean(jnp.square(found.picture - y)) - sigma**2 + 2 * sigma**2 * divergence
        return found._replace(evidence=found.evidence._replace(error=float(error)))

    return judged
