"""Rendered pictures of one to three objects and which they are: a stand-in for iCLEVR that needs no download.

Labels are multi-hot over the same 24 objects, in the same order, as those of iCLEVR.
"""
import hashlib
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from dipddpm_jax.data import rendering
from dipddpm_jax.data.dataset import Dataset, Description
from dipddpm_jax.data.pictures import kept
from dipddpm_jax.data.rendering import CHUNK, COLOURS, MAX_OBJECTS, SHAPES, render

OBJECTS = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)
NUM_PICTURES = {"train": 18_009, "test": 1_800}  # iCLEVR's train.json has 18,009


def describe(name: str) -> Description:
    """Shape and labels."""
    return Description((64, 64, 3), OBJECTS, several=True)


def load(name: str, split: str, data_dir: Path, image_size: int | None) -> Dataset:
    """Pictures of 64x64 with multi-hot labels; picture i depends on (split, i) alone. Kept in data_dir if possible."""
    number = list(NUM_PICTURES).index(split)
    labels = draw_labels(NUM_PICTURES[split], np.random.default_rng([number]))

    def render_all() -> dict[str, np.ndarray]:
        bar = tqdm(range(0, len(labels), CHUNK), desc=f"rendering {name}", unit_scale=CHUNK, unit=" pictures",
                   disable=None)
        chunks = [render(labels[i : i + CHUNK], np.random.default_rng([number, i + 1])) for i in bar]
        return {"images": np.concatenate(chunks)}

    program = hashlib.sha256(Path(__file__).read_bytes() + Path(rendering.__file__).read_bytes()).hexdigest()
    images = kept(data_dir / f"{name}-{split}-rendered.npz", program, render_all)["images"]
    return Dataset(images, labels, OBJECTS, name)


def draw_labels(n: int, rng: np.random.Generator) -> Float32[np.ndarray, "n 24"]:
    """Multi-hot labels of 1, 2, 3, 1, 2, 3, ... different objects, all combinations equally likely, as in iCLEVR."""
    rank = rng.random((n, len(OBJECTS))).argsort(axis=1).argsort(axis=1)
    return (rank <= np.arange(n)[:, None] % MAX_OBJECTS).astype(np.float32)


def test_labels() -> Float32[np.ndarray, "32 24"]:
    """6 lists of one object, 12 of two, 14 of three, without a colour twice; every object is asked for three times."""
    cuts = np.repeat([1, 2, 3], [6, 12, 14]).cumsum()[:-1]
    order = np.concatenate([np.arange(24) * step % 24 for step in (5, 7, 11)])  # units modulo 24: permutations
    return _multi_hot(np.split(order, cuts))


def new_test_labels() -> Float32[np.ndarray, "32 24"]:
    """12 lists of two objects of one colour in two shapes, and 20 with a third one added to such a pair."""
    lists = []
    for i in range(32):
        pair = [8 * shape + i % 8 for shape in range(3) if shape != i // 8 % 3]
        lists.append(pair if i < 12 else [*pair, next(k % 24 for k in range(5 * i, 5 * i + 24) if k % 24 not in pair)])
    return _multi_hot(lists)


def validation_labels() -> Float32[np.ndarray, "32 24"]:
    """6 lists of one object, 12 of two, 14 of three, to choose a model by: none is a list to test on or holds a pair
    that may be unseen."""
    taken = {row.tobytes() for row in np.concatenate([test_labels(), new_test_labels()])}
    pairs = np.concatenate([unseen_pairs(), seen_pairs()])
    rng, chosen = np.random.default_rng(0), []
    sizes = list(np.repeat([1, 2, 3], [6, 12, 14]))
    while sizes:
        row = _multi_hot([rng.choice(len(OBJECTS), sizes[0], replace=False)])[0]
        if row.tobytes() not in taken and (pairs @ row).max() < 2:
            taken.add(row.tobytes())
            chosen.append(row)
            sizes.pop(0)
    return np.stack(chosen)


def unseen_pairs() -> Float32[np.ndarray, "12 24"]:
    """Every object once, in pairs of two colours and two shapes, for training without them; in no list to test on."""
    return _pairs(6, 2, 2)


def seen_pairs() -> Float32[np.ndarray, "12 24"]:
    """Twelve other pairs of the same make-up, to compare with `unseen_pairs`."""
    return _pairs(2, 3, 1)


def _pairs(a: int, b: int, c: int) -> Float32[np.ndarray, "12 24"]:
    """Half of the cubes with spheres, a colours on; the others with cylinders, b on; and the rest with one another."""
    cubes = [(i, 8 + (i + a) % 8 if i < 4 else 16 + (i + b) % 8) for i in range(8)]
    return _multi_hot(cubes + [(8 + (i + a) % 8, 16 + (b + (i + c) % 4) % 8) for i in range(4, 8)])


def _multi_hot(lists) -> Float32[np.ndarray, "n 24"]:
    return np.stack([np.isin(np.arange(len(OBJECTS)), entry) for entry in lists]).astype(np.float32)
