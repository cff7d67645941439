"""The one place that knows how a convolution is computed on which back-end.

GPU and TPU use `lax.conv`. XLA's CPU back-end is fast only in the layout NHWC, HWIO -> NHWC and with more than 16
channels; autodiff emits other layouts, inside loop bodies up to 80 times slower. So on a CPU the gradient to the input
is a convolution with the turned kernel, that to the kernel a product of matrices; few channels become more, many have
fewer products (`winograd`); and many kernels at once (vmap) are batched products where small, else a loop. Reverse mode
and first derivatives only.
"""
from collections.abc import Callable
from functools import partial, reduce
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float

from dipddpm_jax.convolution import bands, winograd
from dipddpm_jax.convolution.cost import (
    FEW,
    PIECE_BYTES,
    divisor,
    lane_count,
    pixel_group,
    shared_out,
    small,
    suits_winograd,
)
from dipddpm_jax.convolution.layouts import (
    Kernel,
    Padding,
    blocks_of_kernel,
    depth_to_space,
    groups_of_kernel,
    groups_of_pixels,
    pad_to,
    space_to_depth,
    turn,
    turned_blocks_of_kernel,
)
from dipddpm_jax.types import Features, Images

TransposedKernel = Float[Array, "kh kw o c"]

NO_PADDING = ((0, 0), (0, 0))
LAYOUT = ("NHWC", "HWIO", "NHWC")


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
    if jax.default_backend() != "cpu":
        return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT)
    if stride > 1:
        return _strided(x, kernel, stride, padding)
    if any(max(ends) >= k for ends, k in zip(padding, kernel.shape)):
        x, padding = jnp.pad(x, ((0, 0), *padding, (0, 0))), NO_PADDING
    return _correlate(x, kernel, padding)


def conv_transpose(x: Images, kernel: TransposedKernel, stride: int = 1, padding: int = 0) -> Features:
    """PyTorch's ConvTranspose2d; kernel is (height, width, OUT, IN), the layout whose fan-in is PyTorch's."""
    kh, kw, _, _ = kernel.shape
    if jax.default_backend() != "cpu":
        ends = [(k - 1 - padding, k - 1 - padding) for k in (kh, kw)]
        return lax.conv_general_dilated(
            x, turn(kernel), (1, 1), ends, lhs_dilation=(stride, stride), dimension_numbers=LAYOUT
        )
    sizes = [(n - 1) * stride + k - 2 * padding for n, k in zip(x.shape[1:3], (kh, kw))]
    turned = turned_blocks_of_kernel(kernel, stride)
    blocks = _correlate(x, turned, tuple((k - 1, k - 1) for k in turned.shape[:2]))
    return pad_to(depth_to_space(blocks, stride), ((-padding, -padding), (-padding, -padding)), sizes)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _strided(x: Images, kernel: Kernel, stride: int, padding: Padding) -> Features:
    if min(kernel.shape[2:]) < 4:  # measured: XLA is slow with so few channels
        return _of_blocks(x, kernel, stride, padding)
    direct = custom_vmap(partial(_directly, stride=stride, padding=padding))

    @direct.def_vmap
    def many(fits, batched, x, kernel):
        return jax.vmap(partial(_of_blocks, stride=stride, padding=padding), [0 if own else None for own in batched])(
            x, kernel), True

    return direct(x, kernel)


def _strided_forward(x: Images, kernel: Kernel, stride: int, padding: Padding) -> tuple[Features, tuple]:
    return _strided(x, kernel, stride, padding), (x, kernel)


def _strided_backward(stride: int, padding: Padding, kept: tuple[Images, Kernel], g: Features) -> tuple:
    return jax.vjp(partial(_of_blocks, stride=stride, padding=padding), *kept)[1](g)


_strided.defvjp(_strided_forward, _strided_backward)


