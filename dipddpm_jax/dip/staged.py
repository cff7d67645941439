"""System 002: one network and one optimiser through stages of falling noise."""
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from dipddpm_jax.dip.batches import advance_all, advance_one, spread_fits
from dipddpm_jax.dip.fit import Curves, Dip, DipProblem, DipState, Kept

CHUNK = 100  # steps in one device call at most: a stage may be thousands of steps long


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
    return _through(stages, state, _advance, lambda fit: fit.restart, lambda tree: tree)


def staged_fits(stages: Sequence[Stage], states: DipState) -> tuple[DipState, list[tuple[Kept, Curves]]]:
    """`staged_fit` for a batch of states and, in every stage, of problems."""
    return _through(stages, states, _advance_all, lambda fit: jax.vmap(fit.restart), spread_fits)


def _through(
    stages: Sequence[Stage], state: DipState, advance: Callable[[Dip, int], Callable],
    restart: Callable[[Dip], Callable], place: Callable[[PyTree], PyTree],
) -> tuple[DipState, list[tuple[Kept, Curves]]]:
    kept = []
    for stage in stages:
        problem, state = place((stage.problem, restart(stage.fit)(stage.problem, state)))
        parts = []
        for count in chunks(stage.num_steps):
            state, curves = advance(stage.fit, count)(problem, state)
            parts.append(jax.block_until_ready(curves))  # the next chunk begins on all devices together
        kept.append((state.kept, jax.tree.map(lambda *curve: jnp.concatenate(curve, -1), *parts)))
    return state, kept


def chunks(num_steps: int) -> list[int]:
    """Steps of the device calls of a stage: as few as `CHUNK` allows, as equal as can be, the last one shorter."""
    calls = -(-num_steps // CHUNK)
    length = -(-num_steps // max(calls, 1))
    return [min(length, num_steps - start) for start in range(0, num_steps, max(length, 1))]


@functools.lru_cache(maxsize=8)
def _advance(fit: Dip, num_steps: int) -> Callable:
    return jax.jit(functools.partial(advance_one, fit, num_steps=num_steps))


@functools.lru_cache(maxsize=8)
def _advance_all(fit: Dip, num_steps: int) -> Callable:
    return jax.jit(functools.partial(advance_all, fit, num_steps=num_steps))
