"""What is measured of a picture: linear operators that a fit observes its output through, and masks of pixels.

An operator A takes one picture (h, w, c). Those that filter rows and columns are two small matrices, y = R x C^T for
every channel, so they are exact, fast, differentiable everywhere, and their adjoint is x = R^T y C. Values are in
[0, 1].
"""
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from dipddpm_jax.types import Image

Ridge = float | Float[Array, ""]
ZERO_GAIN = 1e-6  # singular values below this share of the largest count as 0 in a pseudo-inverse


class Operator(NamedTuple):
    """A linear operator A: `forward` (also by calling it) is A x, `adjoint` A^T y; <A x, y> = <x, A^T y>.

    `solve(y, ridge)` is A^T (A A^T + ridge I)^-1 y, exactly; with ridge = 0 it is the pseudo-inverse. All that data
    consistency needs follows from it, as the nearest picture that explains y,
    argmin_x |A x - y|^2 + ridge |x - x0|^2 = x0 + solve(y - A x0, ridge).
    """

    forward: Callable[[Image], Float[Array, "..."]]
    adjoint: Callable[[Float[Array, "..."]], Image]
    solve: Callable[[Float[Array, "..."], Ridge], Image]

    def __call__(self, image: Image) -> Float[Array, "..."]:
        return self.forward(image)


def _same(image: Float[Array, "..."]) -> Float[Array, "..."]:
    return image


identity = Operator(_same, _same, lambda y, ridge: y / (1 + ridge))
"""Observes the picture itself: denoising, and a fit's inpainting with DipProblem.known."""


def masked(known: Float[Array, "h w _"]) -> Operator:
    """The operator that sets to 0 what is not `known` (1, else 0): inpainting, where A is a projection."""
    def project(image: Image) -> Image:
        return jnp.asarray(known, image.dtype) * image

    return Operator(project, project, lambda y, ridge: project(y) / (1 + ridge))


def mask_of(operator: Operator, shape: tuple[int, ...]) -> Float[Array, "h w c"] | None:
    """1 where an operator shows the pixels of a picture of this shape, 0 where it shows 0; None if it does anything
    else."""
    probe = jnp.arange(1, 1 + np.prod(shape), dtype=jnp.float32).reshape(shape)
    seen = operator.forward(probe)
    known = (seen != 0).astype(probe.dtype)
    return known if seen.shape == probe.shape and bool(jnp.array_equal(seen, known * probe)) else None


def random_mask(key: Key[Array, ""], height: int, width: int, known: float) -> Float[Array, "h w 1"]:
    """1 with probability `known`, else 0: the same pixels in all channels."""
    return jax.random.bernoulli(key, known, (height, width, 1)).astype(jnp.float32)


def held_out_mask(key: Key[Array, ""], known: Float[Array, "h w _"], share: float) -> Float[Array, "h w 1"]:
    """1 with probability `share` where all channels are `known` (not 0), else 0; for the stop rule `held_out`.

    At least one known pixel is held out and at least one is left to the fit, if there are two. Without holes this is
    `random_mask` of the same key.
    """
    known = jnp.all(known != 0, -1, keepdims=True)
    draw = jax.random.uniform(key, known.shape)
    lowest, highest = (extreme(jnp.where(known, draw, fill)) for extreme, fill in ((jnp.min, 2.0), (jnp.max, -1.0)))
    return (known & ((draw < share) | (draw <= lowest)) & (draw < highest)).astype(jnp.float32)


def filled(image: Float[np.ndarray, "h w c"], known: Float[np.ndarray, "h w _"]) -> Float[np.ndarray, "h w c"]:
    """The picture with its unknown pixels (0) replaced, from the rim of a hole inwards, by the mean of the known ones
    among their eight neighbours. On the host."""
    known = np.broadcast_to(known != 0, image.shape)
    image = np.where(known, image, 0)
    while known.any() and not known.all():
        sums, counts = (np.lib.stride_tricks.sliding_window_view(
            np.pad(x, ((1, 1), (1, 1), (0, 0))), (3, 3), (0, 1)).sum((-2, -1), image.dtype) for x in (image, known))
        image = np.where(known | (counts == 0), image, sums / np.maximum(counts, 1))
        known = known | (counts > 0)
    return image


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
    matrices = filter_matrix(height, taps, stride), filter_matrix(width, taps, stride)
    # A = R x C: with R = U S V^T the singular vectors of A are products of those of R and C, and so are the values.
    (left, rows, right), (left_c, columns, right_c) = (np.linalg.svd(m, full_matrices=False) for m in matrices)
    gains = np.outer(rows, columns)[..., None]
    gains[gains < ZERO_GAIN * gains.max()] = 0

    def forward(image: Image) -> Float[Array, "i j c"]:
        return _between(matrices[0], image, matrices[1])

    def adjoint(measurement: Float[Array, "i j c"]) -> Image:
        return _between(matrices[0].T, measurement, matrices[1].T)

    def solve(measurement: Float[Array, "i j c"], ridge: Ridge) -> Image:
        inner = _between(left.T, measurement, left_c.T)
        gain = jnp.asarray(gains, measurement.dtype)
        inner = jnp.where(gain > 0, gain * inner / jnp.where(gain > 0, gain**2 + ridge, 1), 0)
        return _between(right.T, inner, right_c.T)

    return Operator(forward, adjoint, solve)


def _between(rows: np.ndarray, image: Float[Array, "h w c"], columns: np.ndarray) -> Float[Array, "i j c"]:
    """rows @ image @ columns^T for every channel."""
    return jnp.einsum("ih,jw,hwc->ijc", *(jnp.asarray(matrix, image.dtype) for matrix in (rows, columns)), image)


def lanczos2_taps(factor: int, count: int) -> Float[np.ndarray, "k"]:
    """`count` taps of sinc(x) sinc(x / 2), |x| < 2, one output pixel being `factor` taps; symmetric, summing to 1."""
    x = (np.arange(count) - (count - 1) / 2) / factor
    taps = np.sinc(x) * np.sinc(x / 2)
    return taps / taps.sum()


def downsample(height: int, width: int, factor: int) -> Operator:
    """Lanczos-2 downsampling in which an output pixel is centred on the block of `factor` x `factor` pixels that it
    stands for, for any factor. Raises ValueError unless `factor` divides both sides."""
    return separable(height, width, lanczos2_taps(factor, 4 * factor - factor % 2), factor)


def downsample_of_dip_authors(height: int, width: int, factor: int) -> Operator:
    """Lanczos-2 downsampling as in the code of Ulyanov et al. 2018 (`lanczos2`, phase 0.5, 4 * factor taps).

    Equal to `downsample` for even factors; for odd ones an output pixel lies half an input pixel below and right of
    the centre of its block. For comparisons with their numbers. Raises ValueError unless `factor` divides both sides.
    """
    return separable(height, width, lanczos2_taps(factor, 4 * factor), factor)


def blur(height: int, width: int, sigma: float) -> Operator:
    """Gaussian blur with a standard deviation of `sigma` pixels, cut off at 3 sigma."""
    reach = max(1, int(np.ceil(3 * sigma)))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return separable(height, width, taps / taps.sum())
