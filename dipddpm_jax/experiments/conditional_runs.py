"""Measuring report 004: conditional DDPMs trained as the report did, scored by checkpoint, and guided digits."""
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from dipddpm_jax import plots
from dipddpm_jax.commands import label_accuracy
from dipddpm_jax.config.diffusion import ContextUnet, OptimizerConfig, TrainConfig
from dipddpm_jax.config.presets import PRESETS
from dipddpm_jax.experiments.labelled_runs import Ask, followed, measure_asked, model_of, scored_steps, trained_run
from dipddpm_jax.experiments.tables import Measured


@dataclass(frozen=True)
class Setting:
    """A run of the report; `guided` is not from it: a tenth of the labels dropped in training, guidance 2 when
    drawing."""

    act: Literal["gelu", "relu"] = "gelu"
    schedule: Literal["linear_at_zero", "waves_at_zero"] = "linear_at_zero"
    decay: Literal["constant", "linear"] = "constant"
    epochs: int = 400
    guided: bool = False


@dataclass(frozen=True)
class Size:
    """The report's network and run: width, side of pictures, batch, steps in 400 epochs, learning rate, checkpoints
    scored, transitions of the sampler. `digits`: width, batch, steps, learning rate."""

    width: int
    side: int
    batch: int
    steps: int
    rate: float
    scored: int
    num_steps: int
    digits: tuple[int, int, int, float]
    digits_data: str = "mnist5k"


@dataclass(frozen=True)
class LearningRun:
    """A run of the report's network that learns the labels: Muon, and pictures scaled to their own contrast."""

    width: int = 32
    side: int = 32
    batch: int = 32
    steps: int = 5000
    mean: float = 0.47
    std: float = 0.1
    guidance: float = 2.0


def report_config(setting: Setting, size: Size, seed: int) -> TrainConfig:
    """The report's run, without label dropout as it was."""
    base = PRESETS["context-unet"][1]
    return replace(
        base, network=ContextUnet(size.width, setting.act), schedule=replace(base.schedule, name=setting.schedule),
        optimizer=replace(base.optimizer, learning_rate=size.rate, decay=setting.decay), seed=seed,
        label_drop=0.1 if setting.guided else 0.0,
        sampler=replace(base.sampler, num_steps=size.num_steps, guidance=2.0 * setting.guided),
        image_size=size.side, batch_size=size.batch, steps=max(size.steps * setting.epochs // 400, 4 * size.scored))


def measure_run(setting: Setting, size: Size, seed: int) -> Measured:
    """Trains as the report did, and scores the last checkpoints."""
    config = report_config(setting, size, seed)
    every, steps = scored_steps(config.steps, size.scored)
    workdir = trained_run(config, every)
    curves, chosen, images = followed(workdir, steps, config.sampler, seed)
    losses = label_accuracy.training_losses(workdir)
    numbers = {
        "held": label_accuracy.last_held_out_loss(workdir),
        "loss": np.mean([loss for step, loss in losses.items() if step > 0.95 * config.steps]),
        "test": curves["test"][-1], "new": curves["new_test"][-1], "test_mean": np.mean(curves["test"]),
        "new_mean": np.mean(curves["new_test"]), "mean": np.mean([curves["test"], curves["new_test"]]),
        "test_best": max(curves["test"]), "test_chosen": curves["test"][chosen],
        "new_chosen": curves["new_test"][chosen], "shuffled": np.mean(curves["shuffled"]),
        "real": label_accuracy.of_real(model_of(workdir, steps[-1])[1], config),
        "minutes": label_accuracy.training_minutes(workdir)}
    return Measured(numbers, curves | {"loss": list(losses.values())[::10]},
                    {"eight of the test list, checkpoint chosen": plots.tile(images["test"][24:32], 8)})


def measure_learned(setting: LearningRun, size: Size, seed: int) -> Measured:
    """The same network, loss, betas and sampler as the report's; a tenth of the labels is dropped, for guidance."""
    base = PRESETS["context-unet"][1]
    config = replace(
        base, network=ContextUnet(min(setting.width, 2 * size.width)), image_size=setting.side,
        batch_size=setting.batch, steps=min(setting.steps, 10 * size.steps), pixel_mean=setting.mean,
        pixel_std=setting.std, seed=seed,
        optimizer=OptimizerConfig("muon", 1e-2, warmup_steps=100, decay="cosine", clip_norm=1.0, ema_decay=0.995),
        sampler=replace(base.sampler, num_steps=size.num_steps))
    every, steps = scored_steps(config.steps, 2 * size.scored)
    workdir = trained_run(config, every)
    found, chosen, _ = followed(workdir, steps, config.sampler, seed)
    guided, best, images = followed(workdir, steps, replace(config.sampler, guidance=setting.guidance), seed)
    numbers = {
        "test": found["test"][chosen], "new": found["new_test"][chosen], "test_guided": guided["test"][best],
        "new_guided": guided["new_test"][best], "test_best": max(guided["test"]),
        "shuffled": np.mean(guided["shuffled"]),
        "real": label_accuracy.of_real(model_of(workdir, steps[-1])[1], config),
        "minutes": label_accuracy.training_minutes(workdir)}
    return Measured(numbers, guided, {"the test list, guided, checkpoint chosen": plots.tile(images["test"], 8)})


def measure_digits(ask: Ask, size: Size, seed: int) -> Measured:
    """Report 004's second network: digits with classifier-free guidance, as in TeaPearce's script."""
    base, (width, batch, steps, rate) = PRESETS["teapearce"][1], size.digits
    most = min(ask.num_steps, 2 * size.num_steps)
    return measure_asked(replace(
        base, network=replace(base.network, width=width), data=size.digits_data, steps=steps, batch_size=batch,
        sampler=replace(base.sampler, num_steps=most), optimizer=replace(base.optimizer, learning_rate=rate)),
        ask, most, seed)
