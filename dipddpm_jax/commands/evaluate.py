"""python -m dipddpm_jax.evaluate RUN: the command line of `evaluation`, parsed before JAX is imported."""
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from dipddpm_jax.commands.ends import guarded
from dipddpm_jax.config import saved
from dipddpm_jax.config.ranges import check_sampler
from dipddpm_jax.config.sampler import changed_sampler
from dipddpm_jax.errors import UserError


@dataclass(frozen=True)
class Command:
    """Judges pictures of a trained model, or any others, beside real ones: evaluation.md and .json, nearest.png.

    FD(judge) and KID(judge) are distances in the features of a classifier that this repository trained. They are no
    FID: compare them at equal n and with the same judge only, and with the floor beside them, which real pictures get.
    """

    workdir: tyro.conf.Positional[Path | None] = None
    """Directory of a training run; default: the newest in runs/."""
    count: int = 2000
    """How many pictures to draw; all labels in turn, or those of held-out pictures."""
    samples: Path | None = None
    """Judge the pictures in this .npz (uint8 `images`, n h w c, and maybe `labels`) instead of drawing."""
    data: str | None = None
    """Real pictures to compare with; default: what the run was trained on."""
    judge: str | None = None
    """digits, crops, scenes, another data set's, a file that `python -m dipddpm_jax judge` wrote, or the iCLEVR
    course's checkpoint.pth; default: the one that belongs to the data."""
    sampler: str | None = None
    """ancestral, ddim, heun or dpmpp_2m; default: as the run was configured, like the next options."""
    num_steps: int | None = None
    variance: str | None = None
    eta: float | None = None
    clip: bool | None = None
    guidance: float | None = None
    compose: bool = False
    """Let each of a picture's labels pull by itself."""
    seed: int = 0
    """Of the samples, and of the choice of real pictures."""
    step: int | None = None
    """Checkpoint to use; default: the newest."""
    batch_size: int = 64
    """Pictures drawn at once; does not change them."""
    out: Path | None = None
    """Directory to write to; default: evaluation/ in the run."""
    png_folder: Path | None = None
    """Also every picture as a PNG in this new folder, for other programs."""
    data_dir: Path | None = None
    """Where data sets are kept."""


def run(argv: Sequence[str] | None) -> str:
    """Checks what was asked for, then does it. Raises UserError."""
    command = tyro.cli(Command, args=argv, prog="dipddpm_jax.evaluate")
    if not 2 <= command.count <= 1_000_000:
        raise UserError(f"--count must be 2 to 1000000; got {command.count}")
    if not 1 <= command.batch_size <= 65_536:
        raise UserError(f"--batch-size must be 1 to 65536; got {command.batch_size}")
    if not 0 <= command.seed < 2**31:
        raise UserError(f"--seed must be between 0 and 2^31 - 1; got {command.seed}")
    config = sampler = None
    workdir = command.workdir
    if not (command.samples and command.data):
        workdir = workdir or saved.newest_run()
        _, config, _ = saved.load(workdir / "config.json")
        sampler = changed_sampler(config.sampler, {
            "name": command.sampler, "variance": command.variance, "eta": command.eta, "clip": command.clip,
            "guidance": command.guidance, "num_steps": command.num_steps, "compose": command.compose or None})
        check_sampler(sampler, config.schedule)
    out = command.out or (workdir or command.samples.parent) / "evaluation"
    for name, folder in (("--out", out), ("--png-folder", command.png_folder)):
        if folder and folder.exists() and not folder.is_dir():
            raise UserError(f"{name} {folder} is a file; name a directory")
    if command.png_folder and command.png_folder.is_dir() and any(command.png_folder.iterdir()):
        raise UserError(f"--png-folder {command.png_folder} is not empty; name a new one")

    from dipddpm_jax.commands import evaluation

    return evaluation.evaluate(command, workdir, config, sampler, out)


def main(argv: Sequence[str] | None = None) -> None:
    """A user's mistake is one line on stderr and exit status 2."""
    with guarded():
        print(run(argv))


if __name__ == "__main__":
    main()
