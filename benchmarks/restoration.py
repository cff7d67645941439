"""One picture restored without training data, every method a row: docs/results/restoration.md, .jsonl and .png.

Noise is not clipped, as in the literature. A line of restoration.jsonl is one restoration; lines that are there
already are not computed again, so that the table may be completed in parts (restored pictures lie in runs/restoration):

    python benchmarks/restoration.py --minutes 10 --tasks sigma-25 --rows "non-local means" "cross-fit"
    python benchmarks/restoration.py --source cbsd68 --side 256 --pictures 20 --tasks sigma-15 sigma-25 sigma-50

Rows that need the package bm3d, whose licence allows no commercial use, are left out where it is missing:
pip install "dipddpm_jax[benchmark]".
"""
import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.places import CBSD68, REPO, SET12  # noqa: E402
from benchmarks.restoration_page import BACK, PLUGGED, UNDONE, columns_of, render, source_of
from benchmarks.restoration_tasks import (
    BEHIND,
    CUT_OFF,
    DENOISE,
    HOLES,
    INVERSE,
    TASKS,
    bicubic,
    biharmonic,
    measured,
    nothing,
    richardson_lucy,
    with_error,
)
from benchmarks.together_rows import oracle
from dipddpm_jax import classical, devices, plots, records
from dipddpm_jax.commands import restorers, sources
from dipddpm_jax.commands.dip_report import psnr_and_ssim
from dipddpm_jax.data.photographs import PHOTOGRAPHS, photograph
from dipddpm_jax.data.pictures import square
from dipddpm_jax.dip import Dip, crossfit, folds
from dipddpm_jax.dip.pixel_pairs import pixel_pairs
from dipddpm_jax.dip.self_diffusion import self_diffusion
from dipddpm_jax.hybrids.averaged import averaged
from dipddpm_jax.hybrids.pigdm import pigdm, weighted_variance
from dipddpm_jax.hybrids.truncated_reverse import one_step, truncated_reverse
from dipddpm_jax.inverse import plug_and_play, referee, splitting
from dipddpm_jax.inverse.anscombe import stabilised
from dipddpm_jax.inverse.cut_off import without_cut_off
from dipddpm_jax.inverse.measurement import Cost, Measurement, Restoration, Restore
from dipddpm_jax.inverse.nonlocal_bayes import nonlocal_bayes, nonlocal_bayes_after, remove_by_patches
from dipddpm_jax.inverse.operators import mask_of

RESULTS = REPO / "docs" / "results"
KEPT = REPO / "runs" / "restoration"  # the restored pictures
SEEN: dict[tuple, Restoration] = {}  # what the referee has seen restored
BEGUN: dict[str, Restoration] = {}  # what rows made of the picture at hand
SHEETS = {"restoration.png": ("sigma-25", "set12", 12), "restoration_colour.png": ("sigma-25", "cbsd68", 4),
          "restoration_impulses.png": ("impulse-30", "set12", 6)}  # file -> task, set, most pictures
SHOWN = 128  # side of the middle of larger pictures, for the sheets


class Row(NamedTuple):
    """A method: how its restorer is made, what for, whether it is told the true level of the noise, and what it goes on
    from. One whose name ends in "oracle" makes the restorer of a clean picture, which it sees."""

    make: Callable[[], Restore | Callable[[np.ndarray], Restore]]
    tasks: tuple[str, ...] = (*DENOISE, *CUT_OFF)
    told: bool = False
    draws: bool = True  # whether a seed changes it
    begins: tuple[str, ...] = ()  # rows whose restorations it goes on from, and whose seconds are its own, too


def adam_fit(channels: int) -> Dip:
    """The small hourglass by Adam, which is the default for small noisy pictures alone."""
    return crossfit.a_fit(channels=channels)


def one_fit(fits: Callable[[int], Dip] | None = None) -> Restore:
    """One deep image prior, by default DIP-TV with a weight by the noise, stopped by a tenth of the pixels."""
    fit_for = crossfit.remembered(fits)

    def restore(measurement: Measurement, key: jax.Array) -> Restoration:
        known = crossfit.observed_pixels(measurement, key)
        fit = fit_for(measurement, known)
        parts = folds.fold_masks(jax.random.fold_in(key, 0), known, 10)[:1]
        problems, begun = crossfit.start_fold_fits(fit, measurement, known, parts, key)
        small = fit.network == crossfit.small_skip_net(known.shape[-1])
        states = crossfit.run_fits(fit, problems, begun, 1200 if small else crossfit.MOST_STEPS)
        return Restoration(states.kept.average[0], None, Cost(steps=int(states.step[0])))

    return restore


def bm3d_denoiser() -> Restore:
    """BM3D (Dabov et al. 2007) by its authors' package; of colour, CBM3D."""
    from bm3d import bm3d, bm3d_rgb

    return classical.gaussian_denoiser(lambda y, sigma: (bm3d_rgb if y.shape[-1] == 3 else bm3d)(y, sigma), "BM3D")


