"""Nonlocal Bayes: what patches that look alike tell (Lebrun, Buades and Morel 2013, SIAM J. Imaging Sciences 6).

The patches most like a given one, taken out of a pilot picture, say which patches are likely there: a normal law with
their mean m and covariance C. A noisy patch y with independent noise of variances V is then best restored as

    x = m + C (C + V)^-1 (y - m),

and each pixel is the mean over all patches that hold it. The pilot may be any restoration. What a deep image prior has
smoothed away, but repeats in the picture, comes back.
"""
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dipddpm_jax.errors import UserError
from dipddpm_jax.inverse.anscombe import stabilised
from dipddpm_jax.inverse.cut_off import variance_left
from dipddpm_jax.inverse.measurement import Measurement, Restoration, Restore
from dipddpm_jax.inverse.operators import blur, identity
from dipddpm_jax.types import Image

SIDE = 7  # of a patch, in pixels; of more channels than one, patches are smaller
LARGEST = SIDE**2  # numbers in a patch, which a group of FIRST is large enough for
REACH = 15  # how far patches are looked for, in pixels
BLUR = 1.0  # pixels, standard deviation, of a noisy picture before it is searched
FLAT = 1.1  # groups of patches whose variance is at most so many times the noise's are taken to be of one grey


class Groups(NamedTuple):
    """How many patches make a group, and how many pixels lie between the patches that groups are made for."""

    count: int
    stride: int


FIRST, SECOND, LATER = Groups(90, 3), Groups(60, 3), Groups(40, 2)  # where there is no pilot to begin with
LAST = Groups(20, 2)  # with a pilot of fitted networks: chosen on three photographs, cross-fitted
LEAST = 1e-6  # variance of noise, white being 1, below which it counts as that


def nonlocal_bayes() -> Restore:
    """A restorer of Gaussian and Poisson noise: four passes, the first with the noisy picture for its own pilot. The
    key is not used. Raises UserError unless the picture itself was measured."""
    def restore(measurement: Measurement, key: Key[Array, ""]) -> Restoration:
        _require_whole(measurement)
        return Restoration(_alone(measurement.y, measurement.noise.variance(measurement.y)))

    return stabilised(restore)


def nonlocal_bayes_after(estimate: Restore, fits: int = 1) -> Restore:
    """A restorer that goes on from an estimate, the mean of so many `fits` (`refine_by_patches`); `evidence` stays that
    of the estimate, whose error is the larger one. Raises UserError unless the picture itself was measured."""
    def restore(measurement: Measurement, key: Key[Array, ""]) -> Restoration:
        _require_whole(measurement)
        found = estimate(measurement, key)
        return found._replace(picture=refine_by_patches(measurement, found.picture, fits), samples=None)

    return restore


def refine_by_patches(measurement: Measurement, picture: Image, fits: int = 1) -> Image:
    """What one pass makes of a denoised picture that is the mean of so many `fits`. The pilot is the mean of these and
    of nonlocal Bayes alone, which counts as one fit more. The noise must be independent from pixel to pixel."""
    y, noise = measurement.y, measurement.noise
    alone = nonlocal_bayes()(measurement, jax.random.key(0)).picture
    pilot = (fits * picture + alone) / (fits + 1)
    return nonlocal_bayes_pass(y, variance_left(pilot, y, noise), pilot, LAST)


def _require_whole(measurement: Measurement) -> None:
    if measurement.operator != identity:
        raise UserError("nonlocal Bayes denoises a picture whose every pixel was measured; it knows no operator")


def _alone(y: Image, variance: Image) -> Image:
    first = nonlocal_bayes_pass(y, variance, None, FIRST)
    second = nonlocal_bayes_pass(y, variance, first, SECOND)
    third = nonlocal_bayes_pass(y, variance, second, LATER)
    return nonlocal_bayes_pass(y, variance, third, LATER)


@partial(jax.jit, static_argnums=3)
def nonlocal_bayes_pass(y: Image, variance: Image, pilot: Image | None, groups: Groups) -> Image:
    """Every patch of y restored by those that are most like it in the `pilot`, and of it. Without a pilot they are
    found in y, blurred a little, and their covariance is that in y less the noise's. Of the variances in a group the
    mean counts."""
    height, width, channels = y.shape
    side = max(1, min(SIDE, int((LARGEST / channels) ** 0.5)))
    sides = min(side, height), min(side, width)
    stride = min(groups.stride, *sides)
    rows, columns = (_places(length - side, stride) for length, side in zip((height, width), sides))
    within = [min(length - side, REACH) + 1 for length, side in zip((height, width), sides)]
    count = min(groups.count, within[0] * within[1])  # in a corner a quarter of the places lies in the picture
    guide = blur(height, width, BLUR).forward(y) if pilot is None else pilot
    inside = (jnp.arange(sides[0])[:, None] * width + jnp.arange(sides[1])[None]).reshape(1, 1, -1)
    restore, source = (_from_noisy, y) if pilot is None else (_from_pilot, pilot)

    def one_row(sums, row):
        corners = _most_alike(guide, row, columns, sides, count)  # (columns, count): the upper left pixels of patches
        pixels = corners[..., None] + inside
        found = restore(*(jnp.reshape(picture.reshape(-1, channels)[pixels], (*corners.shape, -1))
                          for picture in (y, variance, source)))
        values = jnp.concatenate([found.reshape(*pixels.shape, channels), jnp.ones((*pixels.shape, 1), y.dtype)], -1)
        return sums.at[pixels.ravel()].add(values.reshape(-1, channels + 1)), None

    sums, _ = jax.lax.scan(one_row, jnp.zeros((height * width, channels + 1), y.dtype), rows)
    return (sums[:, :-1] / sums[:, -1:]).reshape(y.shape)


