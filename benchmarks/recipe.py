"""docs/results/recipe.md: what changes of the training recipe give at equal seconds of one core.

    python benchmarks/recipe.py [--rows NAME ...] [--seeds 0 1 2] [--length 1250] [--minutes N]
    python benchmarks/recipe.py --page

Each row is the default recipe until 2026-11-27, or the same with Muon, with one thing changed. It is trained for as
many steps as take the time of `length` steps of that recipe, the two timed beside each other, and judged by n = 500
digits drawn by label. Runs are kept in runs/recipe and resume; a line is added to docs/results/recipe.jsonl when one is
judged.
"""
import argparse
import dataclasses
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

REPO = Path(__file__).parents[1]
sys.path.insert(0, str(REPO))

from dipddpm_jax import data, devices, records  # noqa: E402
from dipddpm_jax.commands import builders  # noqa: E402
from dipddpm_jax.commands import model as models  # noqa: E402
from dipddpm_jax.commands.ends import Stopped  # noqa: E402
from dipddpm_jax.commands.labels import default_labels  # noqa: E402
from dipddpm_jax.commands.train import make_program, train_model  # noqa: E402
from dipddpm_jax.commands.training_data import load_training_data  # noqa: E402
from dipddpm_jax.config.diffusion import OptimizerConfig, RunOptions, ScheduleConfig, TrainConfig, UNet  # noqa: E402
from dipddpm_jax.config.sampler import SamplerConfig  # noqa: E402
from dipddpm_jax.judging import comparison, judges  # noqa: E402

LINES, PAGE = (REPO / "docs" / "results" / f"recipe.{kind}" for kind in ("jsonl", "md"))
COUNT, CHUNK = 500, 10
BASE = TrainConfig(  # the recipe until 2026-11-27
    network=UNet(width=32), schedule=ScheduleConfig("cosine"), batch_size=64,
    optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=100, decay="cosine", clip_norm=1.0, ema_decay=0.995),
    sampler=SamplerConfig(guidance=1.0, num_steps=12))
MUON = {"optimizer.name": "muon", "optimizer.learning_rate": 1e-2}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "base": ("that recipe: Adam, 2e-3 falling to 0, cosine schedule, width 32, patches of 2, batch 64", {}),
    "rate-4": ("learning rate 4e-3", {"optimizer.learning_rate": 4e-3}),
    "unit-variance": ("pictures of mean 0 and variance 1 (with v: EDM's preconditioning and weights)",
                      {"pixel_mean": 0.1307, "pixel_std": 0.3081}),
    "flow": ("flow matching's path", {"schedule.name": "flow"}),
    "lognormal": ("EDM's training noise", {"schedule.name": "lognormal"}),
    "batch-32": ("batch 32", {"batch_size": 32}),
    "width-48": ("width 48", {"network.width": 48}),
    "patch-4": ("patches of 4, width 96, one resolution",
                {"network.width": 96, "network.patch_size": 4, "network.multipliers": (1,)}),
    "muon": ("Muon at 5e-3", MUON | {"optimizer.learning_rate": 5e-3}),
    "muon-fast": ("Muon at 1e-2", MUON),
    "muon-fastest": ("Muon at 2e-2", MUON | {"optimizer.learning_rate": 2e-2}),
    "muon-unit-variance": ("Muon, pictures of mean 0 and variance 1", MUON | {
        "pixel_mean": 0.1307, "pixel_std": 0.3081}),
    "muon-lognormal": ("Muon, EDM's training noise", MUON | {"schedule.name": "lognormal"}),
    "muon-flow": ("Muon, flow matching's path", MUON | {"schedule.name": "flow"}),
    "muon-min-snr": ("Muon, loss weighted by min-SNR", MUON | {"weighting": "min-snr"}),
    "muon-batch-32": ("Muon, batch 32", MUON | {"batch_size": 32}),
    "muon-width-24": ("Muon, width 24", MUON | {"network.width": 24}),
    "muon-width-48": ("Muon, width 48", MUON | {"network.width": 48}),
    "muon-patch-4": ("Muon, patches of 4, width 96, one resolution", MUON | {
        "network.width": 96, "network.patch_size": 4, "network.multipliers": (1,)}),
    "muon-ema": ("Muon, EMA .98", MUON | {"optimizer.ema_decay": 0.98}),
    "muon-shift": ("Muon, digits moved by up to a pixel", MUON | {"shift": 1}),
    "muon-warm-up-0": ("Muon, no warm-up", MUON | {"optimizer.warmup_steps": 0}),
    "muon-warm-up-300": ("Muon, three times the warm-up", MUON | {"optimizer.warmup_steps": 300}),
    "muon-no-drop": ("Muon, labels never dropped, no guidance", MUON | {"label_drop": 0.0, "sampler.guidance": 0.0}),
    "muon-x0": ("Muon, target x0", MUON | {"target": "x0"}),
}
PARENT = {name: "muon-fast" if name.startswith("muon-") and name != "muon-fast" else "base" for name in ROWS}


