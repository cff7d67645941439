"""When to stop a DIP fit without the clean image: rules as pairs of pure functions.

A rule sees an `Evidence` after every step, and answers with a `Verdict`. The clean image is not in its signature; the
two rules whose names begin with `oracle` get it when they are made, exist for study and parity only, and restore
nothing that was not known before. All arrays live on the device, and `vmap` gives every fit a rule of its own.
"""
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from dipddpm_jax.types import Image

Scalar = Float[Array, ""]


class Evidence(NamedTuple):
    """What a rule may look at after a step."""

    output: Image
    average: Image  # exponential average of the outputs
    loss: Scalar  # mean squared misfit to the part of the measurement that is fitted
    held_out: Scalar  # the average's misfit to the part that is kept back (0 when there is none)
    sigma: Scalar  # standard deviation of the measurement's noise, known or estimated (0 when not given)


class Verdict(NamedTuple):
    """Whether this output is the one to return so far, whether to stop, and the number that the rule watches."""

    keep: Bool[Array, ""]
    stop: Bool[Array, ""]
    score: Scalar


def _forget(state: PyTree, fresh: PyTree) -> PyTree:
    return fresh


class Stopper(NamedTuple):
    """init(anchor) -> state, where anchor is a picture near the outputs; update(state, evidence) -> state, verdict;
    restart(state, fresh) -> the state in which the next stage of a staged fit begins."""

    init: Callable[[Image], PyTree]
    update: Callable[[PyTree, Evidence], tuple[PyTree, Verdict]]
    restart: Callable[[PyTree, PyTree], PyTree] = _forget


class Lowest(NamedTuple):
    """The lowest score so far, and the number of updates since it was reached."""

    score: Scalar
    waited: Int[Array, ""]


def _nothing_yet(dtype=jnp.float32) -> Lowest:
    return Lowest(jnp.asarray(jnp.inf, dtype), jnp.int32(0))


def _watch(lowest: Lowest, score: Scalar, patience: int) -> tuple[Lowest, Verdict]:
    keep = (score < lowest.score) | jnp.isinf(lowest.score)  # until there is a score, the latest output is kept
    waited = jnp.where(keep, 0, lowest.waited + 1)
    return Lowest(jnp.where(keep, score, lowest.score), waited), Verdict(keep, waited >= patience, score)


def never() -> Stopper:
    """Keeps the last output."""
    def update(state, evidence):
        return state, Verdict(jnp.bool_(True), jnp.bool_(False), evidence.loss)

    return Stopper(lambda anchor: (), update)


def fixed(num_steps: int) -> Stopper:
    """Stops after `num_steps` updates, and keeps the last output."""
    def update(count, evidence):
        return count + 1, Verdict(jnp.bool_(True), count + 1 >= num_steps, evidence.loss)

    return Stopper(lambda anchor: jnp.int32(0), update)


def patience(num_steps: int = 100, decay: float = 0.9) -> Stopper:
    """Stops when the smoothed training loss has not fallen for `num_steps` updates: a plateau, not a best picture."""
    return _smoothed(lambda evidence: evidence.loss, num_steps, decay)


def held_out(patience: int = 500, decay: float = 0.9) -> Stopper:
    """Lowest error of the AVERAGE on held-out pixels: their noise is independent of the fit, so that its expectation is
    the error to the clean image there plus sigma^2 (cross-validation; Batson and Royer 2019, proposition 1)."""
    return _smoothed(lambda evidence: evidence.held_out, patience, decay)


def _smoothed(score: Callable[[Evidence], Scalar], patience: int, decay: float) -> Stopper:
    def update(state, evidence):
        count, mean, lowest = state
        mean = decay * mean + (1 - decay) * score(evidence)
        lowest, verdict = _watch(lowest, mean / (1 - decay ** (count + 1.0)), patience)
        return (count + 1, mean, lowest), verdict

    return Stopper(lambda anchor: (jnp.int32(0), jnp.zeros((), anchor.dtype), _nothing_yet(anchor.dtype)), update)


class Window(NamedTuple):
    """The last outputs (minus the anchor) in a ring, with their sum and their sum of squares.

    Each sum is held as the part since the ring was last at slot 0, and what is left of the turn before. The second
    only shrinks and is thrown away after a turn, so rounding errors never build up.
    """

    anchor: Float[Array, "n"]
    ring: Float[Array, "window n"]
    count: Int[Array, ""]
    sums: Float[Array, "2 n"]
    squares: Float[Array, "2"]
    lowest: Lowest


def window_variance(state: Window) -> Scalar:
    """(Q/W - |S/W|^2) / n: the mean over pixels of the variance over the window; infinite until it is full."""
    window, n = state.ring.shape
    mean = state.sums.sum(0) / window
    variance = (state.squares.sum() / window - jnp.sum(mean * mean)) / n
    return jnp.where(state.count >= window, variance, jnp.inf)


