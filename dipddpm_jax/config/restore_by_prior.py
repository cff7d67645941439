"""What sample.py --restore may be asked for: its options, and the methods by name. Plain Python."""
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from dipddpm_jax.config.dip import AS_IT_IS, DipConfig
from dipddpm_jax.config.dip_ranges import check_dip, check_name
from dipddpm_jax.errors import UserError, closest


class RestoringMethod(NamedTuple):
    """A row of the table of methods: what it is, whether it can only denoise, whether it draws several samples, in
    chains of so many calls as are asked for, whether it needs the network's gradient beside its value, how many
    pictures it takes to the network beside those, and whether the picture itself must have been measured, whole or with
    holes, or must not."""

    what: str
    denoises_only: bool = False
    samples: bool = True
    calls: bool = True
    gradient: bool = False
    more: int = 0
    as_it_is: bool = False
    behind: bool = False


AUTO = "auto"
PRIOR_METHODS = {
    "one-step": RestoringMethod("the posterior mean of denoising in one call", True, False, False),
    "one-step-turned": RestoringMethod("the mean of eight calls of one-step, for the picture turned and mirrored", True,
                                       False, False),
    "truncated": RestoringMethod("reverse steps from the noise of the picture on", True),
    "ddnm": RestoringMethod("DDNM+, Wang et al. 2022"),
    "diffpir": RestoringMethod("DiffPIR, Zhu et al. 2023"),
    "dps": RestoringMethod("DPS, Chung et al. 2023", gradient=True),
    "pigdm": RestoringMethod("PiGDM, Song et al. 2023", gradient=True),
    "matched": RestoringMethod("PiGDM with the variance that the denoiser's gradient tells", gradient=True),
    "weighted": RestoringMethod("PiGDM with the variance of what is uncertain, for photographs", gradient=True),
    "decoupled": RestoringMethod("decoupled steps, as DAPS, with the variance of matched", gradient=True),
    "plug-and-play": RestoringMethod("one call in each of 24 turns with the measurement, for photographs, as DPIR, "
                                     "Zhang et al. 2021", samples=False, calls=False, behind=True),
    "adapted": RestoringMethod("matched, with weights that go on learning from the picture, as Chung and Ye 2024",
                               gradient=True, more=4),
    "learned-start": RestoringMethod("short chains from a fitted start, as DMPlug and DIIP", calls=False,
                                     gradient=True),
    "educated-start": RestoringMethod("a deep image prior that begins as the trained network, as EDIP",
                                      samples=False, calls=False, gradient=True, more=4),
    "cross-fit-start": RestoringMethod("matched, from a mean of deep image priors on, noised so that its errors are "
                                       "forgotten", gradient=True, as_it_is=True),
    "self-diffusion": RestoringMethod("self-diffusion whose network begins as the trained one, after Luo and Huang "
                                      "2025", samples=False, calls=False, gradient=True),
}
NEEDS = {"inpaint": "mask", "superres": "factor", "deblur": "blur"}


@dataclass(frozen=True)
class RestoreOptions:
    """Restoring a picture with a trained model instead of drawing new ones."""

    restore: str | None = None
    """Restore this picture (or a folder of pictures of one size) with the model as its prior."""
    task: str = "denoise"
    """denoise; inpaint, which needs --mask; superres, which needs --factor; deblur, which needs --blur."""
    sigma: float | None = None
    """Standard deviation of the picture's Gaussian noise, of 255; default: estimated."""
    mask: Path | None = None
    """To inpaint: a picture of the same size, white where the picture is known."""
    factor: int | None = None
    """How many times larger superres makes each side."""
    blur: float | None = None
    """Standard deviation of the blur that deblur undoes, in pixels."""
    blend: float = 0.0
    """Share of the measured picture that is mixed back into what is restored, from 0 to 1; to denoise or inpaint."""
    method: str = AUTO
    """auto (truncated to denoise, else matched; by --prior photos one-step-turned, to inpaint or with --calls or
    --samples weighted, else plug-and-play), one-step, one-step-turned, truncated, ddnm, diffpir, dps, pigdm, matched,
    weighted, decoupled, plug-and-play, adapted, learned-start, educated-start, cross-fit-start (for holes in pictures
    unlike those that the model was trained on) or self-diffusion: docs/results/together.md compares them, and
    restoration.md for photographs."""
    calls: int = 50
    """Network calls of a chain."""
    samples: int = 8
    """Chains: the restored picture is their mean, and their deviation its uncertainty."""


def chosen_method(options: RestoreOptions) -> str:
    """The name in PRIOR_METHODS. Raises UserError for an unknown one, or one that cannot do the task."""
    name = options.method
    if name == AUTO:
        name = "truncated" if options.task == "denoise" else "matched"
    if name not in PRIOR_METHODS:
        known = [AUTO, *PRIOR_METHODS]
        raise UserError(f"unknown --method {name!r}: {closest(name, known)}known are {', '.join(known)}")
    if PRIOR_METHODS[name].denoises_only and options.task != "denoise":
        raise UserError(f"--method {name} can only denoise; for --task {options.task} take auto or matched")
    if PRIOR_METHODS[name].behind and options.task in AS_IT_IS:
        raise UserError(f"--method {name} sharpens and enlarges; for --task {options.task} take auto")
    if PRIOR_METHODS[name].as_it_is and options.task not in AS_IT_IS:
        raise UserError(f"--method {name} begins where its own error tells it to, which is known where the picture "
                        f"itself was measured; for --task {options.task} take auto or matched")
    return name


def checked_restoring(options: RestoreOptions, seed: int) -> DipConfig:
    """What is measured, as a restoration's configuration. Raises UserError for what does not go together."""
    check_name(DipConfig, "task", options.task)
    for task, name in NEEDS.items():
        given = getattr(options, name) is not None
        if given and task != options.task:
            raise UserError(f"--{name} is for --task {task}")
        if not given and task == options.task:
            raise UserError(f"--task {task} needs --{name}")
    if not 1 <= options.calls <= 10_000 or not 1 <= options.samples <= 1000:
        raise UserError(f"--calls must be 1 to 10000 and --samples 1 to 1000; got {options.calls} and "
                        f"{options.samples}")
    method = PRIOR_METHODS[chosen_method(options)]
    for name, does in (("calls", method.calls), ("samples", method.samples)):
        if not does and getattr(options, name) != getattr(RestoreOptions, name):
            raise UserError(f"--{name} does nothing with --method {options.method}; leave it out")
    config = DipConfig(image=options.restore, task=options.task, sigma=options.sigma, mask=options.mask,
                       blend=options.blend, seed=seed,
                       factor=4 if options.factor is None else options.factor,
                       blur=1.6 if options.blur is None else options.blur)
    check_dip(config)
    return config


def refuse_other_options(options: RestoreOptions, others: Mapping[str, Any]) -> None:
    """Raises UserError for options of drawing (name: whether it was given) beside --restore, and those of restoring
    without it."""
    if options.restore is None:
        for field in fields(options):
            if getattr(options, field.name) != field.default:
                raise UserError(f"--{field.name} belongs to --restore FILE")
        return
    for name, given in others.items():
        if given:
            raise UserError(f"--{name.replace('_', '-')} does nothing with --restore; leave it out")
