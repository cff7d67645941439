"""The one place that knows how a convolution is computed on which back-end.

GPU and TPU use `lax.conv`. XLA's CPU back-end is fast only at stride 1 in the layout NHWC, HWIO -> NHWC; autodiff emits
others, inside loop bodies up to 80 times slower. So on a CPU strides become channels, the gradient to the input is a
convolution with the turned kernel, and the gradient to the kernel is a product of matrices; many kernels at once (vmap)
are batched products where small, else a loop. Reverse mode and first derivatives only.
"""
import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float

from dipddpm_jax.types import Features, Images

Kernel = Float[Array, "kh kw c o"]
TransposedKernel = Float[Array, "kh kw o c"]
Padding = tuple[tuple[int, int], tuple[int, int]]  # (top, bottom), (left, right)

NO_PADDING = ((0, 0), (0, 0))
LAYOUT = ("NHWC", "HWIO", "NHWC")
PIECE_BYTES = 1_000_000  # of patches held at once: they should stay in a core's cache


def conv(x: Images, kernel: Kernel, stride: int = 1, padding: Padding = NO_PADDING) -> Features:
    """Cross-correlation with zero padding, as PyTorch's Conv2d; kernel is (height, width, in, out)."""
    if jax.default_backend() != "cpu":
        return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT)
    if stride > 1:
        sizes = [(n + sum(ends) - k) // stride + 1 for n, ends, k in zip(x.shape[1:3], padding, kernel.shape)]
        kernel = _blocks_of_kernel(kernel, stride)
        x = _pad_to(x, padding, [(n + k - 1) * stride for n, k in zip(sizes, kernel.shape)])
        return _correlate(_space_to_depth(x, stride), kernel, NO_PADDING)
    if any(max(ends) >= k for ends, k in zip(padding, kernel.shape)):
        x, padding = jnp.pad(x, ((0, 0), *padding, (0, 0))), NO_PADDING
    return _correlate(x, kernel, padding)


def conv_transpose(x: Images, kernel: TransposedKernel, stride: int = 1, padding: int = 0) -> Features:
    """PyTorch's ConvTranspose2d; kernel is (height, width, OUT, IN), the layout whose fan-in is PyTorch's."""
    kh, kw, _, _ = kernel.shape
    if jax.default_backend() != "cpu":
        ends = [(k - 1 - padding, k - 1 - padding) for k in (kh, kw)]
        return lax.conv_general_dilated(
            x, _turn(kernel), (1, 1), ends, lhs_dilation=(stride, stride), dimension_numbers=LAYOUT
        )
    sizes = [(n - 1) * stride + k - 2 * padding for n, k in zip(x.shape[1:3], (kh, kw))]
    turned = _turn(_blocks_of_kernel(kernel, stride))
    blocks = _correlate(x, turned, tuple((k - 1, k - 1) for k in turned.shape[:2]))
    return _pad_to(_depth_to_space(blocks, stride), ((-padding, -padding), (-padding, -padding)), sizes)


def _pad_to(x: Images, padding: Padding, sizes: list[int]) -> Features:
    """Zeros before as `padding` says, and after so that height and width become `sizes`; negative counts crop."""
    for axis, ((before, _), size) in enumerate(zip(padding, sizes), 1):
        x = lax.slice_in_dim(x, max(-before, 0), min(x.shape[axis], size - before), axis=axis)
        counts = max(before, 0), size - max(before, 0) - x.shape[axis]
        zeros = [jnp.zeros((*x.shape[:axis], count, *x.shape[axis + 1 :]), x.dtype) for count in counts]
        if any(counts):  # not `pad`: XLA would draw the activation before it inside, where it takes four times as long
            x = jnp.concatenate([zeros[0], x, zeros[1]], axis)
    return x


def _space_to_depth(x: Images, s: int) -> Features:
    n, h, w, c = x.shape
    return x.reshape(n, h // s, s, w // s, s, c).transpose(0, 1, 3, 2, 4, 5).reshape(n, h // s, w // s, s * s * c)


def _depth_to_space(x: Images, s: int) -> Features:
    n, h, w, c = x.shape
    return x.reshape(n, h, w, s, s, c // s**2).transpose(0, 1, 3, 2, 4, 5).reshape(n, h * s, w * s, c // s**2)


def _blocks_of_kernel(kernel: Kernel, s: int) -> Float[Array, "_ _ _ o"]:
    """The kernel that acts on blocks of s x s pixels as this one acts on pixels; zeros fill it up to whole blocks."""
    kh, kw, c, o = kernel.shape
    kernel = jnp.pad(kernel, ((0, -kh % s), (0, -kw % s), (0, 0), (0, 0)))
    kernel = kernel.reshape(-(-kh // s), s, -(-kw // s), s, c, o).transpose(0, 2, 1, 3, 4, 5)
    return kernel.reshape(*kernel.shape[:2], s * s * c, o)


def _turn(kernel: Kernel) -> Float[Array, "kh kw o c"]:
    return kernel[::-1, ::-1].transpose(0, 1, 3, 2)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _correlate(x: Images, kernel: Kernel, padding: Padding) -> Features:
    return _output(x, kernel, padding)


def _forward(x: Images, kernel: Kernel, padding: Padding) -> tuple[Features, tuple[Images, Kernel]]:
    return _output(x, kernel, padding), (x, kernel)


def _backward(padding: Padding, kept: tuple[Images, Kernel], g: Features) -> tuple[Images, Kernel]:
    x, kernel = kept
    size = kernel.shape[:2]
    turned = tuple((k - 1 - before, k - 1 - after) for k, (before, after) in zip(size, padding))
    dx = _output(g, _turn(kernel), turned)
    if g.shape[-1] < x.shape[-1]:  # patches of the thinner operand are smaller; the result comes turned
        return dx, _turn(_kernel_gradient(g, x, size, turned))
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
        if _small(x.shape[1:], kernel.shape[1:]):
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
    if _better_in_pairs(n * h * w, w, kernel.shape):
        pairs = _pad_to(x, ((0, 0), padding[1]), [x.shape[1], w + 2]).reshape(n, -1, w // 2 + 1, 2 * c)
        return _canonical(pairs, _pairs_of_kernel(kernel), (padding[0], (0, 0))).reshape(n, h, w, o)
    if any(size > m for size, m in zip(sizes, x.shape[1:3])):
        x, padding = _pad_to(x, padding, [h + kh - 1, w + kw - 1]), NO_PADDING
    if padding == NO_PADDING:
        padding = ((0, 1), (0, 0))  # one row too many, cut off below
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=LAYOUT)[:, :h]


def _as_product(x: Images, kernel: Kernel, padding: Padding) -> Features:
    kh, kw, c, o = kernel.shape
    return _patches(jnp.pad(x, ((0, 0), *padding, (0, 0))), kh, kw) @ kernel.reshape(kh * kw * c, o)


def _patches(x: Images, kh: int, kw: int) -> Features:
    h, w = x.shape[1] - kh + 1, x.shape[2] - kw + 1
    return jnp.concatenate([x[:, i : i + h, j : j + w] for i in range(kh) for j in range(kw)], -1)


def _kernel_gradient(x: Images, g: Features, size: tuple[int, int], padding: Padding) -> Kernel:
    """The sum over pixels of (patch of x) times g."""
    (kh, kw), (n, h, w, o), c = size, g.shape, x.shape[-1]
    x = _pad_to(x, padding, [h + kh - 1, w + kw - 1])
    if not _better_in_pairs(n * h * w, w, (kh, kw, c, o)):
        return _products(x, g)
    d = _products(x.reshape(n, h + kh - 1, w // 2 + 1, 2 * c), g.reshape(n, h, w // 2, 2 * o))
    return jax.linear_transpose(_pairs_of_kernel, jax.ShapeDtypeStruct((kh, kw, c, o), d.dtype))(d)[0]


def _products(x: Images, g: Features) -> Kernel:
    """Patches of x times g. Pictures stay on their device: `lanes` of the batch never mix before the last sum."""
    lanes = _divisor(x.shape[0], jax.device_count())

    @custom_vmap
    def one(x, g):
        if lanes == 1:
            return _in_pieces(x, g, 8 * PIECE_BYTES)  # of several cores, where larger ones pay
        return jax.vmap(_in_pieces)(*(a.reshape(lanes, -1, *a.shape[1:]) for a in (x, g))).sum(0)

    @one.def_vmap
    def many(fits, batched, x, g):
        x, g = (a if own else jnp.broadcast_to(a[None], (fits, *a.shape)) for a, own in zip((x, g), batched))
        kh, kw = (m - n + 1 for m, n in zip(x.shape[2:4], g.shape[2:4]))
        if _small(x.shape[1:], (kh, kw)):
            return jax.vmap(_in_pieces)(x, g), True
        return lax.map(lambda fit: _products(*fit), (x, g)), True

    return one(x, g)


def _in_pieces(x: Images, g: Features, most: int = PIECE_BYTES) -> Kernel:
    """Patches of x times g as products of matrices, the patches made in pieces of at most `most` bytes or one row."""
    (n, h, w, o), c = g.shape, x.shape[-1]
    kh, kw = x.shape[1] - h + 1, x.shape[2] - w + 1
    taps = kh * kw * c
    row_bytes = w * taps * x.dtype.itemsize
    pictures = _divisor(n, most // (h * row_bytes))
    rows = h if h * row_bytes <= most else _divisor(h, most // row_bytes)
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
        total = product(_patches(x, kh, kw), g)
    else:
        start = jnp.zeros((o, taps) if o < taps else (taps, o), exact), jnp.zeros((pictures, rows, w, taps), x.dtype)
        total, _ = lax.fori_loop(0, pieces, add, start)
    return (total.T if o < taps else total).astype(g.dtype).reshape(kh, kw, c, o)


def _divisor(n: int, most: int) -> int:
    """The largest divisor of n that is at most `most`, but at least 1."""
    return max(d for d in range(1, n + 1) if n % d == 0 and d <= max(most, 1))


def _small(x: tuple[int, ...], kernel: tuple[int, ...]) -> bool:
    """Whether all patches fit in one piece; then many fits at once are best as one batched product."""
    return math.prod(x) * kernel[0] * kernel[1] * 4 <= PIECE_BYTES


def _better_in_pairs(pixels: int, width: int, kernel: tuple[int, ...]) -> bool:
    """Few channels leave vectors half empty: two pixels taken as one fill them, and take a third of the time."""
    _, kw, c, o = kernel
    return kw == 3 and min(c, o) <= 16 and max(c, o) <= 20 and width % 2 == 0 and pixels >= 4096


def _pairs_of_kernel(kernel: Kernel) -> Float[Array, "kh 2 _ _"]:
    """The kernel (3 columns wide) for rows whose pixels 2m and 2m + 1 are written as one of twice the channels."""
    kh, _, c, o = kernel.shape
    both = [jnp.pad(kernel, ((0, 0), ends, (0, 0), (0, 0))) for ends in ((0, 1), (1, 0))]
    return jnp.stack(both, -2).reshape(kh, 2, 2 * c, 2 * o)
