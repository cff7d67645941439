"""One pass of nonlocal Bayes (Lebrun, Buades and Morel 2013, SIAM J. Imaging Sciences 6): what patches that look alike
tell of each other.

The patches most like a given one, taken out of a pilot picture, say which patches are likely there: a normal law with
their mean m and covariance C. A noisy patch y with independent noise of variances V is then best restored as

    x = m + C (C + V)^-1 (y - m),

and each pixel is the mean over all patches that hold it. A pixel that was not measured has noise without end: V^-1 is 0
there, and the equation inpaints (as with the mixtures of Yu, Sapiro and Mallat 2012, IEEE Trans. Image Processing 21).

Of colours, small patches of all channels together know how these go with each other, larger ones of one channel at a
time more of what repeats: the mean of both is taken.
"""
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.fft import dct, idct
from jax.scipy.linalg import cho_factor, cho_solve
from jaxtyping import Array, Float, Int

from dipddpm_jax.inverse.operators import blur
from dipddpm_jax.types import Image

SIDE = 7  # of a patch, in pixels; of more channels than one, patches are smaller
LARGEST = SIDE**2  # numbers in a patch
REACH = 15  # how far patches are looked for, in pixels
BLUR = 1.0  # pixels, standard deviation, of a noisy picture before it is searched
LEAST = 1e-6  # variance of noise, white being 1, below which it counts as that

Mask = Float[Array, "h w _"]


class Groups(NamedTuple):
    """How many patches make a group, and how many pixels lie between the patches that groups are made for."""

    count: int
    stride: int


@partial(jax.jit, static_argnums=3)
def nonlocal_bayes_pass(
    y: Image, variance: Image, pilot: Image | None, groups: Groups, known: Mask | None = None
) -> Image:
    """Every patch of y restored by those that are most like it in the `pilot`, and of it. Without a pilot they are
    found in y, blurred a little, and their covariance is that in y less the noise's. Of the variances in a group the
    mean counts, unless pixels are missing (0 in `known`, which has one channel where all miss the same)."""
    channels = y.shape[-1]
    side = max(1, min(SIDE, int((LARGEST / channels) ** 0.5)))
    together = _restored(y, variance, pilot, groups, side, known)
    if channels == 1 or (known is not None and known.shape[-1] > 1):
        return together
    # The cosine transform of three channels gives their mean and two opponent colours; white noise stays white.
    turn = partial(dct, norm="ortho")
    variances = variance @ jnp.square(turn(jnp.eye(channels, dtype=y.dtype)))
    wide = Groups(groups.count, 2 * groups.stride)
    apart = _restored(
        turn(y), variances, None if pilot is None else turn(pilot), wide, SIDE, known, each_channel=True)
    return (together + idct(apart, norm="ortho")) / 2


def _restored(
    y: Image, variance: Image, pilot: Image | None, groups: Groups, side: int, known: Mask | None = None,
    each_channel: bool = False,
) -> Image:
    """The pass with patches of `side`: of all channels together, or with `each_channel` of one at a time, in groups
    that all channels find."""
    height, width, channels = y.shape
    sides = min(side, height), min(side, width)
    stride = min(groups.stride, *sides)
    rows, columns = (_places(length - side, stride) for length, side in zip((height, width), sides))
    within = [min(length - side, REACH) + 1 for length, side in zip((height, width), sides)]
    count = min(groups.count, within[0] * within[1])  # in a corner a quarter of the places lies in the picture
    guide = blur(height, width, BLUR).forward(y) if pilot is None else pilot
    inside = (jnp.arange(sides[0])[:, None] * width + jnp.arange(sides[1])[None]).reshape(1, 1, -1)
    restore, source = (_from_noisy, y) if pilot is None else (_from_pilot if known is None else _from_part, pilot)
    weights = variance if known is None else known / jnp.maximum(variance, LEAST)

    def one_row(sums, row):
        corners = _most_alike(guide, row, columns, sides, count)  # (columns, count): the upper left pixels of patches
        pixels = corners[..., None] + inside
        taken = [picture.reshape(-1, channels)[pixels] for picture in (y, weights, source)]
        if each_channel:
            found = jax.lax.map(lambda one: restore(*one), tuple(jnp.moveaxis(values, -1, 0) for values in taken))
            found = jnp.moveaxis(found, 0, -1)
        else:
            found = restore(*(values.reshape(*corners.shape, -1) for values in taken)).reshape(*pixels.shape, channels)
        values = jnp.concatenate([found, jnp.ones((*pixels.shape, 1), y.dtype)], -1)
        return sums.at[pixels.ravel()].add(values.reshape(-1, channels + 1)), None

    sums, _ = jax.lax.scan(one_row, jnp.zeros((height * width, channels + 1), y.dtype), rows)
    return (sums[:, :-1] / sums[:, -1:]).reshape(y.shape)


def _places(last: int, stride: int) -> Int[Array, "n"]:
    """0, stride, ... and the last, so that every pixel is in some patch."""
    return jnp.array(sorted({*range(0, last, stride), last}))


def _most_alike(
    guide: Image, row: Int[Array, ""], columns: Int[Array, "n"], sides: tuple[int, int], count: int
) -> Int[Array, "n count"]:
    """For the patches of one row: which `count` within reach have the least squared difference to each, itself first.
    """
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
    found = found.at[:, len(steps) ** 2 // 2].set(-1)  # itself comes first, even where more than `count` are the same
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


def _from_part(
    y: Float[Array, "groups count n"], weights: Float[Array, "groups count n"], pilot: Float[Array, "groups count n"]
) -> Float[Array, "groups count n"]:
    """The same with W = V^-1 of each patch its own, 0 where nothing was measured:
    m + X^T (X W X^T + count - 1)^-1 X W (y - m)."""
    mean, others = pilot.mean(1), max(pilot.shape[1] - 1, 1)

    def one(y, weights, apart, mean):
        weighed = apart * weights[None]
        inner = weighed @ apart.T + others * jnp.eye(len(apart), dtype=y.dtype)
        return mean + cho_solve(cho_factor(inner, lower=True), weighed @ (y - mean)) @ apart

    of_group = jax.vmap(one, (0, 0, None, None))
    return jax.vmap(of_group)(y, weights, pilot - mean[:, None], mean)


def _from_noisy(
    y: Float[Array, "groups count n"], variance: Float[Array, "groups count n"], same: Float[Array, "groups count n"]
) -> Float[Array, "groups count n"]:
    """m + (S - V)_+ S^-1 (y - m), m and S those of the noisy patches."""
    mean = y.mean(1, keepdims=True)
    apart, noise = y - mean, variance.mean((1, 2))[:, None]
    values, vectors = jnp.linalg.eigh(jnp.swapaxes(apart, 1, 2) @ apart / max(y.shape[1] - 1, 1))
    share = jnp.maximum(values - noise, 0) / jnp.maximum(values, 1e-12)
    return mean + (apart @ vectors * share[:, None]) @ jnp.swapaxes(vectors, 1, 2)
