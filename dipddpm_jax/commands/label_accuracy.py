"""How often pictures show what was asked for: of one model, and of every checkpoint that a run kept.

The command scores lists of labels as the report of system 004 does, one line of accuracy.jsonl after another, and
chooses a checkpoint by a validation list, never by those to test on.
"""
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dipddpm_jax import checkpoints, data
from dipddpm_jax.commands.labels import FIXED
from dipddpm_jax.commands.model import Model, draw, load_run
from dipddpm_jax.config import saved
from dipddpm_jax.config.diffusion import TrainConfig
from dipddpm_jax.config.few_step import sampler_of
from dipddpm_jax.config.label_accuracy import LabelAccuracy
from dipddpm_jax.config.sampler import SamplerConfig
from dipddpm_jax.config.saved import Facts
from dipddpm_jax.data import iclevr, scenes
from dipddpm_jax.errors import UserError
from dipddpm_jax.files import writing
from dipddpm_jax.judging import judges
from dipddpm_jax.records import append_lines, read_lines

KEY = ("step", "list", "seed", "sampler", "judge")
PER_CLASS = 10  # pictures of each class, of a model with one label a picture


def judge_of_model(config: TrainConfig, facts: Facts, evaluator: Path | None) -> judges.Judge:
    """Who says what a model's pictures show. Raises UserError when there is nobody, or a judge of other labels."""
    judge = judges.judge_for(config.data, evaluator, "--evaluator")
    if len(judge.label_names) != len(facts.label_names):
        raise UserError(f"the judge {judge.name} knows {len(judge.label_names)} labels, the model "
                        f"{len(facts.label_names)}")
    return judge


def lists_of(config: TrainConfig, facts: Facts, data_dir: Path | None) -> dict[str, np.ndarray]:
    """The lists of labels that a model can be asked for. Raises UserError for models without labels."""
    if not facts.label_names:
        raise UserError("this model was trained without labels")
    if not facts.multi_hot:
        return {"classes": np.repeat(np.arange(len(facts.label_names), dtype=np.int32), PER_CLASS)}
    if facts.label_names != scenes.OBJECTS:
        raise UserError(f"there are no lists of labels to test {config.data} on; sample.py --label-file scores yours")
    found = {name: make() for name, make in FIXED.items()}
    if config.data == "iclevr":
        folder = iclevr.find(data_dir or data.default_data_dir())
        for name in ("test", "new_test"):
            found[name] = iclevr.read_label_file(folder / f"{name}.json", scenes.OBJECTS)
        taken = np.concatenate([found["test"], found["new_test"]])
        found["validation"] = np.stack([row for row in found["validation"] if not (taken == row).all(1).any()])
    if config.without:
        found["unseen"] = unseen = iclevr.rows("--without", config.without, facts.label_names)
        found["seen"] = np.stack([row for row in scenes.seen_pairs() if (unseen @ row < unseen.sum(1)).all()])
    return found


def score_list(
    model: Model, judge: judges.Judge, sampler: SamplerConfig, labels: np.ndarray, seed: int
) -> dict[str, Any]:
    """Draws a picture for each row of labels; of all labels asked for, the share that the judge finds."""
    drawn = draw(model, sampler, len(labels), seed, labels, batch_size=32)
    return {"accuracy": judges.accuracy(judge, drawn.images, labels),
            "labels": int(labels.sum() if labels.ndim == 2 else len(labels)), "pictures": len(labels)}


def of_real(judge: judges.Judge, config: TrainConfig, count: int = 400) -> float:
    """The judge's own accuracy on held-out pictures of the size that a model draws."""
    held = data.load(config.data, "test", None, config.image_size)
    return judges.accuracy(judge, held.images[:count], held.labels[:count])


def missing(
    rows: list[dict[str, Any]], steps: list[int], lists: list[str], seeds: int, sampler: dict[str, Any], judge: str
) -> list[dict[str, Any]]:
    """The keys that no row has yet, checkpoint by checkpoint."""
    done = [{k: row[k] for k in KEY} for row in rows]
    keys = [dict(zip(KEY, (step, name, seed, sampler, judge)))
            for step in steps for name in lists for seed in range(seeds)]
    return [key for key in keys if key not in done]


def table(rows: list[dict[str, Any]], losses: dict[int, float], lists: list[str]) -> str:
    """A line a checkpoint (mean over seeds, their spread in brackets), their means, and the one that is chosen."""
    steps = sorted({row["step"] for row in rows})
    values = {(step, name): [row["accuracy"] for row in rows if (row["step"], row["list"]) == (step, name)]
              for step in steps for name in lists}

    def cell(numbers: list[float]) -> str:
        return f"{np.mean(numbers):.3f}" + (f" ({np.std(numbers, ddof=1):.3f})" if len(numbers) > 1 else "")

    lines = [f"| step | loss | {' | '.join(lists)} |", "|---" * (2 + len(lists)) + "|"]
    lines += [f"| {step} | {losses.get(step, float('nan')):.5f} | "
              + " | ".join(cell(values[step, name]) for name in lists) + " |" for step in steps]
    means = {name: [np.mean(values[step, name]) for step in steps] for name in lists}
    lines.append("| mean (sd over checkpoints) | | " + " | ".join(cell(means[name]) for name in lists) + " |")
    if "validation" in lists:
        best = steps[int(np.argmax(means["validation"]))]
        lines.append(f"\nChosen by the validation list: step {best}, "
                     + ", ".join(f"{name} {cell(values[best, name])}" for name in lists))
    return "\n".join(lines)


