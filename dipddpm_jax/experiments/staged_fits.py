"""Measuring report 002: the fits of `staged_dip.py` and their controls.

Target and stop rule of the report's fits are the clean picture; `measure_honest` has fits that never see it.
"""
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from dipddpm_jax import dip, plots
from dipddpm_jax.commands import fits
from dipddpm_jax.commands.staged import WIDTHS
from dipddpm_jax.data.photographs import photograph
from dipddpm_jax.data.pictures import square, to_bytes
from dipddpm_jax.dip import stopping, study
from dipddpm_jax.dip.staged import Stage, staged_fit, staged_fits
from dipddpm_jax.experiments.tables import Measured
from dipddpm_jax.inverse import noises, operators
from dipddpm_jax.judging.metrics import clipped_psnr, clipped_ssim
from dipddpm_jax.networks import ConvStack, SkipNet
from dipddpm_jax.types import Image

SIGMA, RATE, PATIENCE, EVERY = 0.1, 5e-3, 50, 10


@dataclass(frozen=True)
class Setting:
    """A fit of the report: noise levels and epochs of its stages. One stage is what it calls traditional."""

    layers: int = 3
    levels: tuple[float, ...] = (0.1, 0.05, 0.025)
    epochs: tuple[int, ...] = (1000, 1000, 1000)


@dataclass(frozen=True)
class Honest:
    """A fit that sees the noisy picture alone (or, for comparison, the report's)."""

    kind: str


@dataclass(frozen=True)
class Size:
    """Side of the picture; what the inner widths and the numbers of epochs are divided by; steps of the real DIP; and
    of the table of failures side and divisor of the widths."""

    side: int
    thinner: int = 1
    fewer: int = 1
    dip_steps: int = 3000
    failure_side: int = 128
    failure_thinner: int = 1


def photograph_at(name: str, side: int) -> Image:
    """A colour photograph in [0, 1]."""
    return jnp.asarray(square(photograph(name), side), jnp.float32) / 255


def noisy(clean: Image, level: float, seed: int, draw: int) -> Image:
    """Clean + level * N(0, 1), clipped; the same draw for every row."""
    return noises.add_gaussian(jax.random.fold_in(jax.random.key(seed), draw), clean, level)


@functools.cache
def _fit(widths: tuple[int, ...], num_steps: int, patience: int) -> dip.Dip:
    """The report's: towards the clean picture, stopped by the PSNR to it. One object a program."""
    rule = functools.partial(study.oracle_cumulative, num_steps=num_steps, patience=patience, every=EVERY)
    return dip.Dip(ConvStack(widths), optax.adam(RATE), oracle=rule, code_rule=dip.fixed(jitter=0.0))


@functools.cache
def _honest_fit(widths: tuple[int, ...]) -> dip.Dip:
    return dip.Dip(ConvStack(widths), optax.adam(RATE), stopper=stopping.discrepancy(), code_rule=dip.fixed(jitter=0.0))


@functools.cache
def _apply(widths: tuple[int, ...]):
    return jax.jit(lambda params, x: ConvStack(widths).apply({"params": params}, x[None])[0])


class Fitted(NamedTuple):
    """A fit: parameters, the stages' inputs, the epochs planned, and what each stage kept with its curves."""

    params: PyTree
    inputs: list[Image]
    planned: int
    kept: list[tuple[dip.Kept, dip.Curves]]


