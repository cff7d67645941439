"""Restoring pictures by deep image priors: what the resumable loop (`loop.run_to_end`) asks of a batch of fits.

Every fit (picture, seed, tile) is a row of one batch. `outcome` chooses what is restored, and `dip_report` writes it.
"""
import shlex
import sys
import time
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from dipddpm_jax import checkpoints, devices, plots
from dipddpm_jax.commands import dip_report, fit_cost, measurements
from dipddpm_jax.commands.fits import make_fit, make_fits, start_fits, take
from dipddpm_jax.commands.loop import ChunkReport, Pace, Row, newest_items, run_to_end
from dipddpm_jax.commands.measurements import Measurements
from dipddpm_jax.commands.outcome import decibels, outcome, warnings
from dipddpm_jax.commands.tiles import join_tiles
from dipddpm_jax.commands.workdir import claimed_workdir
from dipddpm_jax.config.dip import AS_IT_IS, CROSS_FIT, DipConfig, DipRun, load_dip_config, recommended, save_dip_config
from dipddpm_jax.config.dip_ranges import NO_PENALTY, check_dip
from dipddpm_jax.convolution import bands
from dipddpm_jax.data.pictures import to_bytes
from dipddpm_jax.dip.batches import advance_all, fits_mesh
from dipddpm_jax.dip.fit import Dip, DipProblem, DipState
from dipddpm_jax.errors import UserError
from dipddpm_jax.files import writing

FRAMES = 60  # most pictures of an animation
LOG = "curves.jsonl"


