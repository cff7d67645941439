"""Denoising by the reverse process from the noise level of the picture on: no estimate, no guidance.

A picture with Gaussian noise sigma is a sample of the forward process: y = x + sigma n is x_t / a_t at the time with
s_t / a_t = sigma (in the data's units). So ancestral steps from there sample the posterior, deterministic ones follow
its probability flow, and one call is the posterior mean. Whatever unites a DIP and a diffusion must beat this.
"""
from functools import partial
from typing import Literal

import jax.numpy as jnp
import numpy as np

from dipddpm_jax.diffusion import samplers
from dipddpm_jax.errors import UserError
from dipddpm_jax.hybrids.prior import DiffusionPrior, Grid, Task, grid_from, restorer, time_of_noise
from dipddpm_jax.inverse.measurement import Restore
from dipddpm_jax.inverse.operators import identity
from dipddpm_jax.types import Images

Way = Literal["ancestral", "ddim"]


def one_step(prior: DiffusionPrior) -> Restore:
    """E[x0 | x_t] = (x_t - s_t eps(x_t, t)) / a_t at the time of the noise (Tweedie's formula; Efron 2011): one call.

    Raises UserError for another operator than the identity, and for noise that the schedule does not reach.
    """
    def method(task: Task, grid: Grid) -> Images:
        return task.denoise(_begin(prior, task, grid), jnp.int32(grid[0])).x0

    return restorer(prior, method, lambda sigma: (time_of_noise(prior, sigma), 0), 1)


def truncated_reverse(prior: DiffusionPrior, calls: int = 50, samples: int = 1, way: Way = "ancestral") -> Restore:
    """Reverse steps from the time of the noise: "ancestral" ones (Ho et al. 2020, algorithm 2, with the posterior's
    variance) give samples, those of "ddim" (Song et al. 2021, eta = 0) one picture. Raises UserError as `one_step`."""
    walk = {"ancestral": partial(samplers.ancestral, variance="posterior"), "ddim": samplers.ddim}[way]

    def method(task: Task, grid: Grid) -> Images:
        return walk(task.denoise, prior.schedule, _begin(prior, task, grid), np.asarray(grid), task.normal).x

    return restorer(prior, method, lambda sigma: grid_from(prior, time_of_noise(prior, sigma), calls), samples)


def _begin(prior: DiffusionPrior, task: Task, grid: Grid) -> Images:
    """a_t y in the network's units, once a chain."""
    if task.operator != identity:
        raise UserError("a truncated reverse process denoises, and does nothing else")
    x = float(np.sqrt(prior.schedule.alpha_bars[grid[0]])) * task.pixels.to_network(task.y[None])
    return jnp.broadcast_to(x, (len(task.keys), *task.shape))
