"""What is measured of a picture: operators that a fit observes its output through, and the noise that comes with them.

An operator is a function of one picture (h, w, c). Linear ones along rows and columns are two small matrices, so they
are exact, fast, and differentiable everywhere. Values are in [0, 1]; `sigma` is in the same units.
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from dipddpm_jax.types import Image

Operator = Callable[[Image], Float[Array, "..."]]


def random_mask(key: Key[Array, ""], height: int, width: int, known: float) -> Float[Array, "h w 1"]:
    """1 with probability `known`, else 0: the same pixels in all channels."""
    return jax.random.bernoulli(key, known, (height, width, 1)).astype(jnp.float32)


def filter_matrix(size: int, taps: Float[np.ndarray, "k"], stride: int = 1) -> Float[np.ndarray, "out size"]:
    """Rows of a correlation along an axis whose border pixels repeat outwards; in float64 on the host.

    Output i is centred on the inputs i * stride .. i * stride + stride - 1. Raises ValueError unless that covers them.
    """
    if size % stride:
        raise ValueError(f"a side of {size} pixels cannot be divided by {stride}")
    before = (len(taps) - stride) // 2
    matrix = np.zeros((size // stride, size))
    for i in range(len(matrix)):
        for j, tap in enumerate(taps):
            matrix[i, np.clip(i * stride - before + j, 0, size - 1)] += tap
    return matrix


def separable(height: int, width: int, taps: Float[np.ndarray, "k"], stride: int = 1) -> Operator:
    """The operator that filters columns and rows of an h x w picture with `taps`."""
    rows, columns = filter_matrix(height, taps, stride), filter_matrix(width, taps, stride)

    def operate(image: Image) -> Float[Array, "i j c"]:
        return jnp.einsum("ih,jw,hwc->ijc", jnp.asarray(rows, image.dtype), jnp.asarray(columns, image.dtype), image)

    return operate


def lanczos2_taps(factor: int) -> Float[np.ndarray, "k"]:
    """The 4 * factor taps of the DIP paper's downsampler (lanczos2, phase 0.5), summing to 1."""
    x = (np.arange(4 * factor) + 0.5 - 2 * factor) / factor
    taps = np.sinc(x) * np.sinc(x / 2)
    return taps / taps.sum()


def downsample(height: int, width: int, factor: int) -> Operator:
    """Lanczos-2 downsampling (Ulyanov et al. 2018, super-resolution). ValueError unless `factor` divides both sides."""
    return separable(height, width, lanczos2_taps(factor), factor)


def blur(height: int, width: int, sigma: float) -> Operator:
    """Gaussian blur with a standard deviation of `sigma` pixels, cut off at 3 sigma."""
    reach = max(1, int(np.ceil(3 * sigma)))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return separable(height, width, taps / taps.sum())