class Batch:
    """The fits that still run. Where stopped ones would cost time (anywhere but on a CPU) they are left out as soon as
    half have stopped, so that a batch is compiled for few sizes only."""

    def __init__(self, fit: Dip, problems: DipProblem, states: DipState, compacts: bool):
        place = placement(states)
        self.problems, self.whole = jax.device_put((problems, states), place)
        self.compacts = compacts
        self.rows = np.arange(len(states.step))
        self.part = self.whole
        alone = (place, None) if len(states.step) == 1 else None
        self.run = jax.jit(partial(advance_all, fit), static_argnums=2, out_shardings=alone)
        self.compact()

    def states(self) -> DipState:
        """All fits, stopped ones too."""
        if len(self.rows) < len(self.whole.step):
            put = jax.tree.map(lambda whole, part: whole.at[self.rows].set(part), self.whole._replace(key=None),
                               self.part._replace(key=None))
            self.whole = put._replace(key=self.whole.key)
        else:
            self.whole = self.part
        return self.whole

    def compact(self) -> None:
        """Goes on with the running fits alone, if they are at most half."""
        going = np.flatnonzero(~np.asarray(self.part.stopped))
        if self.compacts and 0 < len(going) <= len(self.rows) // 2:
            self.states()
            self.rows = self.rows[going]
            self.part = take(self.whole, self.rows)

    def advance(self, num_steps: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(rows, their curves) of a chunk."""
        whole = len(self.rows) == len(self.whole.step)  # taking rows is an exchange between devices
        problems = self.problems if whole else take(self.problems, self.rows)
        self.part, curves = self.run(problems, self.part, num_steps)
        return self.rows, {name: np.asarray(curve) for name, curve in curves.items()}


def placement(states: DipState) -> NamedSharding:
    """Where `advance_all` leaves a batch: put there before, one compiled program does for all chunks."""
    mesh = fits_mesh(len(states.step))
    if mesh.size == 1 and bands.pays(states.code.shape[1:]):
        return devices.replicated(bands.mesh())
    return NamedSharding(mesh, PartitionSpec("fits"))


def is_shown(step: int, fit: int) -> bool:
    """Whether curves.jsonl has a row for this step (from 1) of this fit: every step at first, then every second, every
    fourth and so on, so that a plot of the first fit has 100 points or more, and one of another fit 10 or more.

    That depends on nothing else, so that a run which was disturbed or made longer has the rows of one that was not.
    """
    dense = 100 if fit == 0 else 10
    return step % 2 ** max(0, (step // dense).bit_length() - 1) == 0


class DipJob:
    """The fits of a run, from where the checkpoint in its directory stands: a `loop.Job`.

    Raises UserError when there is not enough memory, before anything large is made.
    """

    def __init__(self, config: DipConfig, run: DipRun, given: Measurements, workdir: Path):
        self.config, self.run, self.given, self.workdir = config, run, given, workdir
        boxes, channels = fit_cost.fit_boxes(config, given.size), given.measurements.shape[-1]
        self.fit = make_fit(config, channels, boxes[0][2:])
        self.cost = fit_cost.check_fit_memory(config, self.fit, boxes, channels, len(given.names))
        self.fits = make_fits(config, given)
        states = start_fits(config, self.fit, self.fits)
        items = newest_items(workdir, {"train": checkpoints.numbered(states)}, LOG)
        if items is not None:
            states = checkpoints.unnumbered(items["train"], states)
        self.step, self.total = int(states.step.max()), config.num_steps
        self.batch = Batch(self.fit, self.fits.problems, states, jax.default_backend() != "cpu")
        self.clock, self.began = fit_cost.Clock(config.num_steps), time.monotonic()
        self.chunk = run.chunk or fit_cost.short_chunk(config, boxes, len(given.names), run.save_every)
        self._end_if_stopped()

    def advance(self, count: int) -> tuple[int, np.ndarray, dict[str, np.ndarray]]:
        """(step before, rows of the batch, their curves)."""
        before = self.step
        rows, curves = self.batch.advance(count)
        self.step += count
        self.batch.compact()
        self._end_if_stopped()
        return before, rows, curves

    def _end_if_stopped(self) -> None:
        if np.all(self.batch.part.stopped) or (self.run.minutes and self._minutes() >= self.run.minutes):
            self.total = self.step

    def _minutes(self) -> float:
        return (time.monotonic() - self.began) / 60

    def report(self, chunk: tuple[int, np.ndarray, dict[str, np.ndarray]], seconds: float) -> ChunkReport:
        """Rows of the curves that are shown, and a problem if a loss is not finite."""
        before, fits, curves = chunk
        active = curves["active"]
        names = [name for name in curves if name != "active"]
        rows = [{"step": before + int(i) + 1, "fit": int(fit),
                 **{name: float(f"{curves[name][place, i]:.6g}") for name in names}}
                for place, fit in enumerate(fits) for i in np.flatnonzero(active[place])
                if is_shown(before + int(i) + 1, int(fit))]
        if (told := self.clock.tick(before + active.shape[1])) is not None:
            tqdm.write(told, file=sys.stderr)
        running = active[:, -1]
        last = {name: np.mean(curves[name][:, -1][running]) for name in names if running.any()}
        shown = {"loss": last.get("loss"), "PSNR": last.get("psnr"), "of average": last.get("psnr_average"),
                 "estimated in holes" if self.given.known is not None else "estimated": self._estimate(
                     fits[running], curves["held_out"][running, -1])}
        text = ", ".join([*(f"{name} {value:.4g}" for name, value in shown.items() if value is not None),
                          f"{int((~running).sum())} of {len(fits)} stopped"])
        good = np.isfinite(curves["loss"][active]).all()
        end = before + active.shape[1]
        return ChunkReport(rows, text, None if good else f"the loss is not finite by step {end}; lower --learning-rate")

    def _estimate(self, rows: np.ndarray, held_out: np.ndarray) -> float | None:
        """PSNR in dB by the pixels that running fits do not see; None where their misfit is no squared error of the
        picture, or no pixel is held out."""
        config = self.config
        if config.stop != "held-out" or config.peak or config.task not in AS_IT_IS or not len(rows):
            return None
        sigma = np.asarray(self.fits.problems.sigma, np.float64)[rows]
        return decibels(float(np.mean(held_out - sigma**2)))

    def items(self) -> dict[str, Any]:
        """All fits, stopped ones too."""
        return {"train": checkpoints.numbered(self.batch.states())}

    def score(self) -> Row:
        """Nothing: the newest checkpoint is the one that counts."""
        return {}

    def show(self) -> None:
        """A frame of the animation: the running average of the first picture, sixty times at most."""
        every = max(1, self.config.num_steps // self.chunk // FRAMES)
        if self.run.gif and self.step and self.step // self.chunk % every == 0:
            tiles = np.asarray(self.batch.states().average[: len(self.fits.boxes)])
            (self.workdir / "frames").mkdir(exist_ok=True)
            plots.picture(to_bytes(join_tiles(tiles, self.fits.boxes, self.given.size))).save(
                self.workdir / "frames" / f"{self.step:07d}.png")

    def run_to_end(self) -> list[Row]:
        """All steps; returns the rows of curves.jsonl. Raises as `loop.run_to_end` does."""
        again = f"python train.py dip --resume --workdir {shlex.quote(str(self.workdir))}"
        return run_to_end(self, self.workdir, Pace(self.chunk, self.run.save_every), again, LOG)

    def finish(self, rows: list[Row], seconds: float) -> dict[str, Any]:
        """Writes what came out; returns what results.json holds. Raises OSError."""
        config, given, workdir = self.config, self.given, self.workdir
        result = outcome(config, given, self.fit, self.fits, self.batch.states())
        cut, longer = self.step < config.num_steps, f"--num-steps {2 * config.num_steps}"
        again = f"python train.py dip --resume --workdir {shlex.quote(str(workdir))}"
        more = (f"more time: {again}" if cut else f"more steps: {again} {longer}" if config.decay == "constant" else
                f"more steps: {longer} in another --workdir")
        notes = [*given.notes, *warnings(replace(config, num_steps=self.step), given, result, more)]
        if cut and config.stop in ("never", "oracle") and not result.stopped.all():
            notes.append(f"ended at step {self.step} of {config.num_steps}; {more}")
        report = dip_report.write_report(workdir, config, given, result, notes, seconds)
        dip_report.plot_curves(workdir, config, given.clean is not None, rows, int(result.steps.flat[0]))
        if self.run.gif:
            dip_report.animate(workdir)
        return report


def restore_pictures(config: DipConfig, run: DipRun, chosen: Collection[str] = tuple(CROSS_FIT)) -> str:
    """Restores pictures, or goes on doing so; returns what to tell the user. Fields of the configuration that were not
    `chosen` become those of cross-fitting where that pays. Raises UserError and Stopped."""
    devices.set_up()
    check_dip(config, run)
    given = measurements.load_measurements(config)
    if config.stop == "oracle" and given.clean is None:
        raise UserError("--stop oracle needs the clean picture; give it as --clean")
    if not run.resume:
        config = recommended(config, chosen, given.size[0] * given.size[1], len(given.names))
        if config.variant == "plain" and "weight" in chosen:
            raise UserError(f"--weight does nothing here: {NO_PENALTY}; leave it out")
    with claimed_workdir("dip", run.workdir, run.resume) as workdir, writing(workdir):
        if run.resume:
            check_same(workdir, config, given)
        job = DipJob(config, run, given, workdir)
        save_dip_config(config, workdir / "config.json", given.checksums)
        print(job.cost, file=sys.stderr)
        began = time.monotonic()
        rows = job.run_to_end()
        return dip_report.describe(job.finish(rows, time.monotonic() - began), given, workdir)


def check_same(workdir: Path, config: DipConfig, given: Measurements) -> None:
    """Raises UserError if a run that is resumed would see other pictures than before, or is already longer."""
    refuse_other_pixels(workdir, load_dip_config(workdir / "config.json")[1], given)
    step = checkpoints.latest_step(workdir / "checkpoints")
    if step is not None and step > config.num_steps:
        raise UserError(f"--num-steps {config.num_steps}: the restoration in {workdir} is at step {step} already")


def refuse_other_pixels(workdir: Path, checksums: dict[str, int], given: Measurements) -> None:
    """Raises UserError if an option names other pixels than when the run began; old runs do not know theirs."""
    for option, value in checksums.items():
        if given.checksums.get(option) != value:
            raise UserError(f"{option} holds other pixels than when the run in {workdir} began; put the old picture "
                            "back, or restore the new one into another --workdir")
