"""Records: files cut short at every byte, strict JSON, and a cache folder wherever the user has one or none."""
import json
import os
import resource
import signal
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from dipddpm_jax import records
from dipddpm_jax.errors import UserError
from dipddpm_jax.files import write_text, writing

ROWS = [{"step": 1, "name": "é"}, {"step": 2, "inner": {"a": [1.5, None]}}, {"step": 3}]


def strict(text):
    """Parses as RFC 8259 wants it."""
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")
    return json.loads(text, parse_constant=refuse)


# --- result lines

def test_a_file_cut_short_at_any_byte_keeps_its_whole_lines_and_goes_on(tmp_path):
    file = tmp_path / "lines.jsonl"
    records.write_lines(file, ROWS)
    whole = file.read_bytes()
    ends = [i for i, byte in enumerate(whole) if byte == ord("\n")]  # the object is whole before its newline
    for length in range(len(whole) + 1):
        file.write_bytes(whole[:length])
        known = ROWS[: sum(end <= length for end in ends)]
        assert records.read_lines(file) == known, length
        records.append_lines(file, [{"step": 4}])
        assert records.read_lines(file) == [*known, {"step": 4}], length
        assert file.read_bytes().endswith(b'}\n') and len(file.read_bytes().splitlines()) == len(known) + 1


@pytest.mark.parametrize("tail", [b"\0" * 700, b'{"name": "\xc3', b"[1, 2", b"17"])
def test_a_tail_that_a_dying_machine_left_is_dropped(tmp_path, tail):
    file = tmp_path / "lines.jsonl"
    records.append_lines(file, ROWS[:2])
    file.open("ab").write(tail)
    assert records.read_lines(file) == ROWS[:2]
    records.append_lines(file, ROWS[2:])
    assert records.read_lines(file) == ROWS


@pytest.mark.parametrize("line", [b'{"step": 2, "in', b"[]", b"\xff\xfe", b"NaN"])
def test_a_damaged_line_in_the_middle_is_named(tmp_path, line):
    file = tmp_path / "lines.jsonl"
    file.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    with pytest.raises(UserError, match="lines.jsonl, line 2, is not a JSON object"):
        records.read_lines(file)


def test_there_may_be_no_file_and_old_ones_hold_what_is_not_json(tmp_path):
    assert records.read_lines(tmp_path / "none.jsonl") == []
    (tmp_path / "old.jsonl").write_text('{"a": NaN, "b": [Infinity, -Infinity, 1]}\n\n{"a": 2}')
    assert records.read_lines(tmp_path / "old.jsonl") == [{"a": None, "b": [None, None, 1]}, {"a": 2}]


def test_a_full_disk_leaves_the_file_as_it_was_and_is_one_line(tmp_path):
    """A limit on the size of files stands for a full disk."""
    file = tmp_path / "lines.jsonl"
    records.append_lines(file, ROWS)
    before, limits = file.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
        with pytest.raises(UserError, match="^cannot write the results: File too large$"), \
                writing("the results"):
            records.append_lines(file, [{"more": "x" * 100}])
        with pytest.raises(UserError, match="cannot write .*lines.jsonl: File too large"):
            records.write_lines(file, [{"more": "x" * 1000}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert file.read_bytes() == before and os.listdir(tmp_path) == ["lines.jsonl"]


# --- strict JSON

def test_json_is_strict_whatever_it_is_made_of(tmp_path):
    value = {"inf": np.inf, "nan": [np.nan, -np.inf, np.float32(2.5)], 3: (np.int64(1), np.bool_(True)),
             "array": np.array([[1.0, np.nan]]), "jax": jnp.arange(2), "path": Path("a/b"), "none": None, "text": "ü"}
    wanted = {"inf": None, "nan": [None, None, 2.5], "3": [1, True], "array": [[1.0, None]], "jax": [0, 1],
              "path": "a/b", "none": None, "text": "ü"}
    assert strict(records.json_text(value)) == wanted
    records.write_json(value, tmp_path / "value.json")
    assert strict((tmp_path / "value.json").read_text()) == wanted
    with pytest.raises(TypeError, match="object has no JSON form"):
        records.json_text({"a": object()})


def test_a_file_is_replaced_as_a_whole_and_keeps_its_mode_and_its_link(tmp_path):
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "real.json").chmod(0o640)
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    write_text(tmp_path / "link.json", "new")
    assert (tmp_path / "link.json").is_symlink() and (tmp_path / "real.json").read_text() == "new"
    assert (tmp_path / "real.json").stat().st_mode & 0o777 == 0o640
    write_text(tmp_path / "fresh.json", "new")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "fresh.json").stat().st_mode == (tmp_path / "plain").stat().st_mode
    with pytest.raises(TypeError):
        records.write_json({"a": object()}, tmp_path / "real.json")
    assert (tmp_path / "real.json").read_text() == "new"


# --- provenance

def test_provenance_names_what_a_result_depends_on(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["/usr/bin/python3", "-m", "dipddpm_jax", "evaluate", "a run"])
    found = records.provenance(seed=3)
    assert found["command"] == "python3 -m dipddpm_jax evaluate 'a run'" and found["seed"] == 3
    assert {"python", "dipddpm_jax", "jax", "numpy"} <= set(found["versions"])
    assert found["versions"]["numpy"] == np.__version__ and found["machine"] and len(found["date"]) == 10
    assert strict(records.json_text(found)) == found
    assert records.provenance(command="mine")["command"] == "mine"


def test_the_digest_of_the_source_tells_code_apart(tmp_path, monkeypatch):
    def digest(text):
        (tmp_path / "one.py").write_text(text)
        records.source_digest.cache_clear()
        return records.source_digest()

    monkeypatch.setattr(records, "__file__", str(tmp_path / "records.py"))
    assert digest("a = 1") == digest("a = 1") != digest("a = 2")
    records.source_digest.cache_clear()


# --- the cache

def test_the_cache_folder_is_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert records.cache_folder() == tmp_path / "cache" / "dipddpm_jax" and records.cache_folder().is_dir()
    for value in ("", "relative"):  # to be ignored, says the XDG specification
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert records.cache_folder() == tmp_path / "home" / ".cache" / "dipddpm_jax"


def test_without_a_home_there_is_a_cache_folder_still(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(records.tempfile, "tempdir", str(tmp_path))

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(records.Path, "home", no_home)
    assert records.cache_folder().parent == tmp_path and records.cache_folder().is_dir()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(records.Path, "home", lambda: tmp_path / "file")  # a home in which nothing can be made
    assert records.cache_folder().parent == tmp_path
