"""What label-accuracy can be asked for."""
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dipddpm_jax.config.sampler import SamplerOptions


@dataclass(frozen=True)
class LabelAccuracy:
    """Scores the kept checkpoints of a run; what accuracy.jsonl in the run already holds is not done again."""

    workdir: tyro.conf.Positional[Path | None] = None
    """Directory of a training run; default: the newest in runs/."""
    lists: tuple[str, ...] = ()
    """validation, test, new_test; unseen (combinations that were held out of training) and seen (others, to compare);
    classes (a model with one label a picture). Default: all that there are."""
    how: Annotated[SamplerOptions, tyro.conf.arg(name="")] = SamplerOptions()
    seeds: int = 2
    steps: tuple[int, ...] = ()
    """Checkpoints; default: all."""
    evaluator: Path | None = None
    """The course's checkpoint.pth, for iCLEVR."""
    data_dir: Path | None = None
    """Folder with iCLEVR's test.json and new_test.json."""
