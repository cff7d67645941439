"""System 002 as a command: one picture, one network, stages of falling noise.

The original trains towards the CLEAN picture and stops by the PSNR to it; here that is called oracle. The honest
version knows only the noisy picture: it is the target of every stage, and the input with more noise added to it. The
clean picture, if there is one, is only compared with.
"""
import dataclasses
import shlex
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from dipddpm_jax import checkpoints, devices, dip, plots
from dipddpm_jax.commands import fit_cost, fits
from dipddpm_jax.commands.dip import LOG, is_shown, refuse_other_pixels
from dipddpm_jax.commands.dip_report import psnr_and_ssim
from dipddpm_jax.commands.loop import ChunkReport, Pace, Row, newest_items, run_to_end
from dipddpm_jax.commands.measurements import Measurements, load_measurements
from dipddpm_jax.commands.workdir import claimed_workdir
from dipddpm_jax.config.dip import DipConfig, StagedConfig, StagedRun, load_dip_config, save_dip_config
from dipddpm_jax.data.arrays import write_restored
from dipddpm_jax.data.pictures import to_bytes, write_picture
from dipddpm_jax.dip import study
from dipddpm_jax.dip.batches import advance_one
from dipddpm_jax.dip.fit import Dip, DipProblem, DipState, Kept
from dipddpm_jax.dip.staged import Stage
from dipddpm_jax.errors import UserError
from dipddpm_jax.files import writing
from dipddpm_jax.networks import ConvStack
from dipddpm_jax.records import write_json

WIDTHS = {3: (64, 64), 4: (64, 128, 64), 5: (64, 128, 256, 128)}
CHUNK = 50  # steps in one device call
SAVE_EVERY = 500


def make_stages(config: StagedConfig, given: Measurements) -> list[Stage]:
    """The problems of a configuration, one for each noise level."""
    measurement = jnp.asarray(given.measurements[0])
    clean = None if given.clean is None else jnp.asarray(given.clean[0])
    network = ConvStack(WIDTHS[config.layers], measurement.shape[-1])
    steps = config.steps if len(config.steps) > 1 else config.steps * len(config.levels)
    rule = fits.make_rule(DipConfig(stop=config.stop, patience=10 * config.patience))
    honest = Dip(network, optax.adam(config.learning_rate), stopper=rule, code_rule=dip.fixed(jitter=0.0))
    key, stages = jax.random.key(config.seed), []
    for i, (level, num_steps) in enumerate(zip(config.levels, steps)):
        draw = level * jax.random.normal(jax.random.fold_in(key, i), measurement.shape)
        if config.stop == "oracle":
            oracle = partial(study.oracle_cumulative, num_steps=num_steps, patience=config.patience)
            fit = Dip(network, optax.adam(config.learning_rate), oracle=oracle, code_rule=dip.fixed(jitter=0.0))
            stages.append(Stage(fit, DipProblem(jnp.clip(clean + draw, 0, 1), clean, clean), num_steps))
        else:
            problem = DipProblem(measurement + draw, measurement, clean, sigma=jnp.asarray(given.sigma[0]))
            stages.append(Stage(honest, problem, num_steps))
    return stages


class Progress(NamedTuple):
    """A staged fit on its way: all that a checkpoint holds."""

    stage: Int[Array, ""]
    step: Int[Array, ""]
    """Where the run is, a stage that ended early counting in full."""
    steps: Int[Array, "stages"]
    """Steps that each stage took."""
    state: DipState
    kept: list[Kept]
    """What each stage that has ended kept."""


class StagedJob:
    """The stages of a run, from where the checkpoint in its directory stands: a `loop.Job`."""

    def __init__(self, stages: list[Stage], workdir: Path, seed: int):
        self.stages, self.workdir = stages, workdir
        self.ends = np.cumsum([stage.num_steps for stage in stages]).tolist()
        state = stages[0].fit.init(stages[0].problem, jax.random.key(seed))
        zero = jnp.int32(0)
        self.progress = Progress(zero, zero, jnp.zeros(len(stages), jnp.int32), state, [state.kept] * len(stages))
        items = newest_items(workdir, self.items(), LOG)
        if items is not None:
            self.progress = checkpoints.unnumbered(items["train"], self.progress)
        self.step, self.total = int(self.progress.step), self.ends[-1]
        self.compiled: dict[int, Any] = {}

    def advance(self, count: int) -> tuple[int, int, dict[str, np.ndarray]]:
        """(stage, step before, curves) of a chunk, or of the rest of a stage; the next begins where its rule or its
        steps end it."""
        stage, _, steps, state, kept = self.progress
        i, before = int(stage), self.step
        fit, problem, most = self.stages[i]
        if before == self.ends[i] - most:
            state = fit.restart(problem, state)
        count = min(count, self.ends[i] - before)
        run = self.compiled.setdefault(id(fit), jax.jit(partial(advance_one, fit), static_argnums=2))
        state, curves = run(problem, state, count)
        curves = {name: np.asarray(curve) for name, curve in curves.items()}
        steps = steps.at[i].add(int(curves["active"].sum()))
        self.step = before + count
        if bool(state.stopped) or self.step == self.ends[i]:
            stage, self.step = stage + 1, self.ends[i]
            kept = [*kept[:i], state.kept, *kept[i + 1 :]]
        self.progress = Progress(stage, jnp.int32(self.step), steps, state, kept)
        return i, before, curves

    def report(self, chunk: tuple[int, int, dict[str, np.ndarray]], seconds: float) -> ChunkReport:
        """Rows of the curves that are shown, and a problem if a loss is not finite."""
        stage, before, curves = chunk
        active = np.flatnonzero(curves["active"])
        names = [name for name in curves if name != "active"]
        rows = [{"step": before + int(i) + 1, "stage": stage,
                 **{name: float(f"{curves[name][i]:.6g}") for name in names}}
                for i in active if is_shown(before + int(i) + 1, 0)]
        loss = curves["loss"][active]
        problem = None if np.isfinite(loss).all() else (
            f"the loss is not finite by step {before + len(active)}; lower --learning-rate")
        return ChunkReport(rows, f"stage {stage + 1} of {len(self.stages)}, loss {loss[-1]:.4g}", problem)

    def items(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"train": checkpoints.numbered(self.progress)}

    def score(self) -> Row:
        """Nothing: the newest checkpoint is the one that counts."""
        return {}

    def show(self) -> None:
        """Nothing on the way."""


