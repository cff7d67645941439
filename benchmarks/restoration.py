"""One picture restored without training data, every method a row: docs/results/restoration.md, .jsonl and .png.

Noise is not clipped, as in the literature. A line of restoration.jsonl is one restoration; lines that are there
already are not computed again, so that the table may be completed in parts (restored pictures lie in runs/restoration):

    python benchmarks/restoration.py --minutes 10 --tasks sigma-25 --rows "non-local means" "cross-fit"
    python benchmarks/restoration.py --source cbsd68 --side 256 --pictures 20 --tasks sigma-15 sigma-25 sigma-50

Rows that need the package bm3d, whose licence allows no commercial use, are left out where it is missing:
pip install "dipddpm_jax[benchmark]".
"""
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.places import CBSD68, REPO, SET12  # noqa: E402
from benchmarks.restoration_page import columns_of, render, source_of
from benchmarks.restoration_rows import BEGUN, JUDGED, ROWS, WHOLE
from benchmarks.restoration_tasks import DENOISE, TASKS, measured
from dipddpm_jax import devices, plots, records
from dipddpm_jax.commands import sources
from dipddpm_jax.commands.dip_report import psnr_and_ssim
from dipddpm_jax.data.photographs import PHOTOGRAPHS, photograph
from dipddpm_jax.data.pictures import square
from dipddpm_jax.inverse import referee, splitting
from dipddpm_jax.inverse.measurement import Cost, Measurement, Restoration, Restore

RESULTS = REPO / "docs" / "results"
KEPT = REPO / "runs" / "restoration"  # the restored pictures
SEEN: dict[tuple, Restoration] = {}  # what the referee has seen restored
SHEETS = {"restoration.png": ("sigma-25", "set12", 12), "restoration_colour.png": ("sigma-25", "cbsd68", 4),
          "restoration_impulses.png": ("impulse-30", "set12", 6), "restoration_holes.png": ("inpaint-50", "set12", 6),
          "restoration_blur.png": ("deblur-1.6", "set12", 6)}  # file -> task, set, most pictures
SHOWN = 128  # side of the middle of larger pictures, for the sheets


@dataclass(frozen=True)
class Setting:
    """What is measured in this run."""

    tasks: tuple[str, ...] = ("sigma-25", *(name for name in TASKS if name != "sigma-25"))
    rows: tuple[str, ...] = (*ROWS, *JUDGED)
    pictures: int = 12
    seeds: int = 1
    side: int = 64
    source: Literal["set12", "cbsd68"] = "set12"
    """set12: grey pictures, resized; cbsd68: squares out of the middle of pictures in colour, their pixels as they are;
    photographs of scikit-image where they are absent."""
    minutes: float = 1e9
    """No restoration is begun after so many minutes."""
    quick: bool = False
    """Two pictures at 32x32 and none of the slow rows, to see that it runs; into runs/, not into docs/."""


