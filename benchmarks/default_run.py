"""The README's first run, timed: train.py as a newcomer types it, its picture, and how many of its digits can be read.

    python benchmarks/default_run.py [--steps N] [--seed N] [--guidances W ...] [--pages]

Reads the samples with a support vector machine that was trained on the same 4,500 digits (its own accuracy on the 500
held-out ones stands beside), and has the digits judge compare them with the 4,500. Writes pictures and
default_run.jsonl to docs/results, docs/longer_runs.md, and the README's paragraph.
"""
import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

REPO = Path(__file__).parents[1]
sys.path.insert(0, str(REPO))

from dipddpm_jax import records  # noqa: E402
from dipddpm_jax.config.presets import PRESETS  # noqa: E402

RESULTS = REPO / "docs" / "results"
COUNT = 1000
GUIDANCE = PRESETS["unet"][1].sampler.guidance


def timed(*command: str) -> float:
    """Wall-clock seconds of a command, start-up and compilation included."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=REPO, check=True)
    return time.perf_counter() - began


def readable(images: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """(share of samples read as their label, share of real held-out digits read as theirs)."""
    from sklearn.svm import SVC

    from dipddpm_jax import data

    train, held = (data.load("mnist5k", split) for split in ("train", "test"))
    flat = [x.reshape(len(x), -1) / 255 for x in (train.images, held.images, images)]
    reader = SVC(C=5, gamma="scale").fit(flat[0], train.labels)
    return float(np.mean(reader.predict(flat[2]) == labels)), float(np.mean(reader.predict(flat[1]) == held.labels))


def judged(images: np.ndarray, labels: np.ndarray, seed: int) -> dict:
    """What the digits judge says of samples beside the digits that were trained on."""
    from dipddpm_jax import data
    from dipddpm_jax.judging import comparison, judges

    real = data.load("mnist5k", "train")
    found = comparison.compare(judges.judge_for("mnist5k"), images, real.images, labels, seed, real_labels=real.labels)
    return {"fd": found["fd"], "floor": found["floor"], "label_accuracy": found["label_accuracy"],
            "worst_class": min(found["label_accuracies"].values())}


def measure(steps: int | None, seed: int, guidances: list[float]) -> list[dict]:
    """One run from a cold start, drawn from as it is and with other guidances: its figures, and its picture in
    docs/results."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        os.environ["XDG_CACHE_HOME"] = folder  # a cold compilation cache, as on a fresh machine
        length = [] if steps is None else ["--steps", str(steps)]
        seconds = timed("train.py", *length, "--workdir", str(workdir), "--seed", str(seed))
        drawn = []
        for guidance in (None, *guidances):
            more = [] if guidance is None else ["--guidance", str(guidance)]
            out = f"{folder}/samples-{guidance}"
            sampling = timed("sample.py", str(workdir), "--count", str(COUNT), "--out", out, *more)
            drawn.append((guidance, sampling, np.load(f"{out}/samples.npz")))
        figures = []
        for guidance, sampling, held in drawn:  # only now, since JAX would share the cores
            share, real = readable(held["images"], held["labels"])
            figures.append({"guidance": guidance, "sampling_seconds": round(sampling), "read": share,
                            "real_read": real, **judged(held["images"], held["labels"], seed)})
        rows = records.read_lines(workdir / "metrics.jsonl")
        name = (f"digits_{steps}.png" if steps else "digits.png") if seed == 0 else None  # one picture is enough
        RESULTS.mkdir(parents=True, exist_ok=True)
        if name:
            (RESULTS / name).write_bytes((workdir / "samples.png").read_bytes())
    losses = [r["held_out_loss"] for r in rows if "held_out_loss" in r]
    of_all = {"steps": rows[-1]["step"], "seconds": round(seconds), "held_out_loss": losses[-1],
              "best_held_out_loss": min(losses), **records.provenance(seed)}
    return [{**of_all, **row, "picture": None if row["guidance"] else name} for row in figures]


