"""What every program that takes time would cost on TPUs that are not here: docs/results/accelerators.md.

    pip install -e '.[tpu]' && python benchmarks/accelerators.py [--rows training] [--out docs/results]

libtpu compiles for a named slice of v5e chips on any machine, and XLA says how many operations and bytes the compiled
program has, what it holds and what its chips exchange. Nothing is run: times are those that the chip's peaks allow
(a roofline), which no program reaches.
"""
import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax  # noqa: E402

from benchmarks import hot_paths  # noqa: E402
from benchmarks.places import REPO  # noqa: E402
from dipddpm_jax import records  # noqa: E402
from dipddpm_jax.config.diffusion import SmallUNet  # noqa: E402
from dipddpm_jax.config.dip import DipConfig  # noqa: E402
from dipddpm_jax.config.presets import PRESETS  # noqa: E402
from dipddpm_jax.config.sampler import SamplerConfig  # noqa: E402
from dipddpm_jax.config.saved import Facts  # noqa: E402
from dipddpm_jax.judging.judges import Judge  # noqa: E402
from dipddpm_jax.networks.classifier import Classifier  # noqa: E402

# One chip of TPU v5e: https://cloud.google.com/tpu/docs/v5e ("System architecture", per chip)
PEAK, BANDWIDTH, MEMORY = 197e12, 819e9, 16 * 2**30  # bfloat16 operations a second, bytes a second of HBM, bytes of HBM
DIGITS = Facts((28, 28, 1), tuple("0123456789"), count=4500)
PLAIN = replace(DIGITS, label_names=())

def rows() -> dict[str, Callable[[], tuple[int, hot_paths.HotPath]]]:
    """The rows of the page: name -> (chips, the program)."""
    unet, small = PRESETS["unet"][1], PRESETS["small-unet"][1]
    assert isinstance(small.network, SmallUNet)
    digits = Judge("digits", Classifier(10, (16, 32, 64)), None, 0.0, (28, 28, 1), DIGITS.label_names, False)
    fits, system001 = hot_paths.fitting, DipConfig(network="skip-001")
    ancestral, dpm = SamplerConfig("ancestral"), SamplerConfig("dpmpp_2m", guidance=1.0)

    def many(config: Any, batch: int, chips: int, **more: Any) -> tuple[int, hot_paths.HotPath]:
        config, mesh = replace(config, batch_size=batch, **more), hot_paths.tpu_mesh(chips)
        facts = DIGITS if config.network == unet.network else PLAIN
        return chips, hot_paths.training(config, facts, mesh, 1)

    return {
        "training, SmallUNet": lambda: many(small, 128, 4),
        "training, UNet of the preset unet": lambda: many(unet, 128, 4),
        "training, UNet of the preset unet, bfloat16": lambda: many(unet, 128, 4, compute="bfloat16"),
        "training, UNet of the preset unet, large batch": lambda: many(unet, 4096, 4, compute="bfloat16"),
        "training, UNet of the preset unet, a slice of many hosts": lambda: many(unet, 4096, 256, compute="bfloat16"),
        "sampling, SmallUNet": lambda: (4, hot_paths.sampling(small, PLAIN, hot_paths.tpu_mesh(4), 128, ancestral)),
        "sampling, UNet of the preset unet, guided": lambda: (
            4, hot_paths.sampling(unet, DIGITS, hot_paths.tpu_mesh(4), 256, dpm)),
        "DIP, skip net of system 001": lambda: (1, fits(system001, 32, hot_paths.tpu_mesh(4), 1, 1)),
        "64 fits, skip net of system 001": lambda: (4, fits(system001, 32, hot_paths.tpu_mesh(4), 64, 1)),
        "DIP, skip net of 5 x 128 channels": lambda: (
            1, fits(DipConfig(network="skip"), 256, hot_paths.tpu_mesh(4), 1, 1)),
        "DIP, skip-light net": lambda: (1, fits(DipConfig(), 256, hot_paths.tpu_mesh(4), 1, 1)),
        "judging digits": lambda: (4, hot_paths.judging(digits, hot_paths.tpu_mesh(4), 1024)),
    }


