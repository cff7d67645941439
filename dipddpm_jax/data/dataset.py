"""What a set of pictures is, and how NumPy arrays become one."""
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Shaped, UInt8

from dipddpm_jax.errors import UserError

Split = Literal["train", "test"]


class MissingSplit(UserError):
    """The data set is sound but has no such split, as iCLEVR has no test pictures; damage is a plain UserError."""


class Dataset(NamedTuple):
    """Pictures 0..255 in a fixed order, with one class each, several (multi-hot), or no labels."""

    images: UInt8[np.ndarray, "n h w c"]
    labels: Int32[np.ndarray, "n"] | Float32[np.ndarray, "n k"] | None
    label_names: tuple[str, ...]
    name: str


class Description(NamedTuple):
    """What is known of a data set without having it."""

    image_shape: tuple[int, int, int]
    label_names: tuple[str, ...]
    several: bool = False
    """Several labels a picture (multi-hot), not one class."""


def from_arrays(
    images: Shaped[np.ndarray, "..."], labels: Shaped[np.ndarray, "..."] | Sequence[int | str] | None = None,
    label_names: Sequence[str] | None = None, name: str = "array",
) -> Dataset:
    """Arrays as a data set: pictures with axes n h w or n h w c, integers 0..255 or floats in [0, 1].

    `labels` are one class a picture (integers from 0, or names), or zeros and ones with axes n k for several of k
    labels. `label_names` are the classes' names; default: "0", "1", ..., or the labels themselves if those are names.
    Raises UserError, which begins with `name`, for anything else.
    """
    pixels = _pixels(np.asarray(images), name)
    names = tuple(str(label) for label in label_names) if label_names is not None and len(label_names) else None
    if labels is None:
        if names:
            raise UserError(f"{name} has label_names but no labels")
        return Dataset(pixels, None, (), name)
    found, known = _labels(np.asarray(labels), len(pixels), names, name)
    count = found.shape[1] if found.ndim == 2 else int(found.max()) + 1
    names = known or names or tuple(map(str, range(count)))
    if len(names) < count or (found.ndim == 2 and len(names) != count):
        raise UserError(f"{name} has {count} labels and {len(names)} label_names")
    if len(set(names)) < len(names):
        raise UserError(f"{name}: two of the label_names are {max(names, key=names.count)!r}")
    return Dataset(pixels, found, names, name)


def _pixels(images: Shaped[np.ndarray, "..."], name: str) -> UInt8[np.ndarray, "n h w c"]:
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or not 1 <= images.shape[-1] <= 4 or not images.size:
        hint = "; move the channels to the end" if images.ndim == 4 and images.shape[1] <= 4 else ""
        raise UserError(f"{name}: images must have axes (n, h, w) or (n, h, w, c), 1 to 4 channels; their shape is "
                        f"{images.shape}{hint}")
    if images.dtype == np.uint8:
        return np.ascontiguousarray(images)
    if images.dtype.kind not in "buif":
        raise UserError(f"{name}: images must be numbers; they are {images.dtype}")
    top = 1 if images.dtype.kind in "bf" else 255
    low, high = images.min(), images.max()
    if not (low >= 0 and high <= top):  # also if they are not numbers
        advice = "clip or scale them"
        if -1 <= low < 0 and high <= 1:
            advice = "(images + 1) / 2 lies there"
        elif low >= 0 and np.isfinite(high):
            advice = f"divide by {max(high, 255):g}"
        raise UserError(f"{name}: images must be integers 0..255 or floats in [0, 1]; they are {images.dtype} from "
                        f"{low:g} to {high:g}: {advice}")
    return np.rint(images * np.float32(255)).astype(np.uint8) if top == 1 else images.astype(np.uint8)


def _labels(
    labels: Shaped[np.ndarray, "..."], count: int, names: tuple[str, ...] | None, name: str
) -> tuple[Int32[np.ndarray, "n"] | Float32[np.ndarray, "n k"], tuple[str, ...] | None]:
    """The labels as numbers, and their names if they were names."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim not in (1, 2) or len(labels) != count:
        raise UserError(f"{name} has {count} images, and labels of shape {labels.shape}")
    if labels.ndim == 1 and labels.dtype.kind in "US":
        words = labels.astype(str)
        known = names or tuple(np.unique(words).tolist())
        if unknown := sorted(set(words.tolist()) - set(known)):
            raise UserError(f"{name}: the label {unknown[0]!r} is not one of the label_names")
        return np.array([known.index(word) for word in words], np.int32), known
    if labels.dtype.kind not in "buif" or not np.isfinite(labels).all() or (labels != np.rint(labels)).any() or (
            labels.min() < 0):
        raise UserError(f"{name}: labels must be whole numbers from 0, or names; they are {labels.dtype}")
    if labels.ndim == 2:
        if labels.max() > 1:
            raise UserError(f"{name}: labels with axes n k must be zeros and ones; the largest is {labels.max():g}")
        return labels.astype(np.float32), None
    return labels.astype(np.int32), None


def hold_out(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """(the rest, a tenth of the pictures) of a set that has no test split: the same tenth every time, drawn at random.

    Fewer than ten pictures leave the second part empty.
    """
    chosen = np.zeros(len(dataset.images), bool)
    chosen[np.random.default_rng(0).permutation(len(chosen))[: len(chosen) // 10]] = True
    rest, held = ((dataset.images[rows], None if dataset.labels is None else dataset.labels[rows])
                  for rows in (~chosen, chosen))
    return dataset._replace(images=rest[0], labels=rest[1]), dataset._replace(images=held[0], labels=held[1])