def clean_pictures(side: int, count: int, source: str = "set12") -> dict[str, np.ndarray]:
    """Pictures of side x side pixels, in [0, 1]."""
    if source == "cbsd68":
        if not CBSD68.is_dir():
            raise SystemExit(f"{CBSD68} is not there, and no other pictures stand in for it")
        names = sorted(path.name for path in CBSD68.glob("*.png"))[:: max(1, 68 // count)][:count]
        read = [sources.read_pictures(str(CBSD68 / name), crop=side) for name in names]
        return {f"cbsd68/{name.removesuffix('.png')}": one.pictures[0] for name, one in zip(names, read)}
    if SET12.is_dir():
        read = sources.read_pictures(str(SET12), side)
        found = {f"set12/{name}": picture[..., :1] for name, picture in zip(read.names, read.pictures)}
    else:
        print(f"{SET12} is not there: photographs of scikit-image stand in for it", flush=True)
        found = {name: square(photograph(name), side).mean(-1, keepdims=True).astype(np.float32) / 255
                 for name in PHOTOGRAPHS}
    return dict(list(found.items())[:count])


def kept_at(*parts: object) -> Path:
    return KEPT / ("_".join(str(part).replace("/", "-").replace(" ", "-") for part in parts) + ".npy")


def kept(line: Mapping, path: Path) -> Restoration:
    """A restoration that was made before."""
    return Restoration(jnp.asarray(np.load(path)), None, Cost(steps=line["steps"], error=line["error"]))


def remake(restore: Restore, path: Path, measurement: Measurement, seed: int) -> None:
    """Restores again what a line speaks of whose picture was not kept."""
    if not path.is_file():
        found = restore(measurement, jax.random.key(seed))
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.asarray(found.picture, np.float32))


def line_of(row: str, key: tuple, clean: np.ndarray, found: Restoration, began: tuple[float, float],
            before: Sequence[Mapping] = ()) -> dict:
    """A result line; `core_seconds` is the time of all threads, which other work on the machine does not lengthen. What
    it went on from counts too."""
    seconds, core = (now - then + sum(line[name] for line in before) for name, now, then in (
        ("seconds", time.monotonic(), began[0]), ("core_seconds", time.process_time(), began[1])))
    picture = np.asarray(found.picture, np.float32)
    path = kept_at(row, *key)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, picture)
    task, side, name, seed = key
    return {"row": row, "task": task, "side": side, "picture": name, "seed": seed, **psnr_and_ssim(clean, picture),
            "seconds": round(seconds, 2), "core_seconds": round(core, 2), "steps": found.evidence.steps,
            "error": found.evidence.error, "origin": records.provenance(seed)}


def remembered(name: str, key: tuple, restore: Restore) -> Restore:
    """A restorer that the rows of the referee share: what it made of the split measurement is computed once."""
    def look_up(measurement: Measurement, run_key: jax.Array) -> Restoration:
        place = (name, *key)
        if place not in SEEN:
            SEEN[place] = restore(measurement, run_key)
        return SEEN[place]

    return look_up


def judged(row: str, restorers: Mapping[str, Restore], key: tuple, measurement: Measurement, clean: np.ndarray,
           known: Mapping[tuple, dict]) -> list[dict]:
    """Lines of what the referee chooses and of its average; the restorations of y are those of the rows, whose seconds
    count twice, once for the split measurement."""
    if not all((name, *key) in known for name in restorers):
        return []
    began = time.monotonic(), time.process_time()
    shared = {name: remembered(name, key, one) for name, one in restorers.items()}
    choice = referee.recommend(shared, measurement, jax.random.key(key[-1]), split=splitting.split_noise)
    pictures = {name: np.load(file) if (file := kept_at(name, *key)).is_file() else
                np.asarray(one(measurement, jax.random.key(key[-1])).picture) for name, one in restorers.items()}
    stack = sum(weight * pictures[name] for name, weight in choice.weights.items())
    lines = []
    for suffix, picture, error in ((", best", pictures[choice.best], choice.errors[choice.best]),
                                   (", average", stack, choice.stack_error)):
        found = Restoration(jnp.asarray(picture), None)
        line = line_of(row + suffix, key, clean, found._replace(evidence=found.evidence._replace(error=error)), began)
        for what in ("seconds", "core_seconds"):
            line[what] = 2 * sum(known[(name, *key)][what] for name in restorers)
        lines.append({**line, "chosen": choice.best, "weights": choice.weights})
    return lines


