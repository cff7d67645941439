"""The sample command: what sampling writes to disk."""
import json
import os
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from dipddpm_jax import __version__, data, devices, plots, runs, sampling, torch_weights
from dipddpm_jax.config import Facts, SamplerConfig, TrainConfig
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


def draw_to_disk(
    command: Any, workdir: Path, config: TrainConfig, facts: Facts | None, sampler: SamplerConfig, out: Path,
    argv: list[str],
) -> str:
    """Writes grid.png, samples.npz, command.json, and with --gif chain.gif; returns what to tell the user."""
    devices.set_up()
    if command.torch_weights:
        model, source = torch_weights.load_model(command.torch_weights, config), str(command.torch_weights)
    else:
        model, step = runs.load_run(workdir, command.step)
        source = f"step {step} of {workdir}"
    if command.label_file:
        from dipddpm_jax.data.iclevr import read_label_file

        labels = read_label_file(command.label_file, model.facts.label_names)
    else:
        labels = chosen_labels(command.labels, model.facts, command.count, command.guidance or 0.0)
    count = command.count if command.label_file is None else len(labels)
    try:
        out.mkdir(parents=True, exist_ok=True)
        drawn = sampling.draw(model, sampler, count, command.seed, labels, 60 if command.gif else 0,
                              command.batch_size, held_out(sampler, config, command.data_dir))
        classes = len(model.facts.label_names)
        columns = 8 if command.label_file else classes if not command.labels and 0 < classes <= 16 else None
        shown = drawn.images[:400]
        plots.save_grid(shown, out / "grid.png", columns)
        arrays = {"images": drawn.images} | ({} if labels is None else {"labels": labels})
        np.savez_compressed(out / "samples.npz", **arrays)
        if command.gif:
            plots.save_gif(drawn.frames[:, :100], out / "chain.gif", columns)
        record = {"command": shlex.join(["python", "sample.py", *argv]), "weights": source,
                  "sampler": {k: getattr(sampler, k) for k in sampler.__dataclass_fields__}, "seed": command.seed,
                  "versions": {"python": sys.version.split()[0], "dipddpm_jax": __version__,
                               **{name: version(name) for name in ("jax", "jaxlib", "flax", "numpy")}}}
        (out / "command.json").write_text(json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write to {out}: {os.strerror(error.errno) if error.errno else error}") from None
    rest = f" (the first {len(shown)} of {len(drawn.images)})" if len(shown) < len(drawn.images) else ""
    return f"{out / 'grid.png'}: {len(drawn.images)} pictures from {source}{rest}"