def training_losses(workdir: Path) -> dict[int, float]:
    """Training loss by step, of the chunk that ended there."""
    return {row["step"]: row["loss"] for row in read_lines(workdir / "metrics.jsonl") if row.get("loss") is not None}


def last_held_out_loss(workdir: Path) -> float:
    """The loss on held-out pictures at the last checkpoint."""
    rows = read_lines(workdir / "metrics.jsonl")
    return next(row["held_out_loss"] for row in reversed(rows) if row.get("held_out_loss") is not None)


def training_minutes(workdir: Path) -> float:
    """What training took, pauses between its parts left out."""
    batch = saved.load(workdir / "config.json")[1].batch_size
    rows = [row for row in read_lines(workdir / "metrics.jsonl") if row.get("images_per_s") is not None]
    steps = np.diff([0, *(row["step"] for row in rows)])
    return float(sum(n * batch / max(row["images_per_s"], 0.1) for n, row in zip(steps, rows)) / 60)


def score_checkpoints(command: LabelAccuracy) -> str:
    """label-accuracy: scores what is not scored yet and returns the table. A checkpoint that cannot be read (half of it
    may be deleted) is skipped and said so, unless it was asked for. Raises UserError."""
    if command.seeds < 1:
        raise UserError(f"--seeds must be at least 1; got {command.seeds}")
    workdir = command.workdir or saved.newest_run()
    _, config, facts = saved.load(workdir / "config.json")
    sampler = sampler_of(config, command.how)
    known = lists_of(config, facts, command.data_dir)
    lists = list(command.lists or known)
    if wrong := [name for name in lists if name not in known]:
        raise UserError(f"there is no list {wrong[0]!r} for this run; it has {', '.join(known)}")
    kept = checkpoints.steps(workdir / "checkpoints")
    if wrong := [step for step in command.steps if step not in kept]:
        raise UserError(f"no checkpoint of step {wrong[0]} in {workdir}: it has {', '.join(map(str, kept)) or 'none'}")
    judge = judge_of_model(config, facts, command.evaluator)
    settings = {k: v for k, v in asdict(sampler).items() if (k, v) != ("spacing", None)}  # as in rows of older versions
    path = workdir / "accuracy.jsonl"
    losses, rows = training_losses(workdir), read_lines(path)
    steps = list(command.steps or kept)
    todo = missing(rows, steps, lists, command.seeds, settings, judge.name)
    new, skipped = score_missing(workdir, todo, known, judge, sampler, path, tuple(command.steps))
    chosen = [row for row in rows + new if row["step"] in steps and row["list"] in lists
              and row["seed"] < command.seeds and (row["sampler"], row["judge"]) == (settings, judge.name)]
    whole = [row for row in chosen if row["step"] not in skipped]
    if not whole:
        raise UserError("; ".join(skipped.values()) or f"{workdir} has no checkpoint to score")
    return table(whole, losses, lists) + (
        f"\nJudge: {judge.name}, accuracy {judge.accuracy:.4f} on held-out pictures; {command.seeds} seeds; "
        f"{sampler.name}, {sampler.num_steps or 'default'} steps, guidance {sampler.guidance:g}"
        + (", composed" if sampler.compose else "")) + "".join(f"\nskipped: {why}" for why in skipped.values())


def score_missing(
    workdir: Path, todo: list[dict[str, Any]], known: dict[str, np.ndarray], judge: judges.Judge,
    sampler: SamplerConfig, path: Path, asked: tuple[int, ...],
) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """(new rows, also appended to `path`; by step why a checkpoint was skipped). UserError for one of `asked`, and
    where the disk refuses."""
    new: list[dict[str, Any]] = []
    skipped: dict[int, str] = {}
    model = None
    with writing(path):
        if todo:
            append_lines(path, [])  # before anything is computed: the disk may be full or read-only
        for key in tqdm(todo, desc="scoring", unit="list", disable=None):
            if key["step"] in skipped:
                continue
            try:
                if model is None or model.step != key["step"]:
                    model = load_run(workdir, key["step"])
            except UserError as error:
                if key["step"] in asked:
                    raise
                skipped[key["step"]] = str(error)
                continue
            new.append(key | score_list(model, judge, sampler, known[key["list"]], key["seed"]))
            append_lines(path, new[-1:])
    return new, skipped
