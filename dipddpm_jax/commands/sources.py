"""The pictures that a restoration is made from: a file, a folder, or a photograph of scikit-image, in [0, 1]."""
import difflib
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np
from jaxtyping import Float

from dipddpm_jax import memory
from dipddpm_jax.data.arrays import ARRAYS, Origin
from dipddpm_jax.data.folder import picture_files
from dipddpm_jax.data.photographs import PHOTOGRAPHS, photograph
from dipddpm_jax.data.pictures import Picture, drop_equal_channels, read_pages, same_white, square, to_bytes
from dipddpm_jax.errors import UserError
from dipddpm_jax.inverse.noise_level import estimate_sigma

LEAST_SIDE = 8  # pixels
LOOKED_AT = 1024  # side of the middle of a large picture whose noise stands for the whole
Pictures = Float[np.ndarray, "n h w c"]


class Source(NamedTuple):
    """Pictures of one size, and what was taken for them."""

    names: tuple[str, ...]
    pictures: Pictures
    whites: tuple[float, ...]  # the number in each file that is 1 here, as `data.pictures.write_picture` wants it
    origins: tuple[Origin | None, ...]  # of files of numbers: what they were there
    checksum: int  # CRC-32 of the pixels
    notes: tuple[str, ...]  # what the user should know about how they were read
    noise_change: tuple[float, float] | None  # deviation of the first one's noise before and after it was resized


def read_pictures(source: str, size: int | None = None, crop: int | None = None, scale: int = 1) -> Source:
    """Pictures from disk, resized to squares of side `size`, or cut to the middle square of side `crop` (at multiples
    of `scale` pixels, so that a picture of `scale` times lower resolution is cut alike). Raises UserError."""
    names, read = _find(source)
    if len(set(names)) < len(names):
        raise UserError(f"two pictures in {source} are both called {max(names, key=names.count)}")
    channels = max(picture.values.shape[-1] for picture in read)
    if size is not None:
        memory.require(16 * len(read) * channels * size**2, f"{len(read)} pictures of {size}x{size} (--size)")
    fitted = [_fit(picture, size, crop, scale, name) for picture, name in zip(read, names)]
    fitted = [np.repeat(values, channels // values.shape[-1], -1) for values in fitted]
    shapes = {values.shape[:2] for values in fitted}
    if len(shapes) > 1:
        sizes = ", ".join(f"{width}x{height}" for height, width in sorted(shapes)[:4])
        raise UserError(f"the pictures in {source} have different sizes ({sizes}); --size N makes them N x N")
    pictures = drop_equal_channels(np.stack(fitted))
    height, width = pictures.shape[1:3]
    if min(height, width) < LEAST_SIDE:
        raise UserError(f"{source} has {width}x{height} pixels; at least {LEAST_SIDE}x{LEAST_SIDE} are needed")
    taken = dict.fromkeys(f"{name}: {picture.range}" for name, picture in zip(names, read) if picture.kind != "uint8")
    change = None
    if size is not None and size != min(read[0].values.shape[:2]):
        change = estimate_sigma(middle(read[0].values)), estimate_sigma(fitted[0])
    whites = tuple(1.0 if p.origin and p.origin.path.suffix.lower() in ARRAYS else p.white for p in read)
    origins = tuple(p.origin and p.origin._replace(black=p.black, white=p.white) for p in read)
    return Source(names, pictures, whites, origins, checksum(pictures), tuple(taken)[:5], change)


def checksum(array: np.ndarray) -> int:
    """CRC-32 of the shape and the values."""
    return crc32(np.ascontiguousarray(array), crc32(repr(array.shape).encode()))


def cut(picture: Float[np.ndarray, "h w c"], side: int, scale: int = 1) -> Float[np.ndarray, "s s c"]:
    """The square of `side` pixels in the middle, its corner at a multiple of `scale`. Raises UserError."""
    height, width = picture.shape[:2]
    if min(height, width) < side:
        raise UserError(f"--crop {side // scale} is more than a picture of {width}x{height} pixels has")
    top, left = ((length - side) // scale // 2 * scale for length in (height, width))
    return picture[top : top + side, left : left + side]


def middle(picture: Float[np.ndarray, "h w c"]) -> Float[np.ndarray, "i j c"]:
    """The middle of a large picture, of which its noise is estimated; a small one as it is."""
    top, left = (max(length - LOOKED_AT, 0) // 2 for length in picture.shape[:2])
    return picture[top : top + LOOKED_AT, left : left + LOOKED_AT]


def _find(source: str) -> tuple[tuple[str, ...], list[Picture]]:
    path = Path(source).expanduser()
    if source in PHOTOGRAPHS and not path.exists():
        return (source,), [Picture(photograph(source).astype(np.float32) / 255, None, 255.0, "uint8")]
    if path.is_dir():
        files = picture_files(path, ARRAYS)
        if not files:
            raise UserError(f"{path} holds no pictures")
        pages = [(f.with_suffix("").as_posix().replace("/", "_"), read_pages(path / f)) for f in files]
    elif path.is_file():
        pages = [(path.stem, read_pages(path))]
    else:
        raise UserError(f"{source}: no such file, folder, or photograph; {_closest(source, path)}photographs are "
                        f"{', '.join(PHOTOGRAPHS)}")
    names = [name if len(found) == 1 else f"{name}_{i:0{len(str(len(found)))}d}"
             for name, found in pages for i in range(1, len(found) + 1)]
    return tuple(names), same_white([picture for _, found in pages for picture in found])


def _closest(source: str, path: Path) -> str:
    """A question about the file or photograph that was perhaps meant; empty if nothing is near."""
    beside = {str(path.parent / file.name): file.name for file in path.parent.iterdir()} if path.parent.is_dir() else {}
    known = {**{name: name for name in PHOTOGRAPHS}, **{name: full for full, name in beside.items()}}
    near = difflib.get_close_matches(path.name, known, 1)
    return f"did you mean {known[near[0]]}? " if near else ""


def _fit(picture: Picture, size: int | None, crop: int | None, scale: int, name: str) -> Float[np.ndarray, "h w c"]:
    if crop is not None:
        return cut(picture.values, crop, scale)
    if size is None:
        return picture.values
    if picture.kind == "uint8":  # rounded to bytes, as a resized file of 8 bits would be
        return square(to_bytes(picture.values), size).astype(np.float32) / 255
    return square(picture.values, size)
