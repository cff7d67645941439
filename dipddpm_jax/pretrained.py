"""Pretrained diffusion models (priors) that come with the package: their names, their files, what is known of them.

A prior's file in weights/ holds the moving average of a run's parameters in half precision, the run's configuration,
and its card: how the weights were made, and how a judge found pictures drawn from these very numbers. docs/priors.md
shows the cards. Imports no JAX; `commands.starts.load_prior` gives the model.
"""
import json
from pathlib import Path
from typing import Any, NamedTuple

from dipddpm_jax.config import saved
from dipddpm_jax.config.diffusion import TrainConfig
from dipddpm_jax.config.saved import Facts
from dipddpm_jax.errors import UserError, closest

CARD = "card"  # where in a file's metadata the card stands
MOST_BYTES = 4_000_000  # of a prior's file


class Prior(NamedTuple):
    """A row of the table of priors."""

    file: str
    what: str
    data: str  # pictures like those it was trained on that come with the installation
    denoises_by: str = "auto"  # the method that --method auto is, to denoise
    fills_by: str = "auto"  # and to inpaint
    explains_by: str = "auto"  # and behind other operators, where one picture will do


PRIORS = {
    "digits": Prior("prior_digits.safetensors", "handwritten digits 0 to 9 (MNIST), 28x28, drawn by label", "mnist5k"),
    "digits-fast": Prior("prior_digits_fast.safetensors", "the same in two network calls, made from digits by few-step",
                         "mnist5k"),
    "photos": Prior("prior_photos.safetensors", "photographs in colour, for restoring others of any size",
                    "photo_turns", "one-step-turned", "weighted", "plug-and-play"),
    "photos-grey": Prior("prior_photos_grey.safetensors", "photographs in grey, for restoring others of any size",
                         "photo_turns_grey", "one-step-turned", "weighted", "plug-and-play"),
    "scenes": Prior("prior_scenes.safetensors", "rendered scenes of one to three of 24 objects, 32x32, drawn by labels",
                    "scenes"),
}


def path_of_prior(name: str) -> Path:
    """The file of a prior's weights. Raises UserError for a name that is none."""
    if name not in PRIORS:
        raise UserError(f"unknown prior {name!r}: {closest(name, list(PRIORS))}known are {', '.join(PRIORS)}")
    return Path(__file__).parent / "weights" / PRIORS[name].file


def configuration_of_prior(name: str) -> tuple[TrainConfig, Facts]:
    """What a prior's network was trained as, and on which data. Raises UserError for a name that is none."""
    path = path_of_prior(name)
    if (found := saved.exported(path)) is None:
        raise UserError(f"{path} is damaged: it does not say which network it fits; install the package again")
    return found


def card_of_prior(name: str) -> dict[str, Any]:
    """How a prior was made and judged: what docs/priors.md shows. Raises UserError for a name that is none."""
    with path_of_prior(name).open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return json.loads(json.loads(file.read(size))["__metadata__"][CARD])


def configuration_of_start(start: str) -> tuple[str, TrainConfig]:
    """(a name for the new run, the configuration) of what training may start from: a prior, a run's directory, or a
    file by `dipddpm-jax export`. Raises UserError for anything else."""
    name, config = _found(start)
    if config.few_step is not None:
        raise UserError(f"--from {start} is a few-step model, from which no training starts: take the one that it was "
                        f"made from{f', {config.start}' if config.start else ''}")
    return name, config


def _found(start: str) -> tuple[str, TrainConfig]:
    path = Path(start)
    if start in PRIORS:
        return start, configuration_of_prior(start)[0]
    if path.is_dir():
        return saved.load(path / "config.json")[:2]
    if path.suffix == ".safetensors" and path.is_file() and (found := saved.exported(path)) is not None:
        return path.stem, found[0]
    if path.is_file():
        raise UserError(f"--from {start} is not a file that `dipddpm-jax export` wrote: it does not say which network "
                        "it fits")
    raise UserError(f"--from {start}: {closest(start, list(PRIORS))}it is none of the priors ({', '.join(PRIORS)}), "
                    "no directory of a run, and no file by `dipddpm-jax export`")
