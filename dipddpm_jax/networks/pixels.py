"""Sums over batch and pixels, and their transpose, which gives every pixel the same numbers.

In float32 a sum of n terms in one accumulator is off by some sqrt(n) roundings, and the gradients of BatchNorm and of
biases are sums that nearly cancel; PyTorch adds them up in float64 on a CPU. So does `over_pixels` there, after few
rounds in pairs, if they are large; small ones it adds in pairs to the end (Higham 1993, section 4). GPU and TPU add in
trees. Both functions are linear primitives, each the transpose of the other, so that every derivative of either, in
both modes, is as precise.
"""
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from dipddpm_jax.convolution.primitives import (
    new_primitive,
    set_derivatives,
    set_derivatives_of_linear,
    set_vmap,
)
from dipddpm_jax.types import Features

Rows = Float[Array, "c"]  # a number for each channel
ROUNDS = 5  # of adding one half of each row to the other, in one pass over memory
LARGE = 2**17  # numbers, from which on a sum ends in float64 on a CPU
FIRST_ROUNDS = 4  # before that in float32: a sixteenth is left to convert, and the roundings of so many runs cancel


def over_pixels(x: Float[Array, "*b c"]) -> Rows:
    """The sum over batch and pixels, for each channel."""
    return _sum_p.bind(x, axes=tuple(range(x.ndim - 1)))


