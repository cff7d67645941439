"""MNIST, Fashion-MNIST and CIFAR-10 from whatever is at hand, with the same pictures in the same order.

Looked for in turn: a folder prepared by TensorFlow Datasets (ours or the stock one, array_record or tfrecord),
the original files, the network. Decoded pictures are kept beside the prepared folder.
"""
import contextlib
import hashlib
import io
import json
import logging
import re
import struct
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dipddpm_jax.data import originals
from dipddpm_jax.data.dataset import Dataset, Description, MissingSplit
from dipddpm_jax.data.originals import ORIGINALS, Pictures
from dipddpm_jax.data.pictures import kept
from dipddpm_jax.errors import UserError

FORMATS = ("array_record", "tfrecord") if find_spec("array_record") else ("tfrecord",)  # what can be read, best first


def describe(name: str) -> Description:
    """Shape and labels."""
    return Description(ORIGINALS[name].shape, ORIGINALS[name].label_names)


def load(name: str, split: str, data_dir: Path, image_size: int | None) -> Dataset:
    """All pictures of the split, in the order in which they were published."""
    folder = find(name, data_dir)
    if folder is None:
        files = originals.find(name, data_dir) or originals.download(name, data_dir)
        folder = prepare(name, files, data_dir)
    images, labels = originals.read_published(name, split, files) if folder is None else decoded(folder, split)
    if images.shape[1:] != ORIGINALS[name].shape:
        raise UserError(f"{folder} holds pictures of {images.shape[1:]}; those of {name} are {ORIGINALS[name].shape}")
    return Dataset(images, labels, ORIGINALS[name].label_names, name)


def find(name: str, data_dir: Path) -> Path | None:
    """The folder of a complete preparation, ours before the stock one; one still being written has another name."""
    for builder in (f"dipddpm_{name}", name):
        folders = sorted((data_dir / builder).glob("*/dataset_info.json"), reverse=True)
        versions = [f.parent for f in folders if re.fullmatch(r"\d+\.\d+\.\d+", f.parent.name)]
        readable = [folder for folder in versions if _format(folder) in FORMATS]
        if readable:
            return min(readable, key=lambda folder: FORMATS.index(_format(folder)))
    return None


def decoded(folder: Path, split: str) -> Pictures:
    """Pictures and labels of a prepared folder, from the copy beside it if that still belongs to these files."""
    source = " ".join(f"{f.name}:{f.stat().st_size}:{f.stat().st_mtime_ns}" for f in sorted(folder.iterdir()))
    arrays = kept(folder.with_name(f"{folder.name}-{split}-decoded.npz"), source, lambda: _decode(folder, split))
    return arrays["images"], arrays["labels"]


def published_order(split: str, n: int) -> list[int]:
    """Which original picture each record of a shuffled TFDS split is: it sorts by the MD5 of split + number."""
    return sorted(range(n), key=lambda i: hashlib.md5(f"{split}{i}".encode()).digest())


def read_tfrecord(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file: length, its checksum, data, its checksum; ValueError if it is cut short."""
    with open(path, "rb") as file:
        while header := file.read(12):
            (length,) = struct.unpack("<Q", header[:8]) if len(header) == 12 else (0,)
            record = file.read(length + 4)
            if len(header) < 12 or len(record) < length + 4:
                raise ValueError("it is cut short")
            yield record[:-4]


def _read_array_record(path: Path) -> list[bytes]:
    from array_record.python.array_record_module import ArrayRecordReader
    reader = ArrayRecordReader(str(path))
    try:
        return reader.read_all()
    finally:
        reader.close()


def _format(folder: Path) -> str:
    try:
        return json.loads((folder / "dataset_info.json").read_text()).get("fileFormat", "tfrecord")
    except (OSError, ValueError) as error:
        raise _broken(folder / "dataset_info.json", error) from error


def _broken(path: Path, error: Exception) -> UserError:
    folder = path.parent
    return UserError(f"{path} is missing or damaged ({error}).\nRemove the folder {folder}, then it is prepared anew")


def _decode(folder: Path, split: str) -> dict[str, np.ndarray]:
    import tensorflow_datasets as tfds
    logging.getLogger("absl").addFilter(lambda message: "OpenCV" not in message.getMessage())  # PIL serves as well
    try:
        info = tfds.builder_from_directory(folder).info
    except Exception as error:  # protobuf, JSON, or its own
        raise _broken(folder / "features.json", error) from error
    if split not in info.splits:
        raise MissingSplit(f"{folder} holds no split {split!r}, only {', '.join(info.splits)}")
    read = _read_array_record if _format(folder) == "array_record" else read_tfrecord
    images, labels = [], []
    bar = tqdm(total=info.splits[split].num_examples, desc=f"decoding {folder}", unit=" pictures", disable=None)
    for path, length in zip(info.splits[split].filepaths, info.splits[split].shard_lengths):
        try:
            records = []
            for record in read(Path(path)):
                records.append(info.features.deserialize_example_np(record))
                bar.update()
        except Exception as error:  # damaged bytes surface as errors of many libraries
            raise _broken(Path(path), error) from error
        if len(records) != length:
            raise _broken(Path(path), ValueError(f"{len(records)} records instead of {length}"))
        images += [r["image"] for r in records]
        labels += [r["label"] for r in records]
    order = slice(None) if info.disable_shuffling else np.argsort(published_order(split, len(labels)))
    return {"images": np.stack(images)[order], "labels": np.array(labels, np.int32)[order]}


def prepare(name: str, files: Path, data_dir: Path) -> Path | None:
    """Write data_dir/dipddpm_NAME; None where that is impossible, and then the original files serve directly."""
    if find_spec("array_record") is None:
        return None
    import tensorflow_datasets as tfds

    from dipddpm_jax.data.builders import BUILDERS
    tfds.disable_progress_bar()  # its three bars, for our one
    config = tfds.download.DownloadConfig(manual_dir=files)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder = BUILDERS[name](data_dir=data_dir, file_format="array_record")
            builder.download_and_prepare(download_config=config)
    except OSError as error:  # read-only, full, or another process was first
        folder = find(name, data_dir)
        if folder is None:
            print(f"{name} is read from {files}: {data_dir} cannot be written ({error})", file=sys.stderr)
        return folder
    return Path(builder.data_path)
