"""What came out of a batch of fits: which picture is the restored one, how good it is estimated to be, and what the
user should be told about it, all without the clean picture."""
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dipddpm_jax.commands.fits import Fits, holds_out_blocks, take
from dipddpm_jax.commands.measurements import Measurements, blended, made_black_again, noise_of
from dipddpm_jax.config.dip import AS_IT_IS, DipConfig
from dipddpm_jax.config.dip_ranges import MINIMUM_RULES
from dipddpm_jax.dip.fit import Dip, DipState
from dipddpm_jax.dip.folds import blind_mean, cross_fit_errors, error_of_one
from dipddpm_jax.dip.problem import is_stuck
from dipddpm_jax.inverse.cut_off import error_growth, variance_left
from dipddpm_jax.inverse.measurement import Measurement
from dipddpm_jax.inverse.nonlocal_bayes import refine_by_patches
from dipddpm_jax.inverse.operators import identity, masked

Candidates = Float[np.ndarray, "pictures repeats h w c"]  # repeats: seeds x folds, which are averaged


class Outcome(NamedTuple):
    """Pictures in [0, 1] as the fits, and nonlocal Bayes after them, made them, before clipping; one row a picture."""

    restored: Candidates
    other: Candidates  # the one of output and average that was not chosen
    chosen: tuple[str, ...]  # "average" or "output", what is restored
    error: Float[np.ndarray, "pictures"]
    """Estimated mean squared error of what is restored to the clean picture, as far as it is observed (nan where a
    share of the measurement is mixed back in, with whose noise that error correlates): of cross-fitting
    `dip.folds.cross_fit_errors`; of one fit with the rule held-out, on pixels that it has not seen: E |Af(z) - y|^2 =
    error + sigma^2 (Batson and Royer 2019, proposition 1), and elsewhere as `dip.folds.error_of_one` says; so of
    several that hold out blocks, of which it is the mean error of one. With other rules a lower bound, since the fit
    has seen all of y and its error is correlated with the noise. What nonlocal Bayes gains is not in it."""
    steps: Int[np.ndarray, "pictures repeats tiles"]  # counted from 1, of the output that was kept
    stopped: Bool[np.ndarray, "pictures repeats tiles"]  # whether the rule fired
    stuck: Bool[np.ndarray, "pictures repeats tiles"]  # whether the fit lies near a constant


def outcome(config: DipConfig, given: Measurements, fit: Dip, fits: Fits, states: DipState) -> Outcome:
    """The rule held-out says when; of the output and the average at that step, the one with the lower error on its
    pixels is restored (the average, unless the fit is too short for it). The other rules keep an output."""
    shape = (fits.pictures, fits.repeats, len(fits.boxes))
    kept = {name: np.asarray(getattr(states.kept, name)) for name in ("output", "average")}
    whole = {name: fits.whole(rows, given.size) for name, rows in kept.items()}
    misfits = {name: _misfits(config, given, fit, fits, rows) for name, rows in kept.items()}
    averages = (misfits["average"][0] <= misfits["output"][0]) & (config.stop == "held-out")
    chosen = tuple("average" if average else "output" for average in averages)
    pick = averages[:, None, None, None, None]
    error = np.where(averages, misfits["average"][1], misfits["output"][1])
    if config.folds > 1 and not holds_out_blocks(config, given):  # whose noise would have to be white
        error = _cross_fit_errors(config, given, fit, fits, [kept["average" if average else "output"][rows] for average,
                                  rows in zip(averages, np.split(np.arange(len(kept["output"])), fits.pictures))])
    restored, other = (np.where(pick, whole[a], whole[b]) for a, b in (("average", "output"), ("output", "average")))
    if goes_on_by_patches(config, given):
        restored = _after_patches(config, given, restored)
    restored, other = (_made_black_again(config, given, rows) for rows in (restored, other))
    if config.blend:
        error = np.full_like(error, np.nan)
        restored = np.stack([blended(config.blend, rows, y, None if given.known is None else given.known[i])
                             for i, (rows, y) in enumerate(zip(restored, given.measurements))])
    return Outcome(restored, other, chosen, error,
                   np.asarray(states.kept.step).reshape(shape) + 1, np.asarray(states.stopped).reshape(shape),
                   _stuck(fit, fits, kept["output"]).reshape(shape))


