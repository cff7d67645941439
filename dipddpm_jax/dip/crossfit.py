"""Cross-fitting of one picture: K fits, each blind to another K-th of the known pixels, and the mean of what they keep.

A single fit that is stopped by held-out pixels has lost those pixels, and its random weights leave an error of their
own. K fits with disjoint held-out parts lose nothing together, their mean averages the random part away, and every
known pixel is unseen by one fit, so that the error of the mean can be estimated without the clean picture.
"""
import dataclasses
import functools
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from dipddpm_jax.dip import stopping
from dipddpm_jax.dip.batches import advance_all, spread_fits
from dipddpm_jax.dip.codes import noise_code
from dipddpm_jax.dip.fit import Dip, DipState
from dipddpm_jax.dip.folds import blind_mean, cross_fit_errors, error_of_one, fold_masks
from dipddpm_jax.dip.problem import DipProblem
from dipddpm_jax.dip.variants import total_variation
from dipddpm_jax.inverse.cut_off import error_growth, variance_left
from dipddpm_jax.inverse.measurement import Cost, Measurement, Restoration, Restore
from dipddpm_jax.inverse.noises import Poisson, poisson_misfit, squared_error
from dipddpm_jax.inverse.operators import identity, mask_of
from dipddpm_jax.networks import SkipNet
from dipddpm_jax.networks.muon import muon
from dipddpm_jax.types import Image

PATIENCE = 300  # steps without a lower held-out error after which a fit stops
NEVER = stopping.never()
CHUNK = 100  # steps in one device call
MOST_STEPS = 2000  # of a fit that no rule stops
FEW_PIXELS = 64 * 64  # of a noisy picture for which a small hourglass by Adam does as well as a tapered one by Muon
QUIET = 6 / 255  # standard deviation of noise below which it does not, as config.dip.QUIET
MUON_RATE = 0.03  # learning rate


def counts_misfit(noise: Poisson) -> Callable[[Image, Image], Image]:
    """The misfit of photons without their peak, a factor: it is of the scale of a squared error, (f - y)^2 / (2 x),
    which penalties are weighed against."""
    return poisson_misfit(1.0, float(noise.shift))


def small_skip_net(channels: int) -> nn.Module:
    """An hourglass of 16 channels on 3 levels: a quarter of the multiplications of one of 32."""
    return SkipNet(channels, (16,) * 3, (16,) * 3, (4,) * 3)


def tapered_skip_net(channels: int) -> nn.Module:
    """An hourglass of 16 channels at the top to 64 at the bottom of 5 levels, where they cost little."""
    widths = (16, 32, 48, 64, 64)
    return SkipNet(channels, widths, widths, (4,) * 5)


def a_fit(
    network: Callable[[int], nn.Module] = small_skip_net, channels: int = 1, weight: float | None = None,
    rate: float = 0.01, average_decay: float = 0.99, patience: int = PATIENCE,
) -> Dip:
    """DIP-TV with `weight` (None: by the noise), by Adam with learning rate `rate`, stopped by the held-out rule."""
    return Dip(network(channels), optax.adam(rate), stopper=stopping.held_out(patience), average_decay=average_decay,
               penalty=total_variation(weight))


def recommended_fit(channels: int, size: tuple[int, int], quiet: bool = False) -> Dip:
    """`a_fit` of a tapered hourglass by Muon; for small pictures, unless they are `quiet` (`is_quiet`), of a small one
    by Adam, which costs a third."""
    if size[0] * size[1] <= FEW_PIXELS and not quiet:
        return a_fit(channels=channels)
    return dataclasses.replace(a_fit(tapered_skip_net, channels), optimizer=muon(MUON_RATE))


def is_quiet(measurement: Measurement) -> bool:
    """Whether there is hardly any noise in a measurement of the picture's size, as where pixels are missing: details
    are fitted to the end then. One of lower resolution has none to fit."""
    height, width = jax.eval_shape(measurement.operator.adjoint, measurement.y).shape[:2]
    same = measurement.y.shape[:2] == (height, width)
    return same and float(jnp.mean(measurement.noise.variance(measurement.y))) < QUIET**2


