"""The README's first run, timed: train.py as a newcomer types it, its picture, and how many of its digits can be read.

    python benchmarks/default_run.py [--steps N] [--seed N] [--pages]

Reads the samples with a support vector machine that was trained on the same 4,500 digits (its own accuracy on the 500
held-out ones stands beside). Writes pictures and default_run.jsonl to docs/results, docs/longer_runs.md, and the
README's paragraph.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

REPO = Path(__file__).parents[1]
sys.path.insert(0, str(REPO))

from dipddpm_jax import records  # noqa: E402

RESULTS = REPO / "docs" / "results"
COUNT = 1000


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


def measure(steps: int | None, seed: int) -> dict:
    """One run from a cold start: its figures, and its picture in docs/results."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        os.environ["XDG_CACHE_HOME"] = folder  # a cold compilation cache, as on a fresh machine
        length = [] if steps is None else ["--steps", str(steps)]
        seconds = timed("train.py", *length, "--workdir", str(workdir), "--seed", str(seed))
        sampling = timed("sample.py", str(workdir), "--count", str(COUNT), "--out", f"{folder}/samples")
        held = np.load(f"{folder}/samples/samples.npz")
        share, real = readable(held["images"], held["labels"])
        rows = records.read_lines(workdir / "metrics.jsonl")
        name = f"digits_{rows[-1]['step']}.png" if steps else "digits.png"
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / name).write_bytes((workdir / "samples.png").read_bytes())
    losses = [r["held_out_loss"] for r in rows if "held_out_loss" in r]
    return {"steps": rows[-1]["step"], "seconds": round(seconds), "sampling_seconds": round(sampling),
            "held_out_loss": losses[-1], "best_held_out_loss": min(losses), "read": share, "real_read": real,
            "picture": name, **records.provenance(seed)}  # only now, since JAX would share the cores with the runs


def sentence(r: dict) -> str:
    """The README's paragraph."""
    return (f"`python train.py` took {r['seconds']} s from a cold start, compilation included: {r['steps']} steps, "
            f"held-out loss {r['held_out_loss']:.4f}. `python sample.py --count {COUNT}` took "
            f"{r['sampling_seconds']} s; a support vector machine that reads {100 * r['real_read']:.1f} % of the real "
            f"held-out digits correctly reads {100 * r['read']:.1f} % of the samples as the digit that was asked for. "
            f"({r['machine']}, {r['date']}, seed {r['seed']})")


def code_of(r: dict) -> str:
    """Which code a row was measured with: the digest of its source, or its date where older rows have no digest."""
    return r["source"] if r.get("source") else f"of {r['date']}"


def table(results: list[dict]) -> str:
    """docs/longer_runs.md: each row with its own date, machine and code, and a warning where these differ."""
    lines = ["# What longer runs give", "", "The default preset, trained longer; everything else as it is. The "
             "schedule of the learning rate stretches with the run.", "",
             "| steps | seconds | held-out loss at the end | at its best | samples read as asked for | measured | code "
             "| picture |", "|---" * 8 + "|"]
    lines += [f"| {r['steps']} | {r['seconds']} | {r['held_out_loss']:.4f} | {r['best_held_out_loss']:.4f} | "
              f"{100 * r['read']:.1f} % | {r['date']}, {r['machine']}, seed {r['seed']} | {code_of(r)} | "
              f"[samples](results/{r['picture']}) |" for r in results]
    codes = list(dict.fromkeys(code_of(r) for r in results))
    if len(codes) > 1:
        lines += ["", f"**These rows are of {len(codes)} versions of the code** ({', '.join(codes)}): neither their "
                  "seconds nor their losses show what a longer run gives. Rows of one version do."]
    real = sorted({f"{100 * r['real_read']:.1f} %" for r in results})
    lines += ["", f"The reader is a support vector machine that reads {' or '.join(real)} of real held-out digits "
              f"correctly; {COUNT} samples each. *code*: eight digits of the hash of the package's source.",
              "A held-out loss that rises again says that the 4,500 digits are being learned by heart: for longer runs "
              "use `--data mnist`.", "",
              "Rebuilt by `python benchmarks/default_run.py`, with `--steps N` a row at a time, and with `--pages` "
              "from the rows that are there."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Trains, samples, judges, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="another length than the default's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pages", action="store_true", help="measure nothing, write docs/longer_runs.md again")
    args = parser.parse_args()
    log = RESULTS / "default_run.jsonl"
    if args.pages:
        (REPO / "docs" / "longer_runs.md").write_text(table(records.read_lines(log)))
        return
    result = measure(args.steps, args.seed)
    print(sentence(result))
    kept = [r for r in records.read_lines(log) if r["steps"] != result["steps"]]
    results = sorted([*kept, result], key=lambda r: r["steps"])
    records.write_lines(log, results)
    (REPO / "docs" / "longer_runs.md").write_text(table(results))
    if args.steps is None:
        readme = REPO / "README.md"
        before, _, rest = readme.read_text().partition("<!-- default run -->")
        _, _, after = rest.partition("<!-- end of default run -->")
        text = sentence(result)
        readme.write_text(f"{before}<!-- default run -->\n{text}\n<!-- end of default run -->{after}")


if __name__ == "__main__":
    main()
