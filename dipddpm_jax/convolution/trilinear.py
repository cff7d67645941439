"""A convolution and its two gradients: the three derivatives of one number, sum(g * conv(x, kernel)).

That number is linear in the pictures x, the kernel and the cotangent g. Each of the three operations is linear in two
of them and the gradient to the third, so that their derivatives are again these three. GPU and TPU compute all by
`lax.conv` and its transposes, a CPU as in `cpu`. With `fits`, arrays lead with one more axis: as many convolutions.
"""
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jaxtyping import Array, Float

from dipddpm_jax.convolution import bands, cpu
from dipddpm_jax.convolution.layouts import LAYOUT, NO_PADDING, Kernel, Padding
from dipddpm_jax.convolution.primitives import new_primitive, set_derivatives, set_vmap
from dipddpm_jax.types import Features, Images

TransposedKernel = Float[Array, "kh kw o c"]


def conv(
    x: Images, kernel: Kernel, stride: int = 1, padding: Padding = NO_PADDING,
    mode: Literal["zeros", "reflect"] = "zeros",
) -> Features:
    """Cross-correlation, as PyTorch's Conv2d; kernel is (height, width, in, out), `mode` what stands in the padding."""
    count, (before, after) = bands.sharing(), padding[0]
    if count > 1 and before == after == (kernel.shape[0] - 1) / 2 and x.shape[1] % (count * stride) == 0 and (
            x.shape[1] // count > before):
        band = partial(conv, stride=stride, padding=(NO_PADDING[0], padding[1]), mode=mode)
        return bands.by_rows(band, x, kernel, halo=before, edge=mode)
    if mode == "reflect":
        x, padding = jnp.pad(x, ((0, 0), *padding, (0, 0)), mode="reflect"), NO_PADDING
    if any(max(ends) >= k for ends, k in zip(padding, kernel.shape)):
        x, padding = jnp.pad(x, ((0, 0), *padding, (0, 0))), NO_PADDING
    return _output_p.bind(x, kernel, stride=stride, padding=padding, fits=False)


def conv_transpose(x: Images, kernel: TransposedKernel, stride: int = 1, padding: int = 0) -> Features:
    """PyTorch's ConvTranspose2d; kernel is (height, width, OUT, IN), the layout whose fan-in is PyTorch's.

    It is the gradient to the pictures of a convolution that takes OUT channels to IN.
    """
    sizes = tuple((n - 1) * stride + k - 2 * padding for n, k in zip(x.shape[1:3], kernel.shape))
    return _to_pictures_p.bind(x, kernel, stride=stride, padding=((padding, padding),) * 2, sizes=sizes, fits=False)


def _lax_output(x: Array, kernel: Array, *, stride: int, padding: Padding, fits: bool) -> Array:
    f = partial(lax.conv_general_dilated, window_strides=(stride, stride), padding=padding, dimension_numbers=LAYOUT)
    return (jax.vmap(f) if fits else f)(x, kernel)


def _lax_to_pictures(g: Array, kernel: Array, *, sizes: tuple[int, int], **keywords) -> Array:
    x = jax.ShapeDtypeStruct((*g.shape[:-3], *sizes, kernel.shape[-2]), g.dtype)
    return jax.linear_transpose(lambda x: _lax_output(x, kernel, **keywords), x)(g)[0]


def _lax_to_kernel(x: Array, g: Array, *, sizes: tuple[int, int], fits: bool, **keywords) -> Array:
    kernel = jax.ShapeDtypeStruct((*x.shape[:1] * fits, *sizes, x.shape[-1], g.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda kernel: _lax_output(x, kernel, fits=fits, **keywords), kernel)(g)[0]


_output_p = new_primitive("conv", _lax_output, cpu.output)
_to_pictures_p = new_primitive("conv_to_pictures", _lax_to_pictures, cpu.to_pictures)
_to_kernel_p = new_primitive("conv_to_kernel", _lax_to_kernel, cpu.to_kernel)


def _pictures(g, x, kernel, **keywords):
    return _to_pictures_p.bind(g, kernel, sizes=x.shape[-3:-1], **keywords)


def _kernel(g, x, kernel, **keywords):
    return _to_kernel_p.bind(x, g, sizes=kernel.shape[-4:-2], **keywords)


set_derivatives(_output_p, _pictures, _kernel)
set_derivatives(
    _to_pictures_p,
    lambda x, g, kernel, sizes, **keywords: _output_p.bind(x, kernel, **keywords),
    lambda x, g, kernel, sizes, **keywords: _kernel(g, x, kernel, **keywords))
set_derivatives(
    _to_kernel_p,
    lambda kernel, x, g, sizes, **keywords: _pictures(g, x, kernel, **keywords),
    lambda kernel, x, g, sizes, **keywords: _output_p.bind(x, kernel, **keywords))


def _vmap(primitive: Primitive, size: int, in_front: list[bool], a: Array, b: Array, *, fits: bool, **keywords):
    """Pictures alone make one larger batch; with a kernel for each, or to each, the convolutions are as many fits."""
    if in_front == [True, False] and primitive is not _to_kernel_p:
        a = jnp.moveaxis(a, 0, 1) if fits else a  # in front of the pictures
        at = 1 if fits else 0
        joined = a.reshape(*a.shape[:at], -1, *a.shape[at + 2 :])
        y = primitive.bind(joined, b, fits=fits, **keywords)
        y = y.reshape(*y.shape[:at], size, -1, *y.shape[at + 1 :])
        return jnp.moveaxis(y, at, 0)
    a, b = (array if new else jnp.broadcast_to(array[None], (size, *array.shape))
            for array, new in zip((a, b), in_front))
    if not fits:
        return primitive.bind(a, b, fits=True, **keywords)
    y = primitive.bind(*(array.reshape(-1, *array.shape[2:]) for array in (a, b)), fits=True, **keywords)
    return y.reshape(size, -1, *y.shape[1:])


for _primitive in (_output_p, _to_pictures_p, _to_kernel_p):
    set_vmap(_primitive, partial(_vmap, _primitive))