def cross_fitted(fits: Callable[[int], Dip] | None = None, folds: int = 10, num_steps: int = MOST_STEPS) -> Restore:
    """A restorer: the mean of `folds` fits, each stopped by the held-out rule on its own part of the known pixels.

    `fits(channels)` makes the fit, by default `recommended_fit`. The restoration's `spread` is the
    standard deviation between the fits, and its `evidence.error` the estimated mean squared error of the mean
    (`cross_fit_errors`), of A x if A is no mask. Holes of a mask are assumed to lie as pixels do that are drawn at
    random. The measurement must have the axes (row, column, channel). Not for use under `jit`.
    """
    fit_for = remembered(fits)

    def restore(measurement: Measurement, key: Key[Array, ""]) -> Restoration:
        known = observed_pixels(measurement, key)
        fit = fit_for(measurement, known)
        parts = fold_masks(jax.random.fold_in(key, 0), known, folds)
        states = run_fits(fit, *start_fold_fits(fit, measurement, known, parts, key), num_steps)
        return mean_of_fits(measurement, known, parts, states.kept.average, int(states.step.sum()))

    return restore


def refitted(fits: Callable[[int], Dip] | None = None, share: int = 10, num_steps: int = MOST_STEPS) -> Restore:
    """A restorer at the cost of two fits: one that holds out one of `share` parts says when to stop, and a second one
    with the same weights and code, which sees all known pixels, is stopped at that step. `evidence.error` is an upper
    bound in expectation."""
    fit_for = remembered(fits)

    def restore(measurement: Measurement, key: Key[Array, ""]) -> Restoration:
        known = observed_pixels(measurement, key)
        fit = fit_for(measurement, known)
        parts = fold_masks(jax.random.fold_in(key, 0), known, share)[:1]
        problems, begun = start_fold_fits(fit, measurement, known, parts, key)
        blind = run_fits(fit, problems, begun, num_steps)
        whole = dataclasses.replace(fit, stopper=NEVER)
        problem = jax.tree.map(lambda leaf: leaf[0], problems)._replace(held_out=None)
        first = jax.tree.map(lambda leaf: leaf[0], begun)
        state = _advance_to(whole, problem, whole.start(
            problem, {"params": first.params, **first.statistics}, first.key), blind.kept.step[0] + 1)
        error = _error_of_second(measurement, known, parts[0], blind.kept.average[0], state.average)
        return Restoration(state.average, None, Cost(steps=int(blind.step[0] + state.step), error=error))

    return restore


def observed_pixels(measurement: Measurement, key: Key[Array, ""]) -> Float[Array, "..."]:
    """1 where the measurement says something of the picture, 0 where the row of A is zero, as in the holes of a mask:
    those where A of a random picture is 0."""
    shape = jax.eval_shape(measurement.operator.adjoint, measurement.y).shape
    return (measurement.operator.forward(jax.random.uniform(key, shape, minval=0.5)) != 0).astype(measurement.y.dtype)


def start_fold_fits(
    fit: Dip, measurement: Measurement, known: Float[Array, "..."], parts: Float[Array, "folds h w 1"],
    key: Key[Array, ""],
) -> tuple[DipProblem, DipState]:
    """One fit for each part, which it does not see; codes and weights are drawn with a key of its own."""
    shape = jax.eval_shape(measurement.operator.adjoint, measurement.y).shape
    variance = jnp.broadcast_to(measurement.noise.variance(measurement.y), measurement.y.shape)
    sigma = jnp.sqrt(jnp.maximum(jnp.mean(variance, where=jnp.broadcast_to(known, variance.shape) != 0), 0))
    return _start_all(fit, shape[:2], measurement.y, known, sigma, parts, key)


@partial(jax.jit, static_argnums=(0, 1))
def _start_all(
    fit: Dip, size: tuple[int, int], y: Float[Array, "..."], known: Float[Array, "..."], sigma: Float[Array, ""],
    parts: Float[Array, "folds h w 1"], key: Key[Array, ""],
) -> tuple[DipProblem, DipState]:
    """One program for all pictures of a size: what was measured is data, not a part of it."""
    def start(part, place):
        code_key, fit_key = jax.random.split(jax.random.fold_in(key, 1 + place))
        problem = DipProblem(noise_code(code_key, *size), y, known=known, held_out=part, sigma=sigma)
        return problem, fit.init(problem, fit_key)

    return jax.vmap(start)(parts, jnp.arange(len(parts)))