def compute(c: Setting, file: Path) -> list[dict]:
    """Completes the lines, task by task and row by row."""
    lines = records.read_lines(file)
    began, made, whole, pictures = time.monotonic(), {}, {}, clean_pictures(c.side, c.pictures, c.source)
    for task_name in c.tasks:
        task = TASKS[task_name]
        for row in c.rows:
            for place, (name, clean) in enumerate(pictures.items()):
                for seed in range(c.seeds):
                    known = {(line["row"], line["task"], line["side"], line["picture"], line["seed"]): line
                             for line in lines}
                    if c.source == "cbsd68":
                        place = int(name.removeprefix("cbsd68/"))  # whatever pictures were chosen beside it
                    key = (task_name, c.side, name, seed)
                    wanted = f"{row}, average" if row in JUDGED else row
                    if (wanted, *key) in known or time.monotonic() - began > 60 * c.minutes:
                        continue
                    if row in ROWS and task_name not in ROWS[row].tasks or row in JUDGED and task_name not in DENOISE:
                        continue
                    try:
                        before = ROWS[row].begins if row in ROWS else ()
                        needed = JUDGED.get(row, before)
                        whole |= {one: WHOLE.get(one, ROWS[one].make)() for one in needed if one not in whole}
                        if row in ROWS and row not in made:
                            made[row] = ROWS[row].make()
                    except ImportError as error:
                        print(f"{row} is left out: {error}", flush=True)
                        break
                    if not all((one, *key) in known for one in before):
                        continue
                    for one in before:
                        remake(whole[one], kept_at(one, *key), measured(task, clean, place, seed, ROWS[one].told), seed)
                    BEGUN.update({one: kept(known[(one, *key)], kept_at(one, *key)) for one in before})
                    y = measured(task, clean, place, seed, row in ROWS and ROWS[row].told)
                    if row in JUDGED:
                        new = judged(row, {one: whole[one] for one in needed}, key, y, clean, known)
                    else:
                        start = time.monotonic(), time.process_time()
                        restore = made[row](clean) if row.endswith("oracle") else made[row]
                        found = jax.block_until_ready(restore(y, jax.random.key(seed)))
                        new = [line_of(row, key, clean, found, start, [known[(one, *key)] for one in before])]
                    lines += new
                    records.append_lines(file, new)
                    for line in new:
                        print(f"{task_name} {line['row']} {name} seed {seed}: {line['psnr']:.2f} dB, "
                              f"{line['seconds']:.1f} s", flush=True)
    return lines


def sheet(lines: list[dict], task: str, source: str, most: int = 12) -> tuple[np.ndarray, list[str]] | None:
    """The largest pictures of a task, a picture to a row and a method to a column; the names of the columns."""
    chosen = [line for line in lines if line["task"] == task and line["seed"] == 0 and source_of(line) == source]
    side = max((line["side"] for line in chosen), default=0)
    chosen = [line for line in chosen if line["side"] == side]
    named = dict.fromkeys(line["picture"] for line in chosen)
    pictures = {name: clean for name, clean in (clean_pictures(side, len(named), source) if chosen else {}).items()
                if name in named}
    pictures = dict(list(pictures.items())[:most])
    rows = [row for row in dict.fromkeys(line["row"] for line in chosen)
            if all(kept_at(row, task, side, name, 0).is_file() for name in pictures)]
    if not rows:
        return None
    edge = max(0, (side - SHOWN) // 2)
    cells = [cell[edge : side - edge, edge : side - edge] for name, clean in pictures.items()
             for cell in (clean, *(np.load(kept_at(row, task, side, name, 0)) for row in rows))]
    return plots.tile(np.rint(255 * np.clip(np.stack(cells), 0, 1)).astype(np.uint8), 1 + len(rows)), ["clean", *rows]


def main(setting: Setting) -> None:
    """Completes restoration.jsonl, and writes restoration.md and restoration.png from it."""
    devices.set_up()
    out = RESULTS
    if setting.quick:
        slow = ("self-diffusion", "pixel pairs", "cross-fit", *JUDGED)
        setting = Setting(setting.tasks, tuple(row for row in setting.rows if row not in slow), 2, 1, 32)
        out = REPO / "runs" / "restoration_quick"
    out.mkdir(parents=True, exist_ok=True)
    lines = compute(setting, out / "restoration.jsonl")
    page = out / "restoration.md"
    before = page.read_text() if page.is_file() else ""
    columns = columns_of(before)
    for name, (task, source, most) in SHEETS.items():
        found = sheet(lines, task, source, most)
        if found and set(found[1]) >= set(columns.get(name, ())):  # else pictures that it shows were not kept
            plots.picture(found[0]).save(out / name)
            columns[name] = found[1]
    page.write_text(render(lines, columns, before))


if __name__ == "__main__":
    main(tyro.cli(Setting, description=__doc__))
