"""Any folder of pictures as a data set, "folder:PATH": what its subfolders mean, which files count, and what is left.

Subfolders called train and test (or val) are splits, others are classes. Links are followed.
"""
import difflib
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from dipddpm_jax.data import require_room
from dipddpm_jax.data.dataset import Dataset, MissingSplit
from dipddpm_jax.data.pictures import Picture, drop_equal_channels, read_bytes, read_float, same_white, square, to_bytes
from dipddpm_jax.errors import UserError

TRAINING = ("train", "training")
HELD_OUT = ("test", "testing", "val", "valid", "validation")  # the first that is there is the test split
NO_PIXELS = {".bufr", ".grib", ".h5", ".hdf", ".mpeg", ".mpg", ".ps", ".eps", ".wmf", ".emf"}  # to Pillow


class Chosen(NamedTuple):
    """The pictures of one split, and what of the folder is left out of both."""

    root: Path
    files: list[Path]  # relative to root
    classes: tuple[str, ...]
    left: list[str]  # phrases, such as "3 files that are no pictures (.txt)"


def picture_suffixes() -> frozenset[str]:
    """The endings of all files that Pillow reads."""
    Image.init()
    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN) - NO_PIXELS


def picture_files(folder: Path, more: Sequence[str] = ()) -> list[Path]:
    """Paths of the pictures relative to the folder, at any depth, sorted, and of files that end in one of `more`; what
    is hidden is passed over."""
    return _pictures_and_others(folder, more)[0]


def _pictures_and_others(folder: Path, more: Sequence[str] = ()) -> tuple[list[Path], Counter[str]]:
    """The pictures' relative paths, and how many other files there are of each ending."""
    suffixes, pictures, others = picture_suffixes() | set(more), [], Counter()
    for path in _files(folder, frozenset()):
        if path.suffix.lower() in suffixes and path.is_file():
            pictures.append(path.relative_to(folder))
        else:
            others["broken links" if not path.exists() else path.suffix.lower() or path.name] += 1
    return sorted(pictures, key=Path.as_posix), others


def _files(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    """All files below a folder. A link to a folder is followed unless it leads back to one that it lies in."""
    try:
        status = folder.stat()
        here = status.st_dev, status.st_ino
        if here in above:
            return
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror})") from None
    for entry in entries:
        if entry.is_dir():
            yield from _files(Path(entry.path), above | {here})
        else:
            yield Path(entry.path)


def _class_folders(files: Sequence[Path]) -> tuple[str, ...]:
    """The first subfolders, if there are at least two and most of the pictures lie in them."""
    inside = [path.parts[0] for path in files if len(path.parts) > 1]
    return tuple(sorted(set(inside))) if len(set(inside)) > 1 and 2 * len(inside) > len(files) else ()


def choose(folder: Path, split: str) -> Chosen:
    """The pictures of a split, "train" or "test". Raises UserError, and MissingSplit where it has none.

    Splits are subfolders of TRAINING and HELD_OUT; where the second is missing, every tenth picture is for test.
    """
    pictures, others = _pictures_and_others(folder)
    rest = sum(others.values())
    what = "files that are no pictures" if rest > 1 else "file that is no picture"
    left = [f"{rest} {what} ({_counts(others)})"] if rest else []
    if not pictures:
        raise UserError(f"{folder} holds no pictures" + (f", but {left[0]}" if left else ""))
    tops = {path.parts[0].lower(): path.parts[0] for path in pictures if len(path.parts) > 1}
    tops |= {p.name.lower(): p.name for p in folder.iterdir() if p.is_dir() and p.name.lower() in TRAINING + HELD_OUT}
    train, test = (next((tops[name] for name in names if name in tops), None) for names in (TRAINING, HELD_OUT))
    roots = [top for top in (train, test) if top]
    alone = all(path.parts[0] in roots for path in pictures)
    if (train and test) or (roots and alone):
        outside = Counter(f"in {path.parts[0]}" if len(path.parts) > 1 else f"beside {roots[0]}" for path in pictures
                          if path.parts[0] not in roots)
        left += [f"{_pictures(count)} {place}" for place, count in outside.items()]
        every = [Path(*path.parts[1:]) for path in pictures if path.parts[0] in roots]
        root = folder / ((test or train) if split == "test" else (train or ""))
        files = [path.relative_to(root.name) for path in pictures if path.parts[0] == root.name]
        by_tenths = test is None
    else:
        root, every, files, by_tenths = folder, pictures, pictures, True
    classes = _class_folders(every)
    if classes:
        strays = [path for path in every if len(path.parts) == 1]
        left += [f"{_pictures(len(strays))} beside the class folders (such as {strays[0]})"] if strays else []
        files = [path for path in files if len(path.parts) > 1]
    if by_tenths:
        files = [path for i, path in enumerate(files) if (i % 10 == 9) == (split == "test")]
    if not files:
        raise MissingSplit(f"{folder} has no pictures for {split}: the splits are every tenth picture, or the "
                           f"subfolders train and test (or val)")
    return Chosen(root, files, classes, left)


