"""Directories of runs: new ones, the log of numbers, and an end in good order when a signal comes."""
import json
from pathlib import Path
from typing import Any

import numpy as np

from dipddpm_jax.commands.ends import deferred as stop_signals  # noqa: F401
from dipddpm_jax.errors import UserError


class Stopped(Exception):
    """Training ended early on purpose; `code` is the exit status."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def new_workdir(preset: str, workdir: Path | None) -> Path:
    """Creates the directory of a new run. Raises UserError when it exists and holds something."""
    if workdir is None:
        number = 1 + max((int(p.name.rpartition("-")[2]) for p in Path("runs").glob("*-*")
                          if p.name.rpartition("-")[2].isdigit()), default=0)
        workdir = Path("runs") / f"{preset}-{number:03d}"
    if workdir.is_dir() and any(workdir.iterdir()):
        kind = "holds another run" if (workdir / "config.json").exists() else "is not empty"
        raise UserError(f"{workdir} {kind}; give another --workdir" + (", or --resume to go on with it"
                                                                      if kind.startswith("holds") else ""))
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create the directory {workdir}: {error.strerror}") from None
    return workdir


class Log:
    """metrics.jsonl of a run; on resuming, lines of steps that will be done again are dropped."""

    def __init__(self, path: Path, step: int):
        lines = path.read_text().splitlines() if path.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("}")]  # the last one may be cut short
        self.rows: list[dict[str, Any]] = [row for row in rows if row["step"] <= step]
        path.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        self.file = path.open("a", buffering=1)

    def write(self, row: dict[str, int | float]) -> None:
        """Adds a line."""
        row = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in row.items()}  # nan is not JSON
        self.rows.append(row)
        self.file.write(json.dumps(row) + "\n")
