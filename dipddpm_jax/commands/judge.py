"""judge: trains a classifier that judges samples, and writes its weights."""
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from dipddpm_jax.commands.ends import guarded


@dataclass(frozen=True)
class JudgeCommand:
    """Trains a judge and writes its weights. The same command goes on where it was interrupted."""

    name: tyro.conf.Positional[str]
    """digits (of mnist5k), crops (of photo_crops: which photograph), scenes, or a data set with classes."""
    seed: int = 0
    out: Path | None = None
    """File to write; default: where judges are loaded from."""
    minutes: float | None = None
    """Stop after so many, to go on later."""
    data_dir: Path | None = None
    """Where data sets are kept."""


def judge_main(argv: Sequence[str]) -> None:
    """`dipddpm-jax judge NAME`."""
    with guarded("interrupted; the same command goes on"):
        command = tyro.cli(JudgeCommand, args=list(argv), prog="dipddpm-jax judge")

        from dipddpm_jax import devices
        from dipddpm_jax.commands.judge_training import build_judge

        devices.set_up()
        print(build_judge(command))
