"""export: the weights of a run as a .safetensors file that PyTorch reads."""
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from dipddpm_jax.commands.ends import guarded
from dipddpm_jax.config import saved
from dipddpm_jax.errors import UserError


@dataclass(frozen=True)
class Export:
    """Writes the (averaged) weights of a run as a .safetensors file with PyTorch's names and layouts, and how to
    use them: sample.py --torch-weights FILE needs nothing else."""

    workdir: tyro.conf.Positional[Path]
    """Directory of the run."""
    out: tyro.conf.Positional[Path]
    """File to write."""
    step: int | None = None
    """Checkpoint to use; default: the newest."""


def export(command: Export) -> str:
    """Writes the file; returns what to tell the user. Raises UserError."""
    if command.out.suffix != ".safetensors":
        raise UserError(f"{command.out} must end in .safetensors")

    from dipddpm_jax import devices, torch_files, torch_weights
    from dipddpm_jax.commands.model import load_run

    devices.set_up()
    model = load_run(command.workdir, command.step)
    state = torch_weights.export_torch(model.weights)
    record = saved.to_record(model.config, "exported", model.facts)
    torch_files.write_state(state, command.out, {saved.EXPORTED: json.dumps(record)})
    return f"{len(state)} entries of step {model.step} written to {command.out}"


def export_main(argv: Sequence[str]) -> None:
    """`dipddpm-jax export RUN OUT`."""
    with guarded():
        print(export(tyro.cli(Export, args=list(argv), prog="dipddpm-jax export")))
