"""iCLEVR from a user's folder, and its label files: exact pictures, and one clear line for whatever is wrong."""
import json

import numpy as np
import pytest
from PIL import Image

from benchmarks.places import ICLEVR
from dipddpm_jax import data
from dipddpm_jax.data import iclevr, prepared
from dipddpm_jax.data.scenes import OBJECTS
from dipddpm_jax.errors import UserError

needs_iclevr = pytest.mark.skipif(not ICLEVR.is_dir(), reason="no shared iCLEVR files beside the checkout")
needs_records = pytest.mark.skipif(prepared.find_spec("array_record") is None, reason="array_record is not installed")
CONTENTS = {"b_0.png": ["red cube"], "b_1.png": ["red cube", "gray sphere"], "a_0.png": ["yellow cylinder"],
            "a_1.png": ["yellow cylinder", "cyan cube", "brown sphere"]}


def picture(i):
    """320x240 with an alpha channel, as the published files have; every pixel counts."""
    pixels = np.random.default_rng(i).integers(0, 256, (240, 320, 4), np.uint8)
    pixels[..., 3] = 255
    return Image.fromarray(pixels)


def write_folder(folder, pictures="."):
    (folder / pictures).mkdir(parents=True, exist_ok=True)
    (folder / "objects.json").write_text(json.dumps({name: i for i, name in enumerate(OBJECTS)}))
    (folder / "train.json").write_text(json.dumps(CONTENTS))
    for i, file in enumerate(CONTENTS):
        picture(i).save(folder / pictures / file, compress_level=0)


