"""Checkpoints: which ones stay, what is read back, and what a damaged one or a full disk leaves to say."""
import os
import resource
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dipddpm_jax import checkpoints
from dipddpm_jax.checkpoints import Checkpoints, Retention, latest_step, read_checkpoint, steps
from dipddpm_jax.errors import UserError


def items(step, size=8):
    return {"train": {"a": jnp.full(size, float(step)), "key": jax.random.key(step)}}


def value(folder, step=None):
    return float(read_checkpoint(folder, items(0), step)["train"]["a"][0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Steps 1 to 4 with losses 3, 1, 2, 4, and a spare one."""
    folder = tmp_path_factory.mktemp("checkpoints") / "checkpoints"
    with Checkpoints(folder) as kept:
        for step, loss in enumerate((3.0, 1.0, 2.0, 4.0), 1):
            kept.add(step, items(step), loss)
        kept.add(5, items(5), spare=True)
    return folder


def test_the_latest_two_and_the_best_stay_and_a_spare_one_until_the_next(folder, tmp_path):
    assert steps(folder) == [2, 3, 4, 5] and sorted(os.listdir(folder)) == ["2", "3", "4", "5"]
    copy = shutil.copytree(folder, tmp_path / "copy")
    with Checkpoints(copy) as kept:
        kept.add(6, items(6), 5.0)
    assert steps(copy) == [2, 4, 6], "as if nothing had been saved in between"
    assert [value(copy, step) for step in (2, 4, 6)] == [2, 4, 6] and value(copy) == 6


def test_what_stays_of_checkpoints_without_a_loss():
    class Info:
        def __init__(self, step, **metrics):
            self.step, self.metrics = step, metrics

    infos = [Info(i, loss=checkpoints.WORST) for i in range(1, 7)]
    assert Retention(None).should_preserve(infos, context=None) == [False] * 4 + [True] * 2
    assert Retention(3).should_preserve(infos, context=None) == [False, False, True, False, True, True]
    infos[1].metrics = None  # an older file
    infos.append(Info(7, spare=1))
    assert Retention(None).should_preserve(infos, context=None) == [False] * 4 + [True] * 3


@pytest.mark.parametrize("name", ["digits [1]", "back\\slash", "[!a]*?"])
def test_any_path_is_written_to_and_read_from(tmp_path, name):
    with Checkpoints(tmp_path / name) as kept:
        kept.add(1, items(1), 1.0)
        kept.add(2, items(2), 1.0)
    assert steps(tmp_path / name) == [1, 2] and value(tmp_path / name) == 2


def test_the_first_one_is_read_back(tmp_path, monkeypatch):
    real = checkpoints._checksum
    monkeypatch.setattr(checkpoints, "_checksum", lambda tree: real(jax.tree.map(  # a disk that returns other bytes
        lambda a: a + 1 if isinstance(a, np.ndarray) else a, tree)))
    with pytest.raises(UserError, match="cannot be read back as it was written"):
        with Checkpoints(tmp_path / "run") as kept:
            kept.add(1, items(1), 1.0)


@pytest.mark.parametrize("lost", ["_CHECKPOINT_METADATA", "train/_METADATA", "train/manifest.ocdbt", "checksums",
                                  "metrics/metrics"])
def test_half_of_a_deleted_checkpoint_does_not_count(folder, tmp_path, lost):
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / "5" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert steps(copy) == [2, 3, 4] and latest_step(copy) == 4 and value(copy) == 4
    with pytest.raises(UserError, match="no checkpoint of step 5 in .*: it has steps 2, 3, 4"):
        value(copy, 5)
    with Checkpoints(copy) as kept:
        kept.add(5, items(7), 1.0)
    assert value(copy, 5) == 7 and (copy / "5.incomplete").is_dir(), "out of the way, and not lost"


def test_a_damaged_checkpoint_is_not_to_be_deleted(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    for path in (copy / "5" / "train" / "d").iterdir():
        path.write_bytes(b"")
    for path in (copy / "5" / "train" / "ocdbt.process_0" / "d").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError) as error:
        value(copy)
    assert "there are others: step 2, 3, 4" in str(error.value) and "delete" not in str(error.value)
    for step in (2, 3, 4):
        shutil.rmtree(copy / str(step))
    with pytest.raises(UserError) as error:
        value(copy)
    assert "the only one: copy it" in str(error.value) and "delete" not in str(error.value)


def test_a_disk_that_fills_while_a_checkpoint_is_written_is_one_line(folder, tmp_path):
    """A limit on the size of files stands for a full disk: the bytes of arrays go there, small files still fit."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    large = {"train": {"a": jax.random.normal(jax.random.key(0), (2**20,)), "key": jax.random.key(0)}}
    try:
        with pytest.raises(UserError, match="cannot save a checkpoint in .*; the last complete one is step 5$") as full:
            with Checkpoints(copy) as kept:
                resource.setrlimit(resource.RLIMIT_FSIZE, (2**17, limits[1]))
                kept.proven = True  # asynchronous, as all but the first
                kept.add(8, large, 1.0)
                kept.add(9, large, 1.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(full.value) and steps(copy) == [2, 3, 4, 5] and value(copy) == 5


def test_too_little_room_is_seen_before(folder, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(UserError, match="no space left .* the last complete one is step 5"):
        with Checkpoints(folder) as kept:
            kept.add(9, items(9), 1.0)
