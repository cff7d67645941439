"""Picture files as numbers: read at their full depth, written in the units they came in, made square."""
import contextlib
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Shaped, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from dipddpm_jax.data import decoding
from dipddpm_jax.data.arrays import ARRAYS, TIFF, Origin, load_array, tiff_pages
from dipddpm_jax.errors import UserError

# White of 16- and 32-bit files: the first of these that is not below the largest number in the file.
WHITES = (255, 1023, 4095, 16383, 65535, 2**24 - 1, 2**31 - 1, 2**32 - 1)
# White of float files: the first of which no number is more than the double, since noise goes beyond white.
FLOAT_WHITES = (1, 255, 4095, 65535)


class Picture(NamedTuple):
    """The pixels of a file: 0 is black and 1 white; of a float file they may lie outside [0, 1]."""

    values: Float32[np.ndarray, "h w c"]
    """One channel if the file is grey, else three; what is transparent is laid on white."""
    alpha: Float32[np.ndarray, "h w 1"] | None
    """Opacity in [0, 1]; None if the file has none."""
    white: float
    """The number in the file that is 1 here: 255 for 8 bits, 4095 for 12 bits in a file of 16, ..."""
    kind: str
    """How the file stores a number: uint8, uint16, uint32 or float; of an array its type."""
    black: float = 0.0
    """The number in the file that is 0 here; of arrays the lowest, since they may stand for anything."""
    origin: Origin | None = None
    """What a file of numbers was, so that it can be written back as such; None for pictures."""

    @property
    def range(self) -> str:
        """What was taken as black and white, to be told to the user."""
        low, high = (float(v) * (self.white - self.black) + self.black for v in (self.values.min(), self.values.max()))
        return f"{self.kind} from {low:.6g} to {high:.6g}, black is {self.black:g} and white {self.white:g}"


def read_pages(path: Path) -> list[Picture]:
    """All pictures of a file: pages of TIFF, .npy and FITS, one of any other. Pages share black and white: of arrays,
    of negative integers, and of floats that fill no usual range, their lowest and highest number. Raises UserError."""
    suffix = path.suffix.lower()
    if suffix in ARRAYS:
        array, axes = load_array(path)
        return _between_ends(path, array, array.dtype, axes)
    if suffix not in TIFF:
        return [read_float(path)]
    places, signed = tiff_pages(path)
    several = "n" if len(places) > 1 else ""
    if signed:
        array = np.stack([decoding.decode(path, page).colour for page in places])
        if array.min() < 0:
            return _between_ends(path, array, array.dtype, several + ("hwc" if array.shape[-1] == 3 else "hw"))
    pages = same_white([read_float(path, page) for page in places])
    axes = several + ("hwc" if pages[0].values.shape[-1] == 3 else "hw")
    numbers = np.stack([page.values * np.float64(page.white) for page in pages])
    if pages[0].kind == "float" and (numbers.max() < pages[0].white / 4 or numbers.min() < -pages[0].white):
        return _between_ends(path, numbers, np.dtype(np.float32), axes)
    dtype = np.dtype(np.float32 if pages[0].kind == "float" else pages[0].kind)
    return [page._replace(origin=Origin(path, dtype, axes, channels=page.values.shape[-1])) for page in pages]


def _between_ends(path: Path, array: Shaped[np.ndarray, "n h w c"], dtype: np.dtype, axes: str) -> list[Picture]:
    low, high = (0.0, 255.0) if dtype == np.uint8 else (float(array.min()), float(array.max()))
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UserError(f"{path} holds numbers that are not finite; a picture has none")
    if low == high:
        raise UserError(f"{path} holds one number only, {low:g}: there is nothing to restore")
    values = ((array.astype(np.float64) - low) / (high - low)).astype(np.float32)
    origin = Origin(path, dtype, axes, channels=array.shape[-1])
    return [Picture(page, None, high, dtype.name, low, origin) for page in values]


def read_float(path: Path, page: int = 0) -> Picture:
    """A picture of any mode at its full depth. Its white is the largest number that the depth in use can hold.

    That depth is 8, 10, 12, 14 or 16 bits (24 or 32), the smallest that holds every number of the file; an 8-bit file
    always uses all of it. Of floats, white is 1, 255, 4095 or 65535, the first of which no number is more than the
    double. UserError names a damaged file, and one with negative integers or numbers that are not finite.
    """
    colour, alpha, white = decoding.decode(path, page)
    kind = "float" if colour.dtype.kind == "f" else f"uint{8 * colour.itemsize}"
    low, high = colour.min(), colour.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UserError(f"{path} holds numbers that are not finite; a picture has none")
    if kind != "float" and low < 0:
        raise UserError(f"{path} holds integers from {low} to {high}; those of a picture are not negative")
    if white is None:
        reach, whites = (2, FLOAT_WHITES) if kind == "float" else (1, WHITES)
        white = next((w for w in whites if high <= reach * w), None)
    if white is None:
        raise UserError(f"{path} holds numbers up to {high:g}; a picture's white is at most {whites[-1]}")
    values = (colour / np.float64(white)).astype(np.float32)
    if alpha is None:
        return Picture(values, None, float(white), kind)
    full = 1 if alpha.dtype.kind == "f" else 255 if alpha.itemsize == 1 else 65535
    opacity = (alpha / np.float64(full)).astype(np.float32)
    return Picture(values * opacity + (1 - opacity), opacity, float(white), kind)


