"""The forward process, and what a network learns from it.

A training target (eps, x0 or v) is the pair that the network regresses; the loss never changes.
"""
from collections.abc import Callable
from typing import Literal

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
    """(x_t, what the network should output for it). The loss is always their mean squared error."""
    x_t = add_noise(schedule, x0, t, eps)
    match target:
        case "eps":
            return x_t, eps
        case "x0":
            return x_t, x0
        case "v":  # Salimans and Ho 2022, section 4
            return x_t, _like(schedule.signal_scale(t), x0) * eps - _like(schedule.noise_scale(t), x0) * x0


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
