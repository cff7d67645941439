"""For study only: oracles that see the clean picture, and races of several stop rules on one fit."""
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from dipddpm_jax.dip.stopping import Decision, Scalar, Stopper, nothing_yet, watch
from dipddpm_jax.types import Image


def oracle(reference: Image, patience: int = 10**9) -> Stopper:
    """STUDY ONLY: keeps the output nearest to the clean image, which no real restoration has."""
    def update(lowest, evidence):
        return watch(lowest, jnp.mean(jnp.square(evidence.output - reference)), patience)

    return Stopper(lambda anchor: nothing_yet(anchor.dtype), update, needs=("reference",))


class CumulativePatience(NamedTuple):
    """Updates of this stage, the best PSNR of all stages, and the misses of this stage."""

    count: Int[Array, ""]
    best: Scalar
    misses: Int[Array, ""]


def cumulative_miss(state: CumulativePatience, psnr: Scalar, min_gain: float = 0.001) -> CumulativePatience:
    """System 002's bookkeeping at one evaluation: misses are never forgotten when the PSNR improves."""
    better = psnr - state.best >= min_gain
    return state._replace(best=jnp.where(better, psnr, state.best), misses=state.misses + ~better)


def oracle_cumulative(reference: Image, num_steps: int, patience: int = 50, every: int = 10) -> Stopper:
    """STUDY ONLY, system 002: looks at the PSNR to the CLEAN picture every `every` steps and at the last of a stage;
    stops after `patience` looks without a gain of 0.001 dB, consecutive or not. Keeps the last output."""
    def update(state, evidence):
        psnr = -10 * jnp.log10(jnp.mean(jnp.square(jnp.clip(evidence.output, 0, 1) - reference)))
        look = (state.count % every == 0) | (state.count == num_steps - 1)
        looked = jax.tree.map(lambda new, old: jnp.where(look, new, old), cumulative_miss(state, psnr), state)
        stop = look & (looked.misses >= patience)
        return looked._replace(count=state.count + 1), Decision(jnp.bool_(True), stop, -psnr)

    def init(anchor):
        return CumulativePatience(jnp.int32(0), jnp.zeros((), anchor.dtype), jnp.int32(0))

    return Stopper(init, update, lambda state, fresh: fresh._replace(best=state.best), ("reference",))


class Runner(NamedTuple):
    """One rule of a race: its state, what it keeps, the update that made it, and where it stopped (-1: nowhere)."""

    state: PyTree
    output: Image
    average: Image
    kept_at: Int[Array, ""]
    stopped_at: Int[Array, ""]


def race(rules: Mapping[str, Stopper]) -> Stopper:
    """Lets rules watch one fit side by side, for comparing them; stops when all have stopped."""
    def init(anchor):
        return jnp.int32(0), {name: Runner(rule.init(anchor), jnp.zeros_like(anchor), jnp.zeros_like(anchor),
                                           jnp.int32(-1), jnp.int32(-1)) for name, rule in rules.items()}

    def update(state, evidence):
        count, runners = state
        moved = {}
        for name, runner in runners.items():
            inner, decision = rules[name].update(runner.state, evidence)
            running = runner.stopped_at < 0
            keep = running & decision.keep
            kept = jax.tree.map(lambda new, old, keep=keep: jnp.where(keep, new, old),
                                (evidence.output, evidence.average, count), runner[1:4])
            moved[name] = Runner(inner, *kept, jnp.where(running & decision.stop, count, runner.stopped_at))
        done = jnp.all(jnp.stack([runner.stopped_at >= 0 for runner in moved.values()]))
        return (count + 1, moved), Decision(jnp.bool_(True), done, evidence.loss)

    return Stopper(init, update, needs=tuple(sorted({need for rule in rules.values() for need in rule.needs})))
