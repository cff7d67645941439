"""Reverse steps that begin with an estimate, noised: a deep image prior, a classical filter or a file, then diffusion.

SDEdit (Meng et al. 2022) and CCDF (Chung, Sim and Ye 2022): x_t0 = a d + s eps for an estimate d of the picture. Where
to begin is a rule that sees the estimate and its own estimated error, never the clean picture.
"""
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from jaxtyping import Array, Key

from dipddpm_jax.diffusion import spacings
from dipddpm_jax.diffusion.schedules import time_at_snr
from dipddpm_jax.dip.crossfit import cross_fitted
from dipddpm_jax.errors import UserError
from dipddpm_jax.hybrids.pigdm import guided_step, matched_variance
from dipddpm_jax.hybrids.prior import (
    DiffusionPrior,
    Step,
    Task,
    as_argument,
    grid_from,
    restoration_of,
    time_of_noise,
    transitions,
    unguided,
)
from dipddpm_jax.inverse.measurement import Cost, Measurement, Restoration, Restore
from dipddpm_jax.inverse.noises import gaussian_sigma
from dipddpm_jax.inverse.operators import Operator
from dipddpm_jax.types import Images

SHAPED = 3.0  # times the error of a mean of fits: chosen on digits that no table has, for weak noise and random holes
Start = Callable[[DiffusionPrior, Restoration], int]  # the time t0 for an estimate


def at_time(time: int) -> Start:
    """t0 given by hand."""
    return lambda prior, estimate: time


def at_error(prior: DiffusionPrior, estimate: Restoration, times: float = 1.0) -> int:
    """The time whose noise is so many times as large as the estimate's error, s / a = times sqrt(E |d - x|^2 / d):
    once, it is what the estimate would be if its error were white; errors with a shape take more to be forgotten. The
    first time of all where the error is said to be less than that. Raises UserError for an estimate that does not know
    its error."""
    first = float(spacings.sigmas(prior.schedule)[1] * prior.pixels.std)
    return time_of_noise(prior, max(times * float(np.sqrt(_error(estimate))), first))


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
    prior: DiffusionPrior, estimate: Restore, start: Start, calls: int = 50, samples: int = 1, step: Step = unguided
) -> Restore:
    """Chains of steps from the noised estimate. With `unguided` ones (SDEdit) what the estimate lost is drawn from the
    prior, and the measurement has no say any more; with the step of a method such as `pigdm.guided_step` (CCDF) it has.
    Raises UserError as `estimate` and `start`."""
    denoise = as_argument(prior.denoise)

    @partial(jax.jit, static_argnames="operator")
    def run(denoise, guess, y, sigma, keys, rows, operator: Operator) -> Images:
        task = Task(denoise, y, sigma, keys, operator, prior.pixels)
        first = jax.tree.map(lambda row: row[0], rows)
        x = first.a * prior.pixels.to_network(guess[None]) + first.noise * task.normal(first.t, 1)
        return prior.pixels.to_pixels(jax.lax.scan(lambda x, c: (step(task, x, c), None), x, rows)[0])

    def restore(measurement: Measurement, key: Key[Array, ""]) -> Restoration:
        guess_key, chain_key = jax.random.split(key)
        sigma = float(gaussian_sigma(measurement.noise))  # what cannot be restored is refused before the estimate
        guess = estimate(measurement, guess_key)
        # The times are data, not part of the program: a t0 of its own for every picture compiles nothing.
        rows = transitions(prior.schedule, grid_from(prior, start(prior, guess), calls))
        keys = jax.random.split(chain_key, samples)
        pictures = run(denoise, guess.picture, measurement.y, sigma, keys, rows, measurement.operator)
        cost = Cost(len(rows.t) * samples + guess.evidence.calls, guess.evidence.steps)
        return restoration_of(pictures, cost)

    return restore


def cross_fit_start(prior: DiffusionPrior, calls: int = 50, samples: int = 1, fits: Restore | None = None) -> Restore:
    """Chains of PiGDM's steps from the mean of cross-fitted deep image priors (default: those of `dip.crossfit`),
    noised by `SHAPED` times its own estimated error: a picture unlike those of the prior keeps what was measured.
    Raises UserError as `estimate_start`."""
    return estimate_start(prior, fits or cross_fitted(), partial(at_error, times=SHAPED), calls, samples,
                          guided_step(matched_variance))
