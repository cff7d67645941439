"""The sample command: what sampling writes to disk."""
import itertools
import os
import shlex
import sys
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from dipddpm_jax import data, devices, plots, records
from dipddpm_jax.commands import builders
from dipddpm_jax.commands.foreign_weights import load_model
from dipddpm_jax.commands.labels import asked_labels
from dipddpm_jax.commands.model import Model, draw, load_run
from dipddpm_jax.commands.starts import load_prior
from dipddpm_jax.config.diffusion import TrainConfig
from dipddpm_jax.config.sampler import SamplerConfig, begins_with_pictures
from dipddpm_jax.config.saved import Facts
from dipddpm_jax.errors import UserError


def pictures_to_denoise(sampler: SamplerConfig, config: TrainConfig, data_dir: Path | None) -> np.ndarray | None:
    """The pictures that a sampler which denoises pictures begins with."""
    if not begins_with_pictures(sampler):
        return None
    return data.load(config.data, "test", data_dir, config.image_size).images


STRIP = 10  # frames
SHOWN = 400  # pictures at most on a grid
ACROSS = 16  # labels at most on a guidance grid


def write_strips(frames: np.ndarray, folder: Path) -> None:
    """For each picture its frames in one row, evenly spread from noise to the picture."""
    folder.mkdir(exist_ok=True)
    chosen = frames[np.linspace(0, len(frames) - 1, min(STRIP, len(frames))).round().astype(int)]
    for i in range(min(chosen.shape[1], SHOWN)):
        plots.save_grid(chosen[:, i], folder / f"{i:03d}.png", len(chosen))


def write_guidance(
    model: Model, sampler: SamplerConfig, weights: tuple[float, ...], labels: np.ndarray, seed: int, path: Path
) -> None:
    """A row for each weight, a column for each of the different labels; a column begins with one noise."""
    first = np.sort(np.unique(labels, axis=0, return_index=True)[1])[:ACROSS]
    rows = [draw(model, replace(sampler, guidance=weight), len(first), seed, labels[first]).images
            for weight in weights]
    plots.save_grid(np.concatenate(rows), path, len(first))


def write_accuracy(model: Model, images: np.ndarray, labels: np.ndarray, evaluator: Path | None, out: Path) -> str:
    """Writes accuracy.json; a sentence on it, or on why there is none."""
    from dipddpm_jax.commands import label_accuracy
    from dipddpm_jax.judging import judges

    try:
        judge = label_accuracy.judge_of_model(model.config, model.facts, evaluator)
    except UserError as error:
        if evaluator:
            raise
        return f"no accuracy: {error}"
    record = {"accuracy": judges.accuracy(judge, images, labels), "labels": int(labels.sum()), "pictures": len(images),
              "judge": judge.name, "judge_accuracy": judge.accuracy}
    records.write_json(record, out / "accuracy.json")
    return f"accuracy {record['accuracy']:.4f} of {record['labels']} labels, says the judge {judge.name}"


def write_record(command: Any, sampler: SamplerConfig, source: str, out: Path, argv: list[str]) -> None:
    """command.json: what made the pictures."""
    origin = records.provenance(command.seed, shlex.join(["python", "sample.py", *argv]))
    records.write_json({**origin, "weights": source, "sampler": asdict(sampler)}, out / "command.json")


def _made(out: Path, named: bool) -> Path:
    """The folder, made; where another command has just taken the number of a drawn-NNN, the next that is free."""
    if named:
        out.mkdir(parents=True, exist_ok=True)
        return out
    stem, _, first = out.name.rpartition("-")
    for number in itertools.count(int(first)):
        with suppress(FileExistsError):
            path = out.with_name(f"{stem}-{number:03d}")
            path.mkdir(parents=True)
            return path


def chosen_model(command: Any, workdir: Path, config: TrainConfig, facts: Facts | None) -> tuple[Model, str]:
    """The model that a command names, and what it is called."""
    devices.set_up()
    if command.prior is not None:
        return load_prior(command.prior), f"the prior {command.prior}"
    if command.torch_weights:
        weights = load_model(command.torch_weights, None if facts else config, command.weights_key)
        return weights, str(command.torch_weights)
    model = load_run(workdir, command.step)
    return model, f"step {model.step} of {workdir}"


def draw_to_disk(
    command: Any, workdir: Path, config: TrainConfig, facts: Facts | None, sampler: SamplerConfig, out: Path,
    argv: list[str],
) -> str:
    """Writes grid.png, samples.npz, command.json, and what else is asked for; returns what to tell the user."""
    model, source = chosen_model(command, workdir, config, facts)
    labels = asked_labels(command, model.facts)
    for line in builders.remarks(model.schedule, model.config.target):
        print(line, file=sys.stderr)
    count, classes = command.count if labels is None else len(labels), len(model.facts.label_names)
    columns = 8 if command.label_file else classes if not command.labels and 0 < classes <= 16 else None
    try:
        out = _made(out, command.out is not None)
        drawn = draw(
            model, sampler, count, command.seed, labels, 60 if command.gif else (STRIP - 1) * command.strip,
            command.batch_size, pictures_to_denoise(sampler, config, command.data_dir))
        shown = drawn.images[:SHOWN]
        plots.save_grid(shown, out / "grid.png", columns)
        arrays = {"images": drawn.images} | ({} if labels is None else {"labels": labels})
        np.savez_compressed(out / "samples.npz", **arrays)
        if command.gif:
            plots.save_gif(drawn.frames[:, :100], out / "chain.gif", columns)
        if command.strip:
            write_strips(drawn.frames, out / "strips")
        if command.guidance_grid:
            write_guidance(model, sampler, command.guidance_grid, labels, command.seed, out / "guidance.png")
        write_record(command, sampler, source, out, argv)
        said = [write_accuracy(model, drawn.images, labels, command.evaluator, out)] if model.facts.multi_hot else []
    except OSError as error:
        raise UserError(f"cannot write to {out}: {os.strerror(error.errno) if error.errno else error}") from None
    rest = f" (the first {len(shown)} of {len(drawn.images)})" if len(shown) < len(drawn.images) else ""
    return "\n".join([f"{out / 'grid.png'}: {len(drawn.images)} pictures from {source}{rest}", *said])