def _directly(x: Images, kernel: Kernel, stride: int, padding: Padding) -> Features:
    """`lax.conv`; where channels are few, `stride` pixels of a row are taken as one."""
    (kh, kw, c, o), across = kernel.shape, stride
    if max(c, o) <= FEW:
        columns = (x.shape[2] + sum(padding[1]) - kw) // stride + 1
        taps = -(-kw // stride)
        kernel = jnp.pad(kernel, ((0, 0), (0, -kw % stride), (0, 0), (0, 0))).reshape(kh, taps, stride * c, o)
        x = pad_to(x, ((0, 0), padding[1]), [x.shape[1], (columns + taps - 1) * stride])
        x, across, padding = groups_of_pixels(x, stride), 1, (padding[0], (0, 0))
    return lax.conv_general_dilated(x, kernel, (stride, across), padding, dimension_numbers=LAYOUT)


def _of_blocks(x: Images, kernel: Kernel, stride: int, padding: Padding) -> Features:
    """The strided convolution as one with stride 1, whose channels are the pixels of a block."""
    sizes = [(n + sum(ends) - k) // stride + 1 for n, ends, k in zip(x.shape[1:3], padding, kernel.shape)]
    kernel = blocks_of_kernel(kernel, stride)
    x = pad_to(x, padding, [(n + k - 1) * stride for n, k in zip(sizes, kernel.shape)])
    return _correlate(space_to_depth(x, stride), kernel, NO_PADDING)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _correlate(x: Images, kernel: Kernel, padding: Padding) -> Features:
    return _output(x, kernel, padding)


def _forward(x: Images, kernel: Kernel, padding: Padding) -> tuple[Features, tuple[Images, Kernel]]:
    return _output(x, kernel, padding), (x, kernel)


def _backward(padding: Padding, kept: tuple[Images, Kernel], g: Features) -> tuple[Images, Kernel]:
    x, kernel = kept
    size = kernel.shape[:2]
    turned = tuple((k - 1 - before, k - 1 - after) for k, (before, after) in zip(size, padding))
    dx = _output(g, turn(kernel), turned)
    if g.shape[-1] < x.shape[-1]:  # patches of the thinner operand are smaller; the result comes turned
        return dx, turn(_kernel_gradient(g, x, size, turned))
    return dx, _kernel_gradient(x, g, size, padding)


_correlate.defvjp(_forward, _backward)


def _output(x: Images, kernel: Kernel, padding: Padding) -> Features:
    """The convolution with stride 1; under vmap without own kernels, of all pictures as one batch."""
    one = custom_vmap(partial(_canonical, padding=padding))

    @one.def_vmap
    def many(fits, batched, x, kernel):
        x = x if batched[0] else jnp.broadcast_to(x[None], (fits, *x.shape))
        if not batched[1]:
            y = _output(x.reshape(-1, *x.shape[2:]), kernel, padding)
            return y.reshape(*x.shape[:2], *y.shape[1:]), True
        if small(x.shape[1:], kernel.shape[1:]):
            return jax.vmap(partial(_as_product, padding=padding))(x, kernel), True
        return lax.map(lambda fit: _output(*fit, padding), (x, kernel)), True

    return one(x, kernel)


def _canonical(x: Images, kernel: Kernel, padding: Padding) -> Features:
    """`lax.conv` where XLA's CPU back-end is fast: with some padding, but not more than keeps the size."""
    kh, kw, c, o = kernel.shape
    n = x.shape[0]
    h, w = sizes = [m + sum(ends) - k + 1 for m, ends, k in zip(x.shape[1:3], padding, (kh, kw))]
    if kh == kw == 1:
        return x @ kernel[0, 0]
    if o <= 4 and c >= 16:
        return _sum_of_taps(x, kernel, padding)
    if (s := pixel_group(w, kernel.shape)) > 1:
        groups = groups_of_pixels(pad_to(x, ((0, 0), padding[1]), [x.shape[1], w + s]), s)
        return _canonical(groups, groups_of_kernel(kernel, s), (padding[0], (0, 0))).reshape(n, h, w, o)
    if suits_winograd((n, h, w, o), kernel.shape, kernel.dtype):
        even = pad_to(x, padding, [h + h % 2 + 2, w + w % 2 + 2])
        return _by_lane(winograd.correlate, even, kernel)[:, :h, :w]
    if any(size > m for size, m in zip(sizes, x.shape[1:3])):
        x, padding = pad_to(x, padding, [h + kh - 1, w + kw - 1]), NO_PADDING
    if padding == NO_PADDING:
        padding = ((0, 1), (0, 0))  # one row too many, cut off below
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=LAYOUT)[:, :h]


def _sum_of_taps(x: Images, kernel: Kernel, padding: Padding) -> Features:
    """First every pixel times every tap, then the sum of shifted pictures: for few outputs."""
    kh, kw, c, o = kernel.shape
    taps = x @ kernel.transpose(2, 0, 1, 3).reshape(c, kh * kw * o)
    taps = jnp.pad(taps, ((0, 0), *padding, (0, 0)))
    h, w = taps.shape[1] - kh + 1, taps.shape[2] - kw + 1
    shifted = [taps[:, tap // kw : tap // kw + h, tap % kw : tap % kw + w, tap * o : (tap + 1) * o]
               for tap in range(kh * kw)]
    return reduce(jnp.add, shifted)


def _as_product(x: Images, kernel: Kernel, padding: Padding) -> Features:
    kh, kw, c, o = kernel.shape
    return _patches(jnp.pad(x, ((0, 0), *padding, (0, 0))), kh, kw) @ kernel.reshape(kh * kw * c, o)


def _patches(x: Images, kh: int, kw: int) -> Features:
    h, w = x.shape[1] - kh + 1, x.shape[2] - kw + 1
    return jnp.concatenate([x[:, i : i + h, j : j + w] for i in range(kh) for j in range(kw)], -1)


def _kernel_gradient(x: Images, g: Features, size: tuple[int, int], padding: Padding) -> Kernel:
    """The sum over pixels of (patch of x) times g."""
    (kh, kw), (_, h, w, o), c = size, g.shape, x.shape[-1]
    s = pixel_group(w, (kh, kw, c, o))
    if s == 1:
        return _products(pad_to(x, padding, [h + kh - 1, w + kw - 1]), g)
    x = pad_to(x, padding, [h + kh - 1, w + s])
    d = _products(groups_of_pixels(x, s), groups_of_pixels(g, s))
    return jax.linear_transpose(partial(groups_of_kernel, s=s), jax.ShapeDtypeStruct((kh, kw, c, o), d.dtype))(d)[0]


def _products(x: Images, g: Features) -> Kernel:
    """Patches of x times g. Pictures stay on their device: `lanes` of the batch never mix before the last sum."""
    (_, h, w, o), lanes = g.shape, lane_count(g.shape[0])
    kernel = x.shape[1] - h + 1, x.shape[2] - w + 1, x.shape[3], o

    @custom_vmap
    def one(x, g):
        fewer = suits_winograd(g.shape, kernel, g.dtype)
        if lanes == 1 and not fewer:
            return _in_pieces(x, g, PIECE_BYTES if shared_out() else 8 * PIECE_BYTES)  # larger where cores share it
        if fewer:
            x, g = (pad_to(a, NO_PADDING, [m + m % 2 for m in a.shape[1:3]]) for a in (x, g))
        gradient = winograd.kernel_gradient if fewer else _in_pieces
        if lanes == 1:
            return gradient(x, g)
        return jax.vmap(gradient)(*(a.reshape(lanes, -1, *a.shape[1:]) for a in (x, g))).sum(0)

    @one.def_vmap
    def many(fits, batched, x, g):
        x, g = (a if own else jnp.broadcast_to(a[None], (fits, *a.shape)) for a, own in zip((x, g), batched))
        kh, kw = (m - n + 1 for m, n in zip(x.shape[2:4], g.shape[2:4]))
        if small(x.shape[1:], (kh, kw)):
            return jax.vmap(_in_pieces)(x, g), True
        return lax.map(lambda fit: _products(*fit), (x, g)), True

    return one(x, g)


def _in_pieces(x: Images, g: Features, most: int = PIECE_BYTES) -> Kernel:
    """Patches of x times g as products of matrices, the patches made in pieces of at most `most` bytes or one row."""
    (n, h, w, o), c = g.shape, x.shape[-1]
    kh, kw = x.shape[1] - h + 1, x.shape[2] - w + 1
    taps = kh * kw * c
    row_bytes = w * taps * x.dtype.itemsize
    pictures = divisor(n, most // (h * row_bytes))
    rows = h if h * row_bytes <= most else divisor(h, most // row_bytes)
    exact = jnp.promote_types(g.dtype, jnp.float32)

    def product(patches, g):
        a, b = patches.reshape(-1, taps), g.reshape(-1, o)
        a, b = (b, a) if o < taps else (a, b)  # the smaller one first: measured
        return lax.dot_general(a, b, (((0,), (0,)), ((), ())), preferred_element_type=exact)

    def add(i, state):
        total, patches = state
        n0, h0 = i // (h // rows) * pictures, i % (h // rows) * rows
        part = lax.dynamic_slice(x, (n0, h0, 0, 0), (pictures, rows + kh - 1, *x.shape[2:]))
        for tap in range(kh * kw):  # written in place: a concatenation takes twice the time
            shifted = part[:, tap // kw : tap // kw + rows, tap % kw : tap % kw + w]
            patches = patches.at[..., tap * c : (tap + 1) * c].set(shifted)
        return total + product(patches, lax.dynamic_slice(g, (n0, h0, 0, 0), (pictures, rows, w, o))), patches

    pieces = n * h // (pictures * rows)
    if pieces == 1:
        total = lax.optimization_barrier(product(_patches(x, kh, kw), g))  # else XLA exchanges the operands
    else:
        start = jnp.zeros((o, taps) if o < taps else (taps, o), exact), jnp.zeros((pictures, rows, w, taps), x.dtype)
        total, _ = lax.fori_loop(0, pieces, add, start)
    return (total.T if o < taps else total).astype(g.dtype).reshape(kh, kw, c, o)


def _by_lane(f: Callable[[Images, Kernel], Features], x: Images, kernel: Kernel) -> Features:
    """f of the pictures of each device by themselves, since f takes pictures in pieces."""
    lanes = lane_count(x.shape[0])
    if lanes == 1:
        return f(x, kernel)
    y = jax.vmap(f, (0, None))(x.reshape(lanes, -1, *x.shape[1:]), kernel)
    return y.reshape(-1, *y.shape[2:])
