"""Data sets: exact pictures from every source, and a clear line for everything that can be wrong with a file."""
import gzip
import http.server
import io
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import places
from dipddpm_jax import data
from dipddpm_jax.config import datasets
from dipddpm_jax.data import originals, prepared
from dipddpm_jax.data.photographs import CROPPED, PHOTOGRAPHS, crops_of, photograph
from dipddpm_jax.data.pictures import square
from dipddpm_jax.errors import UserError

SHARED = places.SHARED / "data"
needs_mnist = pytest.mark.skipif(not (SHARED / "mnist").is_dir(), reason="no shared MNIST files beside the checkout")
needs_records = pytest.mark.skipif(prepared.find_spec("array_record") is None, reason="array_record is not installed")
PARTS = {"train": ("train", 30), "test": ("t10k", 12)}


def tiny_digits(split):
    """Random pictures: any mistake in order, layout or compression shows."""
    rng = np.random.default_rng(len(split))
    n = PARTS[split][1]
    return rng.integers(0, 256, (n, 28, 28), np.uint8), rng.integers(0, 10, n).astype(np.uint8)


def write_idx(folder):
    folder.mkdir(parents=True)
    for split, (prefix, _) in PARTS.items():
        for array, kind in zip(tiny_digits(split), ("images-idx3", "labels-idx1")):
            header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
            (folder / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))


def cifar_rows(n):
    rng = np.random.default_rng(n)
    return np.concatenate([rng.integers(0, 10, (n, 1)), rng.integers(0, 256, (n, 3072))], axis=1).astype(np.uint8)


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(originals, "getproxies", dict)


def assert_is_tiny(dataset, split):
    images, labels = tiny_digits(split)
    np.testing.assert_array_equal(dataset.images, images[..., None])
    np.testing.assert_array_equal(dataset.labels, labels)
    assert dataset.images.dtype == np.uint8 and dataset.labels.dtype == np.int32 and len(dataset.label_names) == 10


def test_naming_the_sets_imports_nothing_heavy():
    code = "import sys; from dipddpm_jax import data; data.NAMES; print(*{m.split('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                            cwd=places.REPO).stdout.split()
    assert not {"jax", "flax", "tensorflow_datasets", "PIL", "sklearn", "skimage", "mlxtend", "pandas"} & set(loaded)


def test_unknown_names_are_answered_with_a_suggestion(tmp_path):
    with pytest.raises(UserError, match="did you mean mnist5k"):
        data.load("mnist5")
    with pytest.raises(UserError, match=f"did you mean folder:{tmp_path}?"):
        data.load(str(tmp_path))
    np.savez(tmp_path / "mine.npz", images=np.zeros((2, 4, 4)))
    with pytest.raises(UserError, match="did you mean .*mine.npz?"):
        data.load(str(tmp_path / "mine"))
    with pytest.raises(UserError, match="unknown photograph 'camra': did you mean camera"):
        photograph("camra")
    with pytest.raises(UserError, match="positive"):
        data.load("mnist5k", image_size=0)
    with pytest.raises(UserError, match="too few for crops of 400"):
        data.load("photo_crops", image_size=400)


def test_mnist5k_is_split_evenly_and_without_overlap():
    train, test = data.load("mnist5k"), data.load("mnist5k", "test")
    assert np.bincount(train.labels).tolist() == [450] * 10 and np.bincount(test.labels).tolist() == [50] * 10
    assert train.images.shape == (4500, 28, 28, 1) and train.images.dtype == np.uint8
    assert not {im.tobytes() for im in train.images} & {im.tobytes() for im in test.images}


@needs_mnist
def test_mnist5k_holds_real_mnist_digits_with_their_labels():
    known = {}
    for split in ("train", "test"):
        known |= {im.tobytes(): label for im, label in zip(*originals.read_published("mnist", split, SHARED / "mnist"))}
    for split in ("train", "test"):
        ours = data.load("mnist5k", split)
        assert [known[im.tobytes()] for im in ours.images] == ours.labels.tolist()