def photo_prior(calls: int = 0, turned: bool = False) -> Callable[[], Restore]:
    """The pretrained prior `photos` (or `photos-grey`): one call at the time of the noise (or eight, turned), or the
    mean of four chains of so many."""
    @functools.cache
    def restorer_for(channels: int) -> Restore:
        prior = restorers.photographs_prior(channels)
        return stabilised(truncated_reverse(prior, calls, 4) if calls else one_step(prior, turned))

    return lambda: lambda measurement, key: restorer_for(measurement.y.shape[-1])(measurement, key)


def guided_prior(chains: int = 4) -> Restore:
    """Four chains (or more) of 20 calls, guided by the measurement with the weighted variance (PiGDM); `sample.py
    --restore` takes 50 calls."""
    @functools.cache
    def restorer_for(channels: int) -> Restore:
        return pigdm(restorers.photographs_prior(channels), 20, chains, weighted_variance)

    def restore(measurement: Measurement, key: jax.Array) -> Restoration:
        shape = jax.eval_shape(measurement.operator.adjoint, measurement.y).shape
        return restorer_for(shape[-1])(measurement, key)

    return restore


def plugged(*denoisers: Callable[[int], plug_and_play.Remove]) -> Callable[[], Restore]:
    """The mean of what denoisers make of each turn of plug-and-play; they are made for so many channels."""
    def restore(measurement: Measurement, key: jax.Array) -> Restoration:
        channels = jax.eval_shape(measurement.operator.adjoint, measurement.y).shape[-1]
        removes = [denoiser(channels) for denoiser in denoisers]
        return plug_and_play.plug_and_play(
            lambda *turn: sum(remove(*turn) for remove in removes) / len(removes))(measurement, key)

    return lambda: restore


def plugged_bm3d() -> Restore:
    remove = plug_and_play.removed_by(bm3d_denoiser())
    return plugged(lambda channels: remove)()


def by_patches(channels: int) -> plug_and_play.Remove:
    return remove_by_patches


@functools.cache
def by_photo_prior(channels: int) -> plug_and_play.Remove:
    return plug_and_play.removed_by(one_step(restorers.photographs_prior(channels)))


def begun(name: str) -> Restore:
    """What a row of that name has made of the picture at hand."""
    return lambda measurement, key: BEGUN[name]


def undone(name: str) -> Restore:
    """What a row of that name has made of the picture at hand, without the bias of noise that was cut off."""
    def restore(measurement: Measurement, key: jax.Array) -> Restoration:
        found = BEGUN[name]
        return found._replace(picture=without_cut_off(found.picture, measurement.y, measurement.noise))

    return restore


def with_known(name: str) -> Restore:
    """What a row of that name has made of the picture at hand, with the known pixels as they were measured."""
    def restore(measurement: Measurement, key: jax.Array) -> Restoration:
        found = BEGUN[name]
        known = mask_of(measurement.operator, found.picture.shape)
        return found._replace(picture=jnp.where(known > 0, measurement.y, found.picture))

    return restore


def refined(estimate: Restore) -> Restore:
    """An estimate, noised as far as it says that it is wrong, and walked back in eight calls of the prior of
    photographs that the measurement guides; the mean of eight chains."""
    @functools.cache
    def restorer_for(channels: int) -> Restore:
        return restorers.refined(estimate, channels)

    def restore(measurement: Measurement, key: jax.Array) -> Restoration:
        shape = jax.eval_shape(measurement.operator.adjoint, measurement.y).shape
        return restorer_for(shape[-1])(measurement, key)

    return restore


def refined_oracle(truth: np.ndarray) -> Restore:
    """`refined` of the cross-fit at hand, from the best of several levels for this very picture, `together_rows.TRIED`
    times the true error: how much the rule that finds the level loses."""
    estimate, channels = begun("cross-fit"), truth.shape[-1]
    make = functools.partial(restorers.refined, estimate, channels)
    return oracle(restorers.photographs_prior(channels), estimate, lambda level: make(start=level))(truth)


def self_diffused(steps: int, decay: float = 0.0, held_out: float = 0.0) -> Callable[[], Restore]:
    return lambda: self_diffusion(crossfit.small_skip_net(1), 40, steps, average_decay=decay, held_out=held_out)