def _fitted(
    settings: Sequence[Setting], clean: Image, widths: tuple[int, ...], fewer: int, seeds: Sequence[int]
) -> list[Fitted]:
    """Fits with as many layers and epochs, in one program; what was planned is equal for all."""
    cells, stages = list(zip(settings, seeds, strict=True)), []
    for i, epochs in enumerate(settings[0].epochs):
        steps = max(EVERY + 1, epochs // fewer)
        problems = [dip.DipProblem(noisy(clean, setting.levels[i], seed, i), clean, clean) for setting, seed in cells]
        stages.append(Stage(_fit(widths, steps, max(1, PATIENCE // fewer)), fits.stack(problems), steps))
    states = [stages[0].fit.init(fits.take(stages[0].problem, i), jax.random.key(seed)) for i, seed in enumerate(seeds)]
    states, kept = staged_fits(stages, fits.stack(states))
    return [Fitted(fits.take(states.params, i), [stage.problem.code[i] for stage in stages],
                   sum(stage.num_steps for stage in stages), fits.take(kept, i)) for i in range(len(cells))]


def _looks(kept: list) -> list[np.ndarray]:
    """PSNR of each stage at the epochs at which the report looks."""
    rows = []
    for _, curves in kept:
        ran = int(np.sum(curves["active"]))
        epochs = [e for e in range(ran) if e % EVERY == 0 or e == len(curves["active"]) - 1]
        rows.append(-np.asarray(curves["score"], np.float64)[epochs])
    return rows


def program(setting: Setting) -> tuple:
    """What fits of one program have in common."""
    return setting.layers, setting.epochs


def measure(settings: Sequence[Setting], size: Size, seeds: Sequence[int]) -> list[Measured]:
    """Fits of one program, scored as the report did and at one noise level for all, on noise they have not seen."""
    widths = tuple(w // size.thinner for w in WIDTHS[settings[0].layers])
    fitted = _fitted(settings, photograph_at("astronaut", size.side), widths, size.fewer, seeds)
    return [_scored(*cell, widths, size.side) for cell in zip(settings, fitted, seeds)]


def _scored(setting: Setting, fitted: Fitted, seed: int, widths: tuple[int, ...], side: int) -> Measured:
    clean, other = photograph_at("astronaut", side), photograph_at("coffee", side)
    params, codes, planned, kept = fitted
    looks, outputs = _looks(kept), [jnp.asarray(result.output) for result, _ in kept]
    best = np.maximum.accumulate([stage.max() for stage in looks])
    inputs = [clipped_psnr(clean, code) for code in codes]
    model = functools.partial(_apply(widths), params)
    # the report runs the traditional network once more, and takes the others' last evaluation
    final = model(codes[-1]) if len(codes) == 1 else outputs[-1]
    fresh, other_noisy = noisy(clean, SIGMA, seed, 100), noisy(other, SIGMA, seed, 101)
    constant = clipped_psnr(clean, jnp.broadcast_to(clean.mean((0, 1), keepdims=True), clean.shape))
    ran = sum(int(np.sum(curves["active"])) for _, curves in kept)
    numbers = {
        "psnr": clipped_psnr(clean, final), "ssim": clipped_ssim(clean, final), "input": inputs[-1],
        "gain": clipped_psnr(clean, final) - inputs[-1], "mean_psnr": np.mean(best),
        "mean_ssim": np.mean([clipped_ssim(clean, output) for output in outputs]), "mean_input": np.mean(inputs),
        "fresh": clipped_psnr(clean, model(fresh)), "fresh_input": clipped_psnr(clean, fresh),
        "other": clipped_psnr(other, model(other_noisy)), "other_input": clipped_psnr(other, other_noisy),
        "constant": constant,
        **{f"fresh_{level:g}": clipped_psnr(clean, model(noisy(clean, level, seed, 102))) for level in (0.05, 0.025)},
        "share": ran / planned,
        "failed": float(not clipped_psnr(clean, model(fresh)) >= constant + 1)}
    sheet = plots.tile(to_bytes(np.stack([codes[-1], final, fresh, model(fresh), clean])), 5)
    caption = "from left: last input, its output, fresh noise of 0.1, its output, clean"
    shown = {caption: sheet} if max(setting.epochs) != 200 and 500 not in setting.epochs else {}
    return Measured(numbers, {"psnr": np.concatenate(looks).tolist()}, shown)


def measure_failures(settings: Sequence[Setting], size: Size, seeds: Sequence[int]) -> list[Measured]:
    """The first stage only, at the report's own widths: does the network die?"""
    clean = photograph_at("astronaut", size.failure_side)
    widths = tuple(w // size.failure_thinner for w in WIDTHS[settings[0].layers])
    constant = clipped_psnr(clean, jnp.broadcast_to(clean.mean((0, 1), keepdims=True), clean.shape))

    def scored(fitted: Fitted, seed: int) -> Measured:
        fresh = clipped_psnr(clean, _apply(widths)(fitted.params, noisy(clean, SIGMA, seed, 100)))
        return Measured({"failed": float(not fresh >= constant + 1), "fresh": fresh, "constant": constant})

    return [scored(*cell) for cell in zip(_fitted(settings, clean, widths, max(1, size.fewer // 10), seeds), seeds)]


def measure_honest(setting: Honest, size: Size, seed: int) -> Measured:
    """Restoring a photograph with noise of 0.1 without being shown the answer."""
    clean = photograph_at("astronaut", size.side)
    measurement = noisy(clean, SIGMA, seed, 100)
    key, sigma = jax.random.key(seed), jnp.float32(SIGMA)
    widths = tuple(w // size.thinner for w in WIDTHS[3])
    if setting.kind == "report":
        output = _apply(widths)(_fitted([Setting()], clean, widths, size.fewer, [seed])[0].params, measurement)
    elif setting.kind == "staged":
        steps = 1000 // size.fewer
        stages = [Stage(_honest_fit(widths), dip.DipProblem(
            measurement + level * jax.random.normal(jax.random.fold_in(key, i), clean.shape), measurement, clean,
            sigma=sigma), max(EVERY, steps)) for i, level in enumerate(Setting().levels)]
        _, kept = staged_fit(stages, stages[0].fit.init(stages[0].problem, key))
        output = kept[-1][0].output
    else:
        output = _dip(measurement, clean, size, key)
    sheet = plots.tile(to_bytes(np.stack([measurement, output, clean])), 3)
    restored, given = clipped_psnr(clean, output), clipped_psnr(clean, measurement)
    return Measured({"psnr": restored, "ssim": clipped_ssim(clean, output), "input": given,
                     "input_ssim": clipped_ssim(clean, measurement), "gain": restored - given},
                    {}, {"from left: noisy, restored, clean": sheet})


@functools.cache
def _dip_program(side: int, steps: int):
    width = min(128, side // 4)
    network = SkipNet(3, (width,) * 3, (width,) * 3, (4,) * 3)
    fit = dip.Dip(network, dip.backtracking(optax.adam(0.01)), stopper=stopping.held_out(300))
    return fit, jax.jit(functools.partial(fit.advance, num_steps=steps))


def _dip(measurement: Image, clean: Image, size: Size, key: PyTree) -> Image:
    """Ulyanov's: from a fixed random code to the noisy picture, stopped by pixels held out of the fit."""
    fit, advance = _dip_program(size.side, size.dip_steps)
    code, held, weights = jax.random.split(key, 3)
    share = fits.held_out_share(size.side**2)
    problem = dip.DipProblem(dip.noise_code(code, size.side, size.side), measurement, clean,
                             held_out=operators.random_mask(held, size.side, size.side, share))
    return advance(problem, fit.init(problem, weights))[0].kept.average
