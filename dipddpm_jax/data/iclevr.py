"""iCLEVR from the folder of someone who has it: objects.json, train.json and pictures of 320x240; and its label files.

The pictures are shrunk to 64x64, which does not keep their shape, once; the folder may then hold nothing else.
"""
import difflib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, UInt8
from PIL import Image
from tqdm import tqdm

from dipddpm_jax.data import prepared
from dipddpm_jax.data.dataset import Dataset, Description, MissingSplit
from dipddpm_jax.data.pictures import read_picture
from dipddpm_jax.data.scenes import OBJECTS
from dipddpm_jax.errors import UserError

SIZE = 64
_FOLDERS = (".", "iclevr", "downloads/manual")  # where the label files are looked for,
_PICTURES = (".", "images", "iclevr")  # and below that the pictures


class Originals(NamedTuple):
    """The pictures' files in the order of train.json, and which objects they show."""

    files: tuple[Path, ...]
    labels: Int32[np.ndarray, "n 24"]


def describe(name: str) -> Description:
    """Shape and labels."""
    return Description((SIZE, SIZE, 3), OBJECTS, several=True)


def load(name: str, split: str, data_dir: Path, image_size: int | None) -> Dataset:
    """The training pictures with multi-hot labels; UserError says what is missing, damaged or unknown."""
    if split != "train":
        raise MissingSplit("iclevr has pictures for training only: test.json and new_test.json are lists of labels")
    folder = prepared.find(name, data_dir)
    if folder is None:
        files = find(data_dir)
        folder = prepared.prepare(name, files, data_dir)
    if folder is None:
        found = originals(files)
        images, labels = np.stack(list(shrunk(found.files))), found.labels
    else:
        images, labels = prepared.decoded(folder, split)
    return Dataset(images, labels.astype(np.float32), OBJECTS, name)


def find(data_dir: Path) -> Path:
    """The folder with the label files. Raises UserError that says what belongs there."""
    for folder in (data_dir / f for f in _FOLDERS):
        if (folder / "train.json").is_file():
            return folder
    raise UserError(f"{data_dir} holds no train.json; iclevr needs a folder with objects.json, train.json and the "
                    "pictures that it names (CLEVR_train_*.png), given by --data-dir")


def originals(folder: Path) -> Originals:
    """What train.json names. Raises UserError for unknown objects, and pictures that are not there."""
    numbers = _read_json(folder / "objects.json")
    if numbers != {name: i for i, name in enumerate(OBJECTS)}:
        raise UserError(f"{folder / 'objects.json'} is not that of iCLEVR: it should number 24 objects from "
                        f"{OBJECTS[0]!r}: 0 to {OBJECTS[-1]!r}: 23")
    contents = _read_json(folder / "train.json")
    if not isinstance(contents, dict) or not contents:
        raise UserError(f"{folder / 'train.json'} should give for each picture's file the list of its objects")
    labels = multi_hot(folder / "train.json", contents, OBJECTS)
    first = next(iter(contents))
    pictures = next((folder / f for f in _PICTURES if (folder / f / first).is_file()), folder)
    missing = [file for file in contents if not (pictures / file).is_file()]
    if missing:
        raise UserError(f"{len(missing)} of the {len(contents)} pictures that train.json names are not in {pictures}; "
                        f"the first is {missing[0]}")
    return Originals(tuple(pictures / file for file in contents), labels.astype(np.int32))


def shrunk(files: Sequence[Path]) -> Iterator[UInt8[np.ndarray, "64 64 3"]]:
    """The pictures at 64x64, by PIL's bilinear filter, as the reference's resizing has it; with a progress bar."""
    for file in tqdm(files, desc="preparing iclevr", unit=" pictures", disable=None):
        yield np.array(Image.fromarray(read_picture(file)).resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def read_label_file(path: Path, names: tuple[str, ...]) -> Float32[np.ndarray, "n k"]:
    """The lists of labels in a file like test.json, as multi-hot rows over `names`.

    Raises UserError for a file that is not a list of lists, for empty lists, unknown names and names given twice.
    """
    entries = _read_json(path)
    if not isinstance(entries, list) or not entries:
        raise UserError(f'{path} should hold a list of lists of labels, such as [["{names[0]}"], ...]')
    return multi_hot(path, {f"list {i + 1}": entry for i, entry in enumerate(entries)}, names)


def rows(where: str, groups: Sequence[str], names: tuple[str, ...]) -> Float32[np.ndarray, "n k"]:
    """Groups of labels as a command line has them, such as "red cube,blue sphere", as multi-hot rows over `names`.

    Raises UserError for empty groups, unknown names and names given twice.
    """
    return multi_hot(where, {repr(group): [name.strip() for name in group.split(",")] for group in groups}, names)


def multi_hot(path: Path | str, entries: dict[str, Any], names: tuple[str, ...]) -> Float32[np.ndarray, "n k"]:
    """A row over `names` for each list of labels; UserError says where `path` has an empty one, or a wrong name."""
    number = {name: i for i, name in enumerate(names)}
    rows = np.zeros((len(entries), len(names)), np.float32)
    for row, (key, entry) in zip(rows, entries.items()):
        where = f"{path}, {key}"
        if not isinstance(entry, list) or not entry:
            raise UserError(f"{where}: it should be a list of at least one label, not {json.dumps(entry)[:40]}")
        for name in entry:
            if not isinstance(name, str) or name not in number:
                close = difflib.get_close_matches(str(name), names, 1)
                hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(names[:30])}"
                raise UserError(f"{where}: unknown label {name!r}; {hint}")
            if row[number[name]]:
                raise UserError(f"{where}: {name!r} is given twice; a picture shows an object once or not at all")
            row[number[name]] = 1
    return rows


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error})") from None
