"""Non-local means of the same picture, which takes a moment: what a restoration by a deep image prior has to beat."""
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from skimage.restoration import denoise_nl_means

from dipddpm_jax.inverse.cut_off import variance_left, without_cut_off
from dipddpm_jax.inverse.noises import Gaussian

NUDGE = 0.1  # of sigma, for the divergence
DIRECTIONS = 3
SEED = (2008, 14)  # of its directions: none that somebody makes noise with, which must be independent of it


class Beside(NamedTuple):
    """A simple restoration in [0, 1] and its estimated mean squared error to the clean picture."""

    picture: Float[np.ndarray, "h w c"]
    error: float


def means_beside(y: Float[np.ndarray, "h w c"], sigma: float) -> Beside:
    """Non-local means (Buades et al. 2005) by scikit-image, with its advice for known noise: h = 0.8 sigma, patches of
    5x5, distances up to 6.

    The error is estimated by Stein's formula, mean (f(y) - y)^2 - sigma^2 + 2 sigma^2 div f / n, its divergence along
    three random directions of signs (Ramani et al. 2008, eq. 14): div f = b . (f(y + e b) - f(y)) / e. Where noise was
    cut off, that is the error to the mean of y, and what the mean is off by comes on top.
    """
    picture, step = _means(y, sigma), NUDGE * sigma
    signs = np.random.default_rng(SEED).choice([-1, 1], (DIRECTIONS, *y.shape)).astype(np.float32)
    divergence = np.mean([np.mean(b * (_means(y + step * b, sigma) - picture)) / step for b in signs])
    mean, noise = jnp.asarray(picture), (jnp.asarray(y), Gaussian(sigma))
    bias = np.mean(np.square(without_cut_off(mean, *noise) - mean))
    variance = np.mean(variance_left(mean, *noise))
    return Beside(picture, float(np.mean((picture - y) ** 2) + (2 * divergence - 1) * variance + bias))


def _means(y: Float[np.ndarray, "h w c"], sigma: float) -> Float[np.ndarray, "h w c"]:
    return denoise_nl_means(y, patch_size=5, patch_distance=6, h=0.8 * sigma, sigma=sigma, fast_mode=True,
                            channel_axis=-1).reshape(y.shape).astype(np.float32)
