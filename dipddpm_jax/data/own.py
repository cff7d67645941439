"""A user's own pictures: the arrays of an .npz file, or what a function gives."""
import traceback
import zipfile
from pathlib import Path

import numpy as np

from dipddpm_jax.config.own import own_function
from dipddpm_jax.data.dataset import Dataset, MissingSplit, from_arrays, hold_out
from dipddpm_jax.errors import UserError


def load(name: str, split: str, data_dir: Path, image_size: int | None) -> Dataset:
    """FILE.npz, of which a tenth is the test split, or MODULE:FUNCTION(split). Raises UserError and MissingSplit."""
    return _from_file(name, split) if name.endswith(".npz") else _from_function(name, split)


def _from_file(name: str, split: str) -> Dataset:
    path = Path(name).expanduser()
    try:
        with np.load(path) as file:
            held = sorted(file.files)
            arrays = {key: file[key] for key in ("images", "labels", "label_names") if key in held}
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except (OSError, EOFError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as an .npz file of numbers ({error})") from None
    if "images" not in arrays:
        raise UserError(f"{path} holds {', '.join(held) or 'nothing'}, but no array `images`; np.savez(FILE, "
                        "images=..., labels=...) writes one")
    names = [str(label) for label in arrays["label_names"].ravel()] if "label_names" in arrays else None
    dataset = hold_out(from_arrays(arrays["images"], arrays.get("labels"), names, name))[split == "test"]
    if not len(dataset.images):
        raise MissingSplit(f"{path} has fewer than ten pictures: none for test")
    return dataset


def _from_function(name: str, split: str) -> Dataset:
    function = own_function("--data", name)
    try:
        given = function(split)
    except UserError:
        raise
    except Exception as error:  # whatever the user's code raises
        line = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{line.filename}, line {line.lineno}"
        raise UserError(f"--data {name}: {type(error).__name__}: {error} ({where})") from error
    if given is None:
        raise MissingSplit(f"{name} has no pictures for {split}")
    if isinstance(given, Dataset):
        return from_arrays(given.images, given.labels, given.label_names or None, name)
    parts = given if isinstance(given, tuple) else (given,)
    if not 1 <= len(parts) <= 3 or not hasattr(parts[0], "shape"):
        raise UserError(f"--data {name} returned {type(given).__name__}; it should return (images, labels) or images, "
                        "as arrays")
    return from_arrays(*parts, name=name)
