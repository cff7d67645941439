"""Pictures of results: grids, animations, curves."""
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image as Pillow


def tile(images: UInt8[np.ndarray, "n h w c"], columns: int | None = None, gap: int = 2) -> UInt8[np.ndarray, "H W c"]:
    """Pictures side by side, `columns` to a row (default: as square as possible), on a grey ground."""
    n, h, w, c = images.shape
    columns = min(n, columns or int(np.ceil(np.sqrt(n))))
    rows = -(-n // columns)
    sheet = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, c), 128, np.uint8)
    for i, image in enumerate(images):
        y, x = gap + i // columns * (h + gap), gap + i % columns * (w + gap)
        sheet[y : y + h, x : x + w] = image
    return sheet


def stretched(images: Float[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w c"]:
    """System 001's frames: each picture from its own lowest value (0) to its highest (255), truncated."""
    shifted = images - images.min((1, 2, 3), keepdims=True)
    return (shifted * (255 / shifted.max((1, 2, 3), keepdims=True))).astype(np.uint8)


def picture(image: UInt8[np.ndarray, "h w c"], scale: int = 1) -> Pillow.Image:
    """For Pillow, magnified by a whole number."""
    image = np.repeat(np.repeat(image, scale, 0), scale, 1)
    return Pillow.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def fit_scale(image_side: int, wanted: int = 84) -> int:
    """The magnification at which small pictures can be looked at."""
    return max(1, wanted // image_side)


def save_grid(images: UInt8[np.ndarray, "n h w c"], path: Path, columns: int | None = None) -> None:
    """Writes a PNG grid."""
    picture(tile(images, columns), fit_scale(images.shape[1])).save(path)


def save_gif(
    frames: UInt8[np.ndarray, "frames n h w c"], path: Path, columns: int | None = None, hold: int = 15
) -> None:
    """Writes an endless animation of grids at 12 frames a second; the last one stays for `hold` more."""
    scale = fit_scale(frames.shape[2], 56)
    sheets = [picture(tile(frame, columns), scale) for frame in frames]
    # an adaptive palette of our own: Pillow's default for colour takes 50 times as long
    sheets = [s if s.mode == "L" else s.quantize(256, method=Pillow.Quantize.FASTOCTREE, dither=Pillow.Dither.NONE)
              for s in sheets]
    durations = [80] * (len(sheets) - 1) + [80 * (1 + hold)]
    sheets[0].save(path, save_all=True, append_images=sheets[1:], duration=durations, loop=0)


def save_curves(
    x: Sequence[int | float], curves: Mapping[str, Sequence[int | float | None]], path: Path, x_label: str = "step",
    y_label: str = "", log: bool = True, mark: int | float | None = None,
) -> None:
    """Writes a plot of one or more curves, with gaps where a value is None; `mark` draws a vertical line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, values in curves.items():
        known = [(a, b) for a, b in zip(x, values) if b is not None]
        if known:  # points too while they are few: one alone would not show as a line
            axes.plot(*zip(*known), label=name, marker="." if len(known) < 50 else None)
    if mark is not None:
        axes.axvline(mark, color="black", linestyle=":", linewidth=1)
    axes.set(xlabel=x_label, ylabel=y_label, yscale="log" if log else "linear")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
