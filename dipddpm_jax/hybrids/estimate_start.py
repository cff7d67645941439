"""Reverse steps that begin with an estimate, noised: a deep image prior, a classical filter or a file, then diffusion.

SDEdit (Meng et al. 2022) and CCDF (Chung, Sim and Ye 2022): x_t0 = a d + s eps for an estimate d of the picture. Where
to begin is a rule that sees the estimate and its own estimated error, never the clean picture.
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from dipddpm_jax.diffusion import samplers
from dipddpm_jax.diffusion.schedules import time_at_snr
from dipddpm_jax.errors import UserError
from dipddpm_jax.hybrids.prior import DiffusionPrior, Grid, Task, grid_from, restorer, time_of_noise
from dipddpm_jax.inverse.measurement import Measurement, Restoration, Restore
from dipddpm_jax.types import Images

Start = Callable[[DiffusionPrior, Restoration], int]  # the time t0 for an estimate


def at_time(time: int) -> Start:
    """t0 given by hand."""
    return lambda prior, estimate: time


def at_error(prior: DiffusionPrior, estimate: Restoration) -> int:
    """The time whose noise is as large as the estimate's error, s / a = sqrt(E |d - x|^2 / d): what the estimate would
    be if its error were white. Raises UserError for an estimate that does not know its error."""
    return time_of_noise(prior, float(np.sqrt(_error(estimate))))


def at_divergence(delta: float) -> Start:
    """The earliest time with SNR(t0) E |d - x|^2 <= 2 delta: there the laws of x_t0 that begin with d and with x are at
    most delta nats apart, KL(N(a d, s^2 I) | N(a x, s^2 I)) = SNR |d - x|^2 / 2. Raises UserError as `at_error`."""
    def start(prior: DiffusionPrior, estimate: Restoration) -> int:
        total = _error(estimate) * estimate.picture.size / prior.pixels.std**2
        return max(1, time_at_snr(prior.schedule, 2 * delta / total))

    return start


def _error(estimate: Restoration) -> float:
    if estimate.evidence.error is None:
        raise UserError("this estimate does not say how large its error is: give the time to begin at")
    return max(float(estimate.evidence.error), 1e-12)


def estimate_start(
    prior: DiffusionPrior, estimate: Restore, start: Start, calls: int = 50, samples: int = 1
) -> Restore:
    """Ancestral steps (posterior variance) from the noised estimate. They take no more notice of the measurement: what
    the estimate lost, they draw from the prior. Raises UserError as `estimate` and `start`."""
    def restore(measurement: Measurement, key: Key[Array, ""]) -> Restoration:
        guess_key, chain_key = jax.random.split(key)
        guess = estimate(measurement, guess_key)
        grid = grid_from(prior, start(prior, guess), calls)
        as_measured = Measurement(guess.picture, measurement.operator, measurement.noise)
        found = chains(grid)(as_measured, chain_key)
        cost = found.evidence._replace(calls=found.evidence.calls + guess.evidence.calls, steps=guess.evidence.steps)
        return found._replace(evidence=cost)

    def chains(grid: Grid) -> Restore:
        return restorer(prior, method, lambda sigma: grid, samples)

    def method(task: Task, grid: Grid) -> Images:
        bar = prior.schedule.alpha_bars[grid[0]]
        shape = (len(task.keys), *task.y.shape)
        estimate = jnp.broadcast_to(task.pixels.to_network(task.y[None]), shape)
        x = float(np.sqrt(bar)) * estimate + float(np.sqrt(1 - bar)) * task.normal(jnp.int32(grid[0]), 1, task.y.shape)
        return samplers.ancestral(task.denoise, prior.schedule, x, np.asarray(grid),
                                  lambda t: task.normal(t, 0, task.y.shape), variance="posterior").x

    return restore
