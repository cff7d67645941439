"""Pictures and kernels written otherwise, so that one convolution becomes another that is faster."""
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from dipddpm_jax.types import Features, Images

Kernel = Float[Array, "kh kw c o"]
Padding = tuple[tuple[int, int], tuple[int, int]]  # (top, bottom), (left, right)

NO_PADDING = ((0, 0), (0, 0))
LAYOUT = ("NHWC", "HWIO", "NHWC")


def pad_to(x: Images, padding: Padding, sizes: list[int]) -> Features:
    """Zeros before as `padding` says, and after so that height and width become `sizes`; negative counts crop."""
    for axis, ((before, _), size) in enumerate(zip(padding, sizes), 1):
        x = lax.slice_in_dim(x, max(-before, 0), min(x.shape[axis], size - before), axis=axis)
        counts = max(before, 0), size - max(before, 0) - x.shape[axis]
        zeros = [jnp.zeros((*x.shape[:axis], count, *x.shape[axis + 1 :]), x.dtype) for count in counts]
        if any(counts):  # not `pad`: XLA would draw the activation before it inside, where it takes four times as long
            x = jnp.concatenate([zeros[0], x, zeros[1]], axis)
    return x


def space_to_depth(x: Images, s: int) -> Features:
    """Blocks of s x s pixels as one pixel each, of s * s times the channels."""
    n, h, w, c = x.shape
    return x.reshape(n, h // s, s, w // s, s, c).transpose(0, 1, 3, 2, 4, 5).reshape(n, h // s, w // s, s * s * c)


def depth_to_space(x: Images, s: int) -> Features:
    """Undoes `space_to_depth`."""
    n, h, w, c = x.shape
    return x.reshape(n, h, w, s, s, c // s**2).transpose(0, 1, 3, 2, 4, 5).reshape(n, h * s, w * s, c // s**2)


def blocks_of_kernel(kernel: Kernel, s: int) -> Float[Array, "_ _ _ o"]:
    """The kernel that acts on blocks of s x s pixels as this one acts on pixels; zeros fill it up to whole blocks."""
    kh, kw, c, o = kernel.shape
    kernel = jnp.pad(kernel, ((0, -kh % s), (0, -kw % s), (0, 0), (0, 0)))
    kernel = kernel.reshape(-(-kh // s), s, -(-kw // s), s, c, o).transpose(0, 2, 1, 3, 4, 5)
    return kernel.reshape(*kernel.shape[:2], s * s * c, o)


def turn(kernel: Kernel) -> Float[Array, "kh kw o c"]:
    """By half a circle, outputs and inputs exchanged: the kernel of the gradient to the input."""
    return kernel[::-1, ::-1].transpose(0, 1, 3, 2)


def turned_blocks_of_kernel(kernel: Kernel, s: int) -> Float[Array, "_ _ o _"]:
    """turn(blocks_of_kernel(kernel, s)), as a concatenation where that is short: XLA moves one out of a loop (of
    sampling, say), which it leaves transposes in."""
    if s > 2:
        return turn(blocks_of_kernel(kernel, s))
    kernel = jnp.pad(kernel, ((0, -kernel.shape[0] % s), (0, -kernel.shape[1] % s), (0, 0), (0, 0)))
    return jnp.concatenate([turn(kernel[i::s, j::s]) for i in range(s) for j in range(s)], -1)


def groups_of_pixels(x: Images, s: int) -> Features:
    """Rows whose pixels sm .. sm + s - 1 are written as one of s times the channels."""
    n, h, w, c = x.shape
    return x.reshape(n, h, w // s, s * c)


def groups_of_kernel(kernel: Kernel, s: int) -> Float[Array, "kh 2 _ _"]:
    """The kernel for rows whose pixels sm .. sm + s - 1 are written as one of s times the channels."""
    kh, kw, c, o = kernel.shape
    each = [jnp.pad(kernel, ((0, 0), (i, 2 * s - kw - i), (0, 0), (0, 0))) for i in range(s)]
    return jnp.stack(each, -2).reshape(kh, 2, s * c, s * o)
