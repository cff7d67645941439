"""Non-local means of the same picture, which takes a moment: what a restoration by a deep image prior has to beat."""
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from skimage.restoration import denoise_nl_means

from dipddpm_jax.dip.folds import cross_fit_errors, fold_masks
from dipddpm_jax.inverse.operators import filled

PARTS = 5  # of the pixels, for the estimate


class Beside(NamedTuple):
    """A simple restoration in [0, 1] and its estimated mean squared error to the clean picture."""

    picture: Float[np.ndarray, "h w c"]
    error: float


def means_beside(y: Float[np.ndarray, "h w c"], sigma: float) -> Beside:
    """Non-local means (Buades et al. 2005) by scikit-image, with its advice for known noise: h = 0.8 sigma, patches of
    5x5, distances up to 6.

    The error is estimated as Efron's covariance penalty, mean (f - y)^2 - sigma^2 + 2 h sigma^2, where h, the share of
    a pixel's noise that it keeps, is measured by leaving out parts of the pixels (`dip.folds.cross_fit_errors`).
    """
    picture, known = _means(y, sigma), np.ones((*y.shape[:2], 1), np.float32)
    parts = np.asarray(fold_masks(jax.random.key(0), jnp.asarray(known), PARTS))
    blind = np.stack([_means(filled(y, known - part), sigma) for part in parts])
    errors = cross_fit_errors(*map(jnp.asarray, (blind, y, parts, known, np.full_like(y, sigma**2))))
    return Beside(picture, float(np.mean((picture - y) ** 2) + (2 * errors.gain - 1) * sigma**2))


def _means(y: Float[np.ndarray, "h w c"], sigma: float) -> Float[np.ndarray, "h w c"]:
    return denoise_nl_means(y, patch_size=5, patch_distance=6, h=0.8 * sigma, sigma=sigma, fast_mode=True,
                            channel_axis=-1).astype(np.float32)