def _places(last: int, stride: int) -> Int[Array, "n"]:
    """0, stride, ... and the last, so that every pixel is in some patch."""
    return jnp.array(sorted({*range(0, last, stride), last}))


def _most_alike(
    guide: Image, row: Int[Array, ""], columns: Int[Array, "n"], sides: tuple[int, int], count: int
) -> Int[Array, "n count"]:
    """For the patches of one row: which `count` within reach have the least squared difference to each."""
    height, width, _ = guide.shape
    around = jnp.pad(guide, ((REACH, REACH), (REACH, REACH), (0, 0)))
    strip = jax.lax.dynamic_slice_in_dim(guide, row, sides[0])
    near = jax.lax.dynamic_slice_in_dim(around, row, sides[0] + 2 * REACH)
    steps = jnp.arange(-REACH, REACH + 1)

    def distances(down):
        moved = jax.lax.dynamic_slice_in_dim(near, down + REACH, sides[0])

        def one(right):
            there = jax.lax.dynamic_slice_in_dim(moved, right + REACH, width, 1)
            differences = jnp.square(strip - there).sum((0, 2))
            sums = jnp.convolve(differences, jnp.ones(sides[1], guide.dtype), "valid")
            inside = _within(row + down, height - sides[0]) & _within(columns + right, width - sides[1])
            return jnp.where(inside, sums[columns], jnp.inf)

        return jax.vmap(one)(steps)

    found = jax.lax.map(distances, steps).reshape(len(steps) ** 2, -1).T
    best = jax.lax.top_k(-found, count)[1]
    down, right = best // len(steps) - REACH, best % len(steps) - REACH
    return (row + down) * width + columns[:, None] + right


def _within(place: Int[Array, "..."], last: int) -> Array:
    return (place >= 0) & (place <= last)


def _from_pilot(
    y: Float[Array, "groups count n"], variance: Float[Array, "groups count n"], pilot: Float[Array, "groups count n"]
) -> Float[Array, "groups count n"]:
    """m + C (C + V)^-1 (y - m), m and C those of the pilot's patches. With the rows of X the patches less m, so that
    C = X^T X / (count - 1), C (C + V)^-1 = X^T (X V^-1 X^T + count - 1)^-1 X V^-1: a system no larger than the group.
    """
    mean, others = pilot.mean(1, keepdims=True), max(pilot.shape[1] - 1, 1)
    apart = pilot - mean
    weighed = apart / jnp.maximum(variance.mean(1, keepdims=True), LEAST)
    turned = jnp.swapaxes(weighed, 1, 2)
    inner = apart @ turned + others * jnp.eye(pilot.shape[1], dtype=y.dtype)[None]
    return mean + jnp.swapaxes(jnp.linalg.solve(inner, weighed @ jnp.swapaxes(y - mean, 1, 2)), 1, 2) @ apart


def _from_noisy(
    y: Float[Array, "groups count n"], variance: Float[Array, "groups count n"], same: Float[Array, "groups count n"]
) -> Float[Array, "groups count n"]:
    """m + (S - V)_+ S^-1 (y - m), m and S those of the noisy patches; where S is hardly more than the noise, the mean
    grey of each channel is taken."""
    mean = y.mean(1, keepdims=True)
    apart, noise = y - mean, variance.mean((1, 2))[:, None]
    values, vectors = jnp.linalg.eigh(jnp.swapaxes(apart, 1, 2) @ apart / max(y.shape[1] - 1, 1))
    share = jnp.maximum(values - noise, 0) / jnp.maximum(values, 1e-12)
    found = mean + (apart @ vectors * share[:, None]) @ jnp.swapaxes(vectors, 1, 2)
    flat = (y.var((1, 2)) <= FLAT * noise[:, 0])[:, None, None]
    return jnp.where(flat, jnp.broadcast_to(y.mean((1, 2), keepdims=True), y.shape), found)