def _pictures(count: int) -> str:
    return f"{count} picture" + "s" * (count != 1)


def _counts(kinds: Counter[str]) -> str:
    shown = [f"{count} {kind}" for kind, count in kinds.most_common(6)]
    return ", ".join(shown + ["..."] * (len(kinds) > 6))


def load(name: str, split: str, data_dir: Path, image_size: int | None) -> Dataset:
    """The pictures as they are, or as squares of image_size, with one channel if all are grey.

    What was taken and what was left is said on stderr. Raises UserError for a damaged picture, which it names, and
    for pictures of several sizes without image_size; MissingSplit for a folder without pictures of the split.
    """
    if not name.removeprefix("folder:").strip():
        raise UserError("folder: names no folder; write folder:PATH")
    folder = Path(name.removeprefix("folder:")).expanduser()
    if not folder.is_dir():
        beside = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        close = difflib.get_close_matches(folder.name, beside, 1)
        hint = f"did you mean {folder.parent / close[0]}?" if close else "folder:PATH needs a folder of pictures"
        raise UserError(f"{folder} is not a folder; {hint}")
    chosen = choose(folder, split)
    images = read_all([chosen.root / path for path in chosen.files], image_size)
    kinds = _counts(Counter(path.suffix.lower() for path in chosen.files))
    what = f" of {len(chosen.classes)} classes" if chosen.classes else ""
    left = f"; left out: {'; '.join(chosen.left)}" if chosen.left else ""
    print(f"{name}, {split}: {_pictures(len(images))}{what} ({kinds}) of {images.shape[2]}x{images.shape[1]}{left}",
          file=sys.stderr)
    labels = [chosen.classes.index(path.parts[0]) for path in chosen.files] if chosen.classes else None
    return Dataset(images, None if labels is None else np.array(labels, np.int32), chosen.classes, name)


def read_all(paths: Sequence[Path], size: int | None) -> UInt8[np.ndarray, "n h w c"]:
    """Pictures as bytes, squares of `size` if given. Files of more than 8 bits share one white (see `same_white`).

    Raises UserError that names a damaged file, or two whose sizes differ; and when they are too many for the memory.
    """
    def read(path: Path) -> UInt8[np.ndarray, "h w 3"] | Picture:
        pixels = read_bytes(path)
        if pixels is not None:
            return pixels if size is None else square(pixels, size)
        picture = read_float(path)
        values = np.repeat(picture.values, 3 // picture.values.shape[-1], -1)
        return picture._replace(values=values if size is None else square(values, size), alpha=None)

    if size is not None:
        require_room(len(paths), size, size, 3)
    height, width = _shape(first := read(paths[0]))
    try:
        require_room(len(paths), height, width, 3)
    except UserError as error:
        raise UserError(f"{error}; --image-size N makes them N x N") from None
    pool = ThreadPoolExecutor()  # Pillow decodes outside the interpreter's lock
    try:
        bar = tqdm(pool.map(read, paths[1:]), desc=f"reading {paths[0].parent}", unit=" pictures", total=len(paths),
                   initial=1, disable=None, leave=False)
        found = [first]
        for path, picture in zip(paths[1:], bar):
            if _shape(picture) != (height, width):
                other = "x".join(map(str, _shape(picture)[::-1]))
                raise UserError(f"{path} has {other} pixels and {paths[0]} {width}x{height}; --image-size N makes all "
                                "pictures N x N")
            found.append(picture)
    finally:
        pool.shutdown(cancel_futures=True)
    deep = {i: picture for i, picture in enumerate(found) if isinstance(picture, Picture)}
    for i, picture in zip(deep, same_white(list(deep.values()))):
        found[i] = to_bytes(picture.values)
    return drop_equal_channels(np.stack(found))


def _shape(picture: UInt8[np.ndarray, "h w 3"] | Picture) -> tuple[int, int]:
    return (picture.values if isinstance(picture, Picture) else picture).shape[:2]