def assert_is_it(dataset):
    """PIL's own resizing of each picture, in the order of train.json, which is not that of the names."""
    assert dataset.images.dtype == np.uint8 and dataset.labels.dtype == np.float32
    for i, names in enumerate(CONTENTS.values()):
        wanted = picture(i).convert("RGB").resize((64, 64), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(dataset.images[i], np.asarray(wanted))
        assert sorted(dataset.label_names[k] for k in np.flatnonzero(dataset.labels[i])) == sorted(names)
    assert len(dataset.images) == len(dataset.labels) == 4 and dataset.labels.sum() == 7


@needs_records
@pytest.mark.parametrize("pictures", [".", "images", "iclevr"])
def test_a_folder_is_prepared_once_and_comes_back_exactly(tmp_path, pictures):
    folder = tmp_path / "iclevr"
    write_folder(folder, pictures)
    assert_is_it(data.load("iclevr", "train", folder))
    for file in folder.rglob("*.png"):
        file.unlink()
    assert_is_it(data.load("iclevr", "train", folder))
    next(folder.glob("dipddpm_iclevr/*decoded.npz")).unlink()
    assert_is_it(data.load("iclevr", "train", folder))  # from the records
    assert data.load("iclevr", "train", folder, image_size=32).images.shape == (4, 32, 32, 3)


def test_the_folder_may_stand_below_the_data_directory(tmp_path):
    write_folder(tmp_path / "iclevr", "images")
    assert_is_it(data.load("iclevr", "train", tmp_path))


def test_a_data_dir_that_cannot_be_written_still_serves(tmp_path, capsys):
    write_folder(tmp_path / "iclevr")
    (tmp_path / "dipddpm_iclevr").write_text("a file where the folder should be")
    assert_is_it(data.load("iclevr", "train", tmp_path))
    if prepared.find_spec("array_record"):
        assert "cannot be written" in capsys.readouterr().err


def remove_two(folder):
    (folder / "a_0.png").unlink()
    (folder / "b_1.png").unlink()


def change_contents(entry):
    return lambda folder: (folder / "train.json").write_text(json.dumps(CONTENTS | {"a_0.png": entry}))


def cut(folder):
    file = folder / "a_0.png"
    file.write_bytes(file.read_bytes()[:100_000])


@pytest.mark.parametrize("damage, line", [
    (remove_two, "2 of the 4 pictures that train.json names are not in .*; the first is b_1.png"),
    (cut, "a_0.png cannot be read as a picture"),
    (lambda folder: (folder / "a_0.png").write_text("no picture"), "a_0.png cannot be read as a picture"),
    (change_contents(["yelow cylinder"]),
     "train.json, a_0.png: unknown label 'yelow cylinder'; did you mean 'yellow cylinder'"),
    (change_contents(["red cube", "red cube"]), "train.json, a_0.png: 'red cube' is given twice"),
    (change_contents([]), "train.json, a_0.png: it should be a list of at least one label"),
    (lambda folder: (folder / "train.json").write_text('{"a_0.png": ["red'), "train.json cannot be read as JSON"),
    (lambda folder: (folder / "train.json").write_text("[]"), "train.json should give for each picture's file"),
    (lambda folder: (folder / "train.json").unlink(), "holds no train.json; iclevr needs a folder with objects.json"),
    (lambda folder: (folder / "objects.json").unlink(), "no such file: .*objects.json"),
    (lambda folder: (folder / "objects.json").write_text('{"red cube": 0}'), "objects.json is not that of iCLEVR"),
])
def test_what_is_wrong_is_named_and_nothing_half_made_remains(tmp_path, damage, line):
    write_folder(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=line) as raised:
        data.load("iclevr", "train", tmp_path)
    assert len(str(raised.value).splitlines()) == 1
    assert prepared.find("iclevr", tmp_path) is None


def test_pictures_to_test_on_are_not_invented(tmp_path):
    write_folder(tmp_path)
    with pytest.raises(data.MissingSplit, match="test.json and new_test.json are lists of labels"):
        data.load("iclevr", "test", tmp_path)


@needs_iclevr
def test_the_published_files_are_read():
    """Numbers of REFERENCE.md 5.5: 32 lists each, 72 and 84 objects. train.json is sound, only its pictures lack."""
    for file, count in (("test.json", 72), ("new_test.json", 84)):
        labels = iclevr.read_label_file(ICLEVR / file, OBJECTS)
        assert labels.shape == (32, 24) and labels.dtype == np.float32 and labels.sum() == count
        entries = json.loads((ICLEVR / file).read_text())
        assert all({OBJECTS[k] for k in np.flatnonzero(row)} == set(entry) for row, entry in zip(labels, entries))
    with pytest.raises(UserError, match="18009 of the 18009 pictures .* the first is CLEVR_train_002066_0.png"):
        iclevr.originals(ICLEVR)
    real = list(iclevr.shrunk(sorted((ICLEVR / "real_samples").glob("*.png"))))
    assert [image.shape for image in real] == [(64, 64, 3)] * 2


@pytest.mark.parametrize("content, line", [
    ('[["red cube"], ["red kube"]]', "list 2: unknown label 'red kube'; did you mean 'red cube'"),
    ('[["zebra"]]', "list 1: unknown label 'zebra'"),
    ("[[3]]", "list 1: unknown label 3"),
    ("[[[]]]", r"list 1: unknown label \[\]"),
    ('[["red cube"], []]', "list 2: it should be a list of at least one label"),
    ('["red cube"]', 'list 1: it should be a list of at least one label, not "red cube"'),
    ('[["red cube", "gray sphere", "red cube"]]', "list 1: 'red cube' is given twice"),
    ("[]", "should hold a list of lists of labels"),
    ('{"a.png": ["red cube"]}', "should hold a list of lists of labels"),
    ('[["red cube"]', "cannot be read as JSON"),
    ("", "cannot be read as JSON"),
    (b"\xff\xfe\x00", "cannot be read as JSON"),
    ("[" * 100_000, "cannot be read as JSON"),
    (None, "no such file"),
])
def test_label_files_are_refused_in_one_line(tmp_path, content, line):
    path = tmp_path / "labels.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f"(?s)labels.json.*{line}|{line}.*labels.json") as raised:
        iclevr.read_label_file(path, OBJECTS)
    assert len(str(raised.value).splitlines()) == 1
