"""evaluate: checks what was asked for before JAX is imported. `evaluation` does it."""
from collections.abc import Sequence
from pathlib import Path

import tyro

from dipddpm_jax import pretrained
from dipddpm_jax.commands.ends import guarded
from dipddpm_jax.config import saved
from dipddpm_jax.config.evaluate import Evaluate
from dipddpm_jax.config.few_step import sampler_of
from dipddpm_jax.errors import UserError
from dipddpm_jax.files import check_writable


def evaluate(command: Evaluate) -> str:
    """Judges pictures beside real ones; returns the page as Markdown. Raises UserError."""
    if not 2 <= command.count <= 1_000_000:
        raise UserError(f"--count must be 2 to 1000000; got {command.count}")
    if not 1 <= command.batch_size <= 65_536:
        raise UserError(f"--batch-size must be 1 to 65536; got {command.batch_size}")
    if not 0 <= command.seed < 2**31:
        raise UserError(f"--seed must be between 0 and 2^31 - 1; got {command.seed}")
    if command.prior is not None and (command.workdir or command.samples or command.step is not None):
        raise UserError("--prior stands in place of a run, its --step, or --samples: give one of them")
    config = sampler = None
    workdir = command.workdir
    if command.prior is not None:
        workdir, (config, _) = Path("."), pretrained.configuration_of_prior(command.prior)
    elif not (command.samples and command.data):
        workdir = workdir or saved.newest_run()
        _, config, _ = saved.load(workdir / "config.json")
    if config is not None:
        sampler = sampler_of(config, command.how)
    out = command.out or (workdir or command.samples.parent) / "evaluation"
    for name, folder in (("--out", out), ("--png-folder", command.png_folder)):
        if folder and folder.exists() and not folder.is_dir():
            raise UserError(f"{name} {folder} is a file; name a directory")
    if command.png_folder and command.png_folder.is_dir() and any(command.png_folder.iterdir()):
        raise UserError(f"--png-folder {command.png_folder} is not empty; name a new one")

    check_writable(out)

    from dipddpm_jax.commands.evaluation import write_evaluation

    return write_evaluation(command, workdir, config, sampler, out)


def evaluate_main(argv: Sequence[str] | None = None) -> None:
    """`dipddpm-jax evaluate [WORKDIR] ...`: a user's mistake is one line on stderr and exit status 2."""
    with guarded():
        print(evaluate(tyro.cli(Evaluate, args=argv, prog="dipddpm-jax evaluate")))
