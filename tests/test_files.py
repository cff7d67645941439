"""Files that are complete or absent, and folders with one owner."""
import multiprocessing
import os
import signal

import pytest

from dipddpm_jax.commands.workdir import claimed_workdir
from dipddpm_jax.errors import UserError
from dipddpm_jax.files import LOCK, complete_file, owned, write_text


def test_a_failed_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "config.json"
    write_text(path, "old")
    with pytest.raises(UserError, match="config.json: No space left"), complete_file(path) as part:
        part.write_text("ne")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["config.json"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write .*file/run: Not a directory"):
        with claimed_workdir("unet", tmp_path / "file" / "run"):
            pass


def _hold(folder, ready):
    with owned(folder):
        ready.set()
        signal.pause()


def test_a_folder_has_one_owner_until_it_dies(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    other = context.Process(target=_hold, args=(tmp_path, ready))
    other.start()
    assert ready.wait(20)
    for resume in (False, True):
        with pytest.raises(UserError, match=f"in use by process {other.pid} on "):
            with claimed_workdir("unet", tmp_path, resume):
                pass
    other.kill()
    other.join()
    with owned(tmp_path), pytest.raises(UserError, match="in use by another run of this very process"):
        with owned(tmp_path):
            pass
    assert (tmp_path / LOCK).read_text() == "", "two runs leave the same folder"


def test_new_runs_get_new_folders_and_nothing_of_others_is_touched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with claimed_workdir("unet", None) as first, claimed_workdir("unet", None) as second:
        assert [str(first), str(second)] == ["runs/unet-001", "runs/unet-002"]
    with claimed_workdir("unet", None, resume=False) as third:
        (third / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds another run.*--resume"), claimed_workdir("unet", third):
        pass
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    with pytest.raises(UserError, match="is not empty"), claimed_workdir("unet", tmp_path / "photos"):
        pass
    assert os.listdir(tmp_path / "photos") == ["a.png"]
