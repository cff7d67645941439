"""Counts made to look Gaussian: how a restorer of Gaussian noise restores Poisson noise (Anscombe 1948)."""
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dipddpm_jax.errors import UserError
from dipddpm_jax.inverse.measurement import Measurement, Restoration, Restore
from dipddpm_jax.inverse.noises import Gaussian, Poisson
from dipddpm_jax.inverse.operators import identity


def anscombe(counts: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """2 sqrt(n + 3/8): of counts whose mean is above about 4 the standard deviation becomes 1."""
    return 2 * jnp.sqrt(jnp.maximum(counts, 0) + 0.375)


def unbiased_inverse(values: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The mean count whose `anscombe` has the mean D, approximately and in closed form (Mäkitalo and Foi 2011):
    D^2/4 + sqrt(3/2)/4 D^-1 - 11/8 D^-2 + 5 sqrt(3/2)/8 D^-3 - 1/8.

    D below its least value 2 sqrt(3/8), which stands for 0 counts, counts as that.
    """
    d = jnp.maximum(values, 2 * 0.375**0.5)
    root = 1.5**0.5
    return jnp.maximum(d**2 / 4 + root / (4 * d) - 11 / (8 * d**2) + 5 * root / (8 * d**3) - 0.125, 0)


def stabilised(restore: Restore) -> Restore:
    """A restorer of Gaussian noise, for Poisson noise too: the picture becomes anscombe(peak y) / s with noise of
    standard deviation 1 / s, where s = anscombe(peak) is that of white; what is restored is transformed back. Read-out
    noise shifts the counts by its variance, before and after (Mäkitalo and Foi 2013).

    Its estimate of the error and its spread, which belong to the transformed picture, are dropped. Raises UserError for
    Poisson noise behind an operator, since the transform of A x is not linear in x.
    """
    def restore_either(measurement: Measurement, key: Key[Array, ""]) -> Restoration:
        y, operator, noise = measurement
        if not isinstance(noise, Poisson):
            return restore(measurement, key)
        if operator != identity:
            raise UserError("Anscombe's transform denoises counts; it cannot look through an operator")
        white = anscombe(jnp.asarray(noise.peak * (1 + noise.shift), y.dtype))
        inner = restore(Measurement(anscombe(noise.peak * (y + noise.shift)) / white, operator, Gaussian(1 / white)),
                        key)
        picture = jnp.maximum(unbiased_inverse(inner.picture * white) / noise.peak - noise.shift, 0)
        return Restoration(picture, None, inner.evidence._replace(error=None))

    return restore_either