def push(state: Window, picture: Float[Array, "n"]) -> Window:
    """The window with one picture more and its oldest one fewer, in O(n)."""
    window = state.ring.shape[0]
    slot = state.count % window
    new, old = picture - state.anchor, state.ring[slot]
    sums, squares = (
        jnp.where(slot == 0, jnp.stack([jnp.zeros_like(total[0]), total[0]]), total)
        for total in (state.sums, state.squares)
    )
    sums = sums + jnp.stack([new, -old])
    squares = squares + jnp.stack([jnp.sum(new * new), -jnp.sum(old * old)])
    # A write that waits for all reads of the slot: else XLA copies the whole ring, once a step.
    written = new + 0 * (sums[1] + squares[1])
    return state._replace(ring=state.ring.at[slot].set(written), count=state.count + 1, sums=sums, squares=squares)


def windowed_variance(window: int = 100, patience: int = 1000, pixels: int = 2**18) -> Stopper:
    """ES-WMV (Wang et al. 2023, "Early stopping for deep image prior"): lowest moving variance of the outputs.

    Exact for pictures of up to `pixels` values; of larger ones a fixed random subset of that size is watched.
    """
    def subset(picture):
        flat = picture.reshape(-1)
        if flat.size <= pixels:
            return flat
        return flat[np.sort(np.random.default_rng(0).choice(flat.size, pixels, replace=False))]

    def init(anchor):
        flat = subset(anchor)
        return Window(flat, jnp.zeros((window, flat.size), flat.dtype), jnp.int32(0),
                      jnp.zeros((2, flat.size), flat.dtype), jnp.zeros(2, flat.dtype), _nothing_yet(flat.dtype))

    def update(state, evidence):
        state = push(state, subset(evidence.output))
        lowest, verdict = _watch(state.lowest, window_variance(state), patience)
        return state._replace(lowest=lowest), verdict

    return Stopper(init, update)


def exponential_variance(decay: float = 0.9, patience: int = 1000) -> Stopper:
    """ES-EMV (Wang et al. 2023): the same with an exponential window, which needs no ring."""
    def init(anchor):
        return anchor, jnp.zeros((), anchor.dtype), jnp.int32(0), _nothing_yet(anchor.dtype)

    def update(state, evidence):
        mean, variance, count, lowest = state
        off = evidence.output - mean
        variance = decay * (variance + (1 - decay) * jnp.mean(off * off))
        warm = count >= int(3 / (1 - decay))  # until then the variance still remembers the anchor
        lowest, verdict = _watch(lowest, jnp.where(warm, variance, jnp.inf), patience)
        return (mean + (1 - decay) * off, variance, count + 1, lowest), verdict

    return Stopper(init, update)


def discrepancy(factor: float = 1.0, decay: float = 0.9) -> Stopper:
    """Morozov's principle: stops when the smoothed misfit falls to factor * sigma^2, and keeps the last output."""
    def update(state, evidence):
        count, mean = state
        mean = decay * mean + (1 - decay) * evidence.loss
        misfit = mean / (1 - decay ** (count + 1.0))
        return (count + 1, mean), Verdict(jnp.bool_(True), misfit <= factor * evidence.sigma**2, misfit)

    return Stopper(lambda anchor: (jnp.int32(0), jnp.zeros((), anchor.dtype)), update)


def oracle(reference: Image, patience: int = 10**9) -> Stopper:
    """STUDY ONLY: keeps the output nearest to the clean image, which no real restoration has."""
    def update(lowest, evidence):
        return _watch(lowest, jnp.mean(jnp.square(evidence.output - reference)), patience)

    return Stopper(lambda anchor: _nothing_yet(anchor.dtype), update)


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
        return looked._replace(count=state.count + 1), Verdict(jnp.bool_(True), stop, -psnr)

    def init(anchor):
        return CumulativePatience(jnp.int32(0), jnp.zeros((), anchor.dtype), jnp.int32(0))

    return Stopper(init, update, restart=lambda state, fresh: fresh._replace(best=state.best))


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
            inner, verdict = rules[name].update(runner.state, evidence)
            running = runner.stopped_at < 0
            keep = running & verdict.keep
            kept = jax.tree.map(lambda new, old, keep=keep: jnp.where(keep, new, old),
                                (evidence.output, evidence.average, count), runner[1:4])
            moved[name] = Runner(inner, *kept, jnp.where(running & verdict.stop, count, runner.stopped_at))
        done = jnp.all(jnp.stack([runner.stopped_at >= 0 for runner in moved.values()]))
        return (count + 1, moved), Verdict(jnp.bool_(True), done, evidence.loss)

    return Stopper(init, update)
