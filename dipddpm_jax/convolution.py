"""The one place that knows how a convolution is computed on which back-end.

XLA's CPU back-end computes the gradients of `lax.conv` slowly, inside loop bodies up to 80 times so. Here a CPU
gathers patches and multiplies matrices (im2col), whose gradients are matrix products again; GPU and TPU use `lax.conv`.
"""
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from dipddpm_jax.types import Features, Images

Kernel = Float[Array, "kh kw c o"]
Padding = tuple[tuple[int, int], tuple[int, int]]  # (top, bottom), (left, right)


def conv(x: Images, kernel: Kernel, stride: int = 1, padding: Padding = ((0, 0), (0, 0))) -> Features:
    """Cross-correlation with zero padding, as PyTorch's Conv2d; kernel is (height, width, in, out)."""
    if jax.default_backend() != "cpu":
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=layout)
    kh, kw, c, o = kernel.shape
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    ho, wo = (x.shape[1] - kh) // stride + 1, (x.shape[2] - kw) // stride + 1
    rows, columns = (ho - 1) * stride + 1, (wo - 1) * stride + 1
    patches = [x[:, i : i + rows : stride, j : j + columns : stride] for i in range(kh) for j in range(kw)]
    return jnp.concatenate(patches, -1) @ kernel.reshape(kh * kw * c, o)


def conv_transpose(x: Images, kernel: Kernel, stride: int = 1, padding: int = 0) -> Features:
    """PyTorch's ConvTranspose2d; kernel is (height, width, OUT, IN), the layout whose fan-in is PyTorch's."""
    kh, kw, _, _ = kernel.shape
    dilated = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (kh - 1 - padding,) * 2 + (stride - 1,),
                                                  (kw - 1 - padding,) * 2 + (stride - 1,), (0, 0, 0)))
    return conv(dilated, kernel[::-1, ::-1].transpose(0, 1, 3, 2))
