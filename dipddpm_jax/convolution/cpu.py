"""A convolution and its two gradients as a CPU computes them fast.

XLA's CPU back-end is fast only in the layout NHWC, HWIO -> NHWC and with more than 16 channels; autodiff emits other
layouts, inside loop bodies up to 80 times slower. So the gradient to the pictures is a convolution with the turned
kernel, that to the kernel a product of matrices; few channels become more, many have fewer products (`winograd`); and
many kernels at once (`fits`) are batched products where small, else a loop.
"""
from collections.abc import Callable
from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from dipddpm_jax.convolution import winograd
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
    LAYOUT,
    NO_PADDING,
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

FitImages = Float[Array, "*fits b h w c"]
FitKernel = Float[Array, "*fits kh kw c o"]
Results = Float[Array, "*fits _ _ _ _"]


def output(x: FitImages, kernel: FitKernel, *, stride: int, padding: Padding, fits: bool) -> Results:
    """The convolution of x, or of each fit's x with the fit's own kernel."""
    if stride == 1:
        return _correlate(x, kernel, padding, fits)
    if not fits and min(kernel.shape[2:]) >= 4:  # measured: XLA is slow with fewer channels
        return _directly(x, kernel, stride, padding)
    sizes = [(n + sum(ends) - k) // stride + 1 for n, ends, k in zip(x.shape[-3:], padding, kernel.shape[-4:])]
    kernel = _each(partial(blocks_of_kernel, s=stride), fits)(kernel)
    x = _each(partial(_blocks, stride=stride, padding=padding, kernel=kernel.shape[-4:-2], sizes=sizes), fits)(x)
    return _correlate(x, kernel, NO_PADDING, fits)


def to_pictures(
    g: Results, kernel: FitKernel, *, stride: int, padding: Padding, sizes: tuple[int, int], fits: bool
) -> Results:
    """The gradient to pictures of these sizes, for the gradient g to the output."""
    turned_padding = tuple((k - 1 - before, k - 1 - after) for k, (before, after) in zip(kernel.shape[-4:], padding))
    if stride == 1 and all(count >= 0 for ends in turned_padding for count in ends):
        return _correlate(g, _each(turn, fits)(kernel), turned_padding, fits)
    turned = _each(partial(turned_blocks_of_kernel, s=stride), fits)(kernel)
    blocks = _correlate(g, turned, tuple((k - 1, k - 1) for k in turned.shape[-4:-2]), fits)
    before = tuple((-ends[0], -ends[0]) for ends in padding)
    return _each(lambda blocks: pad_to(depth_to_space(blocks, stride), before, list(sizes)), fits)(blocks)


def to_kernel(
    x: FitImages, g: Results, *, stride: int, padding: Padding, sizes: tuple[int, int], fits: bool
) -> Results:
    """The gradient to a kernel of these sizes, for the gradient g to the output."""
    if stride > 1:
        whole = jax.ShapeDtypeStruct((*sizes, x.shape[-1], g.shape[-1]), g.dtype)
        to_blocks = partial(blocks_of_kernel, s=stride)
        size = jax.eval_shape(to_blocks, whole).shape[:2]
        x = _each(partial(_blocks, stride=stride, padding=padding, kernel=size, sizes=g.shape[-3:-1]), fits)(x)
        blocks = to_kernel(x, g, stride=1, padding=NO_PADDING, sizes=size, fits=fits)
        return _each(lambda blocks: jax.linear_transpose(to_blocks, whole)(blocks)[0], fits)(blocks)
    if g.shape[-1] < x.shape[-1]:  # patches of the thinner operand are smaller; the result comes turned
        turned = tuple((k - 1 - before, k - 1 - after) for k, (before, after) in zip(sizes, padding))
        return _each(turn, fits)(_kernel_gradient(g, x, sizes, turned, fits))
    return _kernel_gradient(x, g, sizes, padding, fits)


def _each(f: Callable[..., Array], fits: bool) -> Callable[..., Array]:
    return jax.vmap(f) if fits else f


def _blocks(
    x: Images, stride: int, padding: Padding, kernel: tuple[int, int], sizes: list[int] | tuple[int, ...]
) -> Features:
    """Blocks of stride x stride pixels as channels: as many as an output of these sizes and a kernel of blocks see."""
    return space_to_depth(pad_to(x, padding, [(n + k - 1) * stride for n, k in zip(sizes, kernel)]), stride)


def _correlate(x: FitImages, kernel: FitKernel, padding: Padding, fits: bool) -> Results:
    """The convolution with stride 1."""
    if not fits:
        return _canonical(x, kernel, padding)
    if small(x.shape[1:], kernel.shape[1:]):
        return jax.vmap(partial(_as_product, padding=padding))(x, kernel)
    return lax.map(lambda fit: _canonical(*fit, padding), (x, kernel))


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


def _kernel_gradient(x: FitImages, g: Results, size: tuple[int, int], padding: Padding, fits: bool) -> Results:
    """The sum over pixels of (patch of x) times g."""
    (kh, kw), (h, w, o), c = size, g.shape[-3:], x.shape[-1]
    s = pixel_group(w, (kh, kw, c, o))
    if s == 1:
        return _products(_each(lambda x: pad_to(x, padding, [h + kh - 1, w + kw - 1]), fits)(x), g, fits)
    x = _each(lambda x: groups_of_pixels(pad_to(x, padding, [h + kh - 1, w + s]), s), fits)(x)
    d = _products(x, _each(partial(groups_of_pixels, s=s), fits)(g), fits)
    whole = jax.ShapeDtypeStruct((kh, kw, c, o), d.dtype)
    return _each(lambda d: jax.linear_transpose(partial(groups_of_kernel, s=s), whole)(d)[0], fits)(d)


def _products(x: FitImages, g: Results, fits: bool = False) -> Results:
    """Patches of x times g. Pictures stay on their device: `lanes` of the batch never mix before the last sum."""
    (_, h, w, o), lanes = g.shape[-4:], lane_count(g.shape[-4])
    kernel = x.shape[-3] - h + 1, x.shape[-2] - w + 1, x.shape[-1], o
    if fits and small(x.shape[1:], kernel[:2]):
        return jax.vmap(_in_pieces)(x, g)
    if fits:
        return lax.map(lambda fit: _products(*fit), (x, g))
    fewer = suits_winograd(g.shape, kernel, g.dtype)
    if lanes == 1 and not fewer:
        return _in_pieces(x, g, PIECE_BYTES if shared_out() else 8 * PIECE_BYTES)  # larger where cores share it
    if fewer:
        x, g = (pad_to(a, NO_PADDING, [m + m % 2 for m in a.shape[1:3]]) for a in (x, g))
    gradient = winograd.kernel_gradient if fewer else _in_pieces
    if lanes == 1:
        return gradient(x, g)
    return jax.vmap(gradient)(*(a.reshape(lanes, -1, *a.shape[1:]) for a in (x, g))).sum(0)


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
