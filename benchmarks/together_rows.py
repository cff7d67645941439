"""What benchmarks/together.py compares: pictures, tasks, and the rows of its tables."""
import dataclasses
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dipddpm_jax import classical, data
from dipddpm_jax.data.photographs import photograph
from dipddpm_jax.data.pictures import square
from dipddpm_jax.dip import crossfit
from dipddpm_jax.hybrids import (
    adaptation,
    ddnm,
    decoupled,
    diffpir,
    dps,
    educated_start,
    estimate_start,
    guided_fit,
    learned_start,
    pigdm,
    plugged_prior,
    trained_self_diffusion,
    truncated_reverse,
)
from dipddpm_jax.hybrids.averaged import averaged
from dipddpm_jax.hybrids.prior import DiffusionPrior, time_of_noise
from dipddpm_jax.inverse import exact, operators, referee
from dipddpm_jax.inverse.measurement import Cost, Measurement, Restoration, Restore
from dipddpm_jax.inverse.unbiased_risk import with_risk

SIDE = 28
PHOTOS = ("camera", "astronaut", "coffee", "chelsea", "coins", "rocket", "moon", "clock")
EQUAL = 12  # times as many ancestral chains cost what a cross-fit and 19 chains do
THRICE = 3  # times as many chains by PiGDM cost what a cross-fit and 19 of them do
TRIED = (0.5, 1.0, 2.0, 4.0)  # times the true error of the estimate: where the oracle tries to begin


@dataclass(frozen=True)
class Study:
    """What a line depends on, beside its picture, task and method. Fields are added with a default, which no line
    names: older lines still count."""

    deviation: float = 0.1
    """s, of pixels in [0, 1]."""
    calls: int = 50
    """Network calls of a chain."""
    samples: int = 19
    """Chains of a picture: the truth lies between the least and the greatest of 19 posterior samples in 90 % of all
    cases, whatever the posterior looks like."""
    spacing: Literal["even_log_snr", "even_time"] = "even_log_snr"
    """How the times of a chain are spread."""
    folds: int = 3
    """Fits of a cross-fit."""
    fit_steps: int = 300
    """Steps of each of them, and of a guided fit."""


@dataclass(frozen=True)
class Task:
    """An operator, and the standard deviation of the noise, of 255."""

    operator: operators.Operator
    sigma: float


def tasks() -> dict[str, Task]:
    """Denoising at four levels, and five operators."""
    rows, columns = np.indices((SIDE, SIDE))
    box = ~((abs(rows - 13.5) < 7) & (abs(columns - 13.5) < 7))
    scattered = operators.random_mask(jax.random.key(7), SIDE, SIDE, 0.1)
    return {
        **{f"denoise {sigma}": Task(operators.identity, sigma) for sigma in (15, 25, 50, 255)},
        "inpaint 90 %": Task(operators.masked(scattered), 15),
        "inpaint 50 %": Task(operators.masked(operators.random_mask(jax.random.key(8), SIDE, SIDE, 0.5)), 15),
        "inpaint box": Task(operators.masked(jnp.asarray(box[..., None], jnp.float32)), 15),
        "x4": Task(operators.downsample(SIDE, SIDE, 4), 15),
        "deblur": Task(operators.blur(SIDE, SIDE, 1.6), 15),
    }


def truths(kind: str, count: int, mixture: exact.Mixture) -> np.ndarray:
    """Pictures of the prior itself; digits that it never saw (of mixed classes, in the order of the file); these turned
    by a quarter, which no digit is; photographs, made small and grey."""
    if kind == "prior":
        return np.asarray(mixture.draw(jax.random.key(11), 64))[:count]
    if kind == "photographs":
        small = [square(photograph(name), SIDE).mean(-1, keepdims=True) for name in PHOTOS[:count]]
        return np.stack(small).astype(np.float32) / 255
    digits = data.load("mnist5k", "test").images[:count].astype(np.float32) / 255
    return np.ascontiguousarray(np.rot90(digits, axes=(1, 2))) if kind == "turned" else digits


