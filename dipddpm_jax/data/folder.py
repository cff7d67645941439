"""Any folder of PNG or JPEG files as a data set: "folder:PATH"."""
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dipddpm_jax.data import Dataset, MissingSplit, require_room
from dipddpm_jax.data.pictures import drop_equal_channels, read_picture, square
from dipddpm_jax.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg")


def picture_files(folder: Path) -> list[Path]:
    """Paths of the pictures relative to the folder, at any depth, sorted; hidden files are passed over."""
    found = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    return sorted((p.relative_to(folder) for p in found if p.is_file()), key=Path.as_posix)


def class_names(files: list[Path]) -> tuple[str, ...]:
    """The subfolders, if every picture is in one and exactly one level deep; otherwise nothing."""
    return tuple(sorted({p.parts[0] for p in files})) if all(len(p.parts) == 2 for p in files) else ()


def load(name: str, split: str, data_dir: Path, image_size: int | None) -> Dataset:
    """Squares of image_size (32 pixels by default), with one channel if all are grey; subfolders are classes.

    The splits are the subfolders train/ and test/ if both exist; otherwise every tenth picture is for test.
    """
    folder = Path(name.removeprefix("folder:")).expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; folder:PATH needs a folder of PNG or JPEG files")
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        root, every = folder / split, picture_files(folder / "train") + picture_files(folder / "test")
        files = picture_files(root)
    else:
        root, every = folder, picture_files(folder)
        files = [p for i, p in enumerate(every) if (i % 10 == 9) == (split == "test")]
    if not every:
        raise UserError(f"{folder} holds no pictures; files ending in {', '.join(SUFFIXES)} are looked for")
    if not files:
        raise MissingSplit(f"{folder} has no pictures for {split}: every tenth picture is taken, or all those in"
                        f" {folder / split} if both {folder / 'train'} and {folder / 'test'} exist")
    require_room(len(files), image_size or 32, 3)
    bar = tqdm(files, desc=f"reading {root}", unit=" pictures", disable=None, leave=False)
    images = np.stack([square(read_picture(root / path), image_size or 32) for path in bar])
    classes = class_names(every)
    labels = np.array([classes.index(p.parts[0]) for p in files], np.int32) if classes else None
    return Dataset(drop_equal_channels(images), labels, classes, name)
