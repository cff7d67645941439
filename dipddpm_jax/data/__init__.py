"""Pictures for training: `load(name, split)` gives uint8 arrays, whatever they came from.

A set is a module with `load(name, split, data_dir, image_size) -> Dataset` and `describe(name) -> Description`, and one
row in config/datasets.py. A user's own is a folder, an .npz file, or a function. This file imports numpy only.
"""
import os
from importlib import import_module
from pathlib import Path

import numpy as np

from dipddpm_jax import memory
from dipddpm_jax.config.datasets import MODULES, NAMES, OWN, own_module
from dipddpm_jax.data.dataset import Dataset, Description, MissingSplit, Split, from_arrays, hold_out
from dipddpm_jax.errors import UserError, closest

__all__ = ["NAMES", "Dataset", "Description", "MissingSplit", "Split", "default_data_dir", "describe", "from_arrays",
           "hold_out", "load", "require_room"]


def require_room(count: int, height: int, width: int, channels: int) -> None:
    """Raises UserError when `count` pictures of bytes are more than this machine holds."""
    memory.require(count * height * width * channels, f"{count} pictures of {width}x{height}")


def default_data_dir() -> Path:
    """Where TensorFlow Datasets keeps its data: $TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def load(
    name: str, split: Split = "train", data_dir: Path | None = None, image_size: int | None = None
) -> Dataset:
    """One of NAMES, "folder:PATH", "FILE.npz" or "MODULE:FUNCTION", as squares of image_size if given.

    Raises MissingSplit where a sound set has no such split, and UserError for what is unknown, missing or damaged.
    """
    if split not in ("train", "test"):
        raise UserError(f"there is no split {split!r}; the splits are train and test")
    if image_size is not None and image_size < 1:
        raise UserError(f"the image size must be positive, not {image_size}")
    module = MODULES.get(name) or own_module(name)
    if module is None:
        raise UserError(f"unknown data set {name!r}: {_closest(name)}Known are {', '.join(NAMES)}, {OWN}")
    data_dir = default_data_dir() if data_dir is None else data_dir.expanduser()
    dataset = import_module(f"dipddpm_jax.data.{module}").load(name, split, data_dir, image_size)
    if image_size is None or dataset.images.shape[1:3] == (image_size, image_size):
        return dataset
    from dipddpm_jax.data.pictures import square
    require_room(len(dataset.images), image_size, image_size, dataset.images.shape[-1])
    return dataset._replace(images=np.stack([square(image, image_size) for image in dataset.images]))


def describe(name: str) -> Description | None:
    """Shape and labels of a set that need not be there; None for a user's own, which must be looked at."""
    return import_module(f"dipddpm_jax.data.{MODULES[name]}").describe(name) if name in MODULES else None


def _closest(name: str) -> str:
    """A question about what was perhaps meant; empty if nothing is near."""
    if Path(name).expanduser().is_dir():
        return f"did you mean folder:{name}? "
    if Path(f"{name}.npz").expanduser().is_file():
        return f"did you mean {name}.npz? "
    return closest(name, NAMES)
