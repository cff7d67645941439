"""The command line of deep image priors (`train.py dip`, `train.py staged`): parsed before JAX is imported."""
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import tyro

from dipddpm_jax.commands.ends import guarded
from dipddpm_jax.config import dip_ranges
from dipddpm_jax.config.dip import DipConfig, DipRun, StagedConfig, StagedRun
from dipddpm_jax.errors import UserError


@dataclass(frozen=True)
class DipCommand:
    """One restoration: what, and where."""

    config: Annotated[DipConfig, tyro.conf.arg(name="")] = DipConfig()
    run: Annotated[DipRun, tyro.conf.arg(name="")] = DipRun()
    method: Literal["dip", "auto", "photos", "photos-bayes", "cross-fit", "cross-fit-bayes", "cross-fit-photos",
                    "self-diffusion", "pixel-pairs", "nonlocal-bayes", "non-local-means", "total-variation",
                    "wavelets"] = "dip"
    """dip: what the other options describe. photos: the pretrained model of photographs, which denoises, sharpens or
    enlarges in seconds, and fills small pictures in a minute.
    nonlocal-bayes: patches that look alike, without networks, in seconds, for every task. photos-bayes: both, but
    where pixels are missing.
    cross-fit-bayes: patches after a mean of fits, to denoise or inpaint. cross-fit-photos: a mean of fits, from which
    that model goes on.
    auto: an average of several, weighed by a referee that hides part of the measurement from them; to sharpen or
    enlarge, where nothing can be hidden, photos-bayes. All but dip take only options that say what is restored, and
    write into runs/restored-NUMBER unless --workdir is given."""


@dataclass(frozen=True)
class StagedCommand:
    """One staged fit: what, and where."""

    config: Annotated[StagedConfig, tyro.conf.arg(name="")] = StagedConfig()
    run: Annotated[StagedRun, tyro.conf.arg(name="")] = StagedRun()


def dip_main(argv: Sequence[str]) -> None:
    """`python train.py dip ...`."""
    with guarded():
        _dip(list(argv))


def staged_main(argv: Sequence[str]) -> None:
    """`python train.py staged ...`."""
    with guarded():
        _staged(list(argv))


def _dip(argv: list[str]) -> None:
    description = ("Restores pictures by fitting a network to each, without training data; a rule that never sees the "
                   "clean picture says when to stop.")
    command = _parse_restoration(argv, DipCommand(), description, "train.py dip")
    dip_ranges.check_dip(command.config, command.run)
    dip_ranges.refuse_idle(command.config, argv)
    if command.method != "dip":
        dip_ranges.refuse_fitting(command.method, argv)

        from dipddpm_jax.commands.restore_by_method import restore_by_method

        print(restore_by_method(command.method, command.config, command.run.workdir, argv))
        return

    from dipddpm_jax.commands import dip

    chosen = {option[2:].replace("-", "_").removeprefix("no_") for option in dip_ranges.typed_options(argv)}
    print(dip.restore_pictures(command.config, command.run, chosen))


def _staged(argv: list[str]) -> None:
    description = "System 002: fits plain convolutions to one picture in stages of falling noise."
    command = _parse_restoration(argv, StagedCommand(), description, "train.py staged")
    dip_ranges.check_staged(command.config)
    dip_ranges.refuse_idle(command.config, argv)

    from dipddpm_jax.commands import staged

    print(staged.restore_in_stages(command.config, command.run))


Restoring = TypeVar("Restoring", DipCommand, StagedCommand)


def _parse_restoration(argv: list[str], default: Restoring, description: str, prog: str) -> Restoring:
    """The command; of one that is resumed, its own configuration, in which little may be changed."""
    command = tyro.cli(type(default), args=argv, prog=prog, description=description, default=default)
    if not command.run.resume:
        return command
    if command.run.workdir is None:
        raise UserError("--resume needs --workdir, the directory of the restoration to go on with")
    old = dip_ranges.checked_dip_config(command.run.workdir / "config.json", type(default.config))
    command = tyro.cli(type(default), args=argv, prog=prog, description=description,
                       default=dataclasses.replace(default, config=old))
    dip_ranges.check_resumed(old, command.config, command.run.workdir)
    return command


FITS: dict[str, Callable[[list[str]], None]] = {"dip": _dip, "staged": _staged}  # words after train.py
