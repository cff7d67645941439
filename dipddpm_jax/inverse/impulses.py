"""Salt-and-pepper noise: how it is drawn, and which pixels of a picture it struck.

A struck pixel says nothing of the picture, so that it counts as missing, and what denoises becomes what inpaints.
"""
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from dipddpm_jax.types import Image

REACH = 3  # pixels about one that are asked whether they are like it: 7x7


def add_impulses(key: Key[Array, ""], image: Image, share: float) -> Image:
    """The picture with a `share` of its pixels, drawn at random, made black (0) or white (1), half of them each."""
    drawn = jax.random.uniform(key, (*image.shape[:2], 1))
    return jnp.where(drawn < share, jnp.where(drawn < share / 2, 0.0, 1.0), image)


def not_impulses(picture: Float[np.ndarray, "h w c"]) -> Float[np.ndarray, "h w 1"]:
    """1 where a picture was measured, and 0 where it is black (0) or white (1), though at most half of the 7x7 pixels
    about are like that: regions that are black or white themselves stay known. Colours are looked at one by one."""
    struck = np.zeros(picture.shape[:2], bool)
    for channel in np.moveaxis(picture, -1, 0):
        for value in (0.0, 1.0):
            like = channel == value
            struck |= like & (_share_about(like) <= 0.5)
    return (~struck[..., None]).astype(np.float32)


def _share_about(like: np.ndarray) -> Float[np.ndarray, "h w"]:
    """The share of the pixels about each that are in `like`, of those that lie in the picture."""
    windows = np.lib.stride_tricks.sliding_window_view
    size = 2 * REACH + 1
    sums = [windows(windows(np.pad(what.astype(np.float64), REACH), size, 0).sum(-1), size, 1).sum(-1)
            for what in (like, np.ones_like(like))]
    return sums[0] / sums[1]
