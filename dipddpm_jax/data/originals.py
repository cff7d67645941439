"""The published files of MNIST, Fashion-MNIST and CIFAR-10: where they are looked for, read and fetched from."""
import gzip
import hashlib
import http.client
import io
import os
import pickle
import socket
import tarfile
import threading
import zlib
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, urlopen

import numpy as np
from jaxtyping import Int32, UInt8
from tqdm import tqdm

from dipddpm_jax.errors import UserError

Pictures = tuple[UInt8[np.ndarray, "n h w c"], Int32[np.ndarray, "n *k"]]  # k labels: multi-hot


class Original(NamedTuple):
    """One published set: its files, their address, and the folders where other programs keep them."""

    label_names: tuple[str, ...]
    shape: tuple[int, int, int]
    url: str
    files: tuple[str, ...]
    folders: tuple[str, ...]


_IDX = tuple(f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ORIGINALS = {
    "mnist": Original(tuple("0123456789"), (28, 28, 1), "https://storage.googleapis.com/cvdf-datasets/mnist/", _IDX,
                      ("mnist", "MNIST/raw", "downloads/manual", ".")),
    "fashion_mnist": Original(_CLOTHES, (28, 28, 1), "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
                              _IDX, ("fashion_mnist", "FashionMNIST/raw", "downloads/manual", ".")),
    "cifar10": Original(_OBJECTS, (32, 32, 3), "https://www.cs.toronto.edu/~kriz/", ("cifar-10-binary.tar.gz",),
                        ("cifar10", "downloads/manual", ".")),
}
# The two sets use the same file names: the MD5 sums of train-images-idx3-ubyte.gz tell them apart.
_MD5_OF = {"f68b3c2dcbeaaa9fbdd348bbdeb94873": "mnist", "8d4fb7e6c68d591d4c3dfef9ec88bf0d": "fashion_mnist"}
_CIFAR_FORMS = (  # archive, the folder in it (or unpacked beside it), suffix of the batches
    ("cifar-10-binary.tar.gz", "cifar-10-batches-bin", ".bin"),
    ("cifar-10-python.tar.gz", "cifar-10-batches-py", ""),
)
_READ_ERRORS = (OSError, EOFError, ValueError, KeyError, zlib.error, tarfile.TarError, pickle.UnpicklingError)


def find(name: str, data_dir: Path) -> Path | None:
    """The first known folder that holds all files of the set."""
    for folder in (data_dir / f for f in ORIGINALS[name].folders):
        if name == "cifar10":
            complete = any((folder / form[i]).exists() for form in _CIFAR_FORMS for i in (0, 1))
        else:
            complete = all(_unzipped_or_not(folder / f).is_file() for f in _IDX) and _is_it(name, folder / _IDX[0])
        if complete:
            return folder
    return None


def read_published(name: str, split: str, folder: Path) -> Pictures:
    """Pictures and labels in the published order; UserError names a damaged file."""
    images, labels = _read_cifar(folder, split) if name == "cifar10" else _read_mnist(folder, split)
    num_classes = len(ORIGINALS[name].label_names)
    if len(images) != len(labels) or images.shape[1:] != ORIGINALS[name].shape or labels.max(initial=0) >= num_classes:
        raise UserError(f"the {split} files of {name} in {folder} do not belong together: pictures {images.shape}, "
                        f"{len(labels)} labels up to {labels.max(initial=0)}")
    return images, labels


def read_idx(path: Path) -> UInt8[np.ndarray, "..."]:
    """An IDX file of bytes, gzipped or not (LeCun, "The MNIST database": file formats)."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if raw[:3] != b"\0\0\x08":
            raise ValueError("not an IDX file of bytes")
        dims = raw[3]
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(np.frombuffer(raw, ">i4", dims, 4))
    except (IndexError, *_READ_ERRORS) as error:
        raise _damaged(path, error) from error


def download(name: str, data_dir: Path) -> Path:
    """Fetch the missing files into data_dir/name; offline it fails within seconds, and says what to put where."""
    original, folder = ORIGINALS[name], data_dir / name
    if not _is_it(name, folder / original.files[0]):
        raise UserError(f"{folder / original.files[0]} belongs to another set than {name}; move it away")
    try:
        _check_reachable(original.url)
        folder.mkdir(parents=True, exist_ok=True)
        for file in original.files:
            if not (folder / file).is_file():
                _fetch(original.url + file, folder / file)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"{name} is not in {data_dir} and cannot be fetched from {original.url} ({error}).\n"
                        f"Put {', '.join(original.files)} into {folder}, or use a set without download: mnist5k, "
                        "photo_crops, folder:PATH") from error
    return folder


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is damaged or not what its name says ({error}); remove it and fetch it again")


def _unzipped_or_not(path: Path) -> Path:
    return path if path.is_file() else path.with_suffix("")


def _is_it(name: str, path: Path) -> bool:
    return not path.is_file() or _MD5_OF.get(hashlib.md5(path.read_bytes()).hexdigest(), name) == name


def _read_mnist(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    images, labels = (_unzipped_or_not(folder / f) for f in (_IDX[:2] if split == "train" else _IDX[2:]))
    images, labels = read_idx(images), read_idx(labels)
    if images.ndim != 3 or labels.ndim != 1:
        raise UserError(f"the {split} files in {folder} are not pictures and labels: {images.shape}, {labels.shape}")
    return images[..., None], labels.astype(np.int32)


def _read_cifar(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    names = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
    archive, inner, suffix = next(f for f in _CIFAR_FORMS if (folder / f[0]).exists() or (folder / f[1]).exists())
    path = folder / inner if (folder / inner).exists() else folder / archive
    try:
        if path.is_dir():
            batches = [(path / (n + suffix)).read_bytes() for n in names]
        else:  # unpacked whole, since only the end of a gzip file tells that it is sound
            with tarfile.open(fileobj=io.BytesIO(gzip.decompress(path.read_bytes()))) as tar:
                batches = [tar.extractfile(f"{inner}/{n}{suffix}").read() for n in names]
        rows = np.concatenate([_unpickled(b) if suffix == "" else _records(b) for b in batches])
    except _READ_ERRORS as error:
        raise _damaged(path, error) from error
    return np.ascontiguousarray(rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), rows[:, 0].astype(np.int32)


def _records(batch: bytes) -> UInt8[np.ndarray, "n 3073"]:
    return np.frombuffer(batch, np.uint8).reshape(-1, 3073)


def _unpickled(batch: bytes) -> UInt8[np.ndarray, "n 3073"]:
    content = _ArraysOnly(io.BytesIO(batch), encoding="bytes").load()
    return np.concatenate([np.array(content[b"labels"], np.uint8)[:, None], content[b"data"]], axis=1)


class _ArraysOnly(pickle.Unpickler):
    """A pickle may run any code when it is loaded; this one can build arrays only."""

    def find_class(self, module: str, name: str):
        if name == "_reconstruct" and module.endswith("core.multiarray"):
            return np._core.multiarray._reconstruct
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes in protocol 2
            return lambda text, encoding: text.encode(encoding)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _check_reachable(url: str, seconds: float = 5) -> None:
    """Name look-up and connection may each take minutes to fail behind a firewall, so they get a common deadline."""
    parts = urlsplit(url)
    if parts.scheme in getproxies():
        return
    address = (parts.hostname, parts.port or {"http": 80, "https": 443}[parts.scheme])
    outcome: list[OSError | None] = []

    def connect():
        try:
            socket.create_connection(address, 3).close()
            outcome.append(None)
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer within {seconds} s")
    if outcome[0] is not None:
        raise outcome[0]


def _fetch(url: str, target: Path) -> None:
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with urlopen(url, timeout=10) as source, open(part, "wb") as sink:
            size = int(source.headers.get("Content-Length") or 0)
            with tqdm(total=size or None, desc=target.name, unit="B", unit_scale=True, disable=None) as bar:
                while block := source.read(1 << 16):
                    sink.write(block)
                    bar.update(len(block))
            if size and sink.tell() != size:
                raise OSError(f"{target.name} ended after {sink.tell()} of {size} bytes")
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