class Shared:
    """Restorations that several rows need: made once for a measurement, with a key of its own, and charged to each row.

    `folder` keeps those that know nothing of the denoiser, for other runs. `spent` is what a row waited here, `owed`
    the seconds that each restoration took when it was made, compilation left out.
    """

    def __init__(self, folder: Path):
        self.folder, self.found, self.warm = folder, {}, set()
        self.spent, self.owed = 0.0, {}

    def settle(self) -> float:
        """What is to be added to the time of a row that ends now."""
        added = sum(self.owed.values()) - self.spent
        self.spent, self.owed = 0.0, {}
        return added

    def __call__(self, name: str, restore: Restore, on_disk: bool = False) -> Restore:
        def remembered(measurement: Measurement, key) -> Restoration:
            began = time.monotonic()
            mark = zlib.crc32(np.asarray(measurement.y).tobytes())
            path = self.folder / f"{name} {mark:08x}.npz"
            if (name, mark) not in self.found:
                if on_disk and path.exists():
                    self.found[name, mark] = _read(path)
                else:
                    self.found[name, mark] = self._made(name, restore, measurement, jax.random.key(mark))
                    if on_disk:
                        _write(path, *self.found[name, mark])
            found, seconds = self.found[name, mark]
            self.spent += time.monotonic() - began
            self.owed[name, mark] = seconds
            return found

        return remembered

    def _made(self, name: str, restore: Restore, measurement: Measurement, key) -> tuple[Restoration, float]:
        program = (name, measurement.operator, float(measurement.noise.sigma))
        if program not in self.warm:
            jax.block_until_ready(restore(measurement, key).picture)
            self.warm.add(program)
        began = time.monotonic()
        found = restore(measurement, key)
        jax.block_until_ready(found.picture)
        return found, time.monotonic() - began


def _write(path: Path, found: Restoration, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, picture=np.asarray(found.picture), cost=np.array(found.evidence[:3], np.float64), seconds=seconds)


def _read(path: Path) -> tuple[Restoration, float]:
    with np.load(path) as kept:
        calls, steps, error = kept["cost"]
        return (Restoration(jnp.asarray(kept["picture"]), None, Cost(int(calls), int(steps), float(error))),
                float(kept["seconds"]))


def cross_fit(c: Study) -> Restore:
    """Few and short fits, which 28x28 pixels allow: DIP-TV with twice the usual learning rate."""
    fits = partial(crossfit.a_fit, crossfit.small_skip_net, rate=0.02, average_decay=0.98)
    return crossfit.cross_fitted(lambda channels: fits(channels), c.folds, c.fit_steps)


def by_task(denoise: Restore, other: Restore) -> Restore:
    """One restorer where the picture itself was measured, another elsewhere."""
    def restore(measurement: Measurement, key) -> Restoration:
        return (denoise if measurement.operator == operators.identity else other)(measurement, key)

    return restore


def oracle(
    prior: DiffusionPrior, estimate: Restore, make: Callable[[estimate_start.Start], Restore]
) -> Callable[[np.ndarray], Restore]:
    """truth -> the restorer whose t0 is the best of TRIED for this very picture: no rule can do better."""
    now = [1]
    begin = make(lambda *_: now[0])

    def for_truth(truth: np.ndarray) -> Restore:
        def wrong(found: Restoration) -> float:
            return float(np.mean((np.asarray(found.picture) - truth) ** 2))

        def restore(measurement: Measurement, key) -> Restoration:
            rms, found = wrong(estimate(measurement, key)) ** 0.5, []
            for share in TRIED:
                now[0] = time_of_noise(prior, share * rms)
                found.append(begin(measurement, key))
            return min(found, key=wrong)

        return restore

    return for_truth


DENOISE_ONLY = ("one step", "truncated, ddim", "truncated, ancestral", "truncated, 12 times the chains",
                "non-local means", "start: non-local means, rule", "start: non-local means, oracle",
                "half cross-fit, half PiGDM")
PLUGGED = "plug-and-play"  # to denoise it would be turns of a denoiser with what was noisy: nobody asks for that
REFUSED = {("DDNM+", "deblur")}  # it says so: the pseudo-inverse of a blur multiplies noise


def suits(method: str, task: str) -> bool:
    """Whether a row has a cell for a task. Elsewhere than in denoising, PiGDM is what "diffusion" means."""
    denoises = task.startswith("denoise")
    return (method not in DENOISE_ONLY or denoises) and (method, task) not in REFUSED and not (
        method == PLUGGED and denoises)


