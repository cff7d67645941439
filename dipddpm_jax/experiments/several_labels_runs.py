"""Measuring the recommended model for several labels: by checkpoint, and what it is asked for."""
from dataclasses import dataclass, replace

import numpy as np

from dipddpm_jax import checkpoints, plots
from dipddpm_jax.commands import label_accuracy
from dipddpm_jax.config.diffusion import TrainConfig
from dipddpm_jax.config.presets import PRESETS
from dipddpm_jax.data import scenes
from dipddpm_jax.experiments.labelled_runs import (
    LISTS,
    Ask,
    accuracies,
    followed,
    lists_for,
    measure_asked,
    model_of,
    trained_run,
)
from dipddpm_jax.experiments.tables import Measured

PAIRS = tuple(",".join(scenes.OBJECTS[i] for i in np.flatnonzero(row)) for row in scenes.unseen_pairs())


@dataclass(frozen=True)
class Size:
    """The network's width and patch, side of pictures, batch, training steps; most transitions of the sampler."""

    width: int
    patch: int
    side: int
    batch: int
    steps: int
    most: int = 1000


@dataclass(frozen=True)
class ChosenGuidance:
    """Weights of guidance that the validation list chooses from."""

    weights: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0, 3.0)


def model_config(size: Size, seed: int = 0) -> TrainConfig:
    """The recommended model, which never sees the pairs."""
    base = PRESETS["scenes"][1]
    return replace(base, network=replace(base.network, width=size.width, patch_size=size.patch), image_size=size.side,
                   batch_size=size.batch, steps=size.steps, without=PAIRS, seed=seed,
                   sampler=replace(base.sampler, num_steps=min(base.sampler.num_steps, size.most)))


def measure_model(ask: Ask, size: Size, seed: int) -> Measured:
    """Label accuracy of the model trained with seed 0; `seed` is that of the noise."""
    return measure_asked(model_config(size), ask, size.most, seed)


def measure_chosen(choice: ChosenGuidance, size: Size, seed: int) -> Measured:
    """Label accuracy of the model trained with seed 0, its guidance chosen by the validation list; `seed` is that of
    the noise, which all weights share."""
    return _chosen(choice, model_config(size), size, seed)


def measure_longer(choice: ChosenGuidance, size: Size, seed: int) -> Measured:
    """`measure_chosen` of a run as long again that goes on from the first one's end, at half its learning rate."""
    first = model_config(size)
    start = trained_run(first, max(first.steps // 10, 1))
    optimizer = replace(first.optimizer, learning_rate=first.optimizer.learning_rate / 2)
    config = replace(first, start=str(start), optimizer=optimizer)
    measured = _chosen(choice, config, size, seed)
    both = (start, trained_run(config, max(config.steps // 10, 1)))
    return measured._replace(numbers=measured.numbers | {"minutes": sum(map(label_accuracy.training_minutes, both))})


def _chosen(choice: ChosenGuidance, config: TrainConfig, size: Size, seed: int) -> Measured:
    workdir = trained_run(config, max(config.steps // 10, 1))
    known, samplers = lists_for(workdir), {
        weight: replace(config.sampler, guidance=weight, num_steps=min(50, size.most)) for weight in choice.weights}
    scores = {weight: accuracies(workdir, config.steps, sampler, {"validation": known["validation"]}, seed)[0]
              for weight, sampler in samplers.items()}
    best = max(scores, key=lambda weight: scores[weight]["validation"])
    others = {name: known[name] for name in LISTS[1:]}
    numbers, images = accuracies(workdir, config.steps, samplers[best], others, seed)
    return Measured(numbers | {"guidance": best, "validation": scores[best]["validation"]}, {},
                    {"eight of the list test": plots.tile(images["test"][18:26], 10)})


def measure_checkpoints(ask: Ask, size: Size, seed: int) -> Measured:
    """Label accuracy of every kept checkpoint; `seed` is that of training and of the noise."""
    config = model_config(size, seed)
    every = max(config.steps // 10, 1)
    workdir = trained_run(config, every)
    steps = [step for step in checkpoints.steps(workdir / "checkpoints") if step % every == 0]
    sampler = replace(config.sampler, guidance=ask.guidance, num_steps=min(ask.num_steps, size.most))
    curves, chosen, images = followed(workdir, steps, sampler, seed)
    numbers = {name: curves[name][chosen] for name in ("step", *LISTS)}
    return Measured(numbers | {"real": label_accuracy.of_real(model_of(workdir, steps[-1])[1], config),
                               "minutes": label_accuracy.training_minutes(workdir)}, curves,
                    {"the test list, checkpoint chosen": plots.tile(images["test"], 8)})
