"""Deep image priors and diffusion models together: each hybrid is another start, grid, training pair or network.

None is a mode of a sampler. What stands here is what they need besides the general samplers and wrappers.
"""
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, PyTree

from dipddpm_jax.dip import Curves, Dip, DipProblem, DipState, Kept
from dipddpm_jax.types import Features, Images, Times


def resize(x: Images, height: int, width: int) -> Features:
    """Bilinear with antialiasing and half-pixel centres: what torchvision's Resize does to a tensor."""
    return jax.image.resize(x, (x.shape[0], height, width, x.shape[3]), "bilinear", antialias=True)


def dip_passes(
    network: nn.Module, variables: PyTree, x: Images, times: int
) -> tuple[Float[Array, "times b h w c"], PyTree]:
    """What x becomes after 1 .. `times` passes through a fitted DIP, and its running statistics after each.

    The network stays in training mode, as system 001 leaves it: pictures of one batch see one another.
    """
    fixed = {name: tree for name, tree in variables.items() if name != "batch_stats"}

    def one_pass(carry, _):
        x, moving = carry
        x, moving = network.apply({**fixed, **moving}, x, train=True, mutable=["batch_stats"])
        return (x, dict(moving)), (x, dict(moving))

    moving = {name: tree for name, tree in variables.items() if name == "batch_stats"}
    return jax.lax.scan(one_pass, (x, moving), length=times)[1]


def filtered_noise(network: nn.Module, variables: PyTree, noise: Images, times: int, side: int) -> Features:
    """System 001's start of the chain: noise, `times` DIP passes, resized to side x side. times=0 only resizes."""
    filtered = dip_passes(network, variables, noise, times)[0][-1] if times else noise
    return resize(filtered, side, side)


def repeated_passes(
    apply: Callable[[Images, Times, Float[Array, "blocks b h w c"]], Images], x: Images, times: Int[Array, "passes"],
    noise: Float[Array, "passes blocks b h w c"],
) -> Float[Array, "passes b h w c"]:
    """System 003's evaluation: apply(x, t, noise) again and again, each pass at a time of its own (drawn at random)."""
    def one_pass(x, row):
        t, draws = row
        x = apply(x, jnp.full(x.shape[:1], t), draws)
        return x, x

    return jax.lax.scan(one_pass, x, (times, noise))[1]


class Stage(NamedTuple):
    """One stage of a staged fit: how, to what, and for how many steps at most."""

    fit: Dip
    problem: DipProblem
    num_steps: int


def staged_fit(stages: Sequence[Stage], state: DipState) -> tuple[DipState, list[tuple[Kept, Curves]]]:
    """System 002: one network and one optimiser through problems of falling noise, each until its rule stops it.

    The original's stages map a noisy picture to the CLEAN one and stop by the PSNR to it: `oracle_cumulative`. Honest
    ones map the measurement with more noise added to the measurement, and stop by a rule that sees nothing else.
    Returns what each stage kept, and its curves.
    """
    return _through(stages, state, _advance, lambda fit: fit.restart)


def staged_fits(stages: Sequence[Stage], states: DipState) -> tuple[DipState, list[tuple[Kept, Curves]]]:
    """`staged_fit` for a batch of states and, in every stage, of problems."""
    return _through(stages, states, _advance_all, lambda fit: jax.vmap(fit.restart))


def _through(
    stages: Sequence[Stage], state: DipState, advance: Callable[[Dip, int], Callable],
    restart: Callable[[Dip], Callable],
) -> tuple[DipState, list[tuple[Kept, Curves]]]:
    kept = []
    for stage in stages:
        state, curves = advance(stage.fit, stage.num_steps)(stage.problem, restart(stage.fit)(stage.problem, state))
        kept.append((state.kept, curves))
    return state, kept


@functools.lru_cache(maxsize=8)
def _advance(fit: Dip, num_steps: int) -> Callable:
    return jax.jit(functools.partial(fit.advance_one, num_steps=num_steps))


@functools.lru_cache(maxsize=8)
def _advance_all(fit: Dip, num_steps: int) -> Callable:
    return jax.jit(functools.partial(fit.advance_all, num_steps=num_steps))
