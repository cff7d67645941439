"""Held-out parts of a picture's pixels, and the error of the mean of the fits that were each blind to one of them.

All of it without the clean picture: a fit's error on pixels that it never saw is its error to the clean picture plus
the variance of their noise (cross-validation; Batson and Royer 2019, proposition 1).
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key


class FoldErrors(NamedTuple):
    """Estimated mean squared errors to A x, the clean picture as it is observed; rounding may make them negative."""

    blind: Float[Array, ""]  # of one fit, on pixels that it did not see
    mean: Float[Array, ""]  # of the mean of the fits, on known pixels, all but one in K of whose fits saw them
    missing: Float[Array, ""]  # of the mean of the fits, on pixels that none of them saw
    gain: Float[Array, ""]  # h, the share of a pixel's noise that a fit which sees the pixel takes over

    def overall(self, share: Float[Array, ""]) -> Float[Array, ""]:
        """The error of the mean of the fits on the whole picture, a `share` of whose pixels is known."""
        return share * self.mean + (1 - share) * self.missing


def fold_masks(key: Key[Array, ""], known: Float[Array, "h w _"], folds: int) -> Float[Array, "folds h w 1"]:
    """`folds` masks (1, else 0) of which every pixel with a known channel (not 0) is in exactly one.

    Of every `folds` known pixels that follow one another in reading order each part gets one, in random order: parts
    are equal in size up to one pixel, and spread evenly.
    """
    known = jnp.any(known != 0, -1)
    place = jnp.cumsum(known.ravel()) - 1  # of a known pixel among the known ones
    runs = -(-known.size // folds)
    order = jax.vmap(lambda key: jax.random.permutation(key, folds))(jax.random.split(key, runs)).ravel()
    part = jnp.where(known.ravel(), order[place], -1).reshape(known.shape)
    return (part[None] == jnp.arange(folds)[:, None, None]).astype(jnp.float32)[..., None]


def block_masks(
    key: Key[Array, ""], height: int, width: int, folds: int, side: int = 5
) -> tuple[Float[Array, "folds h w 1"], Float[Array, "folds h w 1"]]:
    """Blocks of side x side pixels, each in one of `folds` parts, for noise that neighbours share: what a fit does not
    see, and the blocks without their margins, which are judged. No pixel that is judged has a neighbour that is seen.
    A last row or column of one pixel, in which nothing could be judged, belongs to the blocks before it.
    """
    rows, columns = (max((length + side - 2) // side, 1) for length in (height, width))
    hidden = fold_masks(key, jnp.ones((rows, columns, 1)), folds)
    hidden = jnp.repeat(jnp.repeat(hidden, side, 1), side, 2)
    hidden = jnp.pad(hidden, ((0, 0), (0, 1), (0, 1), (0, 0)), "edge")[:, :height, :width]
    inner = [(jnp.arange(length) % side > 0) & (jnp.arange(length) % side < side - 1) for length in (height, width)]
    return hidden, hidden * jnp.outer(*inner)[None, ..., None]


Figures = float | Float[np.ndarray, "pictures"]


def error_of_one(blind: Figures, misfit: Figures, variance: Figures, seen: Figures) -> Figures:
    """Estimated mean squared error of single fits on their whole pictures, a share `seen` of whose pixels it was fitted
    to: elsewhere it errs as where it is `blind`; there no more than that, nor than its mean squared `misfit` and the
    noise's variance, which is less where there is hardly any noise."""
    return seen * np.minimum(blind, misfit + variance) + (1 - seen) * blind


def blind_mean(observed: Float[Array, "fits *n"], parts: Float[Array, "fits ..."]) -> Float[Array, "*n"]:
    """Every pixel by the fits that did not see it; of pixels that all saw, or none, by all."""
    parts = jnp.broadcast_to(parts, observed.shape)
    blind = parts.sum(0)
    return jnp.where(blind > 0, jnp.sum(parts * observed, 0) / jnp.maximum(blind, 1), observed.mean(0))


def cross_fit_errors(
    observed: Float[Array, "fits *n"], y: Float[Array, "*n"], parts: Float[Array, "fits ..."],
    known: Float[Array, "..."], variance: Float[Array, "*n"], growth: Float[Array, "*n"] | float = 1.0,
) -> FoldErrors:
    """Errors of K fits, observed through A, from the measurement y with noise of that `variance`. Every known pixel
    must be in the `parts` of at least one fit, which is blind to it, and outside those of at least two; where nothing
    is known, the fits themselves are `observed`.

    Model, per pixel: a fit that is blind to it gives m + e, one that sees it m + h (y - m) + e (the leave-one-out
    identity of linear smoothers), e independent between fits. With u the mean of the b blind fits (1 in cross-fitting)
    and s that of the K - b others, v their unbiased variance, r = y - s and q = y - u,

        C = E[r q] = (1 - h) (E(m - x)^2 + sigma^2),    B = E[r^2] - v / (K - b) = (1 - h)^2 (E(m - x)^2 + sigma^2),

    so that h = 1 - B / C and E(m - x)^2 = C^2 / B - sigma^2. The error of the mean f of all K is Efron's (2004, eq.
    2.8) E(f - x)^2 = E(f - y)^2 - sigma^2 + 2 cov(f, y), where cov(f, y) = h sigma^2 (K - b) / K. Where no fit sees,
    it is that of one blind fit, less (1 - 1 / K) times the variance between fits there: the mean's error is
    E(m - x)^2 + Var(e) / K, that of one E(m - x)^2 + Var(e); and no less than Var(e) / K, where holes are harder than
    what was held out. Squared errors that `growth` makes larger later
    (`inverse.cut_off.error_growth`, of `blind_mean`: it must not know y) count as that.
    """
    count = observed.shape[0]
    parts = jnp.broadcast_to(parts, observed.shape)
    weight = jnp.broadcast_to(known, y.shape)

    def average(values):
        return jnp.sum(weight * values) / jnp.maximum(weight.sum(), 1)

    blind, seeing = parts.sum(0), (1 - parts).sum(0)
    u = jnp.sum(parts * observed, 0) / jnp.maximum(blind, 1)
    s = jnp.sum((1 - parts) * observed, 0) / seeing
    scatter = jnp.sum((1 - parts) * jnp.square(observed - s[None]), 0) / (seeing - 1)
    r, q = y - s, y - u
    c, b = average(r * q), average(jnp.square(r) - scatter / seeing)
    gain = jnp.where((c > 0) & (b < c), 1 - jnp.maximum(b, 0) / jnp.where(c > 0, c, 1), 0)
    mean = average(growth * (jnp.square(observed.mean(0) - y) + (2 * gain * seeing / count - 1) * variance))
    alone = jnp.sum(parts * jnp.square(observed - y[None]), 0) / jnp.maximum(blind, 1)
    one, hole = average(growth * (alone - variance)), 1 - weight
    apart = jnp.sum(hole * growth * observed.var(0, ddof=1)) / jnp.maximum(hole.sum(), 1)
    return FoldErrors(one, mean, jnp.maximum(one - (1 - 1 / count) * apart, apart / count), gain)
