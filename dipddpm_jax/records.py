"""Records: where a result came from, strict JSON, files of result lines, and the user's cache folder.

A file of result lines (.jsonl) holds one JSON object a line. A process may die while it writes the last one, so that a
last line without its newline is left out when it cannot be read; any other unreadable line is damage and named.
Imports nothing heavy.
"""
import contextlib
import hashlib
import json
import math
import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import date
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dipddpm_jax.errors import UserError
from dipddpm_jax.files import write_text

LIBRARIES = ("jax", "jaxlib", "flax", "numpy")


# --- where a result came from

def provenance(seed: int | None = None, command: str | None = None) -> dict[str, Any]:
    """What a result depends on besides its setting: command line (this process's unless given), seed, machine, date,
    versions of this package, Python and the numeric libraries, and a digest of this package's source."""
    return {"command": typed_command() if command is None else command, "seed": seed, "machine": machine(),
            "date": str(date.today()), "versions": versions(), "source": source_digest()}


def typed_command() -> str:
    """The command line of this process, to be pasted into a shell; the interpreter without its folder."""
    first, *rest = sys.orig_argv or [sys.executable]
    return shlex.join([Path(first).name, *rest])


def versions() -> dict[str, str]:
    """Versions of Python, this package and the numeric libraries, by name."""
    from dipddpm_jax import __version__

    found = {"python": platform.python_version(), "dipddpm_jax": __version__}
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@cache
def source_digest() -> str:
    """Eight hexadecimal digits of the SHA-256 of this package's Python files: equal for equal code."""
    root, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:8]


def machine() -> str:
    """What computes: the accelerator, or how many cores of which processor this process may use."""
    import jax

    from dipddpm_jax.convolution.cost import cores

    if jax.default_backend() != "cpu":
        return jax.devices()[0].device_kind
    cpu = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in cpu.read_text().splitlines() if line.startswith("model name")] \
        if cpu.exists() else [platform.processor()]
    return f"{cores()} core{'s' * (cores() != 1)} of {(names or ['a CPU'])[0]}"


# --- strict JSON

def json_ready(value: Any) -> Any:
    """The value as JSON knows it (RFC 8259): non-finite numbers are None, NumPy's numbers and arrays Python's, paths
    text. Raises TypeError for what has no JSON form."""
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_ready(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # arrays and scalars of NumPy and JAX
        return json_ready(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"{type(value).__name__} has no JSON form")


def json_text(value: Any, indent: int | None = None) -> str:
    """Strict JSON text, which never holds NaN or Infinity."""
    return json.dumps(json_ready(value), indent=indent, allow_nan=False)


def write_json(value: Any, path: Path) -> None:
    """Writes a file of strict JSON; it is there as a whole, or as it was before. Raises UserError."""
    write_text(path, json_text(value, 2) + "\n")


# --- result lines

def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file, none if there is no file; NaN and Infinity, which older files hold, are None.

    A last line that was cut short is left out; UserError names any other line that is no JSON object.
    """
    rows = []
    for number, (line, ended) in enumerate(_raw_lines(path), 1):
        row = _parsed(line)
        if row is not None:
            rows.append(row)
        elif ended and line.strip():
            raise UserError(f"{path}, line {number}, is not a JSON object: remove or repair that line")
    return rows


def append_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds result lines in one write; a last line that was cut short makes way for them. Raises OSError (and then the
    file holds what it held before)."""
    added = "".join(json_text(row) + "\n" for row in rows).encode()
    with open(path, "ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        if size and file.read(1) != b"\n":
            last = Path(path).read_bytes().rpartition(b"\n")[2]
            if _parsed(last) is None:
                size -= len(last)
                file.truncate(size)
            else:
                added = b"\n" + added
        try:
            while added:  # a full disk may take a part
                added = added[file.write(added):]
        except OSError:
            file.truncate(size)
            raise


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replaces a file of result lines in one step. Raises UserError."""
    write_text(path, "".join(json_text(row) + "\n" for row in rows))


def _raw_lines(path: Path) -> list[tuple[bytes, bool]]:
    """(line, whether its newline is there) of a file; nothing if it does not exist."""
    try:
        whole = Path(path).read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    *ended, last = whole.split(b"\n")
    return [(line, True) for line in ended] + [(last, False)] * bool(last)


def _parsed(line: bytes) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError, RecursionError):
        row = json.loads(line, parse_constant=lambda name: None)
        return row if isinstance(row, dict) else None
    return None


# --- the user's cache

def cache_folder() -> Path:
    """This package's folder in the user's cache: $XDG_CACHE_HOME or ~/.cache, and a folder for temporary files where
    there is no home (no HOME and no entry of passwd) or nothing can be made in it. It exists when this returns."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "")
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: there is no home
        folder = (base if base.is_absolute() else Path.home() / ".cache") / "dipddpm_jax"
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    user = os.getuid() if hasattr(os, "getuid") else ""
    folder = Path(tempfile.gettempdir()) / f"dipddpm_jax-{user}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