def changed(config: Any, changes: dict[str, Any]) -> Any:
    """The configuration with fields changed, each named by its path."""
    for path, value in changes.items():
        name, _, rest = path.partition(".")
        config = dataclasses.replace(
            config, **{name: changed(getattr(config, name), {rest: value}) if rest else value})
    return config


def steps_of(config: TrainConfig) -> Callable[[], float]:
    """A function that takes CHUNK training steps on one device, compiled before; it returns processor seconds."""
    given = load_training_data(config, None)
    network = builders.make_network(config.network, given.facts, config.schedule.num_steps)
    mesh = devices.make_mesh(1, config.batch_size)
    state = builders.make_state(config, network, given.facts)
    shardings = devices.state_shardings(mesh, state, False)
    chunk, _ = make_program(config, network, mesh, shardings, CHUNK)
    images, labels = (devices.place(jnp.asarray(x), devices.replicated(mesh)) for x in (given.images, given.labels))
    state = devices.place(state, shardings)

    def run() -> float:
        nonlocal state
        began = time.process_time()
        state, _ = chunk(state, images, labels, jnp.int32(CHUNK))
        jax.block_until_ready(state.params)
        return time.process_time() - began

    run()
    return run


def relative_cost(changes: dict[str, Any], rounds: int = 5) -> float:
    """What a step costs in steps of BASE: medians of interleaved chunks, since a machine's speed changes."""
    if not changes:
        return 1.0
    runs = [steps_of(BASE), steps_of(changed(BASE, changes))]
    base, other = zip(*([run() for run in runs] for _ in range(rounds)))
    return statistics.median(other) / statistics.median(base)


def measure(row: str, seed: int, length: int, folder: Path, budget: float | None) -> dict[str, Any]:
    """One run of a row, trained and judged. Raises Stopped when the budget of minutes ends before."""
    workdir = folder / f"{row}-{length}-{seed}"
    known = [line for line in records.read_lines(LINES) if line["length"] == length]  # all seeds take as many steps
    known += records.read_lines(folder / "costs.jsonl")
    cost = next((line["cost"] for line in known if line["row"] == row), None)
    if cost is None:
        cost = relative_cost(ROWS[row][1])
        records.append_lines(folder / "costs.jsonl", [{"row": row, "cost": cost}])
    config = changed(BASE, ROWS[row][1] | {"seed": seed, "steps": round(length / cost)})
    train_model(config, RunOptions(workdir=workdir, resume=(workdir / "config.json").exists(), sample_every=0,
                                   chunk=CHUNK, devices=1, budget=budget), "unet")
    model = models.load_run(workdir)
    real = data.load(config.data, "train")
    labels = default_labels(model.facts, COUNT, None)
    drawn = models.draw(model, config.sampler, COUNT, seed, labels)
    found = comparison.compare(judges.judge_for(config.data), drawn.images, real.images, labels, seed,
                               real_labels=real.labels)
    held = [r["held_out_loss"] for r in records.read_lines(workdir / "metrics.jsonl") if "held_out_loss" in r]
    return {"row": row, "length": length, "cost": cost, "steps": config.steps,
            "held_out_loss": held[-1], "fd": found["fd"], "spread": found["spread"], "floor": found["floor"],
            "label_accuracy": found["label_accuracy"], "worst_class": min(found["label_accuracies"].values()),
            "recall": found["recall"], **records.provenance(seed)}


