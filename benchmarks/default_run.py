"""The README's first run, timed: train.py as a newcomer types it, its picture, and how many of its digits can be read.

    python benchmarks/default_run.py [--workdir DIR] [--options ...]

Reads the samples with a support vector machine that was trained on the same 4,500 digits (its own accuracy on the 500
held-out ones stands beside). Writes docs/results/digits.png and default_run.md, and the README's paragraph.
"""
import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np

REPO = Path(__file__).parents[1]
RESULTS = REPO / "docs" / "results"
COUNT = 1000


def machine() -> str:
    """Cores and processor."""
    cpu = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in cpu.read_text().splitlines() if line.startswith("model name")] \
        if cpu.exists() else [platform.processor()]
    return f"{os.cpu_count()} cores of {names[0]}"


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


def main() -> None:
    """Trains, samples, judges, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, help="a finished run to judge instead of making one")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sys.path.insert(0, str(REPO))
    with tempfile.TemporaryDirectory() as folder:
        workdir, seconds = args.workdir or Path(folder) / "run", None
        if args.workdir is None:
            os.environ["XDG_CACHE_HOME"] = folder  # a cold compilation cache, as on a fresh machine
            seconds = timed("train.py", "--workdir", str(workdir), "--seed", str(args.seed))
        sampling = timed("sample.py", str(workdir), "--count", str(COUNT), "--out", f"{folder}/samples")
        held = np.load(f"{folder}/samples/samples.npz")
        share, real = readable(held["images"], held["labels"])
        rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        loss = [r["held_out_loss"] for r in rows if "held_out_loss" in r][-1]
        picture = (workdir / "samples.png").read_bytes()
    steps = rows[-1]["step"]
    lines = [f"`python train.py` took {seconds:.0f} s from a cold start, compilation included" if seconds
             else "A run made before", f": {steps} steps, held-out loss {loss:.4f}. "
             f"`python sample.py --count {COUNT}` took {sampling:.0f} s; a support vector machine that reads "
             f"{100 * real:.1f} % of the real held-out digits correctly reads {100 * share:.1f} % of the samples as "
             f"the digit that was asked for. ({machine()}, {date.today()}, seed {args.seed})"]
    text = "".join(lines)
    print(text)
    if seconds:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / "digits.png").write_bytes(picture)
        command = "Rebuilt by `python benchmarks/default_run.py`."
        (RESULTS / "default_run.md").write_text(f"# The default run\n\n![samples](digits.png)\n\n{text}\n\n{command}\n")
        readme = REPO / "README.md"
        before, _, rest = readme.read_text().partition("<!-- default run -->")
        _, _, after = rest.partition("<!-- end of default run -->")
        readme.write_text(f"{before}<!-- default run -->\n{text}\n<!-- end of default run -->{after}")


if __name__ == "__main__":
    main()
