"""Runs whose pictures are judged by their labels: trained once and kept, drawn from, scored by checkpoint."""
import functools
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dipddpm_jax import checkpoints, plots, records
from dipddpm_jax.commands import label_accuracy, train
from dipddpm_jax.commands.loop import Stopped
from dipddpm_jax.commands.model import Model, draw, load_run
from dipddpm_jax.config import saved
from dipddpm_jax.config.diffusion import RunOptions, TrainConfig
from dipddpm_jax.config.sampler import SamplerConfig
from dipddpm_jax.experiments.tables import Column, Measured
from dipddpm_jax.judging import judges

LISTS = ("validation", "test", "new_test")
REPEATS = 3  # of each pair, in a draw of the lists of pairs
SHUFFLED = Column("shuffled", "the pictures, for one another's labels", "control", 3)
REAL = Column("real", "real pictures of this size", "control", 3)
MINUTES = Column("minutes", "minutes of training, pauses included", "sound", 1)


@dataclass(frozen=True)
class Ask:
    """What a trained model is asked for."""

    guidance: float = 2.0
    num_steps: int = 50
    compose: bool = False
    of: Literal["lists", "pairs", "digits"] = "lists"


def _identity(config: TrainConfig) -> dict[str, Any]:
    """A configuration as JSON without what older versions had no field for, if it changes nothing: their runs count."""
    record = saved.to_json(config)
    if config.sampler.spacing is None:
        del record["sampler"]["spacing"]
    if config.start is None:
        del record["start"]
    for name in ("weighting", "mirror", "shift"):
        if getattr(config, name) == getattr(TrainConfig, name):
            del record[name]
    if not record["network"].get("label_attention", True):
        del record["network"]["label_attention"]
    if config.schedule.name != "linear" or config.schedule.num_steps == config.schedule.beta_steps:
        del record["schedule"]["beta_steps"]
    return record


def trained_run(config: TrainConfig, keep_every: int) -> Path:
    """The run of a configuration in the user's cache folder: found there, gone on with, or begun."""
    config = replace(config, keep_every=keep_every)
    name = hashlib.sha256(json.dumps(_identity(config)).encode()).hexdigest()[:12]
    workdir = records.cache_folder() / "runs" / name
    options = RunOptions(workdir, resume=(workdir / "config.json").exists(), sample_every=0)
    if checkpoints.latest_step(workdir / "checkpoints") != config.steps:
        try:
            train.train_model(config, options, "experiment")
        except Stopped as stopped:  # it is saved, and goes on when called again
            raise KeyboardInterrupt(stopped.code - 128) from None  # the signal
    return workdir


@functools.lru_cache(2)
def model_of(workdir: Path, step: int) -> tuple[Model, judges.Judge]:
    """The model of a checkpoint, and who says what its pictures show."""
    model = load_run(workdir, step)
    return model, label_accuracy.judge_of_model(model.config, model.facts, None)


def accuracies(
    workdir: Path, step: int, sampler: SamplerConfig, lists: dict[str, np.ndarray], seed: int
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Label accuracy of each list, "shuffled" (of the last list's pictures, for one another's labels); pictures."""
    model, judge = model_of(workdir, step)
    images = {name: draw(model, sampler, len(rows), seed, rows, batch_size=32).images
              for name, rows in lists.items()}
    found = {name: judges.accuracy(judge, images[name], rows) for name, rows in lists.items()}
    name, rows = list(lists.items())[-1]
    return found | {"shuffled": judges.accuracy(judge, images[name], np.roll(rows, len(rows) // 3, 0))}, images


def scored_steps(steps: int, count: int) -> tuple[int, list[int]]:
    """`count` checkpoints spread over the last quarter of a run, and the distance between those that are kept."""
    every = max(steps // (4 * count), 1)
    return every, [step for step in range(every, steps + 1, every)][-count:]


def lists_for(workdir: Path) -> dict[str, np.ndarray]:
    """The lists of labels that a run can be asked for."""
    _, config, facts = saved.load(workdir / "config.json")
    return label_accuracy.lists_of(config, facts, None)


def followed(
    workdir: Path, steps: list[int], sampler: SamplerConfig, seed: int
) -> tuple[dict[str, list[float]], int, dict[str, np.ndarray]]:
    """Accuracies by checkpoint, which one the validation list chooses, and that one's pictures."""
    known = lists_for(workdir)
    scores = [accuracies(workdir, step, sampler, {name: known[name] for name in LISTS}, seed) for step in steps]
    curves = {name: [found[name] for found, _ in scores] for name in (*LISTS, "shuffled")}
    chosen = int(np.argmax(curves["validation"]))
    return curves | {"step": [float(step) for step in steps]}, chosen, scores[chosen][1]


def measure_asked(config: TrainConfig, ask: Ask, most: int, seed: int) -> Measured:
    """One trained model, drawn from with at most `most` transitions; `seed` is that of the noise."""
    workdir = trained_run(config, max(config.steps // 10, 1))
    sampler = replace(config.sampler, guidance=ask.guidance, compose=ask.compose,
                      num_steps=min(ask.num_steps, most))
    known = lists_for(workdir)
    names = {"lists": ("test", "new_test"), "pairs": ("unseen", "seen"), "digits": ("classes",)}[ask.of]
    lists = {name: np.repeat(known[name], REPEATS, 0) if ask.of == "pairs" else known[name] for name in names}
    numbers, images = accuracies(workdir, config.steps, sampler, lists, seed)
    first = {"lists": slice(18, 26), "pairs": slice(0, 24, REPEATS), "digits": slice(0, 100, 10)}[ask.of]
    caption = "one of each class" if ask.of == "digits" else f"eight of the list {names[0]}"
    return Measured(numbers, {}, {caption: plots.tile(images[names[0]][first], 10)})