def run_fits(fit: Dip, problems: DipProblem, states: DipState, num_steps: int) -> DipState:
    """All fits to their stop, or to `num_steps` (rounded up to whole chunks)."""
    problems, states = spread_fits((problems, states))
    for _ in range(0, num_steps, CHUNK):
        if bool(states.stopped.all()):
            break
        states, _ = _advance(fit, problems, states, CHUNK)
    return states


_advance = jax.jit(advance_all, static_argnums=(0, 3))


@partial(jax.jit, static_argnums=0)
def _advance_to(fit: Dip, problem: DipProblem, state: DipState, step: Int[Array, ""]) -> DipState:
    return jax.lax.while_loop(lambda state: state.step < step, lambda state: fit.advance(problem, state, 1)[0], state)


def mean_of_fits(
    measurement: Measurement, known: Float[Array, "..."], parts: Float[Array, "folds h w 1"],
    pictures: Float[Array, "folds p q c"], steps: int,
) -> Restoration:
    """The mean of the pictures that fits kept which were each blind to a part, its spread, and its estimated error,
    that of `inverse.cut_off.without_cut_off` of it where noise was cut off."""
    picture = pictures.mean(0)
    observed = jax.vmap(measurement.operator.forward)(pictures)
    noise = blind_mean(observed, parts), measurement.y, measurement.noise, known
    growth = 1.0
    if picture.shape == measurement.y.shape:
        growth, observed = error_growth(*noise), jnp.where(known != 0, observed, pictures)
    errors = cross_fit_errors(observed, measurement.y, parts, known, variance_left(*noise), growth)
    error = errors.overall(known.mean())
    return Restoration(picture, pictures.std(0), Cost(steps=steps, error=float(error)))


def _error_of_second(
    measurement: Measurement, known: Float[Array, "..."], part: Float[Array, "h w 1"], first: Image, picture: Image
) -> float:
    """Estimated mean squared error of a fit that sees all that is known: elsewhere that of the `first`, on the part
    that it did not see."""
    y, weight = measurement.y, jnp.broadcast_to(known, measurement.y.shape)

    def average(weight, values):
        return float(jnp.sum(weight * values) / jnp.maximum(weight.sum(), 1))

    observed, second = map(measurement.operator.forward, (first, picture))
    noise = variance_left(observed, y, measurement.noise, known)
    return float(error_of_one(average(part * weight, jnp.square(observed - y) - noise),
                              average(weight, jnp.square(second - y)), average(weight, noise), float(weight.mean())))


class _Kind(NamedTuple):
    """What a compiled fit depends on."""

    channels: int
    size: tuple[int, int]
    quiet: bool
    observe: Callable[[Image], Array]
    misfit: Callable[[Image, Image], Image]


def remembered(fits: Callable[[int], Dip] | None) -> Callable[[Measurement, Float[Array, "..."]], Dip]:
    """The fit of a measurement, of `fits(channels)` or `recommended_fit`; the same object for measurements of one kind,
    so that it is compiled once."""
    @functools.lru_cache
    def fit_of(kind: _Kind) -> Dip:
        fit = fits(kind.channels) if fits else recommended_fit(kind.channels, kind.size, kind.quiet)
        return dataclasses.replace(fit, observe=kind.observe, size=kind.size, misfit=kind.misfit)

    def fit_for(measurement, known):
        shape = jax.eval_shape(measurement.operator.adjoint, measurement.y).shape
        masks = mask_of(measurement.operator, shape) is not None
        # DipProblem.known does what a mask does, and one program serves all masks.
        observe = identity.forward if masks else measurement.operator.forward
        noise = measurement.noise
        misfit = counts_misfit(noise) if isinstance(noise, Poisson) else squared_error
        return fit_of(_Kind(shape[-1], shape[:2], is_quiet(measurement), observe, misfit))

    return fit_for
