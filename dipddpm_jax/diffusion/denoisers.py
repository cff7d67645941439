"""Denoise functions, the only thing a sampler knows about a model; wrappers make new ones from old."""
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dipddpm_jax.diffusion.forward import Target, prediction_of
from dipddpm_jax.diffusion.schedules import NoiseSchedule
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
        def pairs(a, b):  # neighbours, so that both stay on their picture's device
            return jnp.stack([a, b], 1).reshape(-1, *a.shape[1:])

        output = apply(pairs(x, x), pairs(t, t), pairs(labels, no_labels(labels))).reshape(-1, 2, *x.shape[1:])
        conditional, unconditional = output[:, 0], output[:, 1]
        return (1 + weight) * conditional - weight * unconditional

    return from_network(both, schedule, target, labels)


def composed(
    apply: Apply, schedule: NoiseSchedule, weights: Float[Array, "b k"], most: int, target: Target = "eps"
) -> Denoise:
    """Each label pulls by itself: eps_0 + sum_i w_i (eps_i - eps_0) (Liu et al. 2022, eq. 11).

    weights[b, i] is w_i, zero for a label that is not asked for; no row may have more than `most` others. One batch of
    1 + most conditions a picture. A single label of weight 1 + w equals `guided` with weight w.
    """
    size, which = jax.lax.top_k(jnp.abs(weights), most)
    rows = jax.nn.one_hot(which, weights.shape[-1], dtype=weights.dtype, axis=-1) * (size > 0)[..., None]
    alone = jnp.concatenate([jnp.zeros_like(rows[:, :1]), rows], 1).swapaxes(0, 1).reshape(-1, weights.shape[-1])
    pull = jnp.take_along_axis(weights, which, -1).T[..., None, None, None]

    def together(x, t, labels):
        output = apply(jnp.tile(x, (1 + most, 1, 1, 1)), jnp.tile(t, 1 + most), alone).reshape(1 + most, *x.shape)
        return output[0] + (pull * (output[1:] - output[:1])).sum(0)

    return from_network(together, schedule, target)


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


def padded(denoise: Denoise, multiple: int) -> Denoise:
    """The denoiser for pictures of any size: what they lack to sides that are a `multiple` is mirrored at the right and
    at the bottom, and cut off again."""
    def denoise_larger(x, t):
        height, width = x.shape[1:3]
        larger = jnp.pad(x, ((0, 0), (0, -height % multiple), (0, -width % multiple), (0, 0)), "reflect")
        return jax.tree.map(lambda a: a[:, :height, :width], denoise(larger, t))

    return denoise_larger if multiple > 1 else denoise
