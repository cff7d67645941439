"""What report 004 did not try, asked of the recommended model for several labels: guidance, steps, labels one by one,
pairs that no training picture shows."""
from dataclasses import dataclass, replace

import numpy as np

from dipddpm_jax import checkpoints, plots
from dipddpm_jax.commands import label_accuracy
from dipddpm_jax.config.diffusion import TrainConfig
from dipddpm_jax.config.presets import PRESETS
from dipddpm_jax.data import scenes
from dipddpm_jax.experiments.labelled_runs import (
    LISTS,
    MINUTES,
    REAL,
    REPEATS,
    SHUFFLED,
    Ask,
    followed,
    measure_asked,
    model_of,
    trained_run,
)
from dipddpm_jax.experiments.tables import Column, Measured, Plot, Report, Row, Table

PAIRS = tuple(",".join(scenes.OBJECTS[i] for i in np.flatnonzero(row)) for row in scenes.unseen_pairs())
MODEL = "recommended model"


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


BOTH_LISTS = (Column("test", "test list", "sound", 3), Column("new_test", "new-test list", "sound", 3), SHUFFLED)
TABLES = (
    Table("checkpoints", "The recommended model while it trains", "Each tenth of the run (averaged parameters), "
          "guidance 2, 25 steps. The checkpoint is chosen by the validation list alone. Seeds: of training and "
          "noise.",
          (Row(MODEL, Ask(num_steps=25)),),
          (Column("step", "chosen step", "sound", 0), Column("validation", "validation list", "sound", 3),
           *BOTH_LISTS[:2], REAL, MINUTES), measure_checkpoints,
          plots=(Plot("accuracy", "Label accuracy while training, seed 0.", lambda results: (
              results.curve(MODEL, "step"), {name: results.curve(MODEL, name) for name in LISTS}), "step",
              "label accuracy"),), seeds={"quick": 1}),
    Table("guidance", "Guidance", "Weight w of classifier-free guidance; 50 steps of DPM-Solver++(2M). Here and below: "
          "the model of seed 0; seeds are those of the noise, which is the same in every row.",
          tuple(Row(f"w = {w:g}", Ask(guidance=w)) for w in (0.0, 1.0, 2.0, 4.0)), BOTH_LISTS, measure_model),
    Table("steps", "Number of steps", "Transitions of the sampler with guidance 2; each evaluates the network twice a "
          "picture.", tuple(Row(f"{n} steps", Ask(num_steps=n)) for n in (10, 25, 50, 400)), BOTH_LISTS, measure_model),
    Table("composition", "All labels at once, or each by itself", "Composed: eps_0 + sum_i (1 + w) (eps_i - eps_0), "
          "four evaluations a picture and step; 25 steps.",
          tuple(Row(f"{'composed' if each else 'at once'}, w = {w:g}", Ask(guidance=w, num_steps=25, compose=each))
                for each in (False, True) for w in (0.0, 1.0, 2.0)), BOTH_LISTS, measure_model),
    Table("unseen pairs", "Pairs that no training picture shows", "Twelve pairs (every object once) were held out of "
          f"training, alone and in threes; twelve others of the same make-up are the control. {REPEATS} pictures a "
          "pair and seed, 25 steps.",
          (Row("at once, w = 0", Ask(0.0, 25, of="pairs")), Row("at once, w = 2", Ask(2.0, 25, of="pairs")),
           Row("composed, w = 1", Ask(1.0, 25, True, "pairs"))),
          (Column("unseen", "pairs held out", "sound", 3), Column("seen", "other pairs", "control", 3),
           BOTH_LISTS[2]), measure_model),
)
QUICK = Size(40, 2, 32, 32, 12_000)
REPORT = Report(
    "scenes", "Several labels a picture: the recommended model on rendered scenes",
    "A modern UNet trained on rendered scenes of one to three of 24 objects, with a tenth of the labels dropped, and "
    "what can be asked of it. Labels are the objects; a ResNet18 that was trained on other scenes looks for those that "
    "were asked for: of each picture as many of its highest outputs as it has labels; hits over labels. Report "
    "[004](004.md) asks the same of its own network. With iCLEVR: `python train.py iclevr --data-dir DIR --keep-every "
    "700`, then `python -m dipddpm_jax label-accuracy RUN --evaluator checkpoint.pth`.",
    TABLES,
    {"smoke": Size(8, 4, 32, 4, 4, 2), "quick": QUICK, "full": Size(128, 2, 64, 128, 60_000)},
    {"smoke": "a few steps.",
     "quick": f"pictures of {QUICK.side}x{QUICK.side}, width {QUICK.width}, patches of {QUICK.patch}, {QUICK.steps} "
     f"steps of {QUICK.batch}: longer than the reports' half hour.",
     "full": "64x64, width 128, patches of 2, 60,000 steps of 128."},
    {"smoke": 1, "quick": 2, "full": 3})
