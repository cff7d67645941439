"""Noise of a measurement: how it is drawn, and the misfit that belongs to it. Values are in [0, 1]."""
from collections.abc import Callable
from functools import lru_cache
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
    """y = n / peak + sigma N(0, 1), n photons of mean peak * A x, and what reading them out adds; not clipped."""

    peak: float | Float[Array, ""]
    sigma: float | Float[Array, ""] = 0.0

    def draw(self, key: Key[Array, ""], observed: Float[Array, "*n"]) -> Float[Array, "*n"]:
        mean = self.peak * jnp.maximum(observed, 0)
        read_key = jax.random.fold_in(key, 100)  # 0, 1 and 2 are keys that `poisson` itself splits off
        read_out = self.sigma * jax.random.normal(read_key, observed.shape, observed.dtype)
        return jax.random.poisson(key, mean).astype(observed.dtype) / self.peak + read_out

    def variance(self, observed: Float[Array, "*n"]) -> Float[Array, "*n"]:
        return jnp.maximum(observed, 0) / self.peak + self.sigma**2

    @property
    def shift(self) -> float | Float[Array, ""]:
        """peak sigma^2: y + shift has the mean A x + shift and the variance (A x + shift) / peak, as counts have
        (Snyder et al. 1993)."""
        return self.peak * self.sigma**2


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


def add_poisson(key: Key[Array, ""], image: Image, peak: float, sigma: float = 0.0) -> Image:
    """Photon counts of mean `peak` * image, divided by `peak`, with Gaussian noise if `sigma` is not 0, and clipped to
    [0, 1]."""
    return jnp.clip(Poisson(peak, sigma).draw(key, image), 0, 1)


def squared_error(observed: Float[Array, "*n"], measurement: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The misfit of Gaussian noise, value by value."""
    return jnp.square(observed - measurement)


def psnr_of(error: Float[Array, ""]) -> Float[Array, ""]:
    """PSNR in dB of a mean squared error, for pictures in [0, 1]."""
    return -10 * jnp.log10(error)


@lru_cache
def poisson_misfit(peak: float, shift: float = 0.0) -> Callable[[Image, Image], Image]:
    """Negative log-likelihood of counts peak * measurement, value by value, less its least value (0: both agree). With
    a `shift`, `Poisson.shift`, both are so much higher: counts with read-out noise, approximately."""
    def misfit(observed, measurement):
        observed, measurement = jnp.maximum(observed + shift, 1e-4), jnp.maximum(measurement + shift, 0)
        floor = jnp.maximum(measurement, 1e-4)
        return peak * (observed - measurement - measurement * jnp.log(observed / floor))

    return misfit
