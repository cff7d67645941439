"""Restoring pictures with a trained diffusion model as the prior (sample.py --restore)."""
import json
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import FlaxError

from dipddpm_jax import plots, records
from dipddpm_jax.commands.dip_report import enlarged, memory_peak, psnr_and_ssim
from dipddpm_jax.commands.measurements import Measurements, load_measurements, operator
from dipddpm_jax.commands.model import Model
from dipddpm_jax.commands.workdir import claimed_workdir
from dipddpm_jax.config.dip import DipConfig
from dipddpm_jax.config.restore_by_prior import PRIOR_METHODS, RestoreOptions, chosen_method
from dipddpm_jax.config.saved import RESTORED
from dipddpm_jax.data.pictures import to_bytes, write_picture
from dipddpm_jax.errors import UserError
from dipddpm_jax.files import write_text, writing
from dipddpm_jax.hybrids import ddnm, decoupled, diffpir, dps, pigdm, truncated_reverse
from dipddpm_jax.hybrids.prior import DiffusionPrior
from dipddpm_jax.inverse import noises, operators
from dipddpm_jax.inverse.measurement import Measurement, Restoration, Restore

MAKERS: dict[str, Callable[..., Restore]] = {
    "truncated": truncated_reverse.truncated_reverse, "ddnm": ddnm.ddnm, "diffpir": diffpir.diffpir, "dps": dps.dps,
    "pigdm": pigdm.pigdm, "matched": partial(pigdm.pigdm, variance=pigdm.matched_variance),
    "decoupled": decoupled.decoupled,
}


def make_restorer(prior: DiffusionPrior, options: RestoreOptions) -> Restore:
    """The restorer that a method's name stands for."""
    name = chosen_method(options)
    if name == "one-step":
        return truncated_reverse.one_step(prior)
    return MAKERS[name](prior, options.calls, options.samples)


def check_fit(model: Model, shape: tuple[int, int, int]) -> None:
    """Raises UserError for pictures of a size or number of channels that the model's network cannot take."""
    trained = model.facts.image_shape
    height, width, channels = shape
    said = f"the pictures have {width}x{height} pixels and {channels} channels, and this model was trained on " \
           f"{trained[1]}x{trained[0]} with {trained[2]}"
    if channels != trained[2]:
        raise UserError(f"{said}: the channels must be equal")
    try:
        out = jax.eval_shape(lambda x: model.apply(x, 1), jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    except (TypeError, ValueError, ZeroDivisionError, FlaxError):
        raise UserError(f"{said}: its network cannot take them") from None
    if out.shape != (1, *shape):
        raise UserError(f"{said}: its network cannot take them")


def restore_with_model(
    model: Model, source: str, options: RestoreOptions, config: DipConfig, out: Path | None, argv: list[str]
) -> str:
    """Restores the pictures and writes them; returns what to tell the user. Raises UserError."""
    given = load_measurements(config)
    shape = (*given.size, given.measurements.shape[-1])
    check_fit(model, shape)
    prior = DiffusionPrior(model.denoiser(), model.schedule, model.pixels)
    restore, began = make_restorer(prior, options), time.monotonic()
    observe = operator(config, given.size)
    with claimed_workdir("restored", out) as workdir, writing(workdir):
        record = {RESTORED: asdict(options), "weights": source, "method": chosen_method(options), "read":
                  given.checksums}
        write_text(workdir / "config.json", json.dumps(records.json_ready(record), indent=2) + "\n")
        rows = []
        for i in range(len(given.names)):
            known = None if given.known is None else jnp.asarray(given.known[i])
            measurement = Measurement(jnp.asarray(given.measurements[i]),
                                      observe if known is None else operators.masked(known),
                                      noises.Gaussian(float(given.sigma[i])))
            found = restore(measurement, jax.random.fold_in(jax.random.key(config.seed), i))
            rows.append(_write(workdir, given, i, found, measurement))
        report = {"prior": source, "method": f"{chosen_method(options)}: {PRIOR_METHODS[chosen_method(options)].what}",
                  "pictures": rows, "notes": list(given.notes), "seconds": round(time.monotonic() - began, 1),
                  "peak_memory_bytes": memory_peak(),
                  **records.provenance(config.seed, shlex.join(["python", "sample.py", *argv]))}
        records.write_json(report, workdir / "results.json")
    return _described(report, given, workdir)


def _write(workdir: Path, given: Measurements, i: int, found: Restoration, measurement: Measurement) -> dict[str, Any]:
    """Pictures of one restoration; returns its row of results.json. Raises UserError when it is not finite."""
    restored = np.asarray(found.picture, np.float32)
    if not np.isfinite(restored).all():
        raise UserError(f"{given.names[i]} came out as NaN or infinite; another --method may help")
    folder = workdir if len(given.names) == 1 else workdir / given.names[i]
    folder.mkdir(exist_ok=True)
    residual = np.asarray(measurement.operator.forward(found.picture)) - given.measurements[i]
    parts = {"measurement": given.measurements[i], "restored": restored}
    row: dict[str, Any] = {"picture": given.names[i], "sigma": 255 * float(given.sigma[i]), "calls":
                           found.evidence.calls, "residual": 255 * float(np.sqrt(np.mean(residual**2)))}
    if found.spread is not None:
        spread = np.asarray(found.spread, np.float32)
        row["uncertainty"] = {"mean": float(spread.mean()), "white": float(spread.max())}
        parts["uncertainty"] = spread / max(float(spread.max()), 1e-9)
    if given.clean is not None:
        parts["clean"] = given.clean[i]
        row |= {"restored": psnr_and_ssim(given.clean[i], restored),
                "measurement": psnr_and_ssim(given.clean[i], enlarged(parts["measurement"], given.size))}
    for name, part in parts.items():
        write_picture(folder / f"{name}.png", np.asarray(part, np.float32), given.whites[i])
    tiles = np.stack([to_bytes(np.asarray(enlarged(part, given.size), np.float32)) for part in parts.values()])
    plots.picture(plots.tile(tiles, len(tiles)), max(1, 256 // max(given.size))).save(folder / "comparison.png")
    return row


def _described(report: dict[str, Any], given: Measurements, workdir: Path) -> str:
    lines = [f"{report['method']}; prior: {report['prior']}; {report['seconds']:.0f} s"]
    for row in report["pictures"]:
        text = (f"{row['picture']}: sigma {row['sigma']:.1f}, residual {row['residual']:.1f} (of 255), {row['calls']} "
                "calls of the network")
        for key in ("measurement", "restored"):
            if key in row:
                text += f"; {key} {row[key]['psnr']:.2f} dB, SSIM {row[key]['ssim']:.3f}"
        lines.append(text)
    lines += [f"note: {note}" for note in report["notes"]]
    return "\n".join([*lines, f"Pictures: {workdir / 'comparison.png' if len(given.names) == 1 else workdir}"])
