"""The pages of speed.py: docs/results/speed.md, speed.png and the README's table, made of result lines."""
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.places import REPO
from dipddpm_jax import records

RESULTS = REPO / "docs" / "results"
SCALED = {  # the axis of a plot: its values as they stand in the name of a job
    "pictures at once (one ancestral step of SmallUNet)": r"scaling, one ancestral step of SmallUNet, batch (\d+)$",
    "side of the picture (one DIP iteration, skip net of system 001)": r"scaling, .*skip net of system 001, (\d+)x\d+$",
}


class Timing(NamedTuple):
    """Seconds an iteration; `first` is all seconds until the first run has ended, compilation included."""

    median: float
    first: float
    peak_mb: float
    flops: float  # of an iteration, as PyTorch counts them; 0 when unknown


def row(r: dict) -> list[str]:
    """The lines of one job; the job's name stands in the first."""
    timings = {name: Timing(**t) for name, t in r["timings"].items()}
    best = min((t.median for name, t in timings.items() if name.startswith("PyTorch")), default=float("nan"))
    rows = []
    for name, t in timings.items():
        ratio = f"{best / t.median:.2f}" if np.isfinite(best) else ""
        rate = f"{t.flops / t.median / 1e9:.0f}" if t.flops else ""
        title = "" if rows else r["name"]
        rows.append(f"| {title} | {name} | {1e3 * t.median:.3g} | {ratio} | {t.first:.1f} | {t.peak_mb:.0f} | {rate} |")
    return rows


def version(r: dict) -> tuple[int, ...]:
    """Of the JAX that a line was measured with."""
    return tuple(int(part) for part in re.search(r"jax ([\d.]+)", r["where"])[1].split("."))


def of_newest(results: list[dict]) -> list[dict]:
    """The lines of the newest JAX among them."""
    return [r for r in results if version(r) == max(map(version, results))]


def page(results: list[dict]) -> str:
    """docs/results/speed.md."""
    lines = ["# Speed beside PyTorch", "",
             "Rebuilt, job by job, by `python benchmarks/speed.py --out docs/results`; every line also stands in "
             "`speed.jsonl`. Float32 on both sides, which run the same work, interleaved in one process. Ratios are to "
             "the best PyTorch of the same run: above 1, JAX is faster. First run: seconds with compilation. Peak "
             "memory: resident above what was resident before. GFLOP/s: by PyTorch's count of the work, to be held "
             "against a matrix product of 2048, measured in the same run. A line stays until its job is measured again "
             "with the same JAX; the plots and the README's table are of the newest.", "",
             "![Cost of a step](speed.png)", ""]
    for where in dict.fromkeys(r["where"] for r in results):
        mine = [r for r in results if r["where"] == where]
        products = "; ".join(dict.fromkeys(r["matmul"] for r in mine))
        rounds = " or ".join(str(count) for count in sorted({r["rounds"] for r in mine}))
        lines += [f"## {where}", "",
                  f"Medians of {rounds} rounds (`--rounds`). Matrix product, GFLOP/s: {products}.", "",
                  "| job | contender | ms an iteration | ratio to the best PyTorch | first run, s | peak memory, MB | "
                  "GFLOP/s |", "|---|---|---|---|---|---|---|"]
        lines += [line for r in mine for line in row(r)]
        lines += [""] + [f"- {r['name']}: {name} did not run ({error})" for r in mine
                         for name, error in r["failed"].items()] + [""]
    return "\n".join(lines).rstrip() + "\n"


def points(results: list[dict]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Milliseconds an iteration by batch, side and number of devices: axis -> contender -> (its value, ms)."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {axis: {} for axis in SCALED}
    for r in results:
        cost = {name: 1e3 * timing["median"] for name, timing in r["timings"].items() if "rbg" not in name}
        for axis, named in SCALED.items():
            if match := re.match(named, r["name"]):
                for name, ms in cost.items():
                    found[axis].setdefault(name, []).append((int(match[1]), ms))
        if r["name"].startswith("train step"):
            axis, name = "devices (one training step)", r["name"].removeprefix("train step, ")
            known = [(int(match[1]), ms) for one, ms in cost.items() if (match := re.search(r"(\d+) device", one))]
            found.setdefault(axis, {})[name] = known
    return {axis: {name: sorted(known) for name, known in curves.items() if known} for axis, curves in found.items()}


def plot(results: list[dict], path: Path) -> None:
    """Writes the costs as a picture, a panel for every axis that has points."""
    from matplotlib.figure import Figure

    panels = {axis: curves for axis, curves in points(results).items() if curves}
    figure = Figure(figsize=(5 * max(len(panels), 1), 4), layout="constrained")
    for axes, (axis, curves) in zip(np.ravel(figure.subplots(1, max(len(panels), 1))), panels.items()):
        for name, known in curves.items():
            axes.plot(*zip(*known), marker=".", label=name, linestyle="--" if name.startswith("PyTorch") else "-")
        ticks = sorted({x for known in curves.values() for x, _ in known})
        axes.set(xlabel=axis, ylabel="ms", xscale="log", yscale="log")
        axes.set_xticks(ticks, [str(x) for x in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=100)


def short(results: list[dict]) -> str:
    """The README's table: the fastest of each side; of ours, only what the commands use (threefry noise)."""
    lines, wheres = ["| job | JAX, ms | PyTorch, ms | ratio |", "| --- | --- | --- | --- |"], {}
    for r in results:
        sides = {who: min((1e3 * t["median"] for name, t in r["timings"].items()
                           if name.startswith(who) and "rbg" not in name), default=None) for who in ("JAX", "PyTorch")}
        if all(sides.values()) and not r["name"].startswith("scaling"):
            ours, theirs = sides.values()
            wheres[r["where"]] = None
            lines.append(f"| {r['name']} | {ours:.3g} | {theirs:.3g} | {theirs / ours:.2f} |")
    return "\n".join([*lines, "", f"({'; '.join(wheres)})"])


def write(results: list[dict], out: Path) -> None:
    """speed.jsonl, speed.md, and the README's table if `out` is this repository's."""
    out.mkdir(parents=True, exist_ok=True)
    records.write_lines(out / "speed.jsonl", results)
    (out / "speed.md").write_text(page(results))
    plot(of_newest(results), out / "speed.png")
    readme = REPO / "README.md"
    if out.resolve() == RESULTS and "<!-- speed -->" in readme.read_text():
        before, _, rest = readme.read_text().partition("<!-- speed -->")
        _, _, after = rest.partition("<!-- end of speed -->")
        readme.write_text(f"{before}<!-- speed -->\n{short(of_newest(results))}\n<!-- end of speed -->{after}")
