"""One front door: `dipddpm-jax COMMAND ...` or `python -m dipddpm_jax COMMAND ...`, every command in one --help.

`train.py` and `sample.py` beside the package are two of these commands. A command's module is imported when it is asked
for, and it parses its options before it imports JAX.
"""
import sys
from collections.abc import Sequence
from importlib import import_module

from dipddpm_jax import __version__
from dipddpm_jax.commands.ends import guarded
from dipddpm_jax.errors import UserError, closest

COMMANDS = {  # name: (what it does, module, function of the remaining words)
    "train": ("train a diffusion model and draw samples from it (train.py)", "commands.cli", "train_main"),
    "sample": ("draw pictures from a trained model (sample.py)", "commands.cli", "sample_main"),
    "dip": ("restore pictures with a deep image prior (train.py dip)", "commands.cli_fits", "dip_main"),
    "staged": ("system 002: a deep image prior in stages of falling noise (train.py staged)", "commands.cli_fits",
               "staged_main"),
    "evaluate": ("judge samples beside real pictures", "commands.evaluate", "evaluate_main"),
    "label-accuracy": ("score every kept checkpoint of a model with labels", "commands.cli",
                       "label_accuracy_main"),
    "judge": ("train a classifier that judges samples", "commands.judge", "judge_main"),
    "export": ("write the weights of a run for PyTorch", "commands.export", "export_main"),
    "export-program": ("write the sampler of a run as a program that JAX alone runs", "commands.export_program",
                       "export_program_main"),
    "experiments": ("measure the five reports again", "experiments.__main__", "experiments_main"),
}


def usage() -> str:
    """What `--help` says."""
    rows = "\n".join(f"  {name:15} {text}" for name, (text, _, _) in COMMANDS.items())
    return (f"usage: dipddpm-jax COMMAND [options]    (or python -m dipddpm_jax COMMAND [options])\n\n{rows}\n\n"
            "dipddpm-jax COMMAND --help lists a command's options and their defaults.")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command that the first word names. A user's mistake is one line on stderr and exit status 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    with guarded():
        if not words or words[0] in ("-h", "--help", "help"):
            return print(usage())
        if words[0] == "--version":
            return print(__version__)
        if words[0] not in COMMANDS:
            raise UserError(f"unknown command {words[0]!r}: {closest(words[0], COMMANDS)}Known are "
                            f"{', '.join(COMMANDS)}")
        _, module, function = COMMANDS[words[0]]
        getattr(import_module(f"dipddpm_jax.{module}"), function)(words[1:])


if __name__ == "__main__":
    main()
