"""Noise that was cut off at black and white, as in every file of 8 bits: what it hides of dark and bright places.

Where a picture is black, half of the noise would be darker than black. Cut off, it has the mean 0.4 sigma instead of 0,
and whatever denoises finds that mean. It is known how the mean depends on the clean value, and so it can be undone
(Foi 2009, "Clipped noisy images: heteroskedastic modeling and practical denoising", sections 2 and 5).
"""
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from dipddpm_jax.inverse.noise_level import estimate_sigma
from dipddpm_jax.inverse.noises import Noise
from dipddpm_jax.inverse.operators import blur

GRID = 1025  # values from black to white between which the mean is interpolated
LEAST = 5e-3  # share of values that an end must be expected to cut off before anything is done about it
AS_EXPECTED = 0.5  # of that share, which there must be: else the noise was not cut off, or is weaker in that place
FEW = 4  # values at an end that there may be by chance: one is the lowest of a file's numbers, others may equal it
STEP = 1e-3  # of a clean value, by which slopes are taken
TIMES = 2  # that the level is estimated again
BLUR = 1.5  # pixels, standard deviation: what tells roughly how bright a place is


class Ends(NamedTuple):
    """At which ends noise was cut off."""

    black: bool
    white: bool


def mean_and_variance(
    x: Float[Array, "*n"], noise: Noise, ends: Ends
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Mean and variance of x + noise after it is cut off below 0 and above 1, or at one of these ends; the noise is
    taken for normal."""
    sd = jnp.sqrt(jnp.maximum(noise.variance(x), 1e-12))
    low, high = -x / sd, (1 - x) / sd
    below, above = (norm.cdf(low) if ends.black else 0.0), (norm.cdf(-high) if ends.white else 0.0)
    at_low, at_high = (norm.pdf(low) if ends.black else 0.0), (norm.pdf(high) if ends.white else 0.0)
    inside = 1 - below - above
    mean = inside * x + sd * (at_low - at_high) + above
    edges = (low * at_low if ends.black else 0.0) - (high * at_high if ends.white else 0.0)
    square = inside * (x**2 + sd**2) + 2 * x * sd * (at_low - at_high) + sd**2 * edges + above
    return mean, jnp.maximum(square - mean**2, 0)


def before_cut_off(picture: Float[Array, "*n"], noise: Noise, ends: Ends) -> Float[Array, "*n"]:
    """The clean values whose noisy ones, cut off, have the means in `picture`; means that none has are black, or
    white."""
    x = jnp.linspace(0, 1, GRID)
    means = jnp.asarray(np.maximum.accumulate(np.asarray(mean_and_variance(x, noise, ends)[0])))
    found = jnp.interp(picture, means, x)
    low, high = (-jnp.inf if ends.black else 0.0), (jnp.inf if ends.white else 1.0)
    return jnp.where((picture < low) | (picture > high), picture, found)


def find_ends(
    picture: Float[Array, "*n"], y: Float[Array, "*n"], noise: Noise, known: Float[Array, "..."] | float = 1.0
) -> Ends:
    """Whether as many of the values y (those that are `known`, not 0) are 0 and 1 as cut-off noise would put there,
    and none lie beyond, if the means of all are in `picture`. A file whose noise is whole has one such value, its
    lowest; one whose dark places have less noise than others has fewer than expected."""
    x = before_cut_off(picture, noise, Ends(True, True))
    sd = jnp.sqrt(jnp.maximum(noise.variance(x), 1e-12))
    weight = jnp.broadcast_to(known, y.shape) != 0

    def found(beyond, there, expected):
        share, shown = (jnp.sum(part, where=weight) for part in (expected, there))
        enough = shown > FEW and shown >= AS_EXPECTED * share
        return bool(share > LEAST * weight.sum() and enough and not (beyond & weight).any())

    return Ends(found(y < 0, y == 0, norm.cdf(-x / sd)), found(y > 1, y == 1, norm.cdf((x - 1) / sd)))


def without_cut_off(
    picture: Float[Array, "*n"], y: Float[Array, "*n"], noise: Noise, known: Float[Array, "..."] | float = 1.0
) -> Float[Array, "*n"]:
    """What was restored of y, seen as it is or through holes, with the bias undone that cut-off noise gives it; the
    same picture where none was cut off."""
    ends = find_ends(picture, y, noise, known)
    return before_cut_off(picture, noise, ends) if any(ends) else picture


def error_growth(
    picture: Float[Array, "*n"], y: Float[Array, "*n"], noise: Noise, known: Float[Array, "..."] | float = 1.0
) -> Float[Array, "*n"]:
    """What `without_cut_off` makes of squared errors, place by place: those to the clean value are so many times those
    to the mean of y. Where noise is cut off the mean changes less than the clean value does; where the picture becomes
    black or white, no error is left. 1 everywhere where none was cut off."""
    ends = find_ends(picture, y, noise, known)
    if not any(ends):
        return jnp.ones_like(picture)
    found = before_cut_off(picture, noise, ends)
    mean, more = (mean_and_variance(x, noise, ends)[0] for x in (found, found + STEP))
    ended = ((found <= 0) & ends.black) | ((found >= 1) & ends.white)
    return jnp.where(ended, 0, jnp.square(STEP / (more - mean)))


def variance_left(
    mean: Float[Array, "*n"], y: Float[Array, "*n"], noise: Noise, known: Float[Array, "..."] | float = 1.0
) -> Float[Array, "*n"]:
    """The variance of each value of y, whose means are given: less than the noise's own where it was cut off."""
    ends = find_ends(mean, y, noise, known)
    return mean_and_variance(before_cut_off(mean, noise, ends), noise, ends)[1] if any(ends) else noise.variance(mean)


def estimate_sigma_cut_off(
    y: Float[np.ndarray, "h w c"], known: Float[np.ndarray, "h w _"] | None = None
) -> float:
    """`noise_level.estimate_sigma` of a picture with black 0 and white 1 whose noise may have been cut off there: then
    of places that lie further from both, roughly, than the noise does, unless that leaves less than a tenth."""
    sigma, weight = estimate_sigma(y, known), _weight(y, known)
    ends = ((y == 0) | (y == 1)) & (weight != 0)
    if ends.sum() <= max(FEW, LEAST * weight.sum()) or y.min() < 0 or y.max() > 1:
        return sigma
    mean, first = np.asarray(_brightness(y, weight)), sigma
    for _ in range(TIMES):
        inside = (weight != 0) & (mean > sigma) & (mean < 1 - sigma)
        if inside.sum() < 0.1 * weight.sum():
            return first
        sigma = estimate_sigma(y, inside.astype(y.dtype))
    return sigma


def _weight(y: Float[np.ndarray, "h w c"], known: Float[np.ndarray, "h w _"] | None) -> Float[np.ndarray, "h w c"]:
    return np.broadcast_to(np.float32(1) if known is None else known, y.shape).astype(np.float32)


def _brightness(y: Float[np.ndarray, "h w c"], weight: Float[np.ndarray, "h w c"]) -> Float[Array, "h w c"]:
    """How bright places are: the mean of y about every pixel."""
    smooth = blur(*y.shape[:2], BLUR).forward
    return smooth(jnp.asarray(weight * y)) / jnp.maximum(smooth(jnp.asarray(weight)), 1e-6)


def sigma_left(
    y: Float[np.ndarray, "h w c"], noise: Noise, known: Float[np.ndarray, "h w _"] | None = None
) -> float:
    """The noise's standard deviation in y, where it may have been cut off: from how bright places are, roughly."""
    weight = _weight(y, known)
    mean = _brightness(y, weight)
    variance = variance_left(mean, jnp.asarray(y), noise, jnp.asarray(weight))
    return float(jnp.sqrt(jnp.mean(variance, where=weight != 0)))