def sentence(runs: list[dict]) -> str:
    """The README's paragraph, of the default run with one seed or several."""
    def of(key: str, scale: float = 1, digits: int = 0) -> str:
        values = [scale * r[key] for r in runs]
        return f"{statistics.mean(values):.{digits}f}" + (
            f" ± {statistics.stdev(values):.{max(digits, 1)}f}" if len(values) > 1 else "")

    r, seeds = runs[0], ", ".join(str(run["seed"]) for run in runs)
    worst = min(run["worst_class"] for run in runs)
    return (f"`python train.py` took {of('seconds')} s from a cold start, compilation included: {r['steps']} steps, "
            f"held-out loss {of('held_out_loss', digits=4)}. `python sample.py --count {COUNT}` took "
            f"{of('sampling_seconds')} s. The digits judge reads {of('label_accuracy', 100, 1)} % of the samples as "
            f"the digit that was asked for, at least {100 * worst:.0f} % of each digit, "
            f"and its FD is {of('fd', digits=2)} ({r['floor']:.2f} for real digits in their place); a support vector "
            f"machine that reads {100 * r['real_read']:.1f} % of the real held-out digits correctly reads "
            f"{of('read', 100, 1)} % of them so. ({r['machine']}, {r['date']}; seed{'s' * (len(runs) > 1)} {seeds}"
            f"{', standard deviation over them' * (len(runs) > 1)})")


def code_of(r: dict) -> str:
    """Which code a row was measured with: the digest of its source, or its date where older rows have no digest."""
    return r["source"] if r.get("source") else f"of {r['date']}"


def shown(picture: str | None) -> str:
    """A link to the picture of a run, if it has one."""
    return f"[samples](results/{picture})" if picture else ""


def table(results: list[dict]) -> str:
    """docs/longer_runs.md: each row with its own date, machine and code, and a warning where these differ."""
    lines = ["# What longer runs give", "", "The default preset, trained longer; everything else as it is. The "
             "schedule of the learning rate stretches with the run.", "",
             "| steps | guidance | seconds | held-out loss at the end | at its best | FD(digits) | samples read as "
             "asked for, by the judge | by the reader | measured | code | picture |", "|---" * 11 + "|"]
    lines += [f"| {r['steps']} | {r.get('guidance') or GUIDANCE:g} | {r['seconds']} | {r['held_out_loss']:.4f} | "
              f"{r['best_held_out_loss']:.4f} | {r['fd']:.2f} | {100 * r['label_accuracy']:.1f} % | "
              f"{100 * r['read']:.1f} % | {r['date']}, {r['machine']}, seed {r['seed']} | {code_of(r)} | "
              f"{shown(r['picture'])} |" for r in results]
    codes = list(dict.fromkeys(code_of(r) for r in results))
    if len(codes) > 1:
        lines += ["", f"**These rows are of {len(codes)} versions of the code** ({', '.join(codes)}): neither their "
                  "seconds nor their losses show what a longer run gives. Rows of one version do."]
    real = sorted({f"{100 * r['real_read']:.1f} %" for r in results})
    lines += ["", f"The reader is a support vector machine that reads {' or '.join(real)} of real held-out digits "
              f"correctly; {COUNT} samples each. *code*: eight digits of the hash of the package's source.",
              "A held-out loss that rises again says that the 4,500 digits are being learned by heart: for longer runs "
              "use `--data mnist`.", "",
              "Rebuilt by `python benchmarks/default_run.py`, with `--steps N` and `--seed N` a row at a time, and "
              "with `--pages` from the rows that are there."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Trains, samples, judges, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="another length than the default's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guidances", nargs="*", type=float, default=[], help="to draw with besides the run's own")
    parser.add_argument("--pages", action="store_true", help="measure nothing, write docs/longer_runs.md again")
    args = parser.parse_args()
    log = RESULTS / "default_run.jsonl"
    if args.pages:
        (REPO / "docs" / "longer_runs.md").write_text(table(records.read_lines(log)))
        return
    result, *others = measure(args.steps, args.seed, args.guidances)
    kept = [r for r in records.read_lines(log) if (r["steps"], r["seed"]) != (result["steps"], result["seed"])]
    results = sorted([*kept, result, *others], key=lambda r: (r["steps"], r.get("guidance") or 0, r["seed"]))
    text = sentence([r for r in results if r["steps"] == result["steps"] and not r.get("guidance")
                     and code_of(r) == code_of(result)])
    print(text)
    records.write_lines(log, results)
    (REPO / "docs" / "longer_runs.md").write_text(table(results))
    if args.steps is None:
        readme = REPO / "README.md"
        before, _, rest = readme.read_text().partition("<!-- default run -->")
        _, _, after = rest.partition("<!-- end of default run -->")
        readme.write_text(f"{before}<!-- default run -->\n{text}\n<!-- end of default run -->{after}")


if __name__ == "__main__":
    main()
