"""Denoise functions, the only thing a sampler knows about a model; wrappers make new ones from old."""
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from dipddpm_jax.process import Target, prediction_of
from dipddpm_jax.schedules import NoiseSchedule
from dipddpm_jax.types import Denoise, Images, Labels, Prediction, no_labels

Apply = Callable[..., Images]  # apply(x, t, labels) -> network output; parameters are already bound


def from_network(
    apply: Apply, schedule: NoiseSchedule, target: Target = "eps", labels: Labels | None = None
) -> Denoise:
    """Wraps apply(x_t, t, labels) -> network output."""

    def denoise(x, t):
        return prediction_of(schedule, target, apply(x, jnp.full(x.shape[:1], t), labels), x, t)

    return denoise


def guided(
    apply: Apply, schedule: NoiseSchedule, labels: Labels, weight: float | Float[Array, ""], target: Target = "eps"
) -> Denoise:
    """Classifier-free guidance: (1 + w) conditional - w unconditional (Ho and Salimans 2022, eq. 6).

    Both halves run as one doubled batch. weight=0 equals the conditional model. The network must have been
    trained with labels dropped.
    """

    def both(x, t, labels):
        output = apply(jnp.concatenate([x, x]), jnp.concatenate([t, t]), jnp.concatenate([labels, no_labels(labels)]))
        conditional, unconditional = jnp.split(output, 2)
        return (1 + weight) * conditional - weight * unconditional

    return from_network(both, schedule, target, labels)


def clipped(denoise: Denoise, schedule: NoiseSchedule, low: float = -1.0, high: float = 1.0) -> Denoise:
    """Keeps the believed clean image within its range, and the noise consistent with it (Ho et al. 2020's code)."""

    def inner(x, t):
        x0 = jnp.clip(denoise(x, t).x0, low, high)
        return prediction_of(schedule, "x0", x0, x, t)

    return inner


def consistent(
    denoise: Denoise, schedule: NoiseSchedule, measurement: Images, mask: Float[Array, "b h w c"]
) -> Denoise:
    """Replaces the believed clean image by the measurement where it is known (DDNM, Wang et al. 2022, eq. 13)."""

    def inner(x, t):
        x0 = mask * measurement + (1 - mask) * denoise(x, t).x0
        return prediction_of(schedule, "x0", x0, x, t)

    return inner


def gaussian_data(schedule: NoiseSchedule, mean: float, std: float) -> Denoise:
    """The exact denoiser when the data are N(mean, std^2): lets tests check samplers without a network."""

    def denoise(x, t):
        a, s = schedule.signal_scale(t), schedule.noise_scale(t)
        x0 = mean + a * std**2 / (a**2 * std**2 + s**2) * (x - a * mean)
        return Prediction(x0=x0, eps=(x - a * x0) / jnp.maximum(s, 1e-8))

    return denoise
