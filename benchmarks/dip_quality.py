"""How well DIP fits denoise, and how near the stop rules come to the best moment: docs/results/dip.md and dip.jsonl.

Every fit is watched by all rules at once, so that they are compared on the same outputs. A line of dip.jsonl is one
fit; lines that are there already (of the same settings) are not computed again, so that the table may be completed in
parts:

    python benchmarks/dip_quality.py --minutes 30
"""
import dataclasses
import sys
import time
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.places import REPO, SET12  # noqa: E402
from dipddpm_jax import devices, dip, records
from dipddpm_jax.commands import fits, sources
from dipddpm_jax.commands.dip_report import psnr_and_ssim
from dipddpm_jax.data.photographs import PHOTOGRAPHS, photograph
from dipddpm_jax.data.pictures import square
from dipddpm_jax.dip import stopping, study
from dipddpm_jax.inverse import noise_level, noises, operators
from dipddpm_jax.networks import SkipNet

RESULTS = REPO / "docs" / "results"


@dataclass(frozen=True)
class Setting:
    """What a fit is; two lines of dip.jsonl belong to one table only if their settings are equal."""

    side: int = 64
    width: int = 16
    levels: int = 3
    num_steps: int = 1200
    learning_rate: float = 0.01
    window: int = 100
    patience: int = 300
    pictures: int = 12
    sigmas: tuple[int, ...] = (15, 25, 50)
    seeds: int = 3

    @property
    def recipe(self) -> dict:
        """What a line depends on: not how many there are."""
        many = ("pictures", "sigmas", "seeds")
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in many}


def rules(c: Setting) -> dict[str, stopping.Stopper]:
    """The rules of the table; none sees the clean picture."""
    return {
        "held-out": stopping.held_out(c.patience),
        "wmv": stopping.windowed_variance(c.window, c.patience),
        "emv": stopping.exponential_variance(patience=c.patience),
        "discrepancy": stopping.discrepancy(),
    }


def clean_pictures(c: Setting) -> dict[str, np.ndarray]:
    """Set12 in grey where it is at hand, else grey photographs of scikit-image; resized to side x side, in [0, 1]."""
    if SET12.is_dir():
        source = sources.read_pictures(str(SET12), c.side)
        found = {f"set12/{name}": picture[..., :1] for name, picture in zip(source.names, source.pictures)}
    else:
        found = {name: square(photograph(name), c.side).mean(-1, keepdims=True).astype(np.float32) / 255
                 for name in PHOTOGRAPHS}
    return dict(list(found.items())[: c.pictures])


def problem(c: Setting, clean: np.ndarray, sigma: int, seed: int) -> dip.DipProblem:
    """All seeds see the same noise, as the runs that the paper averages; code, held-out pixels and weights differ."""
    noise = jax.random.fold_in(jax.random.key(sigma), int(1e6 * clean.mean()))
    code, held = jax.random.split(jax.random.fold_in(jax.random.key(sigma), seed))
    noisy = noises.add_gaussian(noise, jnp.asarray(clean), sigma / 255)
    return dip.DipProblem(
        dip.noise_code(code, c.side, c.side), noisy, jnp.asarray(clean),
        held_out=operators.random_mask(held, c.side, c.side, fits.held_out_share(c.side**2)),
        sigma=jnp.float32(noise_level.estimate_sigma(np.asarray(noisy))))


def summary(clean: np.ndarray, given: dip.DipProblem, state: dip.DipState, curves: dict) -> dict:
    """One line: scores of what each rule kept, of the end, and of the best moment."""
    psnr, average = np.asarray(curves["psnr"], np.float64), np.asarray(curves["psnr_average"], np.float64)
    line: dict = {"noisy": psnr_and_ssim(clean, np.asarray(given.measurement)), "sigma_estimated":
                  255 * float(given.sigma), "rules": {}}
    for name, runner in state.stop_state[1].items():
        stopped = int(runner.stopped_at)
        line["rules"][name] = {
            "kept": int(runner.kept_at) + 1, "stopped": stopped + 1 if stopped >= 0 else len(psnr),
            "output": psnr_and_ssim(clean, np.asarray(runner.output)),
            "average": psnr_and_ssim(clean, np.asarray(runner.average))}
    best, best_average = int(psnr.argmax()), int(average.argmax())
    line["oracle"] = {"output": psnr[best], "at": best + 1, "average": average[best_average],
                      "average_at": best_average + 1}
    line["end"] = {"output": psnr[-1], "average": average[-1]}
    return line


