"""What a restoration leaves in its directory: pictures at the depth they came in, results.json, curves.png, fit.gif."""
import resource
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from dipddpm_jax import devices, plots
from dipddpm_jax.commands.beside import means_beside
from dipddpm_jax.commands.measurements import Measurements
from dipddpm_jax.commands.outcome import Outcome, decibels, goes_on_by_patches
from dipddpm_jax.config.dip import AS_IT_IS, DipConfig
from dipddpm_jax.data.arrays import write_restored
from dipddpm_jax.data.pictures import read_picture, to_bytes, write_picture
from dipddpm_jax.records import write_json

OTHER = {"average": "output", "output": "average"}


def psnr_and_ssim(clean: Float[np.ndarray, "h w c"], picture: Float[np.ndarray, "h w c"]) -> dict[str, float]:
    """PSNR in dB and SSIM by scikit-image, of a picture clipped to [0, 1]."""
    picture = np.clip(picture, 0, 1).astype(np.float32)
    return {"psnr": float(peak_signal_noise_ratio(clean, picture, data_range=1)),
            "ssim": float(structural_similarity(clean, picture, data_range=1, channel_axis=-1))}


def enlarged(measurement: Float[np.ndarray, "i j c"], size: tuple[int, int]) -> Float[np.ndarray, "h w c"]:
    """A measurement of lower resolution, its pixels repeated, so that it can stand beside the restored picture."""
    scale = size[0] // measurement.shape[0]
    return np.repeat(np.repeat(measurement, scale, 0), scale, 1)


def memory_peak() -> int:
    """Bytes: of the device where it tells, else of this process."""
    return devices.peak_memory() or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def write_pictures(workdir: Path, config: DipConfig, given: Measurements, result: Outcome) -> list[dict[str, Any]]:
    """All pictures of a run; returns what results.json says about each. Raises OSError."""
    rows = []
    for i, name in enumerate(given.names):
        folder = workdir if len(given.names) == 1 else workdir / name
        folder.mkdir(exist_ok=True)
        restored, chosen = result.restored[i], result.chosen[i]
        parts = {"measurement": given.measurements[i], "restored": restored.mean(0),
                 OTHER[chosen]: result.other[i].mean(0)}
        row: dict[str, Any] = {
            "picture": name, "restored_is": chosen, "step": result.steps[i].tolist(),
            "stopped": result.stopped[i].tolist(), "sigma": 255 * float(given.sigma[i]),
            "estimated_psnr": decibels(float(result.error[i])) if config.task in AS_IT_IS else None,
            "estimated_of": "fits before nonlocal Bayes" if goes_on_by_patches(config, given) else "restored"}
        if config.task == "denoise" and not config.peak and given.known is None and given.sigma[i] > 0:
            simple = means_beside(given.measurements[i], float(given.sigma[i]))
            row["non_local_means"] = {"estimated_psnr": decibels(simple.error)}
            if given.clean is not None:
                row["non_local_means"] |= psnr_and_ssim(given.clean[i], simple.picture)
        if given.clean is not None:
            row |= {key: psnr_and_ssim(given.clean[i], parts[key]) for key in ("restored", OTHER[chosen])}
            row["measurement"] = psnr_and_ssim(given.clean[i], enlarged(parts["measurement"], given.size))
        sheet = dict(parts)
        if len(restored) > 1:
            spread = restored.std(0).mean(-1, keepdims=True)
            row["uncertainty"] = {"mean": float(spread.mean()), "white": float(spread.max())}
            sheet["uncertainty"] = np.repeat(spread / max(float(spread.max()), 1e-9), restored.shape[-1], -1)
            write_picture(folder / "uncertainty.png", sheet["uncertainty"])
        if given.clean is not None:
            parts["clean"] = sheet["clean"] = given.clean[i]
        for key, part in parts.items():
            write_picture(folder / f"{key}.png", part.astype(np.float32), given.whites[i])
        tiles = np.stack([to_bytes(enlarged(part, given.size).astype(np.float32)) for part in sheet.values()])
        plots.picture(plots.tile(tiles, len(tiles)), max(1, 256 // max(given.size))).save(folder / "comparison.png")
        rows.append(row)
    write_restored(workdir, given.names, given.origins, [restored.mean(0) for restored in result.restored])
    return rows


def write_report(
    workdir: Path, config: DipConfig, given: Measurements, result: Outcome, notes: list[str], seconds: float
) -> dict[str, Any]:
    """Pictures and results.json; returns what the latter holds. Raises OSError."""
    oracle = config.stop == "oracle"
    report = {"stop": "oracle: SAW THE CLEAN PICTURE, for study only" if oracle else config.stop,
              "pictures": write_pictures(workdir, config, given, result), "notes": notes, "seconds": round(seconds, 1),
              "peak_memory_bytes": memory_peak()}
    write_json(report, workdir / "results.json")
    return report


def plot_curves(workdir: Path, config: DipConfig, known: bool, rows: list[dict[str, Any]], mark: int) -> None:
    """curves.png of the first fit: PSNR where the clean picture is `known`, else the misfit and the rule's score."""
    first = [row for row in rows if row["fit"] == 0]
    if known:
        curves = {"PSNR of output": "psnr", "PSNR of average": "psnr_average"}
    else:
        curves = {"misfit": "loss", config.stop: "score"}
    plots.save_curves([row["step"] for row in first], {label: [row.get(key) for row in first]
                                                       for label, key in curves.items()},
                      workdir / "curves.png", log=not known, y_label="dB" if known else "", mark=mark)


def animate(workdir: Path) -> None:
    """fit.gif, of the frames that the run left."""
    if files := sorted((workdir / "frames").glob("*.png")):
        plots.save_gif(np.stack([read_picture(file) for file in files])[:, None], workdir / "fit.gif")


def _estimates(row: dict[str, Any]) -> list[str]:
    """A line on what is known without the clean picture, beside non-local means."""
    known = {row["estimated_of"]: row["estimated_psnr"],
             "non-local means": row.get("non_local_means", {}).get("estimated_psnr")}
    parts = [f"{name} {value:.2f} dB" for name, value in known.items() if value is not None]
    text = f"  estimated without the clean picture: {', '.join(parts)}" if parts else ""
    if "psnr" in row.get("non_local_means", {}):
        gain = row["restored"]["psnr"] - row["non_local_means"]["psnr"]
        text += f"; by the clean picture restored is {gain:+.2f} dB to non-local means"
    return [text] if text else []


def describe(report: dict[str, Any], given: Measurements, workdir: Path) -> str:
    """What came out, a line a picture, and what should be known about it."""
    made = "made from the clean picture" if given.degraded else "as given"
    lines = [f"stop rule: {report['stop']}; measurement {made}; {report['seconds']:.0f} s, "
             f"{report['peak_memory_bytes'] / 2**30:.2f} GB"]
    for row in report["pictures"]:
        steps = [step for repeat in row["step"] for step in repeat]
        more = f" and {len(steps) - 6} more" if len(steps) > 6 else ""
        text = f"{row['picture']}: kept step {', '.join(map(str, steps[:6]))}{more}, sigma {row['sigma']:.1f}"
        for key in ("measurement", "restored", "output", "average"):
            if isinstance(row.get(key), dict):
                text += f"; {key} {row[key]['psnr']:.2f} dB, SSIM {row[key]['ssim']:.3f}"
        lines += [text, *_estimates(row)]
    lines += [f"note: {note}" for note in report["notes"]]
    return "\n".join([*lines, f"Pictures: {workdir / 'comparison.png' if len(given.names) == 1 else workdir}"])