def same_white(pictures: Sequence[Picture]) -> list[Picture]:
    """Pictures that belong together, such as those of a folder: files of one kind share the largest white of them, and
    the lowest black."""
    ends = {kind: (min(p.black for p in pictures if p.kind == kind), max(p.white for p in pictures if p.kind == kind))
            for kind in {p.kind for p in pictures}}

    def between(picture: Picture) -> Picture:
        black, white = ends[picture.kind]
        if (picture.black, picture.white) == (black, white):
            return picture
        numbers = picture.values.astype(np.float64) * (picture.white - picture.black) + picture.black
        values = ((numbers - black) / (white - black)).astype(np.float32)
        return picture._replace(values=values, black=black, white=white)

    return [between(picture) for picture in pictures]


def read_bytes(path: Path) -> UInt8[np.ndarray, "h w 3"] | None:
    """A file of 8 bits as RGB, upright; transparency is laid on white. None for a file that has more than 8 bits."""
    try:
        with Image.open(path) as image:
            if decoding.is_deep(image):
                return None
            image = ImageOps.exif_transpose(image)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.array(image.convert("RGB"))
    except UnidentifiedImageError:
        return None  # `read_float` knows more kinds
    except decoding.UNREADABLE as error:
        raise decoding.unreadable(path, error) from error


def read_picture(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """A picture of any depth as 8-bit RGB, upright, with transparency laid on white. UserError names a damaged file."""
    pixels = read_bytes(path)
    if pixels is None:
        values = read_float(path).values
        pixels = np.repeat(to_bytes(values), 3 // values.shape[-1], -1)
    return pixels


def to_bytes(values: Float[np.ndarray, "*axes"]) -> UInt8[np.ndarray, "*axes"]:
    """[0, 1] to 0..255, rounded; what lies outside is clipped."""
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def known_pixels(path: Path) -> Float32[np.ndarray, "h w 1"]:
    """What a mask file says: 1 where it is opaque and at least half as bright as its brightest pixel, 0 elsewhere.

    Raises UserError for a damaged file, and for a mask by which nothing, or everything, is known.
    """
    colour, alpha = (load_array(path)[0][0], None) if path.suffix.lower() in ARRAYS else decoding.decode(path)[:2]
    bright = colour.mean(-1, keepdims=True, dtype=np.float64)
    known = (2 * bright >= bright.max()) & (bright > 0)
    if alpha is not None:
        known &= 2.0 * alpha >= (1 if alpha.dtype.kind == "f" else 255 if alpha.itemsize == 1 else 65535)
    if known.all() or not known.any():
        state = "white" if known.all() else "black or transparent"
        raise UserError(f"{path} is {state} everywhere; in a mask, white is known, black and transparent unknown")
    return known.astype(np.float32)


def write_picture(path: Path, values: Float32[np.ndarray, "h w c"], white: float = 255.0) -> None:
    """A PNG of 8 bits, or of 16 where `white` (as `read_float` gives it) does not fit into 8: numbers as they came in.

    One channel (grey), two (with alpha), three or four; what lies outside [0, 1] is clipped. Raises OSError.
    """
    if white == 255:
        pixels = to_bytes(values)
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path, "PNG")
        return
    scale = white if 255 < white <= 65535 else 65535  # floats, and integers of 32 bits, use the whole of 16
    pixels = np.rint(np.clip(values, 0, 1).astype(np.float64) * scale).astype(np.uint16)
    height, width, channels = pixels.shape
    # Pillow writes no 16-bit colours. Rows hold differences to the pixel on the left (filter 1, "Sub", byte by byte).
    rows = pixels.astype(">u2").view(np.uint8).reshape(height, width, 2 * channels)
    rows = np.concatenate([rows[:, :1], rows[:, 1:] - rows[:, :-1]], 1).reshape(height, -1)
    body = zlib.compress(np.concatenate([np.full((height, 1), 1, np.uint8), rows], 1).tobytes())
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    chunks = (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)), (b"IDAT", body), (b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks))


def drop_equal_channels(
    images: UInt8[np.ndarray, "n h w c"] | Float32[np.ndarray, "n h w c"]
) -> UInt8[np.ndarray, "n h w d"] | Float32[np.ndarray, "n h w d"]:
    """One channel if every picture is grey, else all of them."""
    return images[..., :1] if (images[..., :1] == images).all() else images


def square(
    image: UInt8[np.ndarray, "h w c"] | Float32[np.ndarray, "h w c"], size: int
) -> UInt8[np.ndarray, "size size c"] | Float32[np.ndarray, "size size c"]:
    """The shorter side resized to size (bilinear, antialiased; bytes by PIL's own rounding), then the centre."""
    if image.dtype == np.uint8 and image.shape[-1] != 1:
        return np.array(ImageOps.fit(Image.fromarray(image), (size, size), Image.Resampling.BILINEAR))
    planes = (Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(image, -1, 0))
    return np.stack([np.array(ImageOps.fit(p, (size, size), Image.Resampling.BILINEAR)) for p in planes], -1)


def kept(path: Path, source: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What make() gives, from the .npz file at path if that was made from the same source; else it is written there."""
    with contextlib.suppress(OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile), np.load(path) as stored:
        if stored["source"] == source:
            return {name: stored[name] for name in stored.files if name != "source"}
    arrays = make()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):  # a read-only or full disk costs time, nothing else
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                np.savez(file, **arrays, source=source)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return arrays
