"""python -m dipddpm_jax {label-accuracy, judge, export}: parsed before JAX is imported."""
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from dipddpm_jax.commands.ends import guarded
from dipddpm_jax.errors import UserError


@dataclass(frozen=True)
class LabelAccuracy:
    """Scores the kept checkpoints of a run; what accuracy.jsonl in the run already holds is not done again."""

    workdir: tyro.conf.Positional[Path | None] = None
    """Directory of a training run; default: the newest in runs/."""
    lists: tuple[str, ...] = ()
    """validation, test, new_test; unseen (combinations that were held out of training) and seen (others, to compare);
    classes (a model with one label a picture). Default: all that there are."""
    guidance: float | None = None
    """Weight of classifier-free guidance; default: as the run was configured, like the next three."""
    num_steps: int | None = None
    sampler: str | None = None
    compose: bool = False
    seeds: int = 2
    steps: tuple[int, ...] = ()
    """Checkpoints; default: all."""
    evaluator: Path | None = None
    """The course's checkpoint.pth, for iCLEVR."""
    data_dir: Path | None = None
    """Folder with iCLEVR's test.json and new_test.json."""


@dataclass(frozen=True)
class Judge:
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


@dataclass(frozen=True)
class Export:
    """Writes the (averaged) weights of a run as a .safetensors file with PyTorch's names and layouts."""

    workdir: tyro.conf.Positional[Path]
    """Directory of the run."""
    out: tyro.conf.Positional[Path]
    """File to write."""
    step: int | None = None
    """Checkpoint to use; default: the newest."""


COMMANDS = {"label-accuracy": LabelAccuracy, "judge": Judge, "export": Export}


def run(command: LabelAccuracy | Judge | Export) -> str:
    """Does it; returns what to tell the user. Raises UserError."""
    if isinstance(command, Export) and command.out.suffix != ".safetensors":
        raise UserError(f"{command.out} must end in .safetensors")

    from dipddpm_jax import devices, torch_weights
    from dipddpm_jax.commands import label_accuracy
    from dipddpm_jax.commands.model import load_run
    from dipddpm_jax.judging import judges

    devices.set_up()
    if isinstance(command, LabelAccuracy):
        return label_accuracy.run(command)
    if isinstance(command, Judge):
        return judges.build(command)
    model = load_run(command.workdir, command.step)
    state = torch_weights.export_torch(model.weights)
    torch_weights.write(state, command.out)
    return f"{len(state)} entries of step {model.step} written to {command.out}"


def main(argv: Sequence[str] | None = None) -> None:
    """A user's mistake is one line on stderr and exit status 2."""
    command = tyro.extras.subcommand_cli_from_dict(COMMANDS, args=argv, prog="python -m dipddpm_jax")
    with guarded("interrupted; the same command goes on"):
        print(run(command))


if __name__ == "__main__":
    main()
