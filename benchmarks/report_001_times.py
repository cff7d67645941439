"""Report 001's table of times with PyTorch beside ours: the lines of docs/results that lack PyTorch's seconds.

    python benchmarks/report_001_times.py [--budget quick] [--out docs/results]

Both ways of the report (with and without the DIP on the starting noise) run in eager PyTorch, by the reference in
torch_reference/, in turns with ours in one process.
"""
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.places import REPO  # noqa: E402
from benchmarks.torch_reference import diffusion, skip_net, system001  # noqa: E402
from dipddpm_jax import devices, experiments  # noqa: E402
from dipddpm_jax.experiments import filtered_chains, ledger, pages, tables  # noqa: E402


def torch_ways(size: filtered_chains.Size, steps: int) -> dict[str, Callable[[], torch.Tensor]]:
    """Drawing one picture with random weights of the report's networks, without and with the DIP, by column."""
    chain_table = diffusion.linear_tables(1e-4, 0.02, 1000)
    network, prior = system001.UNet(widths=size.widths).eval(), skip_net.skip_net(1, 1, **skip_net.SYSTEM001)

    def generate(x: torch.Tensor) -> torch.Tensor:
        return system001.generate(network, chain_table, x, range(steps - 1, -1, -1))

    return {"torch_plain": lambda: generate(torch.randn(1, 1, 28, 28)),
            "torch_filtered": lambda: generate(system001.start_noise(prior, torch.randn(1, 1, 32, 32), 2))}


def report_with_torch() -> tables.Report:
    """Report 001, whose table of times has these ways too."""
    report = experiments.load_report("001")
    timed = partial(filtered_chains.measure_time, others=torch_ways)
    return replace(report, tables=tuple(
        replace(table, measure=timed) if table.name == "time" else table for table in report.tables))


def main(budget: tables.Budget = "quick", out: Path = REPO / "docs" / "results", minutes: float = 1e9) -> None:
    """Completes the lines, then the pages."""
    devices.set_up()
    out.mkdir(parents=True, exist_ok=True)
    ledger.complete(report_with_torch(), budget, out, ("time/*",), None, minutes, filtered_chains.TORCH_COLUMNS)
    pages.write_pages([experiments.load_report(name) for name in experiments.MODULES], out)


if __name__ == "__main__":
    tyro.cli(main)