def restore_in_stages(config: StagedConfig, run: StagedRun) -> str:
    """Fits all stages, or goes on doing so; returns what to tell the user. Raises UserError and Stopped."""
    devices.set_up()
    given = load_measurements(DipConfig(image=config.image, clean=config.clean, sigma=config.sigma, size=config.size,
                                        crop=config.crop, seed=config.seed))
    if len(given.names) > 1:
        raise UserError(f"a staged fit restores one picture; {config.image or config.clean} holds {len(given.names)}")
    if config.stop == "oracle" and given.clean is None:
        raise UserError("--stop oracle needs the clean picture; give it as --clean")
    stages = make_stages(config, given)
    size, channels = given.size, given.measurements.shape[-1]
    held, work = fit_cost.fit_bytes(DipConfig(code="image"), stages[0].fit, size, channels, 1)
    devices.check_memory(held + work // 2, f"a fit of {size[1]}x{size[0]} pixels with {config.layers} layers")
    with claimed_workdir("staged", run.workdir, run.resume) as workdir, writing(workdir):
        if run.resume:
            refuse_other_pixels(workdir, load_dip_config(workdir / "config.json", StagedConfig)[1], given)
        save_dip_config(config, workdir / "config.json", given.checksums)
        job, began = StagedJob(stages, workdir, config.seed), time.monotonic()
        again = f"python train.py staged --resume --workdir {shlex.quote(str(workdir))}"
        rows = run_to_end(job, workdir, Pace(CHUNK, SAVE_EVERY), again, LOG)
        return _report(config, given, stages, job.progress, rows, workdir, time.monotonic() - began)


def _report(
    config: StagedConfig, given: Measurements, stages: list[Stage], progress: Progress, rows: list[dict[str, Any]],
    workdir: Path, seconds: float,
) -> str:
    report: dict[str, Any] = {
        "stop": "oracle: TRAINED TOWARDS AND STOPPED BY THE CLEAN PICTURE, for study only"
        if config.stop == "oracle" else config.stop,
        "sigma": 255 * float(given.sigma[0]), "config": dataclasses.asdict(config), "notes": list(given.notes),
        "stages": [{"level": level, "steps": n} for level, n in zip(config.levels, progress.steps.tolist())],
        "seconds": round(seconds, 1)}
    shown = [[np.asarray(stage.problem.code), np.asarray(kept.output)] for stage, kept in zip(stages, progress.kept)]
    if given.clean is not None:
        report["measurement"] = psnr_and_ssim(given.clean[0], given.measurements[0])
        for row, (code, output) in zip(report["stages"], shown):
            row |= {"input": psnr_and_ssim(given.clean[0], code), "output": psnr_and_ssim(given.clean[0], output)}
        shown = [[*pair, given.clean[0]] for pair in shown]
    write_json(report, workdir / "results.json")
    write_picture(workdir / "restored.png", np.float32(shown[-1][1]), given.whites[0])
    write_restored(workdir, given.names, given.origins, [shown[-1][1]])
    sheet = np.stack([picture for row in shown for picture in row]).astype(np.float32)
    plots.picture(plots.tile(to_bytes(sheet), len(shown[0])), max(1, 256 // max(given.size))).save(
        workdir / "stages.png")
    known = given.clean is not None
    label, key = ("PSNR of output", "psnr") if known else ("misfit", "loss")
    plots.save_curves([row["step"] for row in rows], {label: [row[key] for row in rows]}, workdir / "curves.png",
                      log=not known, y_label="dB" if known else "")
    return _told(report, workdir)


def _told(report: dict[str, Any], workdir: Path) -> str:
    before = f"; measurement {report['measurement']['psnr']:.2f} dB" if "measurement" in report else ""
    lines = [f"stop rule: {report['stop']}; sigma {report['sigma']:.1f}{before}; {report['seconds']:.0f} s"]
    for row in report["stages"]:
        scores = (f"; input {row['input']['psnr']:.2f} dB, output {row['output']['psnr']:.2f} dB, SSIM "
                  f"{row['output']['ssim']:.3f}" if "output" in row else "")
        lines.append(f"stage of level {row['level']:g}: {row['steps']} steps{scores}")
    lines += [f"note: {note}" for note in report["notes"]]
    return "\n".join([*lines, f"Pictures: {workdir / 'restored.png'}, {workdir / 'stages.png'}"])
