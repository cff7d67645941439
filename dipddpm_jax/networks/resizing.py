"""Pooling and upsampling, as PyTorch has them."""
from functools import partial, reduce
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dipddpm_jax.convolution import bands
from dipddpm_jax.convolution.primitives import new_primitive, set_derivatives, set_vmap
from dipddpm_jax.types import Features, Images


def windows(x: Images, size: int) -> Float[Array, "b _ {size} _ {size} c"]:
    """Non-overlapping windows, for pooling over axes 2 and 4; leftover rows and columns are dropped, as in PyTorch."""
    b, h, w, c = x.shape
    h, w = h // size, w // size
    return x[:, : h * size, : w * size].reshape(b, h, size, w, size, c)


def max_pool(x: Images, size: int) -> Features:
    """The largest of each window; of equal ones the first gets the gradient, as in PyTorch.

    Not `max`, whose gradient divides by the number of equal values: 0 where a compiler rounds them twice.
    """
    w = windows(x, size)
    values = [w[:, :, i, :, j] for i in range(size) for j in range(size)]
    return reduce(lambda a, b: jnp.where(a >= b, a, b), values)


def double_size(x: Images, method: Literal["bilinear", "nearest"]) -> Features:
    """Upsample(scale_factor=2): half-pixel centres, edges repeated."""
    double = _bilinear if method == "bilinear" else partial(jnp.repeat, repeats=2)
    count = bands.sharing()
    if count > 1 and x.shape[1] % count == 0:
        x = bands.by_rows(lambda band: double(band, axis=1)[:, 2:-2], x, halo=1, edge="edge")
    else:
        x = double(x, axis=1)
    return double(x, axis=2)


def _bilinear(x: Features, axis: int) -> Features:
    return _double_p.bind(x, axis=axis)


def _doubled(x: Array, *, axis: int) -> Array:
    n, wide = x.shape[axis], _edges_repeated(x, axis)
    before, after = (0.25 * jax.lax.slice_in_dim(wide, i, i + n, axis=axis) for i in (0, 2))
    return jnp.stack([before + 0.75 * x, 0.75 * x + after], axis + 1).reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])


def _halved(g: Array, *, axis: int) -> Array:
    """The transpose of `_doubled`: of its slices, autodiff makes sums of padded arrays, ten times as slow on a CPU."""
    wide = _edges_repeated(g, axis)
    a, b, c, d = (jax.lax.slice_in_dim(wide, i, i + g.shape[axis] - 1, 2, axis) for i in range(4))
    return 0.25 * (a + d) + 0.75 * (b + c)


def _edges_repeated(x: Array, axis: int) -> Array:
    first, last = (jax.lax.slice_in_dim(x, i, i + 1, axis=axis) for i in (0, x.shape[axis] - 1))
    return jnp.concatenate([first, x, last], axis)


_double_p, _halve_p = new_primitive("double_size", _doubled), new_primitive("half_size", _halved)
set_derivatives(_double_p, lambda g, x, axis: _halve_p.bind(g, axis=axis))
set_derivatives(_halve_p, lambda g, x, axis: _double_p.bind(g, axis=axis))
for _primitive in (_double_p, _halve_p):
    set_vmap(_primitive, lambda size, in_front, x, axis, primitive=_primitive: primitive.bind(x, axis=axis + 1))
