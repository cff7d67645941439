"""One noisy measurement made into two with independent noise: one to restore from, one to judge by.

What a restorer makes of the first knows nothing of the second's noise, so that its misfit to the second has the
expectation |A x_restored - A x|^2 + the second's variance: an estimate of the error without the clean picture.
"""
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dipddpm_jax.errors import UserError
from dipddpm_jax.inverse.measurement import Measurement
from dipddpm_jax.inverse.noises import Gaussian, Poisson
from dipddpm_jax.inverse.operators import Operator, held_out_mask, masked


class Halves(NamedTuple):
    """A measurement for the restorer, and values of A x with independent noise of mean variance `variance`, where
    `weight` is not 0."""

    seen: Measurement
    operator: Operator
    kept: Float[Array, "..."]
    variance: Float[Array, ""]
    weight: Float[Array, "..."]


Split = Callable[[Measurement, Key[Array, ""]], Halves]


def split_noise(measurement: Measurement, key: Key[Array, ""], share: float = 0.8) -> Halves:
    """Splits a measurement so that the first part keeps `share` of its information (the inverse of its variance).

    Gaussian noise (Noisier2Noise: Moran et al. 2020; data fission: Leiner et al. 2023): with n ~ N(0, sigma^2) and
    a^2 = (1 - share) / share, y1 = y + a n and y2 = y - n / a have covariance sigma^2 - sigma^2 = 0 and variances
    sigma^2 / share and sigma^2 / (1 - share). Poisson noise: of the N = peak y photons, N1 ~ Binomial(N, share) and
    N - N1 are independent and Poisson; y1 = N1 / (share peak), y2 = (N - N1) / ((1 - share) peak). Photons with
    read-out noise are no whole numbers: they are split as Gaussian noise is, n with the variance that y itself says.
    That is linear in y, so that y1 and y2 are uncorrelated, though not independent.

    Raises UserError where there is no noise to split.
    """
    y, operator, noise = measurement
    if isinstance(noise, Poisson) and not float(noise.sigma):
        counts = jnp.rint(noise.peak * jnp.maximum(y, 0))
        first = jax.random.binomial(key, counts, share).astype(y.dtype)
        peak = noise.peak * share
        kept = (counts - first) / (noise.peak - peak)
        return Halves(Measurement(first / peak, operator, Poisson(peak)), operator, kept,
                      kept.mean() / (noise.peak - peak), jnp.ones_like(y))
    if not float(noise.sigma) > 0:
        raise UserError("there is no noise to split: the noise of the measurement has sigma 0")
    ratio = ((1 - share) / share) ** 0.5
    variance = noise.variance(y)
    drawn = jnp.sqrt(variance) * jax.random.normal(key, y.shape, y.dtype)
    sigma = noise.sigma / share**0.5
    first = Poisson(noise.peak * share, sigma) if isinstance(noise, Poisson) else Gaussian(sigma)
    return Halves(Measurement(y + ratio * drawn, operator, first), operator, y - drawn / ratio,
                  variance.mean() / (1 - share), jnp.ones_like(y))


def split_pixels(known: Float[Array, "h w 1"], share: float = 0.9) -> Split:
    """The split for inpainting, with noise or without: the restorer sees `share` of the `known` pixels (1, else 0), and
    is judged on the others (cross-validation)."""
    def split(measurement: Measurement, key: Key[Array, ""]) -> Halves:
        y, _, noise = measurement
        held = held_out_mask(key, known, 1 - share)
        seen = masked(known * (1 - held))
        variance = jnp.sum(held * noise.variance(y)) / jnp.sum(held * jnp.ones_like(y))
        return Halves(Measurement(seen.forward(y), seen, noise), masked(known), y, variance, held * jnp.ones_like(y))

    return split