def spread(values: list[float], digits: int) -> str:
    """Mean ± standard deviation over seeds."""
    return f"{statistics.mean(values):.{digits}f}" + (
        f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def page(lines: list[dict[str, Any]]) -> str:
    """The table, from the lines alone."""
    text = ["# What each change of the training recipe gives", "",
            "The recipe of the default run until 2026-11-27, or the same with Muon, with one thing changed at a time, "
            "each trained for as long as that recipe takes for the steps in the title. Cost: of a step, in steps of "
            "that recipe, by processor time on one core, "
            "which scatters by a fifth between rows that cost the same (those that differ in the rate alone). "
            f"FD in the features of the judge `digits` and label accuracy of {COUNT} digits drawn by label "
            f"({BASE.sampler.num_steps} steps of dpmpp_2m, guidance 1); mean ± standard deviation over training seeds. "
            "Less FD: by how much the change lowers it, on the seeds that both have. Rows with Muon are changes of "
            "Muon at 1e-2, the others, Muon at 1e-2 and at 5e-3 are changes of that recipe.", ""]
    for length in sorted({line["length"] for line in lines}):
        part = [line for line in lines if line["length"] == length]
        fds = {(line["row"], line["seed"]): line["fd"] for line in part}
        text += [f"## As long as {length} steps", "",
                 "| change | cost | steps | seeds | FD | less FD | label accuracy | worst class | recall |",
                 "|---" * 9 + "|"]
        rows = {name: [line for line in part if line["row"] == name] for name in dict.fromkeys(r["row"] for r in part)}
        for runs in sorted(rows.values(), key=lambda runs: statistics.mean(r["fd"] for r in runs)):
            parents = [(PARENT[r["row"]], r["seed"]) for r in runs if r["row"] != "base"]
            gains = [fds[parent] - r["fd"] for parent, r in zip(parents, runs) if parent in fds]
            text.append(f"| {ROWS[runs[0]['row']][0]} | {runs[0]['cost']:.2f} | {runs[0]['steps']} | {len(runs)} | "
                        f"{spread([r['fd'] for r in runs], 2)} | {spread(gains, 2) if gains else ''} | "
                        f"{spread([r['label_accuracy'] for r in runs], 3)} | "
                        f"{spread([r['worst_class'] for r in runs], 2)} | {spread([r['recall'] for r in runs], 2)} |")
        text += [""]
    where = sorted({f"{line['machine']}, {line['date']}" for line in lines})
    return "\n".join([*text, f"Real digits in the samples' place have FD {lines[0]['floor']:.2f}. Measured on "
                      f"{'; '.join(where)} by `python benchmarks/recipe.py --length STEPS`, which rebuilds this page.",
                      ""])


def main() -> None:
    """Runs what is not there yet, and rebuilds the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--length", type=int, default=1250, help="steps of the recipe before that take as long")
    parser.add_argument("--minutes", type=float, help="stop after these; the same command goes on")
    parser.add_argument("--folder", type=Path, default=REPO / "runs" / "recipe")
    parser.add_argument("--page", action="store_true", help="only rebuild the page")
    args = parser.parse_args()
    end = time.monotonic() + 60 * (args.minutes or 1e9)
    args.folder.mkdir(parents=True, exist_ok=True)
    devices.set_up(RunOptions(devices=1))
    for seed, row in () if args.page else itertools.product(args.seeds, args.rows):
        done = {(line["row"], line["seed"], line["length"]) for line in records.read_lines(LINES)}
        if (row, seed, args.length) in done:
            continue
        if (left := (end - time.monotonic()) / 60) < 1:
            break
        try:
            line = measure(row, seed, args.length, args.folder, left if args.minutes else None)
        except Stopped:  # by the budget, or by a signal
            break
        print(f"{row} seed {seed}: FD {line['fd']:.2f}, accuracy {line['label_accuracy']:.3f}", flush=True)
        records.append_lines(LINES, [line])
    if lines := records.read_lines(LINES):
        PAGE.write_text(page(lines))


if __name__ == "__main__":
    main()
