"""The forward process, and what a network learns from it.

A training target (eps, x0 or v) is the pair that the network regresses, by its mean squared error.
"""
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dipddpm_jax.diffusion.schedules import NoiseSchedule
from dipddpm_jax.types import Images, Prediction

Target = Literal["eps", "x0", "v"]
Pair = Callable[[Images, Int[Array, "*n"], Images], tuple[Images, Images]]  # (x0, t, eps) -> (x_t, wanted output)


def _like(scale: Float[Array, "*n"], x: Images) -> Float[Array, "..."]:
    return scale.reshape(scale.shape + (1,) * (x.ndim - scale.ndim)).astype(x.dtype)


def add_noise(schedule: NoiseSchedule, x0: Images, t: Int[Array, "*n"], eps: Images) -> Images:
    """DDPM, eq. 4. `t` is one time for the batch, or one an image."""
    return _like(schedule.signal_scale(t), x0) * x0 + _like(schedule.noise_scale(t), x0) * eps


def training_pair(
    schedule: NoiseSchedule, target: Target, x0: Images, t: Int[Array, "*n"], eps: Images
) -> tuple[Images, Images]:
    """(x_t, what the network should output for it)."""
    x_t = add_noise(schedule, x0, t, eps)
    match target:
        case "eps":
            return x_t, eps
        case "x0":
            return x_t, x0
        case "v":  # Salimans and Ho 2022, section 4
            return x_t, _like(schedule.signal_scale(t), x0) * eps - _like(schedule.noise_scale(t), x0) * x0


def min_snr(schedule: NoiseSchedule, target: Target, t: Int[Array, "b"], most: float = 5.0) -> Float[Array, "b"]:
    """Weights of the squared errors of a network's output, by which the squared error of x0 counts min(SNR, `most`).

    SNR is alpha_bar / (1 - alpha_bar). Hang et al. 2023, section 3.4, where 5 is the recommended limit.
    """
    signal, noise = schedule.signal_scale(t) ** 2, schedule.noise_scale(t) ** 2
    of_x0 = jnp.minimum(signal / noise, most)
    match target:
        case "eps":
            return of_x0 * noise / jnp.maximum(signal, 1e-6)  # pure noise says nothing of x0
        case "x0":
            return of_x0
        case "v":
            return of_x0 * noise


def prediction_of(
    schedule: NoiseSchedule, target: Target, output: Images, x_t: Images, t: Int[Array, "*n"]
) -> Prediction:
    """The clean picture x0 and the noise eps that a network output stands for, at times t >= 1.

    From eps, x0 = (x_t - noise_scale eps) / signal_scale: an error of eps grows by sigma.
    """
    a, s = _like(schedule.signal_scale(t), x_t), _like(schedule.noise_scale(t), x_t)
    match target:
        case "eps":
            return Prediction(x0=(x_t - s * output) / a, eps=output)
        case "x0":
            return Prediction(x0=output, eps=(x_t - a * output) / s)
        case "v":
            return Prediction(x0=a * x_t - s * output, eps=s * x_t + a * output)
