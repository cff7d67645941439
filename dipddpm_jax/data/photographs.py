"""The photographs inside the scikit-image wheel, whole for image restoration and as small crops for training."""
import itertools
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
GREY = ("camera", "coins", "grass", "gravel", "page")
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R BT.601, as JPEG and Pillow have it


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
    if name == "photo_crops":
        return Description((32, 32, 3), CROPPED)
    return Description((64, 64, 1 if name == "photo_turns_grey" else 3), ())


def crops_of(photo: str, split: str, size: int, step: int) -> UInt8[np.ndarray, "n size size c"]:
    """Square crops every `step` pixels of a photograph; of the test from its right fifth, which no other touches.

    Raises UserError for a photograph that is too small.
    """
    image = photograph(photo)
    height, width = image.shape[:2]
    border = width - max(width // 5, size)
    if size > height or size > border:
        raise UserError(f"{photo} has {width} x {height} pixels, too few for crops of {size}")
    part = image[:, border:] if split == "test" else image[:, :border]
    found = np.lib.stride_tricks.sliding_window_view(part, (size, size), (0, 1))[::step, ::step]
    return np.moveaxis(found, 2, -1).reshape(-1, size, size, image.shape[-1])


def load(name: str, split: str, data_dir: Path, image_size: int | None) -> Dataset:
    """photo_crops: crops (32 pixels by default) that overlap by half, labelled by photograph. photo_turns, to train
    what restores: crops (64) that overlap by three quarters, each turned or mirrored and in other colours;
    photo_turns_grey: in none."""
    if name != "photo_crops":
        size = 64 if image_size is None else image_size
        return Dataset(turned(split, size, name == "photo_turns_grey"), None, (), name)
    size = 32 if image_size is None else image_size
    crops = [crops_of(photo, split, size, max(size // 2, 1)) for photo in CROPPED]
    labels = np.repeat(np.arange(len(crops), dtype=np.int32), [len(part) for part in crops])
    return Dataset(np.concatenate(crops), labels, CROPPED, name)


def turned(split: str, size: int, grey: bool) -> UInt8[np.ndarray, "n size size c"]:
    """Crops in the eight positions of a square, one after another; for training in colour with their channels in the
    six orders, eight crops each, and with those of grey photographs under coloured light.

    Five photographs hold few colours, and a denoiser that saw grey ones makes the colours of others pale.
    """
    step, rng = max(size // 4, 1), np.random.default_rng(size)
    parts = [crops_of(photo, split, size, step) for photo in CROPPED]
    if grey:
        parts = [(part @ np.float32(LUMA)).round().astype(np.uint8)[..., None] for part in parts]
        parts += [crops_of(photo, split, size, step) for photo in GREY if split == "train"]
    elif split == "train":
        orders = np.array(list(itertools.permutations(range(3))))
        parts = [np.take_along_axis(part, orders[np.arange(len(part)) // 8 % 6, None, None], -1) for part in parts]
        parts += [(part * rng.uniform(0.4, 1, (len(part), 1, 1, 3))).round().astype(np.uint8)
                  for photo in GREY for part in [crops_of(photo, split, size, step)]]
    crops = np.concatenate(parts)
    for i in range(8):
        position = np.rot90(crops[i::8], i % 4, (1, 2))
        crops[i::8] = position[:, :, ::-1] if i >= 4 else position
    return crops
