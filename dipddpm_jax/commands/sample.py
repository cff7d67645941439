"""The sample command: what sampling writes to disk."""
import json
import os
import shlex
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from dipddpm_jax import __version__, data, devices, plots
from dipddpm_jax.commands.model import Model, draw, load_model, load_run
from dipddpm_jax.config.diffusion import TrainConfig
from dipddpm_jax.config.sampler import SamplerConfig
from dipddpm_jax.config.saved import Facts
from dipddpm_jax.data import iclevr, scenes
from dipddpm_jax.errors import UserError


def chosen_labels(names: tuple[str, ...], facts: Facts, count: int, guidance: float) -> np.ndarray | None:
    """One class (or multi-hot vector) a picture. Raises UserError for labels that the model does not know."""
    known = facts.label_names
    if not known:
        if names:
            raise UserError("--labels: this model was trained without labels")
        if guidance:
            raise UserError("--guidance needs a model that was trained with labels, and this one was not")
        return None
    if not names:
        if facts.multi_hot:
            return np.eye(len(known), dtype=np.float32)[np.arange(count) % len(known)]
        return np.arange(count, dtype=np.int32) % len(known)

    def index(name: str) -> int:
        name = name.strip()
        if name in known:
            return known.index(name)
        if name.isdigit() and int(name) < len(known):
            return int(name)
        raise UserError(f"--labels: {name!r} is not a label of this model; it knows {', '.join(known[:30])}")

    picked = [[index(part) for part in name.split(",")] for name in names]  # "red cube,blue sphere" is one picture
    for name, group in zip(names, picked):
        if len(set(group)) < len(group):
            raise UserError(f"--labels: {name!r} names a label twice; a picture shows an object once or not at all")
    if not facts.multi_hot:
        if any(len(group) > 1 for group in picked):
            raise UserError("--labels: this model takes one label a picture; separate pictures by spaces")
        return np.resize(np.array(picked, np.int32), count)
    vectors = np.zeros((len(picked), len(known)), np.float32)
    for row, group in zip(vectors, picked):
        row[group] = 1
    return vectors[np.arange(count) % len(picked)]


def held_out(sampler: SamplerConfig, config: TrainConfig, data_dir: Path | None) -> np.ndarray | None:
    """The pictures that a sampler which denoises pictures begins with."""
    if sampler.name != "random_passes":
        return None
    return data.load(config.data, "test", data_dir, config.image_size).images


STRIP = 10  # frames
SHOWN = 400  # pictures at most on a grid
ACROSS = 16  # labels at most on a guidance grid


def labels_of(command: Any, facts: Facts) -> np.ndarray | None:
    """The labels that a command asks for, one picture each. Raises UserError."""
    if command.label_file:
        if not facts.multi_hot:
            raise UserError("--label-file: this model does not take several labels a picture; use --labels")
        from dipddpm_jax.commands import label_accuracy

        if (fixed := label_accuracy.FIXED.get(str(command.label_file))) and facts.label_names == scenes.OBJECTS:
            return fixed()
        return iclevr.read_label_file(command.label_file, facts.label_names)
    labels = chosen_labels(command.labels, facts, command.count, command.guidance or 0.0)
    if command.compose and not facts.multi_hot:
        raise UserError("--compose needs a model that takes several labels a picture")
    if command.guidance_grid and labels is None:
        raise UserError("--guidance-grid needs a model that was trained with labels, and this one was not")
    return labels


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


def score(model: Model, images: np.ndarray, labels: np.ndarray, evaluator: Path | None, out: Path) -> str:
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
              "judge": judge.name, "judge_accuracy": judge.accuracy if np.isfinite(judge.accuracy) else None}
    (out / "accuracy.json").write_text(json.dumps(record, indent=2) + "\n")
    return f"accuracy {record['accuracy']:.4f} of {record['labels']} labels, says the judge {judge.name}"


def write_record(command: Any, sampler: SamplerConfig, source: str, out: Path, argv: list[str]) -> None:
    """command.json: what made the pictures."""
    record = {"command": shlex.join(["python", "sample.py", *argv]), "weights": source,
              "sampler": {k: getattr(sampler, k) for k in sampler.__dataclass_fields__}, "seed": command.seed,
              "versions": {"python": sys.version.split()[0], "dipddpm_jax": __version__,
                           **{name: version(name) for name in ("jax", "jaxlib", "flax", "numpy")}}}
    (out / "command.json").write_text(json.dumps(record, indent=2) + "\n")


def draw_to_disk(
    command: Any, workdir: Path, config: TrainConfig, facts: Facts | None, sampler: SamplerConfig, out: Path,
    argv: list[str],
) -> str:
    """Writes grid.png, samples.npz, command.json, and what else is asked for; returns what to tell the user."""
    devices.set_up()
    if command.torch_weights:
        model, source = load_model(command.torch_weights, config), str(command.torch_weights)
    else:
        model = load_run(workdir, command.step)
        source = f"step {model.step} of {workdir}"
    labels = labels_of(command, model.facts)
    count, classes = command.count if labels is None else len(labels), len(model.facts.label_names)
    columns = 8 if command.label_file else classes if not command.labels and 0 < classes <= 16 else None
    try:
        out.mkdir(parents=True, exist_ok=True)
        drawn = draw(
            model, sampler, count, command.seed, labels, 60 if command.gif else (STRIP - 1) * command.strip,
            command.batch_size, held_out(sampler, config, command.data_dir))
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
        said = [score(model, drawn.images, labels, command.evaluator, out)] if model.facts.multi_hot else []
    except OSError as error:
        raise UserError(f"cannot write to {out}: {os.strerror(error.errno) if error.errno else error}") from None
    rest = f" (the first {len(shown)} of {len(drawn.images)})" if len(shown) < len(drawn.images) else ""
    return "\n".join([f"{out / 'grid.png'}: {len(drawn.images)} pictures from {source}{rest}", *said])