def compute(c: Setting, minutes: float, file: Path) -> list[dict]:
    """Completes the lines of a table, picture by picture, for at most so many minutes."""
    lines = records.read_lines(file)
    done = {(line["picture"], line["sigma"]) for line in lines if line["recipe"] == c.recipe}
    origin = records.provenance()
    where = f"{origin['machine']}, {origin['date']}"
    widths = (c.width,) * c.levels
    fit = dip.Dip(SkipNet(1, widths, widths, (4,) * c.levels), dip.backtracking(optax.adam(c.learning_rate)),
                  stopper=study.race(rules(c)))
    advance = jax.jit(partial(dip.advance_all, fit, num_steps=c.num_steps))
    began = time.monotonic()
    for picture, clean in clean_pictures(c).items():
        for sigma in c.sigmas:
            if (picture, sigma) in done or time.monotonic() - began > 60 * minutes:
                continue
            given = [problem(c, clean, sigma, seed) for seed in range(c.seeds)]
            states = [fit.init(one, jax.random.key(seed)) for seed, one in enumerate(given)]
            started = time.monotonic()
            ends, curves = jax.block_until_ready(advance(*(jax.tree.map(lambda *rows: jnp.stack(rows), *trees)
                                                           for trees in (given, states))))
            seconds = (time.monotonic() - started) / c.seeds
            rows = [jax.tree.map(lambda leaf, i=i: leaf[i], (ends, curves)) for i in range(c.seeds)]
            new = [{"picture": picture, "sigma": sigma, "seed": seed, **summary(clean, given[seed], *row),
                    "seconds": round(seconds, 2), "where": where, "origin": origin, "recipe": c.recipe}
                   for seed, row in enumerate(rows)]
            for name in rules(c):
                kept = [np.asarray(row[0].stop_state[1][name].average) for row in rows]
                pairs = [psnr_and_ssim(clean, (kept[a] + kept[b]) / 2)["psnr"]
                         for a, b in combinations(range(c.seeds), 2)]
                for line in new:  # of the picture, not of the seed
                    line["rules"][name]["two_runs"] = float(np.mean(pairs)) if pairs else None
            lines += new
            records.append_lines(file, new)
            print(f"{picture} sigma {sigma}: {seconds:.1f} s a fit", flush=True)
    return [line for line in lines if line["recipe"] == c.recipe]


def gaps(lines: list[dict], rule: str, what: str = "output") -> np.ndarray:
    """dB that a rule's choice lies below the best moment of the same fit."""
    return np.array([line["oracle"][what] - line["rules"][rule][what]["psnr"] for line in lines])


