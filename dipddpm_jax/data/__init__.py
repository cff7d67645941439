"""Pictures for training: `load(name, split)` gives uint8 arrays, whatever they came from.

A set is a module with `load(name, split, data_dir, image_size) -> Dataset` and one row of `_MODULES`.
This file imports numpy only, so that the command line can name the sets at once.
"""
import difflib
import os
from importlib import import_module
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from dipddpm_jax import memory
from dipddpm_jax.errors import UserError

_MODULES = {
    "mnist5k": "mnist5k",
    "photo_crops": "photographs",
    "mnist": "prepared",
    "fashion_mnist": "prepared",
    "cifar10": "prepared",
    "scenes": "scenes",
    "iclevr": "iclevr",
}
NAMES = tuple(_MODULES)  # and "folder:PATH"
Split = Literal["train", "test"]


class MissingSplit(UserError):
    """The data set is sound but has no such split, as iCLEVR has no test pictures; damage is a plain UserError."""


class Dataset(NamedTuple):
    """Pictures 0..255 in a fixed order, with one class each, several (multi-hot), or no labels."""

    images: UInt8[np.ndarray, "n h w c"]
    labels: Int32[np.ndarray, "n"] | Float32[np.ndarray, "n k"] | None
    label_names: tuple[str, ...]
    name: str


def require_room(count: int, side: int, channels: int) -> None:
    """Raises UserError when `count` square pictures of bytes are more than this machine holds."""
    memory.require(count * side**2 * channels, f"{count} pictures of {side}x{side}")


def default_data_dir() -> Path:
    """Where TensorFlow Datasets keeps its data: $TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def load(
    name: str, split: Split = "train", data_dir: Path | None = None, image_size: int | None = None
) -> Dataset:
    """One of NAMES or "folder:PATH", as squares of image_size if given; UserError says what is missing or damaged."""
    if split not in ("train", "test"):
        raise UserError(f"there is no split {split!r}; the splits are train and test")
    if image_size is not None and image_size < 1:
        raise UserError(f"the image size must be positive, not {image_size}")
    module = "folder" if name.startswith("folder:") else _MODULES.get(name)
    if module is None:
        close = difflib.get_close_matches(name, NAMES, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"unknown data set {name!r}: {hint}Known are {', '.join(NAMES)}, and folder:PATH")
    data_dir = default_data_dir() if data_dir is None else data_dir.expanduser()
    dataset = import_module(f"dipddpm_jax.data.{module}").load(name, split, data_dir, image_size)
    if image_size is None or dataset.images.shape[1:3] == (image_size, image_size):
        return dataset
    from dipddpm_jax.data.pictures import square
    require_room(len(dataset.images), image_size, dataset.images.shape[-1])
    return dataset._replace(images=np.stack([square(image, image_size) for image in dataset.images]))
