"""Measuring the recommended model for several labels: by checkpoint, and what it is asked for."""
from dataclasses import dataclass, replace

import numpy as np

from dipddpm_jax import checkpoints, plots
from dipddpm_jax.commands import label_accuracy
from dipddpm_jax.config.diffusion import TrainConfig
from dipddpm_jax.config.presets import PRESETS
from dipddpm_jax.data import scenes
from dipddpm_jax.experiments.labelled_runs import LISTS, Ask, followed, measure_asked, model_of, trained_run
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


def model_config(size: Size, seed: int = 0) -> TrainConfig:
    """The recommended model, which never sees the pairs."""
    base = PRESETS["scenes"][1]
    return replace(base, network=replace(base.network, width=size.width, patch_size=size.patch), image_size=size.side,
                   batch_size=size.batch, steps=size.steps, without=PAIRS, seed=seed,
                   sampler=replace(base.sampler, num_steps=min(base.sampler.num_steps, size.most)))


def measure_model(ask: Ask, size: Size, seed: int) -> Measured:
    """Label accuracy of the model trained with seed 0; `seed` is that of the noise."""
    return measure_asked(model_config(size), ask, size.most, seed)


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
