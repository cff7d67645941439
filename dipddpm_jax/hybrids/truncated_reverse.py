"""Denoising by the reverse process from the noise level of the picture on: no estimate, no guidance.

A picture with Gaussian noise sigma is a sample of the forward process: y = x + sigma n is x_t / a_t at the time with
s_t / a_t = sigma (in the data's units). So ancestral steps from there sample the posterior, deterministic ones follow
its probability flow, and one call is the posterior mean. Whatever unites a DIP and a diffusion must beat this.
"""
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from dipddpm_jax.errors import UserError
from dipddpm_jax.hybrids.prior import (
    DiffusionPrior,
    Task,
    Transition,
    as_argument,
    deterministic,
    grid_from,
    restorer,
    time_of_noise,
    unguided,
)
from dipddpm_jax.inverse.measurement import Cost, Measurement, Restoration, Restore
from dipddpm_jax.inverse.noises import gaussian_sigma
from dipddpm_jax.inverse.operators import Operator, identity
from dipddpm_jax.types import Images

Way = Literal["ancestral", "ddim"]
MIRRORED = ((), (0,), (1,), (0, 1))  # axes; with both axes exchanged or not, the eight positions of a square


def one_step(prior: DiffusionPrior, turned: bool = False) -> Restore:
    """E[x0 | x_t] = (x_t - s_t eps(x_t, t)) / a_t at the time of the noise (Tweedie's formula; Efron 2011): one call.

    `turned`: the mean of eight calls, for the picture in the eight positions of a square, each turned back (Timofte et
    al. 2016), for priors of pictures that may be turned. Raises UserError for another operator than the identity, and
    for noise that the schedule does not reach.
    """
    denoise = as_argument(prior.denoise)

    @jax.jit  # once for all levels of noise, whose time and signal are data
    def run(denoise, y, a, t):
        return prior.pixels.to_pixels(denoise(a * prior.pixels.to_network(y[None]), t).x0)[0]

    def restore(measurement: Measurement, key: Key[Array, ""]) -> Restoration:
        _check_denoises(measurement.operator)
        t, y = time_of_noise(prior, float(gaussian_sigma(measurement.noise))), measurement.y
        a = y.dtype.type(np.sqrt(prior.schedule.alpha_bars[t]))
        if not turned:
            return Restoration(run(denoise, y, a, np.int32(t)), None, Cost(calls=1))
        total = jnp.zeros_like(y)  # one call at a time: eight at once need eight times the memory and are no faster
        for swap in (lambda x: x, lambda x: x.swapaxes(0, 1)):
            for axes in MIRRORED:
                total += swap(jnp.flip(run(denoise, jnp.flip(swap(y), axes), a, np.int32(t)), axes)) / 8
        return Restoration(total, None, Cost(calls=8))

    return restore


def truncated_reverse(prior: DiffusionPrior, calls: int = 50, samples: int = 1, way: Way = "ancestral") -> Restore:
    """Reverse steps from the time of the noise: "ancestral" ones (Ho et al. 2020, algorithm 2, with the posterior's
    variance) give samples, those of "ddim" (Song et al. 2021, eta = 0) one picture. Raises UserError as `one_step`."""
    step = {"ancestral": unguided, "ddim": deterministic}[way]

    def method(task: Task, rows: Transition) -> Images:
        _check_denoises(task.operator)
        x = rows.a[0] * jnp.broadcast_to(task.pixels.to_network(task.y[None]), (len(task.keys), *task.shape))
        return jax.lax.scan(lambda x, c: (step(task, x, c), None), x, rows)[0]

    return restorer(prior, method, lambda sigma: grid_from(prior, time_of_noise(prior, sigma), calls), samples)


def _check_denoises(operator: Operator) -> None:
    if operator != identity:
        raise UserError("a truncated reverse process denoises, and does nothing else")
