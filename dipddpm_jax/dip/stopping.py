"""When to stop a DIP fit without the clean image: rules as pairs of pure functions.

A rule sees an `Evidence` after every step, and answers with a `Decision`. The clean image is not in its signature; the
two rules whose names begin with `oracle` get it when they are made, exist for study and parity only, and restore
nothing that was not known before. All arrays live on the device, and `vmap` gives every fit a rule of its own.
"""
from collections.abc import Callable
from typing import NamedTuple

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
    held_out: Scalar  # the average's misfit to the part that is kept back (0 when no rule needs it)
    sigma: Scalar  # standard deviation of the measurement's noise, known or estimated (0 when no rule needs it)


class Decision(NamedTuple):
    """Whether this output is the one to return so far, whether to stop, and the number that the rule watches."""

    keep: Bool[Array, ""]
    stop: Bool[Array, ""]
    score: Scalar


def _forget(state: PyTree, fresh: PyTree) -> PyTree:
    return fresh


class Stopper(NamedTuple):
    """init(anchor) -> state, where anchor is a picture near the outputs; update(state, evidence) -> state, decision;
    restart(state, fresh) -> the state in which the next stage of a staged fit begins. `needs` names the fields of a
    DipProblem without which the rule has nothing to judge by: a fit whose problem lacks one is not started."""

    init: Callable[[Image], PyTree]
    update: Callable[[PyTree, Evidence], tuple[PyTree, Decision]]
    restart: Callable[[PyTree, PyTree], PyTree] = _forget
    needs: tuple[str, ...] = ()


class Lowest(NamedTuple):
    """The lowest score so far, and the number of updates since it was reached."""

    score: Scalar
    waited: Int[Array, ""]


def nothing_yet(dtype=jnp.float32) -> Lowest:
    return Lowest(jnp.asarray(jnp.inf, dtype), jnp.int32(0))


def watch(lowest: Lowest, score: Scalar, patience: int) -> tuple[Lowest, Decision]:
    keep = (score < lowest.score) | jnp.isinf(lowest.score)  # until there is a score, the latest output is kept
    waited = jnp.where(keep, 0, lowest.waited + 1)
    return Lowest(jnp.where(keep, score, lowest.score), waited), Decision(keep, waited >= patience, score)


def never() -> Stopper:
    """Keeps the last output."""
    def update(state, evidence):
        return state, Decision(jnp.bool_(True), jnp.bool_(False), evidence.loss)

    return Stopper(lambda anchor: (), update)


def patience(num_steps: int = 100, decay: float = 0.9) -> Stopper:
    """Stops when the smoothed training loss has not fallen for `num_steps` updates: a plateau, not a best picture."""
    return _smoothed(lambda evidence: evidence.loss, num_steps, decay)


def held_out(patience: int = 500, decay: float = 0.9) -> Stopper:
    """Lowest error of the AVERAGE on held-out pixels: their noise is independent of the fit, so that its expectation is
    the error to the clean image there plus sigma^2 (cross-validation; Batson and Royer 2019, proposition 1).
    Needs `DipProblem.held_out`, as `inverse.operators.held_out_mask` draws it."""
    return _smoothed(lambda evidence: evidence.held_out, patience, decay)._replace(needs=("held_out",))


def _smoothed(score: Callable[[Evidence], Scalar], patience: int, decay: float) -> Stopper:
    def update(state, evidence):
        count, mean, lowest = state
        mean = decay * mean + (1 - decay) * score(evidence)
        lowest, decision = watch(lowest, mean / (1 - decay ** (count + 1.0)), patience)
        return (count + 1, mean, lowest), decision

    return Stopper(lambda anchor: (jnp.int32(0), jnp.zeros((), anchor.dtype), nothing_yet(anchor.dtype)), update)


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
                      jnp.zeros((2, flat.size), flat.dtype), jnp.zeros(2, flat.dtype), nothing_yet(flat.dtype))

    def update(state, evidence):
        state = push(state, subset(evidence.output))
        lowest, decision = watch(state.lowest, window_variance(state), patience)
        return state._replace(lowest=lowest), decision

    return Stopper(init, update)


def exponential_variance(decay: float = 0.9, patience: int = 1000) -> Stopper:
    """ES-EMV (Wang et al. 2023): the same with an exponential window, which needs no ring."""
    def init(anchor):
        return anchor, jnp.zeros((), anchor.dtype), jnp.int32(0), nothing_yet(anchor.dtype)

    def update(state, evidence):
        mean, variance, count, lowest = state
        off = evidence.output - mean
        variance = decay * (variance + (1 - decay) * jnp.mean(off * off))
        warm = count >= int(3 / (1 - decay))  # until then the variance still remembers the anchor
        lowest, decision = watch(lowest, jnp.where(warm, variance, jnp.inf), patience)
        return (mean + (1 - decay) * off, variance, count + 1, lowest), decision

    return Stopper(init, update)


def discrepancy(factor: float = 1.0, decay: float = 0.9) -> Stopper:
    """Morozov's principle: stops when the smoothed misfit falls to factor * sigma^2, and keeps the last output.
    Needs `DipProblem.sigma`, as `inverse.noise_level` estimates it."""
    def update(state, evidence):
        count, mean = state
        mean = decay * mean + (1 - decay) * evidence.loss
        misfit = mean / (1 - decay ** (count + 1.0))
        return (count + 1, mean), Decision(jnp.bool_(True), misfit <= factor * evidence.sigma**2, misfit)

    return Stopper(lambda anchor: (jnp.int32(0), jnp.zeros((), anchor.dtype)), update, needs=("sigma",))


RULES: dict[str, Callable[[int, int], Stopper]] = {  # name on the command line -> rule of (window, patience)
    "held-out": lambda window, patience: held_out(patience),
    "wmv": windowed_variance,
    "emv": lambda window, patience: exponential_variance(patience=patience),
    "discrepancy": lambda window, patience: discrepancy(),
    "patience": lambda window, num_steps: patience(num_steps),
    "never": lambda window, patience: never(),
}
