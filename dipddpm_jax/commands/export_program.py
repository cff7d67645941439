"""export-program: the sampler of a run as one file that JAX alone runs, on a CPU, an NVIDIA GPU or a TPU."""
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dipddpm_jax.commands.ends import guarded
from dipddpm_jax.config import saved
from dipddpm_jax.config.few_step import sampler_of
from dipddpm_jax.config.sampler import SamplerConfig, SamplerOptions, begins_with_pictures
from dipddpm_jax.errors import UserError

PLATFORMS = ("cpu", "cuda", "tpu")
HOW_TO_RUN = """\
import json, numpy as np
from pathlib import Path
from jax import export, jit                                  # and the package flatbuffers
out = Path("OUT")
about = json.loads((out / "program.json").read_text())       # the arguments by name, with types and shapes
program = jit(export.deserialize((out / "program.bin").read_bytes()).call)
values = {"seed": 0, "first": 0, "labels": 0, "guidance": 1.0}
arguments = [np.full(a["shape"], values[a["name"]], a["dtype"]) for a in about["arguments"]]
images, finite = program(*arguments)                         # bytes (batch, height, width, channels)
"""


@dataclass(frozen=True)
class ExportProgram:
    """Writes the sampler of a run, weights inside, as OUT/program.bin with its description OUT/program.json. Another
    process draws the pictures of sample.py from it with JAX and flatbuffers alone, without this package."""

    workdir: tyro.conf.Positional[Path]
    """Directory of the run."""
    out: tyro.conf.Positional[Path]
    """New directory to write to."""
    how: Annotated[SamplerOptions, tyro.conf.arg(name="")] = SamplerOptions()
    batch_size: int = 64
    """Pictures of one call: picture i of a call is that of sample.py with number first + i."""
    step: int | None = None
    """Checkpoint to use; default: the newest."""


def export_program(command: ExportProgram) -> str:
    """Writes both files; returns what to tell the user. Raises UserError."""
    _, config, _ = saved.load(command.workdir / "config.json")
    sampler = sampler_of(config, command.how)
    if begins_with_pictures(sampler):
        raise UserError(f"the sampler {sampler.name} begins with pictures of a data set: only samplers that begin with "
                        "noise can be exported")
    if sampler.compose:
        raise UserError("--compose cannot be exported: its program depends on how many labels a picture has")
    if not 1 <= command.batch_size <= 65_536:
        raise UserError(f"--batch-size must be 1 to 65536; got {command.batch_size}")
    if command.out.exists() and (not command.out.is_dir() or any(command.out.iterdir())):
        raise UserError(f"{command.out} exists already; name a new directory")
    return _write(command, sampler)


def _write(command: ExportProgram, sampler: SamplerConfig) -> str:
    from dipddpm_jax import devices, records
    from dipddpm_jax.commands import portable
    from dipddpm_jax.commands.model import load_run
    from dipddpm_jax.files import complete_file

    devices.set_up()
    model = load_run(command.workdir, command.step)
    program, arguments = portable.sampling_program(model, sampler, command.batch_size, PLATFORMS)
    about = {"arguments": arguments, "label_names": model.facts.label_names, "sampler": dataclasses.asdict(sampler),
             "step": model.step, "platforms": PLATFORMS, "calling_convention": program.calling_convention_version,
             "purpose": "deployment: JAX reads such a file for six months after the version that wrote it. To keep a "
                        "model, keep its run or `dipddpm-jax export`.",
             "how_to_run": HOW_TO_RUN.splitlines(), **records.provenance()}
    with complete_file(command.out / "program.bin", parents=True) as part:
        part.write_bytes(portable.serialized(program))
    records.write_json(about, command.out / "program.json")
    size = (command.out / "program.bin").stat().st_size / 1e6
    return (f"{command.out / 'program.bin'}: {sampler.name}, {command.batch_size} pictures a call, step {model.step}, "
            f"{size:.1f} MB\nIt runs without this package:\n\n{HOW_TO_RUN.replace('OUT', str(command.out))}")


def export_program_main(argv: Sequence[str]) -> None:
    """`dipddpm-jax export-program RUN OUT`."""
    description = (f"{ExportProgram.__doc__}\n\nFor deployment, not for archives: JAX promises to read such a file for "
                   f"six months. This runs it:\n\n{HOW_TO_RUN}")
    with guarded():
        print(export_program(tyro.cli(ExportProgram, args=list(argv), prog="dipddpm-jax export-program",
                                      description=description)))