def test_photographs_are_those_of_scikit_image():
    skimage_data = pytest.importorskip("skimage.data")
    for name in PHOTOGRAPHS:
        theirs = skimage_data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(skimage_data, name)()
        ours = photograph(name)
        np.testing.assert_array_equal(ours, theirs.reshape(*theirs.shape[:2], -1))


def test_turned_crops_are_crops_in_all_positions_of_a_square():
    """Every third crop by hand; their channels change places every eight crops, in training only."""
    train, test = (data.load("photo_turns", split) for split in ("train", "test"))
    assert train.images.shape[1:] == (64, 64, 3) == test.images.shape[1:] and train.labels is None
    photo = photograph(CROPPED[0])
    orders = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
    per_row = (photo.shape[1] - photo.shape[1] // 5 - 64) // 16 + 1
    for i in range(0, 40, 3):
        top, left = 16 * (i // per_row), 16 * (i % per_row)
        crop = np.rot90(photo[top:top + 64, left:left + 64], i % 4)
        crop = crop[:, ::-1] if i % 8 >= 4 else crop
        np.testing.assert_array_equal(train.images[i], crop[..., orders[i // 8 % 6]])
    right = photo[:64, photo.shape[1] - photo.shape[1] // 5:][:, :64]
    np.testing.assert_array_equal(test.images[0], right)
    tinted = train.images[-1]  # a page under coloured light
    light = tinted.reshape(-1, 3).max(0)
    assert len(set(light)) > 1 and (abs(tinted / light - (tinted / light)[..., :1]) < 0.05).all()
    assert len(test.images) == sum(len(crops_of(name, "test", 64, 16)) for name in CROPPED)  # no grey ones


def test_grey_turned_crops_are_the_luma_of_those_in_colour():
    """And crops of grey photographs as they are, in training."""
    test, colour = (data.load(name, "test").images for name in ("photo_turns_grey", "photo_turns"))
    np.testing.assert_allclose(test[..., 0], colour @ np.array([0.299, 0.587, 0.114]), atol=0.51)
    train = data.load("photo_turns_grey", "train").images
    page, i = photograph("page"), len(train) - 1
    last = np.rot90(page[112:176, 240:304], i % 4)  # 191 pixels high, of whose 384 columns 308 are for training
    np.testing.assert_array_equal(train[i], last[:, ::-1] if i % 8 >= 4 else last)


@pytest.mark.parametrize("size", [32, 64])
def test_crops_for_the_test_are_from_the_right_fifth_of_each_photograph(size):
    train, test = (data.load("photo_crops", s, image_size=size) for s in ("train", "test"))
    for label, name in enumerate(CROPPED):
        photo = photograph(name)
        border = photo.shape[1] - max(photo.shape[1] // 5, size)
        first, last = test.images[test.labels == label][0], train.images[train.labels == label]
        np.testing.assert_array_equal(first, photo[:size, border:border + size])
        last_column = (border - size) // (size // 2) * (size // 2)  # the rightmost training crop ends before the border
        assert last_column + size <= border
        assert any((crop == photo[:size, last_column:last_column + size]).all() for crop in last)
    assert train.label_names == CROPPED and train.images.shape[1:] == (size, size, 3)


@needs_mnist
def test_prepared_and_original_mnist_are_the_same_in_the_same_order(tmp_path):
    """TFDS shuffles; we undo it, so that "the first test digit" (a 7) means the same everywhere."""
    stock = SHARED / "tfds" / "mnist" / "3.0.1"
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "3.0.1").symlink_to(stock)
    ours = data.load("mnist", "test", tmp_path)
    images, labels = originals.read_published("mnist", "test", SHARED / "mnist")
    np.testing.assert_array_equal(ours.images, images)
    np.testing.assert_array_equal(ours.labels, labels)
    assert labels[:3].tolist() == [7, 2, 1]


@needs_records
def test_original_files_are_prepared_once_and_come_back_exactly(tmp_path, no_network):
    write_idx(tmp_path / "mnist")
    for split in PARTS:
        assert_is_tiny(data.load("mnist", split, tmp_path), split)
    folder = tmp_path / "dipddpm_mnist" / "1.0.0"
    for file in (tmp_path / "mnist").iterdir():
        file.unlink()
    for split in PARTS:  # now from the decoded copy
        assert_is_tiny(data.load("mnist", split, tmp_path), split)
    copy = folder.with_name("1.0.0-test-decoded.npz")
    copy.write_bytes(copy.read_bytes()[:-900])
    assert_is_tiny(data.load("mnist", "test", tmp_path), "test")
    assert data.load("mnist", "test", tmp_path, image_size=32).images.shape == (12, 32, 32, 1)
    assert not [p for p in tmp_path.rglob(".*")]

    tfds = pytest.importorskip("tensorflow_datasets")
    from dipddpm_jax.data import builders  # noqa: F401  its name is then known to TFDS
    source = tfds.data_source("dipddpm_mnist", split="test", data_dir=tmp_path, download=False)
    np.testing.assert_array_equal(source[3]["image"], tiny_digits("test")[0][3, ..., None])


@needs_records
def test_a_stale_copy_is_not_used(tmp_path, no_network):
    write_idx(tmp_path / "mnist")
    data.load("mnist", "test", tmp_path)
    folder = tmp_path / "dipddpm_mnist" / "1.0.0"
    copy = folder.with_name("1.0.0-test-decoded.npz")
    with np.load(copy) as stored:
        np.savez(copy, **{**stored, "images": np.zeros_like(stored["images"])})
    assert not data.load("mnist", "test", tmp_path).images.any()
    os.utime(folder / "features.json", ns=(1, 1))
    assert_is_tiny(data.load("mnist", "test", tmp_path), "test")


@needs_records
def test_tfrecord_and_shuffled_folders_are_read_without_tensorflow(tmp_path, no_network):
    write_idx(tmp_path / "mnist")
    data.load("mnist", "train", tmp_path)
    (tmp_path / "dipddpm_mnist").rename(tmp_path / "stock")
    folder = tmp_path / "mnist" / "3.0.1"
    (tmp_path / "stock" / "1.0.0").rename(folder)
    for split in PARTS:
        shard = folder / f"dipddpm_mnist-{split}.array_record-00000-of-00001"
        records = prepared._read_array_record(shard)
        shard.unlink()
        shuffled = b"".join(struct.pack("<QI", len(records[i]), 0) + records[i] + bytes(4)
                            for i in prepared.published_order(split, len(records)))
        Path(str(shard).replace("array_record", "tfrecord")).write_bytes(shuffled)
    info = json.loads((folder / "dataset_info.json").read_text()) | {"fileFormat": "tfrecord"}
    del info["disableShuffling"]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    for split in PARTS:
        assert_is_tiny(data.load("mnist", split, tmp_path), split)

    shard = folder / "dipddpm_mnist-test.tfrecord-00000-of-00001"
    for length in (-3, 5):
        shard.write_bytes(shard.read_bytes()[:length])
        with pytest.raises(UserError, match=f"{shard.name} is missing or damaged"):
            data.load("mnist", "test", tmp_path)


@needs_records
@pytest.mark.parametrize("file", ["dipddpm_mnist-test.array_record-00000-of-00001", "dataset_info.json",
                                  "features.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_a_damaged_prepared_folder_is_named(tmp_path, no_network, file, damage):
    write_idx(tmp_path / "mnist")
    data.load("mnist", "train", tmp_path)
    target = tmp_path / "dipddpm_mnist" / "1.0.0" / file
    raw = bytearray(target.read_bytes())
    target.unlink()
    if damage != "remove":
        raw[150] ^= 0xFF
        target.write_bytes(raw if damage == "flip" else raw[:60])
    if (file, damage) == ("dataset_info.json", "remove"):  # the file that says "complete": prepared anew
        (tmp_path / "dipddpm_mnist" / "1.0.0").rename(tmp_path / "dipddpm_mnist" / "incomplete.ABC_1.0.0")
        assert_is_tiny(data.load("mnist", "test", tmp_path), "test")
        return
    with pytest.raises(UserError, match=f"{file} is missing or damaged"):
        data.load("mnist", "test", tmp_path)


def test_a_preparation_under_way_is_not_taken_for_complete(tmp_path):
    for name in ("1.0.0.incompleteABCDEF", "incomplete.ABCDEF_1.0.0"):
        folder = tmp_path / "dipddpm_mnist" / name
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").write_text('{"fileFormat": "array_record"}')
    assert prepared.find("mnist", tmp_path) is None


@pytest.mark.parametrize("damage", ["cut", "flip", "not idx", "too long"])
def test_a_damaged_original_file_is_named_and_nothing_half_made_remains(tmp_path, no_network, damage):
    write_idx(tmp_path / "mnist")
    file = tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz"
    raw = bytearray(file.read_bytes())
    raw[200] ^= damage == "flip"
    plain = {"not idx": b"GIF89a" * 99, "too long": gzip.decompress(raw) + b"x" if damage == "too long" else b""}
    file.write_bytes(raw[:-200] if damage == "cut" else gzip.compress(plain[damage]) if damage in plain else raw)
    with pytest.raises(UserError, match=f"{file.name} is damaged"):
        data.load("mnist", "train", tmp_path)
    assert prepared.find("mnist", tmp_path) is None


def test_files_that_do_not_belong_together_are_refused(tmp_path, no_network):
    write_idx(tmp_path / "mnist")
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz").rename(tmp_path / "mnist" / "train-labels-idx1-ubyte.gz")
    write_idx(tmp_path / "other")
    (tmp_path / "other" / "t10k-labels-idx1-ubyte.gz").rename(tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz")
    with pytest.raises(UserError, match="do not belong together"):
        data.load("mnist", "train", tmp_path)


@needs_mnist
def test_mnist_is_not_taken_for_fashion_mnist(tmp_path, no_network):
    (tmp_path / "fashion_mnist").symlink_to(SHARED / "mnist")
    with pytest.raises(UserError, match="belongs to another set"):
        data.load("fashion_mnist", "test", tmp_path)
    assert originals.find("mnist", SHARED) == SHARED / "mnist" == originals.find("mnist", SHARED / "mnist")


def test_a_data_dir_that_cannot_be_written_still_serves(tmp_path, no_network, capsys):
    write_idx(tmp_path / "mnist")
    (tmp_path / "dipddpm_mnist").write_text("a file where the folder should be")
    assert_is_tiny(data.load("mnist", "test", tmp_path), "test")
    assert "cannot be written" in capsys.readouterr().err


@needs_records
def test_cifar_archives_binary_and_pickled_agree(tmp_path, no_network):
    train, test = cifar_rows(20), cifar_rows(3)
    batches = {f"data_batch_{i + 1}": train[4 * i:4 * i + 4] for i in range(5)} | {"test_batch": test}
    write_tar(tmp_path / "a" / "cifar10" / "cifar-10-binary.tar.gz",
              {f"cifar-10-batches-bin/{name}.bin": rows.tobytes() for name, rows in batches.items()})
    write_tar(tmp_path / "b" / "cifar-10-python.tar.gz", {
        f"cifar-10-batches-py/{name}": pickle.dumps({b"labels": rows[:, 0].tolist(), b"data": rows[:, 1:]}, 2)
        for name, rows in batches.items()})
    for folder in "ab":
        for split, rows in (("train", train), ("test", test)):
            ours = data.load("cifar10", split, tmp_path / folder)
            np.testing.assert_array_equal(ours.images[2, 5, 7], rows[2, [1 + c * 1024 + 5 * 32 + 7 for c in range(3)]])
            np.testing.assert_array_equal(ours.images.transpose(0, 3, 1, 2).reshape(-1, 3072), rows[:, 1:])
            np.testing.assert_array_equal(ours.labels, rows[:, 0])


class Malicious:
    def __reduce__(self):
        return print, ("this must not run",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path, no_network, capsys):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        (folder / name).write_bytes(pickle.dumps({b"labels": [1], b"data": Malicious()}, 2))
    with pytest.raises(UserError, match="it asks for .*print"):
        data.load("cifar10", "test", tmp_path)
    assert capsys.readouterr().out == ""


def test_offline_says_within_seconds_what_to_put_where(tmp_path, no_network):
    start = time.monotonic()
    for name in ("mnist", "fashion_mnist", "cifar10"):
        with pytest.raises(UserError, match=f"(?s){originals.ORIGINALS[name].files[0]}.*into {tmp_path / name}"):
            data.load(name, "train", tmp_path)
    assert time.monotonic() - start < 5 and not list(tmp_path.iterdir())


def test_a_network_that_swallows_packets_is_given_up(monkeypatch):
    given_up = threading.Event()

    def hang(*_):
        given_up.wait(30)
        raise OSError

    monkeypatch.setattr(socket, "create_connection", hang)
    monkeypatch.setattr(originals, "getproxies", dict)
    with pytest.raises(TimeoutError):
        originals._check_reachable("https://example.org/", seconds=0.1)
    given_up.set()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The original files on loopback; returns their folder."""
    write_idx(tmp_path / "served")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        cut = False

        def log_message(self, *_):
            pass

        def copyfile(self, source, outputfile):
            outputfile.write(source.read()[:100 if Quiet.cut else None])

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "served")) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        here = originals.ORIGINALS["mnist"]._replace(url=f"http://127.0.0.1:{httpd.server_port}/")
        monkeypatch.setitem(originals.ORIGINALS, "mnist", here)
        monkeypatch.setattr(originals, "getproxies", dict)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield Quiet
        httpd.shutdown()


def test_missing_files_are_fetched(tmp_path, server):
    assert_is_tiny(data.load("mnist", "test", tmp_path / "here"), "test")
    files = sorted(p.name for p in (tmp_path / "here" / "mnist").iterdir())
    assert files == sorted(originals.ORIGINALS["mnist"].files)


def test_a_download_that_breaks_off_leaves_nothing(tmp_path, server):
    server.cut = True
    with pytest.raises(UserError, match="ended after 100 of"):
        data.load("mnist", "test", tmp_path / "here")
    assert not list((tmp_path / "here" / "mnist").iterdir())


def test_square_is_a_plain_resize_of_a_square_and_the_centre_of_an_oblong():
    rng = np.random.default_rng(0)
    digit = rng.integers(0, 256, (28, 28, 1), np.uint8)
    np.testing.assert_array_equal(  # what torchvision does to MNIST digits in REFERENCE systems of 32 pixels
        square(digit, 32)[..., 0], np.asarray(Image.fromarray(digit[..., 0]).resize((32, 32), Image.BILINEAR)))
    centre = rng.integers(0, 256, (6, 6, 3), np.uint8)
    oblong = np.concatenate([np.zeros((6, 5, 3), np.uint8), centre, np.zeros((6, 5, 3), np.uint8)], axis=1)
    np.testing.assert_array_equal(square(oblong, 6), centre)
    stripes = np.tile(np.array([0, 200], np.uint8), (64, 32))[..., None]
    assert (square(stripes, 8)[:, 1:-1] == 100).all()  # antialiased: the finest stripes become their mean


@pytest.mark.parametrize("name", ["mnist5k", "photo_crops", "mnist"])
def test_the_description_of_a_set_is_that_of_its_pictures(name, tmp_path):
    if name == "mnist":
        write_idx(tmp_path / "mnist")
    dataset, known = data.load(name, "test", tmp_path), data.describe(name)
    assert dataset.images.shape[1:] == known.image_shape and dataset.label_names == known.label_names
    assert (dataset.labels.ndim == 2) == known.several


def test_every_set_is_described_and_offered_in_the_help():
    for name in data.NAMES:
        known = data.describe(name)
        assert len(known.image_shape) == 3 and bool(known.label_names) == ("turns" not in name)
        assert known.several == (name in ("scenes", "iclevr"))
        assert name in datasets.HELP
    assert data.describe("folder:somewhere") is None
