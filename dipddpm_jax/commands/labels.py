"""Which labels pictures are drawn for: by default, by name, or from a file."""
from typing import Any

import numpy as np

from dipddpm_jax.config.saved import Facts
from dipddpm_jax.data import iclevr, scenes
from dipddpm_jax.errors import UserError

FIXED = {"validation": scenes.validation_labels, "test": scenes.test_labels, "new_test": scenes.new_test_labels}


def default_labels(facts: Facts, count: int, held_labels: np.ndarray | None = None) -> np.ndarray | None:
    """The labels of `count` pictures when nobody names any, the same for training, sampling and evaluation.

    One class a picture: all classes in turn. Several: the sets that held-out pictures show, so that they have the
    statistics of real ones, and where no data are at hand each label alone in turn. None for a model without labels.
    Raises UserError when held-out labels are not those of the model.
    """
    known = len(facts.label_names)
    if not known:
        return None
    if not facts.multi_hot:
        return np.arange(count, dtype=np.int32) % known
    if held_labels is None or not len(held_labels):
        return np.eye(known, dtype=np.float32)[np.arange(count) % known]
    if held_labels.shape[1:] != (known,):
        raise UserError("the held-out pictures have no labels that this model knows")
    return np.resize(held_labels, (count, known))


def chosen_labels(names: tuple[str, ...], facts: Facts, count: int, guidance: float = 0.0) -> np.ndarray | None:
    """The classes (or sets of them, "red cube,blue sphere") that are named, repeated over `count` pictures.

    Without names, those of `default_labels`. Raises UserError for labels that the model does not know.
    """
    known = facts.label_names
    if not known:
        if names:
            raise UserError("--labels: this model was trained without labels")
        if guidance:
            raise UserError("--guidance needs a model that was trained with labels, and this one was not")
        return None
    if not names:
        return default_labels(facts, count)

    def index(name: str) -> int:
        name = name.strip()
        if name in known:
            return known.index(name)
        if name.isdigit() and int(name) < len(known):
            return int(name)
        raise UserError(f"--labels: {name!r} is not a label of this model; it knows {', '.join(known[:30])}")

    picked = [[index(part) for part in name.split(",")] for name in names]  # "red cube,blue sphere" is one picture
    for name, group in zip(names, picked):
        if len(set(group)) < len(group):
            raise UserError(f"--labels: {name!r} names a label twice; a picture shows an object once or not at all")
    if not facts.multi_hot:
        if any(len(group) > 1 for group in picked):
            raise UserError("--labels: this model takes one label a picture; separate pictures by spaces")
        return np.resize(np.array(picked, np.int32), count)
    vectors = np.zeros((len(picked), len(known)), np.float32)
    for row, group in zip(vectors, picked):
        row[group] = 1
    return vectors[np.arange(count) % len(picked)]


def asked_labels(command: Any, facts: Facts) -> np.ndarray | None:
    """The labels that a command asks for, one picture each. Raises UserError."""
    if command.label_file:
        if not facts.multi_hot:
            raise UserError("--label-file: this model does not take several labels a picture; use --labels")
        if (fixed := FIXED.get(str(command.label_file))) and facts.label_names == scenes.OBJECTS:
            return fixed()
        return iclevr.read_label_file(command.label_file, facts.label_names)
    labels = chosen_labels(command.labels, facts, command.count, command.how.guidance or 0.0)
    if command.how.compose and not facts.multi_hot:
        raise UserError("--compose needs a model that takes several labels a picture")
    if command.guidance_grid and labels is None:
        raise UserError("--guidance-grid needs a model that was trained with labels, and this one was not")
    return labels
