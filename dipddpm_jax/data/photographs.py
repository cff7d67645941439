"""The photographs inside the scikit-image wheel, whole for image restoration and as small crops for training."""
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from dipddpm_jax.data.dataset import Dataset, Description
from dipddpm_jax.data.pictures import drop_equal_channels, read_picture
from dipddpm_jax.errors import UserError, closest

_FILES = {
    "astronaut": "astronaut.png",  # colour
    "chelsea": "chelsea.png",
    "coffee": "coffee.png",
    "motorcycle": "motorcycle_left.png",
    "rocket": "rocket.jpg",
    "hubble_deep_field": "hubble_deep_field.jpg",
    "immunohistochemistry": "ihc.png",
    "retina": "retina.jpg",
    "brick": "brick.png",  # grey
    "camera": "camera.png",
    "cell": "cell.png",
    "clock": "clock_motion.png",
    "coins": "coins.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "moon": "moon.png",
    "page": "page.png",
    "text": "text.png",
}
PHOTOGRAPHS = tuple(_FILES)
CROPPED = ("astronaut", "chelsea", "coffee", "motorcycle", "rocket")  # everyday scenes, in colour


def photograph(name: str) -> UInt8[np.ndarray, "h w c"]:
    """One of PHOTOGRAPHS in its full size, with one channel if it is grey; no download."""
    if name not in _FILES:
        raise UserError(f"unknown photograph {name!r}: {closest(name, PHOTOGRAPHS)}Known are {', '.join(PHOTOGRAPHS)}")
    spec = find_spec("skimage")  # found, not imported
    if spec is None:
        raise UserError("the photographs are inside the package scikit-image; install it: pip install scikit-image")
    return drop_equal_channels(read_picture(Path(spec.submodule_search_locations[0]) / "data" / _FILES[name])[None])[0]


def describe(name: str) -> Description:
    """Shape (of crops whose size is not chosen) and labels."""
    return Description((32, 32, 3), CROPPED)


def load(name: str, split: str, data_dir: Path, image_size: int | None) -> Dataset:
    """Square crops (32 pixels by default) that overlap by half, labelled by photograph.

    The test crops are from the right fifth of each photograph, which no training crop touches.
    """
    size = 32 if image_size is None else image_size
    crops, labels = [], []
    for label, photo in enumerate(CROPPED):
        image = photograph(photo)
        height, width = image.shape[:2]
        border = width - max(width // 5, size)
        if size > height or size > border:
            raise UserError(f"photo_crops: {photo} has {width} x {height} pixels, too few for crops of {size}")
        part = image[:, border:] if split == "test" else image[:, :border]
        step = max(size // 2, 1)
        windows = np.lib.stride_tricks.sliding_window_view(part, (size, size), (0, 1))[::step, ::step]
        crops.append(np.moveaxis(windows, 2, -1).reshape(-1, size, size, 3))
        labels += [label] * len(crops[-1])
    return Dataset(np.concatenate(crops), np.array(labels, np.int32), CROPPED, name)
