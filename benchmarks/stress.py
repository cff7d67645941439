"""Training, sampling and fits with two devices of a CPU beside a load on every core, again and again: none may abort.

    python benchmarks/stress.py                # 20 times: docs/results/stress.md, in about six minutes

XLA ends a process (SIGABRT) in which one device waits too long for another in a collective operation, which is what a
machine that is busy with other things brings about. Every repetition is a process of its own with its own seed.
"""
import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
DOC = REPO / "docs" / "results" / "stress.md"
LOAD = "x = 1\nwhile True: x = x * 3 % 1000003"
ONCE = '''
import sys, tempfile
from pathlib import Path
import jax, numpy as np, optax
from dipddpm_jax import devices, dip
from dipddpm_jax.commands import fits
from dipddpm_jax.commands.cli import sample_main, train_main
from dipddpm_jax.dip import stopping
from dipddpm_jax.dip.staged import Stage, staged_fits
from dipddpm_jax.networks import ConvStack

seed, workdir = sys.argv[1], Path(tempfile.mkdtemp()) / "run"
tiny = ["--network.width", "8", "--network.multipliers", "1", "--network.attention-size", "0", "--batch-size", "8",
        "--image-size", "8", "--schedule.num-steps", "20", "--sampler.num-steps", "4", "--sample-every", "0"]
train_main(["unet", *tiny, "--steps", "60", "--devices", "2", "--seed", seed, "--workdir", str(workdir)])
sample_main([str(workdir), "--count", "16", "--batch-size", "8", "--seed", seed])
assert jax.device_count() == 2
# fits of unequal length in stages: most stop at once, the last one goes on
fit = dip.Dip(ConvStack((8, 8), 1), optax.adam(1e-2), stopper=stopping.discrepancy())
noisy = jax.random.uniform(jax.random.key(int(seed)), (8, 16, 16, 1))
sigmas = [10.0] * 7 + [0.0]
stages = [Stage(fit, fits.stack([dip.DipProblem(y, y, sigma=np.float32(s)) for y, s in zip(noisy, sigmas)]), 300)] * 2
states = fits.stack([fit.init(fits.take(stages[0].problem, i), jax.random.key(i)) for i in range(8)])
states, kept = staged_fits(stages, states)
steps = [int(np.sum(fits.take(kept, i)[0][1]["active"])) for i in range(8)]
assert steps[-1] == 300 and max(steps[:-1]) < 300, steps
assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fits.take(states.params, 7)))
'''


def repeat(count: int, seed: int, cores: int) -> list[tuple[int, int, float, str]]:
    """(seed, exit status, seconds, last line of stderr if it failed) of each repetition, beside a load on all cores."""
    rows = []
    load = [subprocess.Popen([sys.executable, "-c", LOAD]) for _ in range(cores)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPO),
                   "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    try:
        for number in range(seed, seed + count):
            began = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                done = subprocess.run([sys.executable, "-c", ONCE, str(number)], env={**environment, "TMPDIR": folder},
                                      capture_output=True, text=True, cwd=folder)
            why = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or [""])[-1][:100]
            rows.append((number, done.returncode, time.monotonic() - began, why))
            print(*rows[-1], flush=True)
    finally:
        for process in load:
            process.kill()
            process.wait()
    return rows


def page(rows: list[tuple[int, int, float, str]], command: str, machine: str, cores: int) -> str:
    """The log as a table."""
    failed = sum(code != 0 for _, code, _, _ in rows)
    lines = [f"| {seed} | {code} | {seconds:.1f} | {why} |" for seed, code, seconds, why in rows]
    return "\n".join([
        "# Stress: two devices of a CPU on a busy machine", "",
        "Each repetition is a process that trains a tiny UNet for 60 steps on two devices, draws 16 pictures from it "
        f"and makes eight staged fits of unequal length, while {cores} other processes keep every core busy. XLA would "
        "end a process with status -6 (SIGABRT) if a device waited too long for another.", "",
        f"{len(rows)} repetitions, {failed} failed. {machine}, {date.today()}, seeds {rows[0][0]} to {rows[-1][0]}. "
        f"Measured by `{command}`.", "", "| seed | exit status | seconds | why |", "|---|---|---|---|", *lines, ""])


def main() -> None:
    """Repeats, and writes the page whatever came out; the exit status is 1 when a repetition failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the first repetition")
    parser.add_argument("--out", type=Path, default=DOC)
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    rows = repeat(args.count, args.seed, cores)

    from dipddpm_jax import records

    command = shlex.join(["python", "benchmarks/stress.py", *sys.argv[1:]])
    args.out.write_text(page(rows, command, records.machine(), cores))
    raise SystemExit(any(code for _, code, _, _ in rows))


if __name__ == "__main__":
    main()
