"""A user's own arrays: from Python, from an .npz file, and from a function named on the command line."""
import sys

import numpy as np
import pytest

from dipddpm_jax import data
from dipddpm_jax.data import from_arrays
from dipddpm_jax.errors import UserError

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (30, 6, 5, 3), np.uint8)
CLASSES = np.arange(30) % 3


@pytest.mark.parametrize("images", [
    BYTES, BYTES.astype(np.int64), BYTES / 255, (BYTES / 255).astype(np.float32), (BYTES / 255).astype(np.float16)],
    ids=["uint8", "int64", "float64", "float32", "float16"])
def test_pictures_of_every_type_become_the_same_bytes(images):
    dataset = from_arrays(images)
    np.testing.assert_array_equal(dataset.images, BYTES)
    assert dataset.images.dtype == np.uint8 and dataset.labels is None and dataset.label_names == ()


def test_grey_pictures_need_no_axis_for_it():
    assert from_arrays(BYTES[..., 0]).images.shape == (30, 6, 5, 1)
    assert from_arrays(BYTES[..., 0] > 100).images.max() == 255


def test_labels_are_numbers_names_or_several():
    numbers = from_arrays(BYTES, CLASSES.astype(np.float64)[:, None])
    assert numbers.labels.dtype == np.int32 and numbers.label_names == ("0", "1", "2")
    words = from_arrays(BYTES, [("cat", "ant", "dog")[i] for i in CLASSES])
    assert words.label_names == ("ant", "cat", "dog") and words.labels[:3].tolist() == [1, 0, 2]
    assert from_arrays(BYTES, words.labels, ["a", "b", "c", "d"]).label_names == ("a", "b", "c", "d")
    several = from_arrays(BYTES, np.eye(3, dtype=bool)[CLASSES])
    assert several.labels.dtype == np.float32 and several.labels.shape == (30, 3)


@pytest.mark.parametrize("images, labels, names, line", [
    (BYTES.astype(np.float32), None, None, "divide by 255"), (BYTES / 127.5 - 1, None, None, r"\(images \+ 1\) / 2"),
    (BYTES.astype(np.uint16) * 257, None, None, "divide by 65535"), (BYTES * np.nan, None, None, "clip or scale"),
    (np.moveaxis(BYTES, -1, 1), None, None, "move the channels to the end"),
    (BYTES[0, 0], None, None, r"axes \(n, h, w\)"),
    (BYTES[:0], None, None, r"axes \(n, h, w\)"), (BYTES.astype(str), None, None, "must be numbers"),
    (BYTES, CLASSES[1:], None, "30 images, and labels of shape"), (BYTES, CLASSES - 1, None, "whole numbers from 0"),
    (BYTES, CLASSES / 2, None, "whole numbers"), (BYTES, CLASSES, ["a", "b"], "3 labels and 2 label_names"),
    (BYTES, CLASSES, ["a", "b", "a"], "two of the label_names are 'a'"), (BYTES, None, ["a"], "no labels"),
    (BYTES, np.stack([CLASSES, CLASSES], 1), None, "zeros and ones"),
    (BYTES, np.array(["a", "b", "c"])[CLASSES], ["a", "b"], "'c' is not one of")])
def test_what_is_wrong_with_arrays_is_said(images, labels, names, line):
    with pytest.raises(UserError, match=f"^mine.*{line}"):
        from_arrays(images, labels, names, "mine")


def test_a_file_of_arrays_is_a_data_set(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, images=BYTES, labels=CLASSES, label_names=np.array(["a", "b", "c"]), other=np.zeros(3))
    train, test = (data.load(str(path), split) for split in ("train", "test"))
    assert len(train.images) == 27 and len(test.images) == 3 and train.label_names == ("a", "b", "c")
    together = {image.tobytes(): label for part in (train, test) for image, label in zip(part.images, part.labels)}
    assert together == {image.tobytes(): label for image, label in zip(BYTES, CLASSES)}  # every picture once, as it was
    assert data.load(str(path), "test", image_size=4).images.shape == (3, 4, 4, 3)


def test_what_is_wrong_with_a_file_of_arrays_is_said(tmp_path):
    path = tmp_path / "mine.npz"
    with pytest.raises(UserError, match="no such file"):
        data.load(str(path))
    np.savez(path, x_train=BYTES)
    with pytest.raises(UserError, match="mine.npz holds x_train, but no array `images`"):
        data.load(str(path))
    np.savez(path, images=BYTES[:5])
    with pytest.raises(data.MissingSplit, match="fewer than ten"):
        data.load(str(path), "test")
    np.savez(path, images=np.array([Evil()], object))
    with pytest.raises(UserError, match="cannot be read as an .npz file of numbers"):
        data.load(str(path))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="mine.npz cannot be read"):
        data.load(str(path))


class Evil:
    """Stands for anything that only a pickle can hold."""


CODE = """
import numpy as np
from dipddpm_jax.data import from_arrays

def grey(split):
    return (np.full((4, 6, 5), 7 if split == "train" else 9), ["a", "b", "a", "b"])

def whole(split):
    return from_arrays(np.full((4, 6, 5), 1.0), [0, 0, 1, 1], ("x", "y"))

def bare(split):
    return np.zeros((4, 6, 5), np.uint8) if split == "train" else None

def wrong(split):
    return 3

def broken(split):
    return 1 / 0
"""


def test_a_function_is_a_data_set(tmp_path, monkeypatch):
    (tmp_path / "my_pictures.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    grey = data.load("my_pictures:grey", "test")
    assert (grey.images == 9).all() and grey.images.shape == (4, 6, 5, 1) and grey.label_names == ("a", "b")
    assert data.load("my_pictures:whole").label_names == ("x", "y") and data.load("my_pictures:bare").labels is None
    with pytest.raises(data.MissingSplit, match="no pictures for test"):
        data.load("my_pictures:bare", "test")
    for name, line in (("wrong", "returned int; it should return"), ("grye", "has no function 'grye'"),
                       ("broken", r"ZeroDivisionError.*my_pictures.py, line")):
        with pytest.raises(UserError, match=line):
            data.load(f"my_pictures:{name}")
    with pytest.raises(UserError, match="there is no module"):
        data.load("no_such_module:grey")
    monkeypatch.delitem(sys.modules, "my_pictures")