def measure(name: str, build: Callable[[], tuple[int, hot_paths.HotPath]]) -> dict[str, Any]:
    """Compiles a row and asks XLA; a chain's or chunk's loop body counts once, so that figures are of one unit."""
    with hot_paths.as_one_device():
        chips, path = build()
        began = time.perf_counter()
        program = path.function.lower(*path.arguments).compile()
        seconds = time.perf_counter() - began
    cost, memory = program.cost_analysis(), program.memory_analysis()
    held = (memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
            - memory.alias_size_in_bytes + memory.generated_code_size_in_bytes)
    return {"row": name, "path": path.name, "unit": path.unit, "chips": chips, "flops": cost["flops"],
            "bytes": cost["bytes accessed"], "held": held, "exchanged": hot_paths.exchanged(program.as_text()),
            "compile_s": round(seconds, 1), "origin": records.provenance()}


def line(r: dict[str, Any]) -> str:
    """A line of the table."""
    compute, memory = 1e6 * r["flops"] / PEAK, 1e6 * r["bytes"] / BANDWIDTH
    exchanged = ", ".join(f"{kind} {size / 1e6:.2f} MB" for kind, size in r["exchanged"].items()) or "nothing"
    bound = "arithmetic" if compute > memory else "memory"
    return (f"| {r['row']}: {r['path']} | {r['chips']} | {r['flops'] / 1e9:.3g} | {r['bytes'] / 1e6:.3g} | "
            f"{compute:.3g} | {memory:.3g} | {bound} | {max(compute, memory):.3g} | {r['held'] / 2**20:.0f} | "
            f"{exchanged} | {r['compile_s']:.0f} |")


def page(found: list[dict[str, Any]]) -> str:
    """accelerators.md."""
    origins = dict.fromkeys(f"{r['origin']['date']}, jax {r['origin']['versions']['jax']}, source "
                            f"{r['origin']['source']}" for r in found)
    text = ["# Programs for accelerators that are not here", "",
            "Rebuilt by `python benchmarks/accelerators.py` (with `pip install -e '.[tpu]'`); every line also stands "
            "in `accelerators.jsonl`. **Nothing here was run on a TPU or a GPU: none was at hand.** libtpu compiles "
            "for a named slice of TPU v5e chips on any machine, and XLA counts what the compiled program does. Figures "
            "are those of one chip and one unit: a training step, a transition of a chain, a DIP iteration, a batch "
            "that is judged. XLA counts operations of shapes as they are written, and bytes that its fusions read and "
            "write.", "",
            f"Roofline: microseconds that the peaks of a chip allow, {PEAK / 1e12:.0f} TFLOP/s in bfloat16 (to which "
            f"XLA rounds the factors of float32 products by default) and {BANDWIDTH / 1e9:.0f} GB/s; a chip has 16 GiB "
            "([Google's page of v5e](https://cloud.google.com/tpu/docs/v5e)). The larger of the two is the least time "
            "that a unit can take; small pictures stay far above it, since each operation also costs a start. "
            "Compilation was on one core, which other work may have shared.", "",
            "| program | chips | GFLOP | MB read and written | arithmetic, us | memory, us | bound by | roofline, us | "
            "held, MiB a chip | exchanged a unit | compiled in, s |", "|---|---|---|---|---|---|---|---|---|---|---|",
            *map(line, found), "", "What tests assert of the same programs with narrow networks "
            "(`tests/devices/test_accelerators.py`): the chips exchange the gradient's sum and nothing else, each "
            "computes its share of a batch, and every program lowers for NVIDIA GPUs too. For a GPU, "
            "`benchmarks/gpu.sh` is prepared: one command of at most eight minutes, which `--rehearse` runs here.", "",
            *rehearsal(), f"({'; '.join(origins)})"]
    return "\n".join(text) + "\n"


def rehearsal() -> list[str]:
    """What the last rehearsal of the GPU run said of its parts."""
    log = REPO / "docs" / "results" / "gpu_rehearsal.txt"
    return ["```", *log.read_text().splitlines(), "```", ""] if log.is_file() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="*", default=[""], help="only rows whose names hold one of these; none: the "
                        "page anew from the lines that are there")
    parser.add_argument("--out", type=Path, default=REPO / "docs" / "results")
    args = parser.parse_args()
    lines, known = args.out / "accelerators.jsonl", rows()
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.rows:
        (args.out / "accelerators.md").write_text(page(records.read_lines(lines)))
    for name, build in known.items():
        if any(part in name for part in args.rows):
            new = measure(name, build)
            print(line(new), flush=True)
            found = {r["row"]: r for r in [*records.read_lines(lines), new]}
            found = [found[name] for name in known if name in found]
            records.write_lines(lines, found)
            (args.out / "accelerators.md").write_text(page(found))
            jax.clear_caches()


if __name__ == "__main__":
    main()
