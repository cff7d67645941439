"""How pictures are drawn: the sampler's dataclass, shared by all commands, and what is wrong with it."""
import dataclasses
import typing
from dataclasses import dataclass
from typing import Any, Literal

from dipddpm_jax.errors import UserError


@dataclass(frozen=True)
class SamplerConfig:
    name: Literal["ancestral", "ddim", "heun", "dpmpp_2m", "random_passes"] = "dpmpp_2m"
    """random_passes is system 003's: it denoises held-out pictures at random times."""
    num_steps: int | None = None
    """Transitions, spread evenly over the times; default: all of the schedule (ancestral) or 25."""
    variance: Literal["beta", "posterior"] = "beta"
    """Of ancestral."""
    quiet_steps: int = 1
    """Last transitions of ancestral that add no noise; 2 in system 000."""
    eta: float = 0.0
    """Of ddim: 0 is deterministic, 1 as noisy as ancestral."""
    clip: bool = False
    """Keep the believed clean picture within the range of pixels at every step."""
    guidance: float = 0.0
    """Weight w of classifier-free guidance, (1 + w) conditional - w unconditional; needs a model with labels."""
    compose: bool = False
    """Let each of a picture's labels pull by itself, with weight 1 + w, instead of all of them as one condition."""


def check_choice(kind: type, name: str, value: str | None) -> None:
    """Raises UserError when `value` is not among the choices of a field of the dataclass `kind`."""
    choices = typing.get_args(typing.get_type_hints(kind)[name])
    if value is not None and value not in choices:
        raise UserError(f"unknown {'sampler' if name == 'name' else name} {value!r}: known are {', '.join(choices)}")


def changed_sampler(default: SamplerConfig, given: dict[str, Any]) -> SamplerConfig:
    """`default` with what is given (not None). Another sampler has its own number of steps. Raises UserError."""
    for name in ("name", "variance"):
        check_choice(SamplerConfig, name, given.get(name))
    if given["name"] is not None:
        default = dataclasses.replace(default, num_steps=None)
    return dataclasses.replace(default, **{k: v for k, v in given.items() if v is not None})
