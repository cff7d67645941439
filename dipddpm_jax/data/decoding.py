"""The numbers in a picture file at the depth in which they are stored, whatever Pillow itself makes of them.

Pillow has no mode for 16 bits in several channels and keeps their high bytes. Told that the file has the other byte
order, it keeps the low bytes: two readings give all 16 bits. TIFF files that Pillow does not know go to tifffile.
"""
import struct
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped
from PIL import Image, ImageOps, UnidentifiedImageError

from dipddpm_jax.errors import UserError

GREY = ("1", "L", "LA", "La", "F")  # and those that begin with I
OTHER_ORDER = {";16B": ";16L", ";16L": ";16B", ";16N": ";16B" if sys.byteorder == "little" else ";16L"}
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, KeyError, IndexError, TypeError, struct.error, zlib.error,
              Image.DecompressionBombError)  # what Pillow and tifffile raise for damaged files


class Stored(NamedTuple):
    """Colour and opacity as the file has them: uint8, uint16, uint32 or float; upright."""

    colour: Shaped[np.ndarray, "h w c"]  # 1 or 3 channels
    alpha: Shaped[np.ndarray, "h w 1"] | None  # in the same units as `colour`
    white: int | None  # the number that stands for white, where the format says so


def decode(path: Path, page: int = 0) -> Stored:
    """The picture in a file (if it holds several, that of the page). UserError names a damaged one."""
    try:
        with Image.open(path) as image:
            if page:
                image.seek(page)
            return _numbers(image, path, page)
    except UnidentifiedImageError as error:
        if path.suffix.lower() in (".tif", ".tiff"):
            return _by_tifffile(path, page)
        raise unreadable(path, error) from None
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> UserError:
    """The error for a file that is no picture."""
    return UserError(f"{path} cannot be read as a picture ({error}); replace or remove it")


def is_deep(image: Image.Image) -> bool:
    """True if an opened file holds more than 8 bits a channel."""
    raw = _raw_mode(image)
    return image.mode == "F" or image.mode.startswith("I") or raw[-4:] in OTHER_ORDER or _is_deep_ppm(image)


def _raw_mode(image: Image.Image) -> str:
    """How the file arranges its bytes, in Pillow's words."""
    args = image.tile[0].args if getattr(image, "tile", None) else ""
    return args if isinstance(args, str) else str(args[0]) if args else ""


def _is_deep_ppm(image: Image.Image) -> bool:
    """True for colours of 16 bits in a binary PPM file, which Pillow scales to 8."""
    return image.format == "PPM" and image.mode == "RGB" and image.tile[0].codec_name == "ppm" and (
        image.tile[0].args[1] > 255)


def _numbers(image: Image.Image, path: Path, page: int) -> Stored:
    raw = _raw_mode(image)
    hole = image.info.get("transparency")  # the one colour that is transparent
    if _is_deep_ppm(image):
        pixels = np.fromfile(path, ">u2", image.width * image.height * 3, offset=image.tile[0].offset)
        return Stored(pixels.reshape(image.height, image.width, 3).astype(np.uint16), None, image.tile[0].args[1])
    if image.mode in ("RGB", "RGBA") and raw[-4:] in OTHER_ORDER:
        return _sixteen_bits(path, page, image.mode, raw, hole)
    upright = ImageOps.exif_transpose(image)
    if image.mode[0] == "I" or image.mode == "F":
        colour = np.asarray(upright)[..., None]
        alpha = None if hole is None else (colour != hole) * np.asarray(65535, colour.dtype)
        if image.mode == "I" and raw.startswith("I;32") and not raw.endswith("S"):
            colour = colour.view(np.uint32)
        known = 4095 if raw == "I;12" else 65535 if image.format == "PPM" else None  # which Pillow scales to 65535
        return Stored(colour.astype(colour.dtype.newbyteorder("=")), alpha, known)
    if upright.has_transparency_data:
        pixels = np.array(upright.convert("RGBA"))
        return Stored(pixels[..., : 1 if image.mode in GREY else 3], pixels[..., 3:], 255)
    if image.mode in GREY:
        return Stored(np.array(upright.convert("L"))[..., None], None, 255)
    return Stored(np.array(upright.convert("RGB")), None, 255)


def _sixteen_bits(path: Path, page: int, mode: str, raw: str, hole: tuple[int, ...] | None) -> Stored:
    """Two to four channels of 16 bits, from two readings."""
    if raw == "LA;16B":  # read as if its four bytes a pixel were four channels
        bytes_ = _read_as(path, page, "RGBA").astype(np.uint16)
        pixels = bytes_[..., ::2] * 256 + bytes_[..., 1::2]
    else:
        high = np.asarray(_read_as(path, page, raw)).astype(np.uint16)
        pixels = high * 256 + _read_as(path, page, raw[:-4] + OTHER_ORDER[raw[-4:]])
    if mode == "RGBA":
        return Stored(pixels[..., :-1], pixels[..., -1:], None)
    alpha = None if hole is None else (pixels != np.array(hole)).any(-1, keepdims=True) * np.uint16(65535)
    return Stored(pixels, alpha, None)


def _read_as(path: Path, page: int, raw: str) -> Shaped[np.ndarray, "h w c"]:
    """The picture as Pillow reads it when told that its bytes are arranged as `raw`, a Pillow raw mode."""
    with Image.open(path) as image:
        if page:
            image.seek(page)
        image.tile = [tile._replace(args=raw if isinstance(tile.args, str) else (raw, *tile.args[1:]))
                      for tile in image.tile]
        return np.array(ImageOps.exif_transpose(image))


def _by_tifffile(path: Path, number: int) -> Stored:
    """TIFF files with float colours, float64, or grey and alpha of 16 bits. Raises UserError."""
    import tifffile  # scikit-image brings it

    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages[number]
            pixels = page.asarray()
            if page.axes.startswith("S"):  # a plane for each channel
                pixels = np.moveaxis(pixels, 0, -1)
    except (*UNREADABLE, tifffile.TiffFileError) as error:
        raise unreadable(path, error) from None
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.shape[-1] > 4 or pixels.dtype.kind not in "uif":
        raise UserError(f"{path} holds {pixels.dtype} of shape {pixels.shape}, not 1 to 4 channels of numbers")
    count = pixels.shape[-1]
    return Stored(pixels[..., : count - 1 + count % 2], None if count % 2 else pixels[..., -1:], None)
