"""System 002 as a command: one picture, one network, stages of falling noise.

The original trains towards the CLEAN picture and stops by the PSNR to it; here that is called oracle. The honest
version knows only the noisy picture: it is the target of every stage, and the input with more noise added to it.
"""
import dataclasses
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dipddpm_jax import devices, dip, plots
from dipddpm_jax.commands import fits, loop, measurements
from dipddpm_jax.commands.dip import psnr_and_ssim
from dipddpm_jax.config.dip import DipConfig, StagedConfig
from dipddpm_jax.data.pictures import to_bytes
from dipddpm_jax.dip import study
from dipddpm_jax.dip.fit import Dip, DipProblem
from dipddpm_jax.dip.staged import Stage, staged_fit
from dipddpm_jax.errors import UserError
from dipddpm_jax.networks import ConvStack

WIDTHS = {3: (64, 64), 4: (64, 128, 64), 5: (64, 128, 256, 128)}


def make_stages(config: StagedConfig, given: measurements.Measurements) -> list[Stage]:
    """The problems of a configuration, one for each noise level, for its first picture."""
    measurement, clean = (jnp.asarray(x[0]) for x in (given.measurements, given.clean))
    network = ConvStack(WIDTHS[config.layers], clean.shape[-1])
    steps = config.steps if len(config.steps) > 1 else config.steps * len(config.levels)
    key, stages = jax.random.key(config.seed), []
    for i, (level, num_steps) in enumerate(zip(config.levels, steps)):
        draw = level * jax.random.normal(jax.random.fold_in(key, i), clean.shape)
        if config.stop == "oracle":
            rule = partial(study.oracle_cumulative, num_steps=num_steps, patience=config.patience)
            fit = Dip(network, optax.adam(config.learning_rate), oracle=rule, code_rule=dip.fixed(jitter=0.0))
            problem = DipProblem(jnp.clip(clean + draw, 0, 1), clean, clean)
        else:
            rule = fits.make_rule(DipConfig(stop=config.stop, patience=10 * config.patience))
            fit = Dip(network, optax.adam(config.learning_rate), stopper=rule, code_rule=dip.fixed(jitter=0.0))
            problem = DipProblem(measurement + draw, measurement, clean, sigma=given.sigma[0])
        stages.append(Stage(fit, problem, num_steps))
    return stages


def restore_in_stages(config: StagedConfig, workdir: Path | None) -> str:
    """Fits all stages, writes stages.png, curves.png and results.json; returns what to tell. Raises UserError."""
    devices.set_up()
    given = measurements.load_measurements(
        DipConfig(image=config.image, clean=config.clean, sigma=config.sigma, size=config.size, seed=config.seed))
    if given.clean is None:
        raise UserError("staged fits are scored against the clean picture; give it as --clean")
    workdir = loop.new_workdir("staged", workdir)
    stages = make_stages(config, given)
    began = time.monotonic()
    state = stages[0].fit.init(stages[0].problem, jax.random.key(config.seed))
    _, kept = staged_fit(stages, state)
    report: dict[str, Any] = {
        "stop": "oracle: TRAINED TOWARDS AND STOPPED BY THE CLEAN PICTURE, for study only"
        if config.stop == "oracle" else config.stop,
        "measurement": psnr_and_ssim(given.clean[0], given.measurements[0]), "config": dataclasses.asdict(config),
        "stages": []}
    for level, stage, (result, curves) in zip(config.levels, stages, kept):
        report["stages"].append({
            "level": level, "steps": int(np.sum(curves["active"])),
            "input": psnr_and_ssim(given.clean[0], np.asarray(stage.problem.code)),
            "output": psnr_and_ssim(given.clean[0], np.asarray(result.output))})
    report["seconds"] = round(time.monotonic() - began, 1)
    return _write(report, given, stages, kept, workdir)


def _write(
    report: dict[str, Any], given: measurements.Measurements, stages: list[Stage], kept: list, workdir: Path
) -> str:
    (workdir / "results.json").write_text(json.dumps(report, indent=2, default=str) + "\n")
    rows = [np.asarray(picture) for stage, (result, _) in zip(stages, kept)
            for picture in (stage.problem.code, result.output, given.clean[0])]
    scale = max(1, 256 // max(given.size))
    plots.picture(plots.tile(to_bytes(np.stack(rows)), 3), scale).save(workdir / "stages.png")
    psnr = np.concatenate([np.asarray(curves["psnr"])[np.asarray(curves["active"])] for _, curves in kept])
    plots.save_curves(range(1, len(psnr) + 1), {"PSNR of output": psnr.tolist()}, workdir / "curves.png", log=False,
                      y_label="dB")
    lines = [f"stop rule: {report['stop']}; {report['seconds']:.0f} s",
             f"measurement: {report['measurement']['psnr']:.2f} dB"]
    lines += [f"stage of level {row['level']:g}: {row['steps']} steps; input {row['input']['psnr']:.2f} dB, output "
              f"{row['output']['psnr']:.2f} dB, SSIM {row['output']['ssim']:.3f}" for row in report["stages"]]
    return "\n".join([*lines, f"Pictures: {workdir / 'stages.png'}"])
