"""How pictures are drawn: a run's sampler, the options of every command that draws, and what is wrong with them."""
import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple

from dipddpm_jax.errors import UserError, closest

MOST_GUIDANCE = 1000.0  # weights above it leave float32's precision to the difference alone


class Sampler(NamedTuple):
    """What the configuration knows of a sampler: its own options, and its defaults."""

    options: tuple[str, ...] = ()
    """The fields of SamplerConfig that its function takes, by the same names."""
    num_steps: int | None = 25
    """None: all times."""
    spacing: str = "even_time"
    calls: int = 1
    """How often a transition asks the denoiser."""
    begins_with_pictures: bool = False
    """System 003's: it denoises held-out pictures, where all others begin with noise."""


# The functions of the same names stand in diffusion/samplers; random_passes is hybrids/passes.
SAMPLERS = {
    "ancestral": Sampler(("variance", "quiet_steps"), None),
    "ddim": Sampler(("eta",)),
    "heun": Sampler(spacing="karras", calls=2),
    "dpmpp_2m": Sampler(),
    "unipc": Sampler(),
    "deis": Sampler(),
    "consistency": Sampler(num_steps=2),
    "random_passes": Sampler(num_steps=10, begins_with_pictures=True),
}
SPACINGS = ("even_time", "even_log_snr", "karras")


@dataclass(frozen=True)
class SamplerConfig:
    name: str = "dpmpp_2m"
    """ancestral, ddim, heun, dpmpp_2m, unipc, deis, or MODULE:FUNCTION, a sampler of your own; consistency is for runs
    by few-step; random_passes is system 003's: it denoises held-out pictures at random times."""
    num_steps: int | None = None
    """Transitions; default: all times (ancestral), 2 (consistency) or 25."""
    spacing: str | None = None
    """Which times they visit: even_time, even_log_snr or karras (2022, eq. 5); default: karras for heun, else
    even_time. All start at the last time at which noise is at most 200 times the signal."""
    variance: Literal["beta", "posterior"] = "beta"
    """Variance of the noise that ancestral adds."""
    quiet_steps: int = 1
    """Last transitions of ancestral that add no noise; 2 in system 000."""
    eta: float = 0.0
    """Noise of ddim: 0 is deterministic, 1 as noisy as ancestral."""
    clip: bool = False
    """Keep the believed clean picture within the range of pixels at every step."""
    guidance: float = 0.0
    """Weight w of classifier-free guidance, (1 + w) conditional - w unconditional; needs a model with labels."""
    compose: bool = False
    """Let each of a picture's labels pull by itself, with weight 1 + w, instead of all of them as one condition."""


@dataclass(frozen=True)
class SamplerOptions:
    """How a command draws pictures from a trained model: what is not given stays as the run was configured."""

    sampler: str | None = None
    """ancestral, ddim, heun, dpmpp_2m, unipc, deis, or MODULE:FUNCTION, a sampler of your own; runs by few-step draw
    by consistency or ddim, as they were made."""
    num_steps: int | None = None
    """Transitions of the sampler; another sampler's default: all times (ancestral), 2 (consistency), or 25."""
    spacing: str | None = None
    """Which times they visit: even_time, even_log_snr or karras; another sampler's default: its own."""
    variance: str | None = None
    """Variance of the noise that ancestral adds: beta or posterior."""
    eta: float | None = None
    """Noise of ddim: 0 is deterministic, 1 as noisy as ancestral."""
    clip: bool | None = None
    """Keep the believed clean picture within the range of pixels at every step."""
    guidance: float | None = None
    """Weight of classifier-free guidance; 0 is none."""
    compose: bool = False
    """Let each of a picture's labels pull by itself (composed diffusion) instead of all of them as one condition."""


def is_own(name: str) -> bool:
    """True for MODULE:FUNCTION, the code of a user."""
    return ":" in name


def begins_with_pictures(sampler: SamplerConfig) -> bool:
    """True for a sampler that denoises pictures it is given; the others begin with noise."""
    return sampler.name in SAMPLERS and SAMPLERS[sampler.name].begins_with_pictures


def chosen_sampler(default: SamplerConfig, given: SamplerOptions, num_times: int) -> SamplerConfig:
    """The sampler of a run (on a schedule of `num_times` steps) with a command's options. Raises UserError.

    Another sampler than the run's own has its own number of steps and spacing; naming the run's own changes nothing.
    """
    if given.sampler not in (None, default.name):
        default = replace(default, name=given.sampler, num_steps=None, spacing=None)
    typed = {f.name: value for f in fields(given) if f.name != "sampler" and (value := getattr(given, f.name)) not in
             (None, False if f.name == "compose" else None)}
    check_used(typed, default.name, "--")
    _check_choice("variance", given.variance, ("beta", "posterior"))
    sampler = replace(default, **typed)
    check_sampler(sampler, num_times)
    return sampler


def check_used(typed: Any, name: str, prefix: str) -> None:
    """Raises UserError when a sampler takes no notice of an option that was typed."""
    if name not in SAMPLERS:
        return  # the function of a user is asked when it is imported
    owners = {option: [row for row in SAMPLERS if option in SAMPLERS[row].options]
              for option in ("variance", "quiet_steps", "eta")}
    if SAMPLERS[name].begins_with_pictures:
        owners |= dict.fromkeys(("spacing", "clip", "guidance", "compose"), ["the samplers that begin with noise"])
    for option in typed:
        if option in owners and name not in owners[option]:
            raise UserError(f"{prefix}{option.replace('_', '-')} does nothing with the sampler {name}: it belongs to "
                            f"{' and '.join(owners[option])}")


def check_sampler(sampler: SamplerConfig, num_times: int) -> None:
    """Raises UserError when a sampler cannot draw on a schedule of `num_times` steps."""
    if not is_own(sampler.name):
        _check_choice("sampler", sampler.name, (*SAMPLERS, "MODULE:FUNCTION"))
    _check_choice("spacing", sampler.spacing, SPACINGS)
    if sampler.num_steps is not None and not 1 <= sampler.num_steps <= num_times:
        raise UserError(f"--num-steps must be 1 to {num_times}, the steps of the schedule that the model was "
                        f"trained on; got {sampler.num_steps}")
    if not 0 <= sampler.quiet_steps <= num_times:
        raise UserError(f"--sampler.quiet-steps must be 0 to {num_times}; got {sampler.quiet_steps}")
    if not 0 <= sampler.eta <= 1:
        raise UserError(f"eta must lie between 0 and 1; got {sampler.eta}")
    check_guidance(sampler.guidance)


def _check_choice(kind: str, value: str | None, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        raise UserError(f"unknown {kind} {value!r}: {closest(value, known)}known are {', '.join(known)}")


def check_guidance(weight: float) -> None:
    """Raises UserError for a weight that is not a number of moderate size."""
    if not math.isfinite(weight) or abs(weight) > MOST_GUIDANCE:
        raise UserError(f"guidance must be a number between -{MOST_GUIDANCE:g} and {MOST_GUIDANCE:g}; got {weight}")
