"""Files that are complete or absent, and folders with one owner at a time: what keeps a killed run whole.

Plain Python, for every room that writes: a full or read-only disk is a UserError that names the file.
"""
import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dipddpm_jax.errors import UserError

LOCK = ".owner"
_owned: set[Path] = set()  # a POSIX lock does not keep its own process out


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Around whatever writes `path`: an OSError (disk full, read-only, no permission) becomes a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {os.strerror(error.errno) if error.errno else error}") from None


@contextmanager
def complete_file(path: Path, parents: bool = False) -> Iterator[Path]:
    """A path to write to instead of `path`, which it replaces at the end of the block: `path` is never half written.

    The file beside it has the same ending, by which libraries choose a format. Raises UserError where the disk does.
    """
    target = Path(path).resolve()  # a link stays a link
    part = target.with_name(f".part-{target.name}")
    with writing(path):
        if parents:
            target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            if target.exists():
                os.chmod(part, target.stat().st_mode & 0o777)
            os.replace(part, target)
        except BaseException:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise


def check_writable(folder: Path) -> None:
    """Raises UserError when nothing can be written in a folder (or, where it does not exist, in what will hold it).

    Called before long computations; a file is written and removed, since permissions alone do not tell.
    """
    place = next(path for path in (Path(folder).resolve(), *Path(folder).resolve().parents) if path.exists())
    with writing(folder), tempfile.TemporaryFile(dir=place) as file:
        file.write(b"0")


def write_text(path: Path, text: str) -> None:
    """Writes a text file, wholly or not at all. Raises UserError."""
    with complete_file(path) as part:
        part.write_text(text)


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Keeps every other process (and thread) that asks for the same out of `folder`, until the block or process ends.

    A POSIX record lock (lockf) on the file .owner in it: the kernel drops it when its process dies, however that
    happens, and network file systems (NFS, Lustre) honour it between machines, which they need not do for flock.
    Raises UserError that names the owner, or when the folder cannot be written to.
    """
    path, key = folder / LOCK, folder.resolve()
    if key in _owned:
        raise UserError(f"{folder} is in use by another run of this very process ({os.getpid()})")
    with writing(path):
        file = path.open("a+")
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise UserError(f"{folder} is in use by {owner}: wait until it ends, or give another --workdir") from None
        except OSError as error:  # a file system without locks
            raise UserError(f"cannot lock {path} ({error.strerror}), so that two runs might share the folder; "
                            "give a --workdir on another disk") from None
        _owned.add(key)
        try:
            with writing(path):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
                file.flush()
            yield
        finally:
            _owned.discard(key)
            with suppress(OSError):
                file.truncate(0)  # the file stays: a lock on a deleted one would keep nobody out
