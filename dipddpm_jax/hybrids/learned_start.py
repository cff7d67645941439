"""A learned start: the noise that a short deterministic chain begins with is fitted to what was measured.

DIIP (Chihaoui et al. 2024) and DMPlug (Wang et al. 2024): the chain from noise to picture, R, is taken for the
generator of a deep image prior whose code z is learned, and whose weights are not.
"""
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from dipddpm_jax.diffusion import spacings
from dipddpm_jax.dip.crossfit import observed_pixels
from dipddpm_jax.dip.folds import fold_masks
from dipddpm_jax.hybrids.prior import (
    DiffusionPrior,
    Grid,
    Task,
    as_argument,
    deterministic,
    restoration_of,
    transitions,
)
from dipddpm_jax.inverse.measurement import Cost, Measurement, Restoration, Restore
from dipddpm_jax.inverse.noises import gaussian_sigma
from dipddpm_jax.inverse.operators import Operator
from dipddpm_jax.types import Images


class Search(NamedTuple):
    """Where the fits of the starts `z` are; `kept` are the averages of outputs with the lowest error."""

    step: Int[Array, ""]
    z: Images
    opt_state: PyTree
    total: Images  # exponential average of the outputs that began at 0
    kept: Images
    lowest: Float[Array, "n"]
    waited: Int[Array, "n"]  # updates since then


def learned_start(
    prior: DiffusionPrior, samples: int = 4, calls: int = 3, steps: int = 200, rate: float = 0.05, weight: float = 1.0,
    folds: int = 10, patience: int = 50, average_decay: float = 0.9,
) -> Restore:
    """From `samples` draws of z, Adam on |A R(z) - y|^2 + w sigma^2 |z|^2, where R is DDIM of `calls` steps (eta = 0)
    and w is `weight`: with w = 1 the minimum is the likeliest z, with w = 0 that of the papers.

    Each start is blind to another of `folds` parts of y. It keeps the average of its outputs that has the lowest error
    there, and all end when none has improved for `patience` steps. The times of R are spread evenly, as in the papers.
    Raises UserError for noise that is not Gaussian.
    """
    grid = tuple(int(t) for t in spacings.even_time(prior.schedule, calls, spacings.start_time(prior.schedule)))
    denoise, optimizer = as_argument(prior.denoise), optax.adam(rate)

    @partial(jax.jit, static_argnames="operator")
    def run(denoise, y, sigma, keys, blind, operator: Operator) -> Search:
        task = Task(denoise, y, sigma, keys, operator, prior.pixels)
        chain = generator(prior, task, grid)

        def objective(z: Images) -> tuple[Array, Images]:
            pictures = task.pixels.to_pixels(chain(z))
            wrong = (1 - blind) * jnp.square(jax.vmap(operator.forward)(pictures) - y[None])
            return wrong.sum() + weight * sigma**2 * jnp.square(z).sum(), pictures

        def update(search: Search) -> Search:
            gradient, pictures = jax.grad(objective, has_aux=True)(search.z)
            change, opt_state = optimizer.update(gradient, search.opt_state)
            total = average_decay * search.total + (1 - average_decay) * pictures
            average = total / (1 - average_decay ** (search.step + 1.0))
            error = _errors(task, blind, average)
            better = (error < search.lowest) | jnp.isinf(search.lowest)
            return Search(search.step + 1, search.z + change, opt_state, total,
                          jnp.where(better[:, None, None, None], average, search.kept),
                          jnp.minimum(error, search.lowest), jnp.where(better, 0, search.waited + 1))

        z = task.normal(jnp.int32(grid[0]))
        begun = Search(jnp.int32(0), z, optimizer.init(z), 0 * z, 0 * z, jnp.full(len(z), jnp.inf, z.dtype),
                       jnp.zeros(len(z), jnp.int32))
        return jax.lax.while_loop(
            lambda search: (search.step < steps) & jnp.any(search.waited < patience), update, begun)

    def restore(measurement: Measurement, key: Key[Array, ""]) -> Restoration:
        sigma = float(gaussian_sigma(measurement.noise))
        parts = fold_masks(jax.random.fold_in(key, 0), observed_pixels(measurement, key), folds)
        found = run(denoise, measurement.y, sigma, jax.random.split(key, samples), parts[np.arange(samples) % folds],
                    measurement.operator)
        return restoration_of(found.kept, Cost(int(found.step) * calls * samples, int(found.step)))

    return restore


def generator(prior: DiffusionPrior, task: Task, grid: Grid) -> Callable[[Images], Images]:
    """R(z): deterministic steps of DDIM from noise; its gradient keeps what stands between steps, and computes the rest
    again."""
    step = jax.checkpoint(lambda x, c: (deterministic(task, x, c), None))
    return lambda z: jax.lax.scan(step, z, transitions(prior.schedule, grid))[0]


def _errors(task: Task, blind: Float[Array, "b p q 1"], pictures: Images) -> Float[Array, "b"]:
    """Mean squared error of each picture where its fit was blind."""
    wrong = blind * jnp.square(jax.vmap(task.operator.forward)(pictures) - task.y[None])
    count = blind.sum((1, 2, 3)) * task.y.shape[-1]
    return jnp.where(count > 0, wrong.sum((1, 2, 3)) / jnp.maximum(count, 1), jnp.inf)
