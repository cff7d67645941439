"""Training pictures mirrored and moved at random, so that a few of them are not so soon learned by heart.

The network is not told what was done (EDM's augmentation does tell it: Karras et al. 2022, section 5): what it draws is
mirrored and moved as its training pictures were.
"""
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from dipddpm_jax.types import Images


def mirrored(key: Key[Array, ""], images: Images) -> Images:
    """Each picture turned left to right with a probability of a half."""
    turned = jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1))
    return jnp.where(turned, images[:, :, ::-1], images)


def moved(key: Key[Array, ""], images: Images, most: int) -> Images:
    """Each picture moved by up to `most` pixels along both sides, its edge repeated."""
    padded = jnp.pad(images, ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")
    corners = jax.random.randint(key, (len(images), 2), 0, 2 * most + 1)
    return jax.vmap(lambda image, c: jax.lax.dynamic_slice(image, (c[0], c[1], 0), images.shape[1:]))(padded, corners)


def augmented(key: Key[Array, ""], images: Images, mirror: bool, shift: int) -> Images:
    """Both, where they are asked for: `mirrored`, and `moved` by up to `shift` pixels."""
    mirror_key, shift_key = jax.random.split(key)
    images = mirrored(mirror_key, images) if mirror else images
    return moved(shift_key, images, shift) if shift else images
