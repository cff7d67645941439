"""Noise of a measurement: how it is drawn, and the misfit that belongs to it. Values are in [0, 1]."""
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dipddpm_jax.errors import UserError
from dipddpm_jax.types import Image


class Gaussian(NamedTuple):
    """y = A x + sigma N(0, 1), not clipped, as the literature measures it."""

    sigma: float | Float[Array, ""]

    def draw(self, key: Key[Array, ""], observed: Float[Array, "*n"]) -> Float[Array, "*n"]:
        return observed + self.sigma * jax.random.normal(key, observed.shape, observed.dtype)

    def variance(self, observed: Float[Array, "*n"]) -> Float[Array, "*n"]:
        return jnp.full_like(observed, self.sigma**2)


class Poisson(NamedTuple):
    """y = n / peak, n photons of mean peak * A x; not clipped."""

    peak: float | Float[Array, ""]

    def draw(self, key: Key[Array, ""], observed: Float[Array, "*n"]) -> Float[Array, "*n"]:
        mean = self.peak * jnp.maximum(observed, 0)
        return jax.random.poisson(key, mean).astype(observed.dtype) / self.peak

    def variance(self, observed: Float[Array, "*n"]) -> Float[Array, "*n"]:
        return jnp.maximum(observed, 0) / self.peak


Noise = Gaussian | Poisson
"""A noise says how it is drawn, draw(key, A x), and its variance value by value, given A x."""


def gaussian_sigma(noise: Noise) -> float | Float[Array, ""]:
    """Standard deviation of Gaussian noise. Raises UserError for a noise that depends on the picture."""
    if not isinstance(noise, Gaussian):
        raise UserError(f"this method knows Gaussian noise alone, not {type(noise).__name__} noise")
    return noise.sigma


def add_gaussian(key: Key[Array, ""], image: Image, sigma: float) -> Image:
    """image + sigma * N(0, 1), clipped to [0, 1] as in Ulyanov et al. 2018 and as a picture file would be."""
    return jnp.clip(image + sigma * jax.random.normal(key, image.shape, image.dtype), 0, 1)


def add_poisson(key: Key[Array, ""], image: Image, peak: float) -> Image:
    """Photon counts of mean `peak` * image, divided by `peak` and clipped to [0, 1]."""
    return jnp.clip(jax.random.poisson(key, peak * image).astype(image.dtype) / peak, 0, 1)


def squared_error(observed: Float[Array, "*n"], measurement: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The misfit of Gaussian noise, value by value."""
    return jnp.square(observed - measurement)


def psnr_of(error: Float[Array, ""]) -> Float[Array, ""]:
    """PSNR in dB of a mean squared error, for pictures in [0, 1]."""
    return -10 * jnp.log10(error)


def poisson_misfit(peak: float) -> Callable[[Image, Image], Image]:
    """Negative log-likelihood of counts peak * measurement, value by value, less its least value (0: both agree)."""
    def misfit(observed, measurement):
        observed, floor = jnp.maximum(observed, 1e-4), jnp.maximum(measurement, 1e-4)
        return peak * (observed - measurement - measurement * jnp.log(observed / floor))

    return misfit
