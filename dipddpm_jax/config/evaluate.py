"""What evaluate can be asked for."""
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dipddpm_jax.config.sampler import SamplerOptions


@dataclass(frozen=True)
class Evaluate:
    """Judges pictures of a trained model, or any others, beside real ones: evaluation.md and .json, nearest.png.

    FD(judge) and KID(judge) are distances in the features of a classifier that this repository trained. They are no
    FID: compare them at equal n and with the same judge only, and with the floor beside them, which real pictures get.
    """

    workdir: tyro.conf.Positional[Path | None] = None
    """Directory of a training run; default: the newest in runs/."""
    count: int = 2000
    """How many pictures to draw; all labels in turn, or those of held-out pictures."""
    prior: str | None = None
    """A pretrained model that comes with the package, instead of a run: digits, digits-fast, photos,
    photos-grey or scenes."""
    samples: Path | None = None
    """Judge the pictures in this .npz (uint8 `images`, n h w c, and maybe `labels`) instead of drawing."""
    data: str | None = None
    """Real pictures to compare with; default: what the run was trained on."""
    judge: str | None = None
    """digits, crops, scenes, another data set's, a file that `python -m dipddpm_jax judge` wrote, or the iCLEVR
    course's checkpoint.pth; default: the one that belongs to the data."""
    how: Annotated[SamplerOptions, tyro.conf.arg(name="")] = SamplerOptions()
    seed: int = 0
    """Seed of the samples, and of the choice of real pictures."""
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
