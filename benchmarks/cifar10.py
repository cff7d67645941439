"""CIFAR-10 by the recipe of the digits, judged: an outlook on real sizes.

    python benchmarks/cifar10.py [--data cifar10 | FILE.npz] [--steps N] [--seed N] [--page]

Trains the recommended network on the pictures and their mirror images, and a judge on the same pictures; draws, and
compares the samples with real ones. Both trainings go on where they were interrupted. A row goes to
docs/results/cifar10.jsonl, the page to cifar10.md, the samples of seed 0 to cifar10.png. Without the whole data set
(`--data cifar10`), any part of it will do as FILE.npz with arrays images and labels; the page says how many pictures
there were.
"""
import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

REPO = Path(__file__).parents[1]
sys.path.insert(0, str(REPO))

from dipddpm_jax import records  # noqa: E402
from dipddpm_jax.commands.label_accuracy import training_minutes  # noqa: E402

RESULTS = REPO / "docs" / "results"
LOG = RESULTS / "cifar10.jsonl"
FOLDER = REPO / "runs" / "cifar10"
COUNT = 1000
MODULE = "benchmarks.cifar10"
KEPT = ("fd", "floor", "judge_accuracy", "label_accuracy", "sliced_wasserstein", "sliced_wasserstein_floor",
        "precision", "precision_floor", "recall", "recall_floor", "n", "reference", "network_calls")


def run(*command: str) -> None:
    """One of the package's own commands."""
    subprocess.run([sys.executable, *command], cwd=REPO, check=True)


def pictures(split: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Pictures, classes and their names, as the benchmark put them aside: `--data benchmarks.cifar10:pictures`."""
    with np.load(FOLDER / f"{split}.npz") as file:
        return file["images"], file["labels"], file["label_names"].tolist()


def mirrored(split: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The same, those for training also as seen in a mirror: a set of its own, since the judge sees it too, for whose
    training there is no --mirror."""
    images, labels, names = pictures(split)
    if split == "test":
        return images, labels, names
    return np.concatenate([images, images[:, :, ::-1]]), np.tile(labels, 2), names


def put_aside(name: str, data_dir: Path | None) -> int:
    """Writes the pictures of a data set where `pictures` finds them; returns how many there are for training."""
    from dipddpm_jax import data

    FOLDER.mkdir(parents=True, exist_ok=True)
    for split in ("test", "train"):
        part = data.load(name, split, data_dir)
        np.savez(FOLDER / f"{split}.npz", images=part.images, labels=part.labels,
                 label_names=np.array(part.label_names))
    return len(part.images)


def measure(name: str, steps: int, seed: int, data_dir: Path | None) -> dict:
    """One training run and its figures."""
    count = put_aside(name, data_dir)
    judge, workdir = FOLDER / f"judge-{count}.safetensors", FOLDER / f"{count}-{steps}-{seed}"
    if not judge.is_file():
        run("-m", "dipddpm_jax", "judge", f"{MODULE}:mirrored", "--out", str(judge))
    if (workdir / "config.json").exists():
        run("train.py", "--resume", "--workdir", str(workdir))
    else:
        run("train.py", "unet", "--data", f"{MODULE}:mirrored", "--steps", str(steps), "--seed", str(seed),
            "--workdir", str(workdir))
    run("-m", "dipddpm_jax", "evaluate", str(workdir), "--data", f"{MODULE}:pictures", "--judge", str(judge),
        "--count", str(COUNT), "--seed", str(seed))
    if seed == 0:
        shutil.copy(workdir / "samples.png", RESULTS / "cifar10.png")
    found = json.loads((workdir / "evaluation" / "evaluation.json").read_text())
    losses = [r["held_out_loss"] for r in records.read_lines(workdir / "metrics.jsonl") if "held_out_loss" in r]
    return {"pictures": count, "steps": steps, "minutes": round(training_minutes(workdir), 1),
            "held_out_loss": losses[-1], "best_held_out_loss": min(losses), **{k: found[k] for k in KEPT},
            "worst_class": min(found["label_accuracies"].values()), **records.provenance(seed)}


def page(lines: list[dict]) -> str:
    """docs/results/cifar10.md."""
    rows = [f"| {r['pictures']} | {r['steps']} | {r['seed']} | {r['minutes']:.0f} | {r['held_out_loss']:.4f} "
            f"({r['best_held_out_loss']:.4f}) | {r['fd']:.1f} ({r['floor']:.1f}) | {r['label_accuracy']:.3f} "
            f"({r['judge_accuracy']:.3f}) | {r['worst_class']:.2f} | {r['sliced_wasserstein']:.2f} "
            f"({r['sliced_wasserstein_floor']:.2f}) | {r['precision']:.2f} ({r['precision_floor']:.2f}) | "
            f"{r['recall']:.2f} ({r['recall_floor']:.2f}) | {r['date']}, {r['machine']} |" for r in lines]
    return "\n".join([
        "# CIFAR-10 by the recipe of the digits", "",
        "An outlook on real sizes: the recommended UNet, trained as the digits are and changed in nothing, "
        "on pictures of 32x32 in colour and their mirror images. What it shows on a CPU is "
        "how far an hour goes; it says nothing about the published figures of CIFAR-10, which come from fifty thousand "
        "pictures and days of accelerators.", "",
        f"{COUNT} samples drawn by class. FD, sliced Wasserstein distance, precision and recall are those of the "
        "features of a classifier that was trained on the same pictures (no FID), beside training pictures; in "
        "brackets: of as many real pictures in the samples' place. Label accuracy is how often that classifier sees "
        "the class that was asked for, in brackets its own accuracy on held-out pictures.", "",
        "| pictures | steps | seed | minutes of training | held-out loss (at its best) | FD | label accuracy | worst "
        "class | sliced Wasserstein | precision | recall | measured |", "|---" * 12 + "|", *rows, "",
        "![Samples, a class to a column](cifar10.png)", "",
        "Rebuilt by `python benchmarks/cifar10.py`, with `--data FILE.npz` from a part of the data set and with "
        "`--page` from the rows that are there."]) + "\n"


def main() -> None:
    """Trains, judges, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="cifar10, or FILE.npz with images and labels")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page again")
    args = parser.parse_args()
    lines = records.read_lines(LOG)
    if not args.page:
        line = measure(args.data, args.steps, args.seed, args.data_dir)
        which = ("pictures", "steps", "seed")
        lines = sorted([r for r in lines if any(r[k] != line[k] for k in which)] + [line],
                       key=lambda r: [r[k] for k in which])
        records.write_lines(LOG, lines)
    (RESULTS / "cifar10.md").write_text(page(lines))


if __name__ == "__main__":
    main()
