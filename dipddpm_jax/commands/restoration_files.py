"""The files of restorations by a restorer: one that is no resumable fit, but a function (measurement, key)."""
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dipddpm_jax import plots, records
from dipddpm_jax.commands.dip_report import enlarged, memory_peak, psnr_and_ssim
from dipddpm_jax.commands.measurements import Measurements, blended, made_black_again, noise_of, operator
from dipddpm_jax.commands.outcome import decibels
from dipddpm_jax.commands.workdir import claimed_workdir
from dipddpm_jax.config.dip import DipConfig
from dipddpm_jax.data.arrays import write_restored
from dipddpm_jax.data.pictures import to_bytes, write_picture
from dipddpm_jax.errors import UserError
from dipddpm_jax.files import write_text, writing
from dipddpm_jax.inverse import operators
from dipddpm_jax.inverse.measurement import Measurement, Restoration, Restore

FAR_OUT = 10  # from grey, white being 1: no restorer that works comes near it


def measurement_of(given: Measurements, i: int, config: DipConfig) -> Measurement:
    """The i-th measurement as restorers take it; equal operators are one, for which restorers are compiled once."""
    if given.known is None:
        observe = _operator(config, given.size)
    else:
        observe = _mask(given.known[i].astype(np.float32).tobytes(), given.known[i].shape)
    return Measurement(jnp.asarray(given.measurements[i]), observe, noise_of(config, given, i))


_operator = functools.lru_cache(1)(operator)


@functools.lru_cache(1)
def _mask(known: bytes, shape: tuple[int, ...]) -> operators.Operator:
    return operators.masked(jnp.asarray(np.frombuffer(known, np.float32).reshape(shape)))


def restore_and_write(
    restore_for: Callable[[int], Restore], given: Measurements, config: DipConfig, out: Path | None,
    record: dict[str, Any], report: dict[str, Any], command: str,
) -> str:
    """Restores the pictures by `restore_for(i)` and writes them with config.json (`record`) and results.json
    (`report` and what was measured); returns what to tell the user. Raises UserError; if that is for a later picture,
    the files of those before it are there, and results.json says which one it was."""
    began = time.monotonic()
    with claimed_workdir("restored", out) as workdir, writing(workdir):
        text = json.dumps(records.json_ready({**record, "read": given.checksums}), indent=2)
        rows, restored = [], []

        def write_report(*notes: str) -> dict[str, Any]:
            whole = {**report, "pictures": rows, "notes": [*given.notes, *notes],
                     "seconds": round(time.monotonic() - began, 1), "peak_memory_bytes": memory_peak(),
                     **records.provenance(config.seed, command)}
            records.write_json(whole, workdir / "results.json")
            return whole

        for i, name in enumerate(given.names):
            measurement = measurement_of(given, i, config)
            try:
                found = restore_for(i)(measurement, jax.random.fold_in(jax.random.key(config.seed), i))
                picture = made_black_again(config, given, i, np.asarray(found.picture))
                found = _with_blend(config.blend, found._replace(picture=jnp.asarray(picture)), given, i)
                if not i:  # what cannot be restored leaves nothing behind
                    write_text(workdir / "config.json", text + "\n")
                rows.append(_write(workdir, given, i, found, measurement))
            except UserError as error:
                if rows:
                    write_report(f"ended at {name}: {error}")
                raise
            restored.append(np.asarray(found.picture))
        write_restored(workdir, given.names, given.origins, restored)
        return _described(write_report(), given, workdir)


def _with_blend(share: float, found: Restoration, given: Measurements, i: int) -> Restoration:
    """The restoration with a share of the measurement mixed back in, whose error is not known."""
    if not share:
        return found
    known = None if given.known is None else given.known[i]
    spread = None if found.spread is None else blended(share, np.asarray(found.spread), 0.0, known)
    picture = blended(share, np.asarray(found.picture), given.measurements[i], known)
    return found._replace(picture=jnp.asarray(picture), spread=spread, evidence=found.evidence._replace(error=None))


def _write(workdir: Path, given: Measurements, i: int, found: Restoration, measurement: Measurement) -> dict[str, Any]:
    """Pictures of one restoration; returns its row of results.json. Raises UserError when it is not finite, or too far
    from black and white to be a picture."""
    restored = np.asarray(found.picture, np.float32)
    if not np.isfinite(restored).all():
        raise UserError(f"{given.names[i]} came out as NaN or infinite; another --method may help")
    if np.abs(restored - 0.5).max() > FAR_OUT:
        raise UserError(f"{given.names[i]} came out with numbers from {restored.min():.3g} to {restored.max():.3g}, "
                        "black being 0 and white 1: the method diverged; another --method (weighted, pigdm) may help")
    folder = workdir if len(given.names) == 1 else workdir / given.names[i]
    folder.mkdir(exist_ok=True)
    residual = np.asarray(measurement.operator.forward(found.picture)) - given.measurements[i]
    parts = {"measurement": given.measurements[i], "restored": restored}
    row: dict[str, Any] = {"picture": given.names[i], "sigma": 255 * float(given.sigma[i]),
                           "residual": 255 * float(np.sqrt(np.mean(residual**2)))}
    for name in ("calls", "steps"):
        if count := getattr(found.evidence, name):
            row[name] = count
    if found.evidence.error is not None and (given.known is not None or measurement.operator == operators.identity):
        row["estimated_psnr"] = decibels(found.evidence.error)
    if found.evidence.weights:
        row["weights"] = {name: round(weight, 3) for name, weight in found.evidence.weights.items()}
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
    prior = f"; prior: {report['prior']}" if "prior" in report else ""
    lines = [f"{report['method']}{prior}; {report['seconds']:.0f} s"]
    for row in report["pictures"]:
        text = f"{row['picture']}: sigma {row['sigma']:.1f}, residual {row['residual']:.1f} (of 255)"
        text += f", {row['calls']} calls of the network" if "calls" in row else ""
        for key in ("measurement", "restored"):
            if key in row:
                text += f"; {key} {row[key]['psnr']:.2f} dB, SSIM {row[key]['ssim']:.3f}"
        if row.get("estimated_psnr") is not None:
            text += f"; {row['estimated_psnr']:.1f} dB estimated without the clean picture"
        if "weights" in row:
            parts = [f"{name} {weight:.2f}" for name, weight in row["weights"].items() if weight]
            text += f"; average of {', '.join(parts)}"
        lines.append(text)
    lines += [f"note: {note}" for note in report["notes"]]
    return "\n".join([*lines, f"Pictures: {workdir / 'comparison.png' if len(given.names) == 1 else workdir}"])