ROWS: dict[str, Row] = {
    "nothing": Row(lambda: nothing, tuple(TASKS), draws=False),
    "biharmonic": Row(lambda: biharmonic, HOLES, draws=False),
    "bicubic": Row(lambda: bicubic, ("superres-4",), draws=False),
    "Richardson-Lucy": Row(lambda: richardson_lucy(1.6), ("deblur-1.6",), draws=False),
    "non-local means": Row(classical.non_local_means, draws=False),
    "non-local means, told": Row(classical.non_local_means, DENOISE[:3], True, False),
    "total variation": Row(classical.total_variation_denoising, draws=False),
    "BayesShrink": Row(classical.bayes_shrink, draws=False),
    "nonlocal Bayes": Row(nonlocal_bayes, tuple(TASKS), draws=False),
    "BM3D": Row(bm3d_denoiser, draws=False),
    "BM3D, told": Row(bm3d_denoiser, DENOISE[:3], True, False),
    "pixel pairs": Row(lambda: pixel_pairs(24, 1500)),
    "DIP": Row(lambda: one_fit(lambda channels: crossfit.a_fit(channels=channels, weight=0.0)), tuple(TASKS)),
    "DIP-TV": Row(one_fit, tuple(TASKS)),
    "DIP-TV, Adam": Row(lambda: one_fit(functools.partial(crossfit.a_fit, crossfit.tapered_skip_net)), ("sigma-25",)),
    "refit": Row(crossfit.refitted, tuple(TASKS)),
    "cross-fit": Row(crossfit.cross_fitted, tuple(TASKS)),
    "cross-fit, then nonlocal Bayes": Row(
        lambda: nonlocal_bayes_after(begun("cross-fit"), restorers.FOLDS), (*DENOISE, *CUT_OFF, *HOLES),
        begins=("cross-fit",)),
    "DIP-TV, then nonlocal Bayes": Row(lambda: nonlocal_bayes_after(begun("DIP-TV")), (*DENOISE, *CUT_OFF, *HOLES),
                                       begins=("DIP-TV",)),
    **{f"{name}, {BACK}": Row(functools.partial(with_known, name), HOLES, begins=(name,))
       for name in ("cross-fit", "DIP-TV")},
    "prior photos, then nonlocal Bayes": Row(
        lambda: nonlocal_bayes_after(begun("prior photos, eight calls, turned"), 10), draws=False,
        begins=("prior photos, eight calls, turned",)),
    "cross-fit, 11 folds": Row(lambda: crossfit.cross_fitted(folds=11), HOLES),
    "cross-fit, Adam": Row(lambda: crossfit.cross_fitted(adam_fit, num_steps=1500), (*HOLES, "deblur-1.6")),
    "cross-fit, Adam, 12 folds": Row(lambda: crossfit.cross_fitted(adam_fit, 12, 1500), HOLES),
    "self-diffusion": Row(self_diffused(100), tuple(TASKS)),
    "self-diffusion, stopped": Row(self_diffused(25, 0.99, 0.1), tuple(TASKS)),
    "prior photos, one call": Row(photo_prior(), draws=False),
    "prior photos, one call, told": Row(photo_prior(), DENOISE[:3], True, False),
    "prior photos, eight calls, turned": Row(photo_prior(turned=True), draws=False),
    "prior photos, eight calls, told": Row(photo_prior(turned=True), DENOISE[:3], True, False),
    "half cross-fit, half prior photos": Row(lambda: averaged(crossfit.cross_fitted(), photo_prior(turned=True)()),
                                             DENOISE[:3]),
    "prior photos, 4 chains of 20": Row(photo_prior(20), DENOISE[:3]),
    "prior photos, guided": Row(guided_prior, INVERSE),
    f"BM3D, {PLUGGED}": Row(plugged_bm3d, BEHIND, draws=False),
    f"prior photos, {PLUGGED}": Row(plugged(by_photo_prior), BEHIND, draws=False),
    f"nonlocal Bayes and prior photos, {PLUGGED}": Row(plugged(by_patches, by_photo_prior), BEHIND, draws=False),
    "prior photos, guided, 32 chains": Row(functools.partial(guided_prior, 32), HOLES),
    "prior photos, guided, 96 chains": Row(functools.partial(guided_prior, 96), HOLES),
    "cross-fit, then prior photos": Row(lambda: refined(begun("cross-fit")), (*INVERSE, *DENOISE[:3]),
                                        begins=("cross-fit",)),
    "cross-fit, then prior photos, oracle": Row(lambda: refined_oracle, HOLES, begins=("cross-fit",)),
    "biharmonic, then prior photos": Row(lambda: refined(with_error(biharmonic)), HOLES),
    "nonlocal Bayes, then prior photos": Row(lambda: refined(with_error(nonlocal_bayes())), HOLES),
    "half cross-fit, half prior photos, guided": Row(
        lambda: averaged(begun("cross-fit"), begun("prior photos, guided")), INVERSE,
        begins=("cross-fit", "prior photos, guided")),
    **{f"{name}, {UNDONE}": Row(functools.partial(undone, name), CUT_OFF, begins=(name,))
       for name in ("BM3D", "non-local means", "prior photos, eight calls, turned", "cross-fit",
                    "cross-fit, then nonlocal Bayes")},
}
UNTRAINED = ("cross-fit, then nonlocal Bayes", "nonlocal Bayes", "pixel pairs", "total variation")
WHOLE = {  # rows that go on from others, as restorers that do all themselves: for other data than the picture at hand
    "cross-fit, then nonlocal Bayes": lambda: nonlocal_bayes_after(crossfit.cross_fitted(), restorers.FOLDS)}
JUDGED = {  # what the referee may choose from; BM3D is not ours to give
    "referee": ("prior photos, eight calls, turned", *UNTRAINED),  # as --method auto
    "referee, untrained": UNTRAINED,
    "referee, untrained, with BM3D": (*UNTRAINED, "BM3D"),
}


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
