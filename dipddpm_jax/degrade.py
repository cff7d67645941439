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


def add_gaussian(key: Key[Array, ""], image: Image, sigma: float) -> Image:
    """image + sigma * N(0, 1), clipped to [0, 1] as in Ulyanov et al. 2018 and as a picture file would be."""
    return jnp.clip(image + sigma * jax.random.normal(key, image.shape, image.dtype), 0, 1)


def add_poisson(key: Key[Array, ""], image: Image, peak: float) -> Image:
    """Photon counts of mean `peak` * image, divided by `peak` and clipped to [0, 1]."""
    return jnp.clip(jax.random.poisson(key, peak * image).astype(image.dtype) / peak, 0, 1)


def poisson_misfit(peak: float) -> Callable[[Image, Image], Image]:
    """Negative log-likelihood of counts peak * measurement, value by value, less its least value (0: both agree)."""
    def misfit(observed, measurement):
        observed, floor = jnp.maximum(observed, 1e-4), jnp.maximum(measurement, 1e-4)
        return peak * (observed - measurement - measurement * jnp.log(observed / floor))

    return misfit


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


def estimate_sigma(image: Float[np.ndarray, "h w c"]) -> float:
    """Standard deviation of Gaussian noise: the median of |diagonal wavelet details| / 0.6745, mean over channels
    (Donoho and Johnstone 1994; Daubechies-2 wavelets, as scikit-image's estimate_sigma). Sides must be at least 4."""
    root = np.sqrt(3)
    high = np.array([1 - root, root - 3, 3 + root, -1 - root]) / (4 * np.sqrt(2))
    padded = np.pad(np.asarray(image, np.float64), ((2, 3), (2, 3), (0, 0)), mode="symmetric")
    for axis in (0, 1):
        windows = np.lib.stride_tricks.sliding_window_view(padded, 4, axis=axis)
        padded = np.take(windows @ high, np.arange(0, windows.shape[axis], 2), axis=axis)
    details = padded.reshape(-1, padded.shape[-1])
    return float(np.mean(np.median(np.abs(details), axis=0) / 0.6744897501960817))
