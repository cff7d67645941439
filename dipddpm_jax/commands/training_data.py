"""What a diffusion model is trained on: pictures of a data set or of an array, and held-out ones if there are any."""
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from dipddpm_jax import data
from dipddpm_jax.config.diffusion import TrainConfig
from dipddpm_jax.config.saved import Facts
from dipddpm_jax.data import iclevr
from dipddpm_jax.errors import UserError

HELD_OUT = 512  # pictures of the test split that a held-out loss is measured on
ARRAY = "array"  # the name of data that were handed over in Python


class TrainingData(NamedTuple):
    """Pictures to train on, held-out ones (none where the data have no test split), and what a model needs to know."""

    images: np.ndarray
    labels: np.ndarray | None
    held_images: np.ndarray
    held_labels: np.ndarray | None
    facts: Facts

    def examples(self) -> "TrainingData":
        """The same with pictures to show in `held_images` in any case: held-out ones, else some of those trained on."""
        if len(self.held_images):
            return self
        pick = _picked(len(self.images))
        return self._replace(held_images=self.images[pick], held_labels=None if self.labels is None
                             else self.labels[pick])


def load_training_data(config: TrainConfig, data_dir: Path | None) -> TrainingData:
    """The pictures that a configuration names. Raises UserError when they are not there, damaged or too few."""
    if config.data == ARRAY:
        raise UserError("this run is of an array of pictures, which only Python has: go on with "
                        "dipddpm_jax.train(images, ..., workdir=..., resume=True)")
    train = without(data.load(config.data, "train", data_dir, config.image_size), config.without)
    try:
        held = data.load(config.data, "test", data_dir, config.image_size)
    except data.MissingSplit:  # a damaged split stops the run instead
        held = train._replace(images=train.images[:0], labels=None if train.labels is None else train.labels[:0])
    use_labels = config.labels and train.labels is not None
    pick = _picked(len(held.images))
    return _with_facts(config, train.images, train.labels if use_labels else None, train.label_names,
                       held.images[pick], held.labels[pick] if use_labels else None)


def array_training_data(config: TrainConfig, images: Any, labels: Any, label_names: tuple[str, ...]) -> TrainingData:
    """Arrays as `data.from_arrays` takes them, none of them held out. Raises UserError for anything else."""
    given = data.from_arrays(images, labels if config.labels else None, label_names if config.labels else None, ARRAY)
    nothing = None if given.labels is None else given.labels[:0]
    return _with_facts(config, given.images, given.labels, given.label_names, given.images[:0], nothing)


def _with_facts(config: TrainConfig, images: np.ndarray, labels: np.ndarray | None, names: tuple[str, ...],
                held_images: np.ndarray, held_labels: np.ndarray | None) -> TrainingData:
    if config.batch_size > len(images):
        raise UserError(f"--batch-size {config.batch_size} is more than the {len(images)} pictures of {config.data}")
    known = labels is not None
    facts = Facts(tuple(images.shape[1:]), tuple(names) if known else (), known and labels.ndim == 2, len(images),
                  crc32(np.ascontiguousarray(images)))
    return TrainingData(images, labels, held_images, held_labels, facts)


def _picked(count: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(count)[:HELD_OUT]


def without(dataset: data.Dataset, groups: tuple[str, ...]) -> data.Dataset:
    """The pictures that show none of the groups of labels whole. Raises UserError for what a set does not know."""
    if not groups:
        return dataset
    if dataset.labels is None or dataset.labels.ndim != 2:
        raise UserError(f"--without: the pictures of {dataset.name} do not have several labels each")
    shown = np.zeros(len(dataset.labels), bool)
    for row in iclevr.rows("--without", groups, dataset.label_names):
        shown |= dataset.labels @ row == row.sum()
    if shown.all():
        raise UserError(f"--without leaves no pictures of {dataset.name}")
    return dataset._replace(images=dataset.images[~shown], labels=dataset.labels[~shown])
