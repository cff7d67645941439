"""Files of numbers in units of their own, as instruments write them: .npy, FITS (by astropy), TIFF with pages.

What is restored from them is written back as such a file, in its units and its type, beside the PNG to look at.
"""
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from dipddpm_jax.errors import UserError

FITS = (".fits", ".fit", ".fts")
TIFF = (".tif", ".tiff")
ARRAYS = (".npy", *FITS)


class Origin(NamedTuple):
    """The file that a picture came from, and what its numbers were there."""

    path: Path
    dtype: np.dtype
    axes: str  # of the file's array: hw, hwc, nhw or nhwc (n pages)
    black: float = 0.0  # the number that is 0 inside
    white: float = 1.0  # the number that is 1 inside
    channels: int = 1

    def numbers(self, values: Float[np.ndarray, "*axes"]) -> Shaped[np.ndarray, "*axes"]:
        """Values inside as the file's numbers: integers rounded and kept within their type, floats as they are."""
        found = self.black + values.astype(np.float64) * (self.white - self.black)
        if self.dtype.kind in "ui":
            limits = np.iinfo(self.dtype)
            found = np.clip(np.rint(found), limits.min, limits.max)
        return found.astype(self.dtype)


def load_array(path: Path) -> tuple[Shaped[np.ndarray, "n h w c"], str]:
    """The pages of a .npy or FITS file (its first array), and its axes: hw, pages nhw, or 1 or 3 channels last.

    Raises UserError for what is no such array, and for FITS without astropy.
    """
    try:
        array = np.load(path, allow_pickle=False) if path.suffix.lower() == ".npy" else _load_fits(path)
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise UserError(f"{path} cannot be read as an array ({error}); replace or remove it") from None
    channels = array.ndim > 2 and array.shape[-1] in (1, 3)
    axes = {2: "hw", 3: "hwc" if channels else "nhw", 4: "nhwc" if channels else ""}.get(array.ndim, "")
    if array.dtype.kind not in "uif" or not axes or 0 in array.shape:
        raise UserError(f"{path} holds {array.dtype} of shape {array.shape}; numbers are wanted, as (h, w), as pages "
                        "(n, h, w), or with 1 or 3 channels last")
    array = array.astype(array.dtype.newbyteorder("="))
    array = array if channels else array[..., None]
    return array if "n" in axes else array[None], axes


def _load_fits(path: Path) -> np.ndarray:
    with _fits().open(path) as units:
        found = next((unit.data for unit in units if getattr(unit, "is_image", False) and unit.data is not None), None)
        if found is None:
            raise ValueError("no picture in it")
        return np.array(found)


def _fits():
    try:
        from astropy.io import fits
    except ImportError:
        raise UserError("FITS files need astropy: pip install 'dipddpm_jax[fits]'") from None
    return fits


def tiff_pages(path: Path) -> tuple[list[int], bool]:
    """Which pages of a TIFF file can be restored together, those of the first one's size and type, and whether their
    numbers are integers with a sign."""
    import tifffile  # scikit-image brings it

    try:
        with tifffile.TiffFile(path) as file:
            first = file.pages[0]
            alike = [i for i, page in enumerate(file.pages) if (page.shape, page.dtype) == (first.shape, first.dtype)]
            return alike, first.dtype.kind == "i"
    except Exception:  # noqa: BLE001 - whoever reads the pixels says what is wrong with the file
        return [0], False


def write_array(path: Path, pages: Shaped[np.ndarray, "n h w c"], origin: Origin) -> None:
    """Writes pages in the file's own numbers and axes; FITS keeps the header of the original if the size is the same.
    Raises OSError."""
    array = pages if "c" in origin.axes else pages[..., 0]
    array = array if "n" in origin.axes else array[0]
    if path.suffix.lower() == ".npy":
        np.save(path, array)
    elif path.suffix.lower() in TIFF:
        import tifffile

        colours = "c" in origin.axes and pages.shape[-1] == 3
        tifffile.imwrite(path, array, photometric="rgb" if colours else "minisblack")
    else:
        fits, header = _fits(), None
        if origin.path.is_file() and fits.getdata(origin.path).shape == array.shape:
            header = fits.getheader(origin.path)
        unit = fits.PrimaryHDU(array, header)
        unit.header["HISTORY"] = "restored by dipddpm_jax; config.json and results.json beside it say how"
        unit.writeto(path, overwrite=True)


def write_restored(
    workdir: Path, names: Sequence[str], origins: Sequence[Origin | None], pictures: Sequence[np.ndarray]
) -> None:
    """Writes the restored pictures (h, w, c) that came from files of numbers: restored.npy, .fits or .tif beside a
    picture's PNG, and the pages of one file as one file in `workdir`. Raises OSError."""
    files: dict[Path, list[int]] = {}
    for i, origin in enumerate(origins):
        if origin is not None:
            files.setdefault(origin.path, []).append(i)
    for path, pages in files.items():
        origin = origins[pages[0]]
        assert origin is not None
        alone = len(pages) == len(names)
        folder = workdir if alone or len(pages) > 1 else workdir / names[pages[0]]
        stem = "restored" if alone or len(pages) == 1 else f"{names[pages[0]].rpartition('_')[0]}-restored"
        numbers = origin.numbers(np.stack([np.asarray(pictures[i], np.float32) for i in pages]))
        if "c" in origin.axes and origin.channels > numbers.shape[-1]:  # equal channels were restored as one
            numbers = np.repeat(numbers, origin.channels, -1)
        write_array(folder / f"{stem}{path.suffix.lower()}", numbers, origin)
