"""Reading one picture file, and making a picture square."""
import contextlib
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from dipddpm_jax.errors import UserError


def read_picture(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """A PNG or JPEG file as RGB, upright; transparency is laid on white. UserError names a damaged file."""
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16 bits a pixel; convert() would clip instead of scaling
                image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as a picture ({error}); replace or remove it") from error


def drop_equal_channels(images: UInt8[np.ndarray, "n h w 3"]) -> UInt8[np.ndarray, "n h w c"]:
    """One channel if every picture is grey, else the three."""
    grey = (images[..., :1] == images[..., 1:]).all()
    return images[..., :1] if grey else images


def square(image: UInt8[np.ndarray, "h w c"], size: int) -> UInt8[np.ndarray, "size size c"]:
    """The shorter side resized to size (bilinear, antialiased, PIL's own rounding), then the centre."""
    grey = image.shape[-1] == 1
    fitted = ImageOps.fit(Image.fromarray(image[..., 0] if grey else image), (size, size), Image.Resampling.BILINEAR)
    return np.array(fitted).reshape(size, size, -1)


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