def to_pixels(rows: Rows, like: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    """The same numbers at every pixel of every picture of `like`."""
    return _spread_p.bind(rows, shape=like.shape[:-1], axes=tuple(range(like.ndim - 1)))


def rest_of_mean(x: Float[Array, "*b c"], mean: Rows) -> Rows:
    """What rounding left over of the mean over batch and pixels: mean(x - `mean`), for each channel; a constant."""
    return _rest_p.bind(lax.stop_gradient(x), lax.stop_gradient(mean), axes=tuple(range(x.ndim - 1)))


def without_share(v: Features, normal: Features) -> Features:
    """P v = v - mean(v) - N mean(N v): without the mean and the share of the normalised N; means over batch and pixels.

    P is symmetric, and is its own transpose here.
    """
    return _without_p.bind(v, normal, mapped=0)


def _without_share(v: Array, normal: Array, *, mapped: int) -> Array:
    if mapped:
        return jax.vmap(functools.partial(_without_share, mapped=mapped - 1))(v, normal)
    shares = to_pixels(over_pixels(v), v) + normal * to_pixels(over_pixels(v * normal), v)
    return v - shares / (v.size // v.shape[-1])


def _change_of_share(v: Array, normal: Array, change: Array, *, mapped: int) -> Array:
    """How P v changes with N."""
    if mapped:
        return jax.vmap(functools.partial(_change_of_share, mapped=mapped - 1))(v, normal, change)
    shares = change * to_pixels(over_pixels(v * normal), v) + normal * to_pixels(over_pixels(v * change), v)
    return -shares / (v.size // v.shape[-1])


def _plain_sum(x: Array, *, axes: tuple[int, ...]) -> Array:
    return x.sum(axes)


def _precise_sum(x: Array, *, axes: tuple[int, ...]) -> Array:
    """Large arrays at last in float64; small ones in pairs along a row: in a cache, conversion would tell.

    Of one channel, in pairs along a column, so that the numbers of a row still lie side by side. Never across pictures,
    which may lie on several devices.
    """
    if x.dtype != jnp.float32 or len(axes) < 2:
        return x.sum(axes)
    if x.size >= LARGE:
        with jax.enable_x64(True):
            return _sum_in_float64(x, axes).astype(jnp.float32)
    if _by_rows(x, axes):
        return _in_pairs(x, axes[-1], ROUNDS).sum(axes)
    row = _in_pairs(x, axes[-2], ROUNDS).sum(axes[:-1])
    return _in_pairs(row, axes[0], row.size).sum(axes[0])


def _plain_rest(x: Array, mean: Array, *, axes: tuple[int, ...]) -> Array:
    at_pixels = _spread(mean, shape=tuple(x.shape[axis] for axis in axes), axes=axes)
    return _sum_p.bind(x - at_pixels, axes=axes) / math.prod(x.shape[axis] for axis in axes)


def _precise_rest(x: Array, mean: Array, *, axes: tuple[int, ...]) -> Array:
    """The rest from the sum in float64 where that is made anyway, in large arrays: no further pass over memory."""
    if x.dtype != jnp.float32 or len(axes) < 2 or x.size < LARGE:
        return _plain_rest(x, mean, axes=axes)
    with jax.enable_x64(True):
        exact = _sum_in_float64(x, axes) / math.prod(x.shape[axis] for axis in axes)
        return (exact - mean.astype(jnp.float64)).astype(jnp.float32)


def _sum_in_float64(x: Array, axes: tuple[int, ...]) -> Array:
    """The float64 sum of short float32 sums; for use where float64 is enabled."""
    alone = x.shape[axes[0]] == 1  # devices may share the rows of one picture, and not those of several
    by_rows = _by_rows(x, axes) and (alone or len(axes) < 3)
    # Halves of a column are whole rows, which lie side by side: SmallUNet trains in 15 % less time than by the others.
    axis = axes[-1] if by_rows else axes[-2]
    return _in_pairs(x, axis, FIRST_ROUNDS).astype(jnp.float64).sum(axes)


def _by_rows(x: Array, axes: tuple[int, ...]) -> bool:
    """Whether halves of rows are added to each other: of several channels, and where columns would be pictures."""
    return math.prod(x.shape[axes[-1] + 1 :]) > 1 or len(axes) < 3


def _in_pairs(x: Array, axis: int, rounds: int) -> Array:
    """The halves along an axis, or 3, 5 or 7 parts, added to each other, so many times at most."""
    for _ in range(rounds):
        parts = next((d for d in (2, 3, 5, 7) if x.shape[axis] % d == 0), 1)
        if parts > 1:
            x = functools.reduce(jnp.add, jnp.split(x, parts, axis))
    return x


def _spread(rows: Array, *, shape: tuple[int, ...], axes: tuple[int, ...]) -> Array:
    wanted = list(rows.shape)
    for axis, size in zip(axes, shape):
        wanted.insert(axis, size)
    return lax.broadcast_in_dim(rows, wanted, [axis for axis in range(len(wanted)) if axis not in axes])


_sum_p = new_primitive("sum_over_pixels", _plain_sum, _precise_sum)
_spread_p = new_primitive("spread_over_pixels", _spread)
_rest_p = new_primitive("rest_of_mean", _plain_rest, _precise_rest)
set_derivatives(_sum_p, lambda g, x, axes: _spread_p.bind(g, shape=tuple(x.shape[a] for a in axes), axes=axes))
set_derivatives(_spread_p, lambda g, rows, shape, axes: _sum_p.bind(g, axes=axes))
set_vmap(_rest_p, lambda size, in_front, x, mean, axes: _rest_p.bind(
    *(a if new else jnp.broadcast_to(a[None], (size, *a.shape)) for a, new in zip((x, mean), in_front)),
    axes=tuple(axis + 1 for axis in axes)))
for _primitive in (_sum_p, _spread_p):
    set_vmap(_primitive, lambda size, in_front, x, axes, primitive=_primitive, **keywords: primitive.bind(
        x, axes=tuple(axis + 1 for axis in axes), **keywords))

_without_p = new_primitive("without_share", _without_share)
set_derivatives_of_linear(
    _without_p, lambda g, v, normal, mapped: _without_p.bind(g, normal, mapped=mapped), _change_of_share)
set_vmap(_without_p, lambda size, in_front, v, normal, mapped: _without_p.bind(
    *(a if new else jnp.broadcast_to(a[None], (size, *a.shape)) for a, new in zip((v, normal), in_front)),
    mapped=mapped + 1))