def render(c: Setting, lines: list[dict]) -> str:
    """The table, as Markdown."""
    sigmas = sorted({line["sigma"] for line in lines})
    pictures, seeds = len({line["picture"] for line in lines}), 1 + max(line["seed"] for line in lines)
    text = [
        "# How well DIP fits denoise, and when they stop", "",
        "Rebuilt by `python benchmarks/dip_quality.py`; one line a fit is in `dip.jsonl`.", "",
        f"{pictures} pictures of Set12 (or scikit-image) in grey at {c.side}x{c.side}, {seeds} seeds each "
        f"({len(lines)} fits): hourglass with {c.levels} levels of {c.width} channels and 4 skip channels, code of 32 "
        f"channels, jitter 1/30, Adam {c.learning_rate:g}, {c.num_steps} steps, backtracking at 5 dB; windows of "
        f"{c.window} outputs, patience {c.patience}. Every fit holds out "
        f"{100 * fits.held_out_share(c.side**2):g} % of the pixels for the rule of that name. PSNR in dB.", "",
        "`gap`: best PSNR over all steps of the same fit (the oracle, which sees the clean picture) less the PSNR of "
        "what the rule kept; median and 90th percentile. `average`: exponential average (0.99) of the outputs at that "
        "step; `two runs`: mean of the averages of two seeds. `held-out` chooses an average and returns it; the other "
        "rules choose an output.", ""]
    text += ["## What each rule returns, all noise levels", "", "| rule | returns | PSNR | gap | gap p90 |",
             "|---|---|---|---|---|"]
    for rule in rules(c):
        what = "average" if rule == "held-out" else "output"
        gap, mean = gaps(lines, rule, what), np.mean([line["rules"][rule][what]["psnr"] for line in lines])
        text.append(f"| {rule} | {what} | {mean:.2f} | {np.median(gap):.2f} | {np.percentile(gap, 90):.2f} |")
    text.append("")
    for sigma in [*sigmas, None]:
        chosen = [line for line in lines if sigma in (None, line["sigma"])]
        noisy = np.mean([line["noisy"]["psnr"] for line in chosen])
        text += ["## All noise levels" if sigma is None else f"## sigma {sigma} (noisy: {noisy:.2f} dB)", "",
                 "| rule | kept at step | stopped at | output PSNR / SSIM | gap | gap p90 | average PSNR / SSIM | "
                 "gap of average | two runs |", "|---|---|---|---|---|---|---|---|---|"]
        text += [_row(chosen, rule) for rule in rules(c)]
        at, average_at = (np.median([line["oracle"][key] for line in chosen]) for key in ("at", "average_at"))
        best, best_average, end, end_average = (np.mean([line[row][what] for line in chosen]) for row in (
            "oracle", "end") for what in ("output", "average"))
        text += [f"| *oracle (study only)* | {at:.0f}, average {average_at:.0f} | | {best:.2f} | 0 | 0 | "
                 f"{best_average:.2f} | 0 | |",
                 f"| last step | {c.num_steps} | | {end:.2f} | {best - end:.2f} (mean) | | {end_average:.2f} | "
                 f"{best_average - end_average:.2f} (mean) | |", ""]
    seconds = np.median([line["seconds"] for line in lines])
    text += [f"A fit of {c.num_steps} steps with all rules watching took {seconds:.1f} s (median). Made on "
             f"{'; '.join(sorted({line['where'] for line in lines}))}.", ""]
    return "\n".join(text)


def _row(lines: list[dict], rule: str) -> str:
    def mean(*path):
        values = lines
        for key in ("rules", rule, *path):
            values = [value[key] for value in values]
        return np.mean(values)

    gap, average_gap = gaps(lines, rule), gaps(lines, rule, "average")
    kept, stopped = (np.median([line["rules"][rule][key] for line in lines]) for key in ("kept", "stopped"))
    return (f"| {rule} | {kept:.0f} | {stopped:.0f} | {mean('output', 'psnr'):.2f} / {mean('output', 'ssim'):.3f} | "
            f"{np.median(gap):.2f} | {np.percentile(gap, 90):.2f} | {mean('average', 'psnr'):.2f} / "
            f"{mean('average', 'ssim'):.3f} | {np.median(average_gap):.2f} | {mean('two_runs'):.2f} |")


def main(setting: Setting = Setting(), minutes: float = 1e9, out: Path = RESULTS) -> None:
    """Completes dip.jsonl, and writes dip.md from it."""
    devices.set_up()
    out.mkdir(parents=True, exist_ok=True)
    lines = compute(setting, minutes, out / "dip.jsonl")
    if lines:
        (out / "dip.md").write_text(render(setting, lines))


if __name__ == "__main__":
    tyro.cli(main)
