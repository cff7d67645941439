"""Restoring pictures by deep image priors: the host loop, and the files that it writes.

Every fit (picture, seed, tile) is a row of one batch. The loop runs chunks on the device, saves, and may be resumed
bit for bit; what it writes is the output at the stop, and the running average of the outputs there: one is the
restored picture, whichever the stop rule chose.
"""
import json
import resource
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from tqdm import tqdm

from dipddpm_jax import checkpoints, devices, plots
from dipddpm_jax.commands import loop, measurements
from dipddpm_jax.commands.fits import Fits, make_fit, make_fits, start_fits, take
from dipddpm_jax.commands.measurements import Measurements
from dipddpm_jax.commands.tiles import join_tiles
from dipddpm_jax.config import dip as dip_config
from dipddpm_jax.config.dip import DipConfig, DipRun
from dipddpm_jax.convolution import bands
from dipddpm_jax.convolution.cost import divisor
from dipddpm_jax.data.pictures import read_picture, to_bytes
from dipddpm_jax.dip.batches import advance_all
from dipddpm_jax.dip.fit import Dip, DipProblem, DipState
from dipddpm_jax.errors import UserError


class Batch:
    """The fits that still run. Where stopped ones would cost time (anywhere but on a CPU) they are left out as soon as
    half have stopped, so that a batch is compiled for few sizes only."""

    def __init__(self, fit: Dip, problems: DipProblem, states: DipState, compacts: bool):
        (self.problems, self.whole), _ = devices.spread((problems, states), None)
        if divisor(len(states.step), jax.local_device_count()) == 1 and bands.pays(states.code.shape[1:]):
            everywhere = devices.replicated(bands.mesh())
            self.problems, self.whole = jax.device_put((problems, states), everywhere)
        self.compacts = compacts
        self.rows = np.arange(len(states.step))
        self.part = self.whole
        self.run = jax.jit(partial(advance_all, fit), static_argnums=2)
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
        self.part, curves = self.run(take(self.problems, self.rows), self.part, num_steps)
        return self.rows, {name: np.asarray(curve) for name, curve in curves.items()}


