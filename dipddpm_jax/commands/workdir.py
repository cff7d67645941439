"""The directory of a run: a new one or one to go on with, owned by one process at a time."""
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from dipddpm_jax.errors import UserError
from dipddpm_jax.files import LOCK, owned, writing


@contextmanager
def claimed_workdir(kind: str, workdir: Path | None, resume: bool = False) -> Iterator[Path]:
    """The directory of a run, this process's own until the block ends: `with claimed_workdir("dip", given) as workdir`.

    A new run gets `workdir`, or runs/KIND-NUMBER, created here. Raises UserError when another process owns it, when it
    holds something and `resume` is False, or when it cannot be written.
    """
    if numbered := workdir is None:
        workdir = _numbered(kind)
    elif not resume:
        if not (workdir / LOCK).exists():  # an owner is named before what he has written
            _check_empty(workdir)
        with writing(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
    try:
        with owned(workdir):
            if not resume:
                _check_empty(workdir)
            yield workdir
    except BaseException:
        if numbered and [path.name for path in workdir.iterdir()] == [LOCK]:  # nothing came of it
            with suppress(OSError):
                (workdir / LOCK).unlink()
                workdir.rmdir()
        raise


def _check_empty(workdir: Path) -> None:
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is a file; --workdir names a directory")
    if not workdir.is_dir() or all(path.name == LOCK for path in workdir.iterdir()):
        return
    if (workdir / "config.json").exists():
        raise UserError(f"{workdir} holds another run; give another --workdir, or --resume to go on with it")
    raise UserError(f"{workdir} is not empty; give another --workdir")


def _numbered(kind: str) -> Path:
    """Creates runs/KIND-NUMBER with the next free number, even while other runs do so too."""
    taken = [int(number) for path in Path("runs").glob(f"{kind}-*")
             if (number := path.name.removeprefix(f"{kind}-")).isdigit()]
    for number in count(1 + max(taken, default=0)):
        path = Path("runs") / f"{kind}-{number:03d}"
        with writing(path):
            try:
                path.mkdir(parents=True)
                return path
            except FileExistsError:
                continue
