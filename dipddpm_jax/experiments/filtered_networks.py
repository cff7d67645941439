"""Measuring report 001 with networks of their own: each seed trains another DDPM, fits another DIP, draws other noise.

Pictures are judged as the report shows them, each stretched to its own range: the network cannot see how bright its
input is (LayerNorm), so that a distance that sees the grey of the background measures no sampler.
"""
import time
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from dipddpm_jax.experiments.filtered_chains import (
    CHECKPOINTS,
    EPOCHS,
    STEPS,
    Length,
    Size,
    Start,
    chain,
    chain_start,
    fitted_dip,
    judged,
    stretched_as_reported,
    train_ddpm,
    variables,
)
from dipddpm_jax.experiments.tables import Measured
from dipddpm_jax.hybrids import filtered_start
from dipddpm_jax.networks import SkipNet


@dataclass(frozen=True)
class Trained:
    """What the chains of a network begin with, and how many of its epochs it has had."""

    start: Start
    epochs: int = EPOCHS[-1]


@dataclass(frozen=True)
class LastEpochs:
    """Chains of 500 steps that begin with three passes, by eight checkpoints of the two epochs that end at `epochs`."""

    epochs: int


@dataclass(frozen=True)
class FirstEpoch:
    """The first of twenty epochs, with the DIP inside of training or without."""

    inside: bool


def measure_first_epoch(setting: FirstEpoch, size: Size, seed: int) -> Measured:
    """Mean loss of the last third of one epoch of a network, DIP and noise of the seed's own: the share of the noise's
    variance that the network cannot name."""
    losses = train_ddpm(size, setting.inside, seed, (1,))["losses"]
    return Measured({"loss": losses[-max(1, len(losses) // 3):].mean()}, {"loss": losses.tolist()})


def measure_networks(settings: Sequence[Trained | LastEpochs], size: Size, seeds: Sequence[int]) -> list[Measured]:
    """Frechet distance of pictures as shown, for chains of all lengths; networks of less than all epochs only for 500
    steps. What one network draws is one batch a length. Of the last epochs the mean over checkpoints."""
    found: list[dict[str, float]] = [_of_last_epochs(setting, size, seed) if isinstance(setting, LastEpochs) else {}
                                     for setting, seed in zip(settings, seeds, strict=True)]
    trained = [(seed, setting.epochs) if isinstance(setting, Trained) else None
               for seed, setting in zip(seeds, settings, strict=True)]
    for seed, epochs in sorted(set(filter(None, trained))):
        mine = [i for i, wanted in enumerate(trained) if wanted == (seed, epochs)]
        keys = jnp.concatenate([jax.random.split(jax.random.fold_in(jax.random.key(seed), 3), size.count)] * len(mine))
        weights = variables(size, epochs, False, seed)
        for steps in STEPS if epochs == EPOCHS[-1] else (500,):
            begin = jnp.concatenate([chain_start(settings[i].start, steps, seed, size.count) for i in mine])
            images = chain(size.widths, min(steps, size.most), size.stride, False, False)(weights, begin, keys)
            for i, drawn in zip(mine, np.split(np.asarray(images), len(mine)), strict=True):
                numbers = judged(stretched_as_reported(drawn), seed)
                found[i] |= {f"fd_shown{steps}": numbers["fd"], f"floor{steps}": numbers["floor"]}
    nothing = {f"fd_shown{steps}": np.nan for steps in STEPS}
    return [Measured(nothing | numbers) for numbers in found]


def _of_last_epochs(setting: LastEpochs, size: Size, seed: int) -> dict[str, float]:
    """Mean distance of what the checkpoints draw, all from the same starts with the same noise."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 3), size.count)
    begin, run = chain_start(Start("DIP", 3), 500, seed, size.count), chain(
        size.widths, min(500, size.most), size.stride, False, False)
    drawn = [run(variables(size, epochs, False, seed), begin, keys) for epochs in CHECKPOINTS[setting.epochs]]
    numbers = [judged(stretched_as_reported(np.asarray(images)), seed) for images in drawn]
    return {"fd_shown500": np.mean([n["fd"] for n in numbers]), "floor500": numbers[0]["floor"]}


def measure_passes(setting: Length, size: Size, seed: int) -> Measured:
    """Seconds (of the clock) of two DIP passes over the starting noise of one picture, alone, and of a chain without
    them; medians of ten and of three. A seed is a process's own measurement, with a DIP of its own."""
    prior, steps = fitted_dip(seed), min(setting.steps, size.most)
    noise = jax.random.normal(jax.random.key(seed), (1, 32, 32, 1))
    passes = jax.jit(lambda prior, noise: filtered_start.filtered_noise(SkipNet(), prior, noise, 2, 28))
    run, weights = chain(size.widths, steps, min(1000 // size.most, size.stride), clip=False), variables(
        size, EPOCHS[-1], False)
    keys, x = jax.random.split(jax.random.key(seed), 1), jax.random.normal(jax.random.key(seed), (1, 28, 28, 1))

    def seconds(way, repeats: int) -> float:
        jax.block_until_ready(way())
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            jax.block_until_ready(way())
            times.append(time.perf_counter() - began)
        return float(np.median(times))

    alone, plain = seconds(lambda: passes(prior, noise), 10), seconds(lambda: run(weights, x, keys), 3)
    return Measured({"passes": 1000 * alone, "chain": 1000 * plain, "saved": -100 * alone / plain})