def goes_on_by_patches(config: DipConfig, given: Measurements) -> bool:
    """Whether nonlocal Bayes comes after the fits."""
    return config.nonlocal_bayes and not _shares_noise(config, given)


def _shares_noise(config: DipConfig, given: Measurements) -> bool:
    """Whether neighbouring pixels share noise, as was found or as the user says by holding out blocks."""
    return given.correlated or holds_out_blocks(config, given)


def _after_patches(config: DipConfig, given: Measurements, candidates: Candidates) -> Candidates:
    """Each picture's candidates, moved by what nonlocal Bayes moves their mean by."""
    found = []
    for i, rows in enumerate(candidates):
        observe = identity if given.known is None else masked(jnp.asarray(given.known[i]))
        measurement = Measurement(jnp.asarray(given.measurements[i]), observe, noise_of(config, given, i))
        mean = rows.mean(0)
        found.append(rows + (np.asarray(refine_by_patches(measurement, jnp.asarray(mean), len(rows))) - mean))
    return np.stack(found)


def _made_black_again(config: DipConfig, given: Measurements, candidates: Candidates) -> Candidates:
    """Each picture's candidates, moved by what their mean is moved by."""
    means = [rows.mean(0) for rows in candidates]
    return np.stack([rows + (made_black_again(config, given, i, mean) - mean)
                     for i, (rows, mean) in enumerate(zip(candidates, means))])


def _misfits(
    config: DipConfig, given: Measurements, fit: Dip, fits: Fits, rows: Float[np.ndarray, "n h w c"]
) -> tuple[Float[np.ndarray, "pictures"], Float[np.ndarray, "pictures"]]:
    """Mean squared misfit of each picture to the pixels that were held out of its fits, or to all that are known, and
    the estimated error of the whole picture."""
    problems, sums = fits.problems, np.zeros((len(rows), 7))
    for i, row in enumerate(rows):
        y = np.asarray(problems.measurement[i], np.float64)
        known, hidden = (np.broadcast_to(1.0 if mask is None else mask[i], y.shape)
                         for mask in (problems.known, problems.held_out))
        judges, seen = known * hidden, known * (1 - hidden)
        observed = fit.observe(jnp.asarray(row))
        misfit = (np.asarray(observed) - y) ** 2
        picture = i // (len(rows) // fits.pictures)
        variance, growth = map(np.asarray, _of_noise(config, given, picture, fits, i, observed))
        sums[i] = [(judges * misfit).sum(), (judges * growth * (misfit - variance)).sum(), judges.sum(),
                   (seen * growth * misfit).sum(), (seen * growth * variance).sum(), seen.sum(), y.size]
    misfit, error, count, fitted, noise, looked_at, size = sums.reshape(fits.pictures, -1, 7).sum(1).T
    count, at = np.maximum(count, 1), np.maximum(looked_at, 1)
    return misfit / count, error_of_one(error / count, fitted / at, noise / at, looked_at / size)


def _of_noise(
    config: DipConfig, given: Measurements, picture: int, fits: Fits, row: int, mean: Float[Array, "h w c"]
) -> tuple[Float[Array, "h w c"], Float[Array, "h w c"]]:
    """The variance of a row's noise, given the mean of its measurement, and what becomes of errors to that mean."""
    known = 1.0 if fits.problems.known is None else fits.problems.known[row]
    noise = mean, fits.problems.measurement[row], noise_of(config, given, picture), known
    growth = error_growth(*noise) if config.task in AS_IT_IS else jnp.ones_like(mean)
    return variance_left(*noise), growth