def methods(prior: DiffusionPrior, c: Study) -> dict[str, Callable[[], Restore]]:
    """Diffusion alone."""
    many = {"calls": c.calls, "samples": c.samples}
    return {
        "one step": lambda: truncated_reverse.one_step(prior),
        "truncated, ddim": lambda: truncated_reverse.truncated_reverse(prior, c.calls, 1, "ddim"),
        "truncated, ancestral": lambda: truncated_reverse.truncated_reverse(prior, **many),
        "DDNM+": lambda: ddnm.ddnm(prior, **many),
        "DiffPIR": lambda: diffpir.diffpir(prior, **many),
        "DPS": lambda: dps.dps(prior, **many),
        "PiGDM": lambda: pigdm.pigdm(prior, **many),
        "PiGDM, matched": lambda: pigdm.pigdm(prior, **many, variance=pigdm.matched_variance),
        "DAPS, s/a": lambda: decoupled.decoupled(prior, **many, variance=decoupled.noise_variance),
        "decoupled, matched": lambda: decoupled.decoupled(prior, **many),
        PLUGGED: lambda: plugged_prior.plugged_prior(prior),
        "PiGDM, weighted": lambda: pigdm.pigdm(prior, **many, variance=pigdm.weighted_variance),
        "PiGDM, matched, 3 times the chains": lambda: pigdm.pigdm(
            prior, c.calls, THRICE * c.samples, pigdm.matched_variance),
        "truncated, 12 times the chains": lambda: truncated_reverse.truncated_reverse(
            prior, c.calls, EQUAL * c.samples),
    }


def together(prior: DiffusionPrior, c: Study, shared: Shared) -> dict[str, Callable[[], Any]]:
    """An untrained network and a classical filter, alone and with diffusion; a row named "oracle" takes the truth."""
    alone = methods(prior, c)
    filtered = classical.non_local_means()
    fit = shared(f"cross-fit {c.folds} x {c.fit_steps}", cross_fit(c), on_disk=True)
    ancestral, matched = (shared(name, alone[name]()) for name in ("truncated, ancestral", "PiGDM, matched"))
    diffusion = by_task(ancestral, matched)
    many = {"calls": c.calls, "samples": c.samples}
    step = pigdm.guided_step(pigdm.matched_variance)
    rule = estimate_start.at_error
    levels = 20

    def start(estimate, at):
        return estimate_start.estimate_start(prior, estimate, at, **many)

    def guided(at):
        return estimate_start.estimate_start(prior, fit, at, **many, step=step)

    return {
        "truncated, ancestral": lambda: ancestral,
        "PiGDM, matched": lambda: matched,
        "non-local means": lambda: filtered,
        "cross-fit": lambda: fit,
        "cross-fit, 9 fits": lambda: cross_fit(dataclasses.replace(c, folds=9)),
        "start: non-local means, rule": lambda: start(with_risk(filtered), rule),
        "start: non-local means, oracle": lambda: oracle(prior, filtered, lambda at: start(filtered, at)),
        "start: cross-fit, rule": lambda: start(fit, rule),
        "start: cross-fit, oracle": lambda: oracle(prior, fit, lambda at: start(fit, at)),
        "guided start: cross-fit, rule": lambda: guided(rule),
        "guided start: cross-fit, thrice the error": lambda: estimate_start.cross_fit_start(prior, **many, fits=fit),
        "guided start: cross-fit, oracle": lambda: oracle(prior, fit, guided),
        "half cross-fit, half diffusion": lambda: averaged(fit, diffusion),
        "half cross-fit, half PiGDM": lambda: averaged(fit, matched),
        "referee: cross-fit and diffusion": lambda: referee.stacked({"cross-fit": fit, "diffusion": diffusion}),
        "guided fit": lambda: guided_fit.guided_fit(prior, crossfit.small_skip_net(1), levels, c.fit_steps // levels),
        **learning(prior, c),
    }


def learning(prior: DiffusionPrior, c: Study) -> dict[str, Callable[[], Restore]]:
    """What learns from the one picture; the exact denoiser has no weights to begin with."""
    own = {} if prior.learned is None else {
        "adapted prior": lambda: adaptation.adapted(prior, c.calls, c.samples),
        "educated start": lambda: educated_start.educated_start(prior),
        "self-diffusion from the prior": lambda: trained_self_diffusion.trained_self_diffusion(prior),
    }
    return {**own, "learned start": lambda: learned_start.learned_start(prior)}
