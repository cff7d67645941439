"""JAX beside PyTorch, job by job: interleaved runs, medians, and the ratio to the best PyTorch of the same run.

    python benchmarks/speed.py [--quick] [--jobs 1 2 3] [--rows F16] [--out docs/results]

Both sides run the same work in float32 with all the cores (or the GPU) of this machine. A PyTorch contender that does
not run here (no compiler, say) is named below the table. `--quick` runs fewer rounds, short chains, no torch.compile.
"""
import argparse
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.cases import DEVICE, JOBS, Case, How, finish
from benchmarks.speed_page import Timing, row, version, write
from dipddpm_jax import records
from dipddpm_jax.convolution.cost import cores
from dipddpm_jax.environment import set_flags


def resident_mb(field: str) -> float:
    """VmRSS or VmHWM of this process; nan where /proc has none."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((float(line.split()[1]) / 1024 for line in lines if line.startswith(field)), float("nan"))


def in_use(name: str, peak: bool) -> float:
    """MB that a contender's library has in use now, or had at its peak: of the card on a GPU, else resident.

    JAX tells a card's peak of the whole process only: a contender that needs less than one before it shows 0 or less.
    """
    if DEVICE == "cpu":
        return resident_mb("VmHWM" if peak else "VmRSS")
    if name.startswith("JAX"):
        found = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use" if peak else "bytes_in_use", 0)
    else:
        found = torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    return found / 1e6


def reset_peak(name: str) -> float:
    """Starts a new peak and returns the MB that are in use now."""
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")
    return in_use(name, False)


def race(case: Case, rounds: int, clock: Callable[[], float]) -> tuple[dict[str, Timing], dict[str, str]]:
    """Medians of interleaved runs, and the contenders that failed with their errors."""
    runs, first, peak, flops, failed = {}, {}, {}, {}, {}
    for name, build in case.contenders.items():
        before, began = reset_peak(name), time.perf_counter()
        try:
            runs[name] = build()
            runs[name]()
        except Exception as error:  # noqa: BLE001 - whatever stops torch.compile is worth a line, not the whole table
            failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"
            runs.pop(name, None)
            continue
        first[name] = time.perf_counter() - began
        reset_peak(name)
        runs[name]()
        peak[name] = in_use(name, True) - before
        if name == "PyTorch eager":
            with FlopCounterMode(display=False) as counter:
                runs[name]()
            flops = dict.fromkeys(case.contenders, counter.get_total_flops() / case.units)
    seconds = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            began = clock()
            run()
            seconds[name].append((clock() - began) / case.units)
    timings = {name: Timing(statistics.median(all_), first[name], peak[name], flops.get(name, 0))
               for name, all_ in seconds.items()}
    return timings, failed


def matmul_peak(clock: Callable[[], float], size: int = 2048) -> dict[str, float]:
    """GFLOP/s of one large float32 product, in both libraries."""
    a = np.ones((size, size), np.float32)
    ours, theirs, product = jnp.asarray(a), torch.as_tensor(a, device=DEVICE), jax.jit(jnp.matmul)

    def torch_product():
        theirs @ theirs
        finish()

    case = Case("matmul", 1, {"JAX": lambda: lambda: jax.block_until_ready(product(ours, ours)),
                              "PyTorch": lambda: torch_product})
    return {name: 2e-9 * size**3 / timing.median for name, timing in race(case, 5, clock)[0].items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds, short chains, no torch.compile")
    parser.add_argument("--no-compile", action="store_true", help="no torch.compile, which takes minutes to compile")
    parser.add_argument("--jobs", type=int, nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--rows", nargs="+", default=[""], help="only jobs whose names hold one of these")
    parser.add_argument("--rounds", type=int, help="runs of each contender (7; 3 with --quick)")
    parser.add_argument("--out", type=Path, help="folder whose speed.jsonl is completed, and speed.md written from it "
                        "(docs/results for the published tables)")
    parser.add_argument("--devices", type=int, default=cores(), help="host devices on a CPU (one a core)")
    parser.add_argument("--cpu-time", action="store_true", help="processor seconds, for a shared CPU: pin to one core "
                        "(taskset -c 0) with OMP_NUM_THREADS=1")
    parser.add_argument("--tf32", action="store_true", help="on a GPU: let both sides use TF32")
    args = parser.parse_args()
    set_flags()
    jax.config.update("jax_num_cpu_devices", args.devices)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.tf32
    jax.config.update("jax_default_matmul_precision", "default" if args.tf32 else "highest")
    clock = time.process_time if args.cpu_time else time.perf_counter
    rounds = args.rounds or (3 if args.quick else 7)
    peak = ", ".join(f"{name} {rate:.0f}" for name, rate in matmul_peak(clock).items())
    origin, flags = records.provenance(), {
        "quick": args.quick, "without torch.compile": args.no_compile, "TF32": args.tf32,
        "processor seconds": args.cpu_time}
    how = "".join(f"; {flag}" for flag, given in flags.items() if given)
    where = f"{origin['machine']}; jax {jax.__version__}, torch {torch.__version__}; {origin['date']}{how}"
    print(f"{where}; a matrix product of 2048, GFLOP/s: {peak}", flush=True)
    results = records.read_lines(args.out / "speed.jsonl") if args.out else []
    for job in args.jobs:
        for case in JOBS[job](How(args.quick, not (args.quick or args.no_compile))):
            if not any(part in case.name for part in args.rows):
                continue
            timings, failed = race(case, rounds if job != 6 else min(rounds, 3), clock)
            new = {"job": job, "name": case.name, "where": where, "rounds": rounds, "matmul": peak, "failed": failed,
                   "origin": origin, "timings": {name: timing._asdict() for name, timing in timings.items()}}
            print("\n".join(row(new)), *failed.items(), sep="\n", flush=True)
            others = [r for r in results if (r["name"], version(r)) != (case.name, version(new))]
            results = sorted([*others, new], key=lambda r: ([-part for part in version(r)], r["job"]))
            if args.out:
                write(results, args.out)
            gc.collect()


if __name__ == "__main__":
    main()