@dataclass
class DipJob:
    """A run: its configuration and inputs, its directory, and what has been logged."""

    config: DipConfig
    run: DipRun
    given: Measurements
    workdir: Path

    def fit(self) -> tuple[Fits, DipState, list[dict[str, Any]]]:
        """To the last step or until all have stopped. Raises Stopped on a signal or when a loss is not finite."""
        config, run = self.config, self.run
        fits = make_fits(config, self.given)
        fit = make_fit(config, self.given.measurements.shape[-1], fits.boxes[0][2:])
        states = start_fits(config, fit, fits)
        directory = self.workdir / "checkpoints"
        if checkpoints.latest_step(directory) is not None:
            states = checkpoints.restore_tree(directory, states)
        step = int(states.step.max())
        log = loop.Log(self.workdir / "curves.jsonl", step)
        batch = Batch(fit, fits.problems, states, jax.default_backend() != "cpu")
        bar = tqdm(total=config.num_steps, initial=step, unit="step", dynamic_ncols=True)
        with checkpoints.open_manager(directory) as manager, loop.stop_signals() as signals, bar:
            while step < config.num_steps and not np.all(batch.part.stopped):
                count = min(run.chunk, config.num_steps - step, run.save_every - step % run.save_every)
                rows, curves = batch.advance(count)
                good = self._log(log, bar, step, rows, curves)
                step += count
                self._frame(fits, batch, step)
                batch.compact()
                done = step >= config.num_steps or bool(np.all(batch.part.stopped))
                if step % run.save_every == 0 or done or signals or not good:
                    if good:
                        checkpoints.save_tree(manager, step, batch.states(), float(np.nanmean(curves["loss"])))
                    checkpoints.wait(manager)
                    if not good:
                        raise loop.Stopped(f"the loss is not finite by step {step}; lower --learning-rate", 1)
                    if signals and not done:
                        raise loop.Stopped(f"stopped by a signal; saved step {step}. Go on with: python train.py "
                                               f"dip --resume --workdir {self.workdir}", 128 + signals[0])
        return fits, batch.states(), log.rows

    def _log(self, log: loop.Log, bar: Any, step: int, rows: np.ndarray, curves: dict[str, np.ndarray]) -> bool:
        active = curves.pop("active")
        for place, row in enumerate(rows):
            for i in np.flatnonzero(active[place]):
                log.write({"step": step + int(i) + 1, "fit": int(row),
                           **{name: float(f"{curve[place, i]:.6g}") for name, curve in curves.items()}})
        bar.update(int(active.sum(1).max()))
        last = {name: np.mean(curve[:, -1][active[:, -1]]) for name, curve in curves.items() if active[:, -1].any()}
        shown = {"loss": last.get("loss"), "PSNR": last.get("psnr"), "of average": last.get("psnr_average")}
        text = ", ".join(f"{name} {value:.4g}" for name, value in shown.items() if value is not None)
        bar.set_postfix_str(f"{text}, {int((~active[:, -1]).sum())} of {len(rows)} stopped")
        return bool(np.isfinite(curves["loss"][active]).all())

    def _frame(self, fits: Fits, batch: Batch, step: int) -> None:
        """The running average of the first picture, sixty times at most."""
        every = max(1, self.config.num_steps // self.run.chunk // 60)
        if self.run.gif and step // self.run.chunk % every == 0:
            tiles = np.asarray(batch.states().average[: len(fits.boxes)])
            whole = to_bytes(join_tiles(tiles, fits.boxes, self.given.size))
            (self.workdir / "frames").mkdir(exist_ok=True)
            plots.picture(whole).save(self.workdir / "frames" / f"{step:07d}.png")  # a resumed run finds the first ones


def psnr_and_ssim(clean: np.ndarray, picture: np.ndarray) -> dict[str, float]:
    """PSNR and SSIM by scikit-image, of a picture clipped to [0, 1]."""
    picture = np.clip(picture, 0, 1).astype(np.float32)
    return {"psnr": float(peak_signal_noise_ratio(clean, picture, data_range=1)),
            "ssim": float(structural_similarity(clean, picture, data_range=1, channel_axis=-1))}


def enlarged(measurement: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A measurement of lower resolution, its pixels repeated, so that it can stand beside the restored picture."""
    scale = size[0] // measurement.shape[0]
    return np.repeat(np.repeat(measurement, scale, 0), scale, 1)


def write_restored(
    job: DipJob, fits: Fits, states: DipState, rows: list[dict[str, Any]], seconds: float
) -> dict[str, Any]:
    """All files of a run; returns what results.json holds."""
    given, size = job.given, job.given.size
    kept = {"output": states.kept.output, "average": states.kept.average}
    chosen = ["average", "output"] if job.config.stop == "held-out" else ["output", "average"]  # what is restored first
    restored, other = (fits.whole(np.asarray(kept[name]), size) for name in chosen)
    steps = np.asarray(states.kept.step).reshape(fits.pictures, fits.seeds, -1) + 1
    results = []
    for i, name in enumerate(given.names):
        prefix = "" if fits.pictures == 1 else f"{name}/"
        (job.workdir / prefix).mkdir(exist_ok=True)
        parts = {"measurement": given.measurements[i], "restored": restored[i].mean(0),
                 chosen[1]: other[i].mean(0)}
        result: dict[str, Any] = {"picture": name, "restored_is": chosen[0], "step": steps[i].tolist(),
                                  "sigma": 255 * float(given.sigma[i])}
        if fits.seeds > 1:
            spread = restored[i].std(0).mean(-1, keepdims=True)
            result["uncertainty"] = {"mean": float(spread.mean()), "white": float(spread.max())}
            parts["uncertainty"] = np.repeat(spread / max(float(spread.max()), 1e-9), restored.shape[-1], -1)
        if given.clean is not None:
            result |= {key: psnr_and_ssim(given.clean[i], parts[key]) for key in ("restored", chosen[1])}
            result["measurement"] = psnr_and_ssim(given.clean[i], enlarged(parts["measurement"], size))
            parts["clean"] = given.clean[i]
        for key, part in parts.items():
            plots.picture(to_bytes(part)).save(job.workdir / f"{prefix}{key}.png")
        sheet = np.stack([to_bytes(enlarged(part, size)) for part in parts.values()])
        scale = max(1, 256 // max(size))
        plots.picture(plots.tile(sheet, len(sheet)), scale).save(job.workdir / f"{prefix}comparison.png")
        results.append(result)
    return _write_report(job, fits, rows, results, seconds)


def memory_peak() -> int:
    """Bytes: of the device where it tells, else of this process."""
    return devices.peak_memory() or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _write_report(job: DipJob, fits: Fits, rows: list[dict[str, Any]], results: list, seconds: float) -> dict:
    oracle = job.config.stop == "oracle"
    report = {"stop": "oracle: SAW THE CLEAN PICTURE, for study only" if oracle else job.config.stop,
              "pictures": results, "seconds": round(seconds, 1), "peak_memory_bytes": memory_peak()}
    (job.workdir / "results.json").write_text(json.dumps(report, indent=2) + "\n")
    first = [row for row in rows if row["fit"] == 0]
    curves = {"PSNR of output": [row.get("psnr") for row in first],
              "PSNR of average": [row.get("psnr_average") for row in first]}
    known = job.given.clean is not None
    if not known:
        curves = {"misfit": [row["loss"] for row in first], job.config.stop: [row["score"] for row in first]}
    plots.save_curves([row["step"] for row in first], curves, job.workdir / "curves.png", log=not known,
                      y_label="dB" if known else "", mark=results[0]["step"][0][0])
    if files := sorted((job.workdir / "frames").glob("*.png")) if job.run.gif else []:
        frames = np.stack([read_picture(file) for file in files])
        plots.save_gif(frames[:, None], job.workdir / "fit.gif")
    return report


def restore_pictures(config: DipConfig, run: DipRun) -> str:
    """Restores pictures, or goes on doing so; returns what to tell the user. Raises UserError and Stopped."""
    devices.set_up()
    if run.resume:
        if run.workdir is None:
            raise UserError("--resume needs --workdir, the directory of the restoration to go on with")
        config = dip_config.load_dip_config(run.workdir / "config.json")
    dip_config.check_dip(config, run)
    given = measurements.load_measurements(config)
    if config.stop == "oracle" and given.clean is None:
        raise UserError("--stop oracle needs the clean picture; give it as --clean")
    workdir = run.workdir if run.resume else loop.new_workdir("dip", run.workdir)
    dip_config.save_dip_config(config, workdir / "config.json")
    job = DipJob(config, run, given, workdir)
    began = time.monotonic()
    fits, states, rows = job.fit()
    report = write_restored(job, fits, states, rows, time.monotonic() - began)
    return describe(report, given, workdir)


def describe(report: dict[str, Any], given: Measurements, workdir: Path) -> str:
    """What came out, a line a picture."""
    made = "made from the clean picture" if given.degraded else "as given"
    lines = [f"stop rule: {report['stop']}; measurement {made}; {report['seconds']:.0f} s, "
             f"{report['peak_memory_bytes'] / 2**30:.2f} GB"]
    for result in report["pictures"]:
        steps = [step for seed in result["step"] for step in seed]
        text = f"{result['picture']}: kept step {', '.join(map(str, steps[:6]))}, sigma {result['sigma']:.1f}"
        for key in ("measurement", "restored", "output", "average"):
            if key in result and isinstance(result[key], dict):
                text += f"; {key} {result[key]['psnr']:.2f} dB, SSIM {result[key]['ssim']:.3f}"
        lines.append(text)
    return "\n".join([*lines, f"Pictures: {workdir / 'comparison.png' if len(given.names) == 1 else workdir}"])