def _cross_fit_errors(
    config: DipConfig, given: Measurements, fit: Dip, fits: Fits, chosen: list[Float[np.ndarray, "n h w c"]]
) -> Float[np.ndarray, "pictures"]:
    """Estimated error of the mean of all fits of each picture, from what they restored; of tiles the mean."""
    errors = np.zeros(fits.pictures)
    for i, rows in enumerate(chosen):
        for place in range(len(fits.boxes)):
            mine = np.arange(place, len(rows), len(fits.boxes))
            problems = take(fits.problems, i * len(rows) + mine)
            observed = jnp.stack([fit.observe(jnp.asarray(row)) for row in rows[mine]])
            y = problems.measurement[0]
            known = jnp.ones_like(y) if problems.known is None else jnp.broadcast_to(problems.known[0], y.shape)
            variance, growth = _of_noise(config, given, i, fits, i * len(rows) + place,
                                         blind_mean(observed, problems.held_out))
            part = cross_fit_errors(observed, y, problems.held_out, known, variance, growth)
            errors[i] += float(part.overall(known.mean())) / len(fits.boxes)
    return errors


def _stuck(fit: Dip, fits: Fits, rows: Float[np.ndarray, "n h w c"]) -> Bool[np.ndarray, "n"]:
    """Which fits lie near a constant, though their measurements do not."""
    return np.array([bool(is_stuck(take(fits.problems, i), fit.observe(jnp.asarray(row)))) for i, row in
                     enumerate(rows)])


def decibels(error: float) -> float | None:
    """PSNR of a mean squared error, white being 1; None where there is no error left."""
    return float(-10 * np.log10(error)) if error > 0 else None


def warnings(config: DipConfig, given: Measurements, result: Outcome, more: str) -> list[str]:
    """What the user should know: what was done about shared noise, which fits are stuck, that no stop rule fired
    (`more` says how to go on), and which pictures are estimated to be no better than their measurements."""
    return (shared_noise(config, given) + _near_constant(result) + _not_fired(config, result, more)
            + _no_better(config, given, result))


def shared_noise(config: DipConfig, given: Measurements) -> list[str]:
    """What was done about noise that neighbouring pixels share, by the rule that can do something."""
    shares = _shares_noise(config, given)
    left = ["nonlocal Bayes was left out: it is for noise that neighbours do not share"] if (
        config.nonlocal_bayes and shares) else []
    if not given.correlated or config.stop != "held-out":
        return left
    if holds_out_blocks(config, given):
        return ["blocks of 5x5 pixels were held out, since neighbours share noise", *left]
    return ["--hold-out blocks would judge by pixels whose neighbours are not seen" if config.hold_out == "pixels" else
            "the picture is too small to hold out blocks of it", *left]


def _near_constant(result: Outcome) -> list[str]:
    stuck = int(result.stuck.sum())
    fits = "the fit stays" if result.stuck.size == 1 else f"{stuck} of {result.stuck.size} fits stay"
    return [f"{fits} near a constant: another --seed, a lower --learning-rate, --code meshgrid or another --network "
            "may help"] if stuck else []


def _not_fired(config: DipConfig, result: Outcome, more: str) -> list[str]:
    running = int((~result.stopped).sum())
    if config.stop in ("never", "oracle") or not running:
        return []
    fits = "the fit" if result.stopped.size == 1 else f"{running} of {result.stopped.size} fits"
    last = int(result.steps[~result.stopped].max())
    if config.stop not in MINIMUM_RULES:
        why = "the misfit has not come down to the noise, and the last output was taken"
    elif last == config.num_steps:
        why = "the last step was the best so far"
    else:
        why = f"the best so far was step {last}, less than --patience {config.patience} steps before the end"
    return [f"{fits} ended at step {config.num_steps} before --stop {config.stop} fired: {why}; {more}"]


def _no_better(config: DipConfig, given: Measurements, result: Outcome) -> list[str]:
    """A line for each picture whose estimated error reaches sigma^2, the error of the measurement itself; for denoising
    only, where the two can be compared."""
    if config.task != "denoise" or given.known is not None or config.stop == "oracle":
        return []
    lines = []
    for name, error, sigma in zip(given.names, result.error, given.sigma.astype(np.float64)):
        if error >= sigma**2:
            before, after = (decibels(e) for e in (sigma**2, error))
            level = "which seems to hold no noise" if before is None else f"{before:.1f} dB by its noise"
            lines.append(f"{name}: the restored picture is estimated to be no better than the measurement ("
                         f"{'no error' if after is None else f'{after:.1f} dB'}; the measurement {level})")
    return lines
