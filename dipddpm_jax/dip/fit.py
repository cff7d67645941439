"""Deep image prior: fit a network, from random weights, to one measurement; stop before it learns the noise.

A fit is pure functions of a state: `start` makes it, `step` moves it by one update with a given draw of the code's
jitter, `advance` scans many of them with draws of its own. All that differs between two fits is in `DipProblem`, so
that `vmap` fits many pictures or seeds. The literature's variants are other penalties and other rules for the code.
"""
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from dipddpm_jax.convolution import bands
from dipddpm_jax.convolution.cost import divisor
from dipddpm_jax.dip.stopping import Evidence, Stopper, never
from dipddpm_jax.inverse.operators import identity
from dipddpm_jax.networks.layers import initial_variables
from dipddpm_jax.types import Image

Scalar = Float[Array, ""]
Flag = Bool[Array, ""]
Code = Float[Array, "p q k"]  # a network's input need not have the sides of its output
Codes = Float[Array, "draws p q k"]
Penalty = Callable[[Image, Code], Scalar]  # (output, code) -> what is added to the loss
Curves = dict[str, Array]


class DipProblem(NamedTuple):
    """All that differs between two fits. Pictures are in [0, 1]; what is None is absent."""

    code: Code  # the network's input z
    measurement: Float[Array, "..."]
    reference: Image | None = None  # the clean picture, for the curves only: no rule sees it
    known: Float[Array, "..."] | None = None  # 1 where the measurement holds, 0 where it is missing
    held_out: Float[Array, "..."] | None = None  # 1 where the measurement is kept back from the fit, for a stop rule
    sigma: Scalar | None = None  # standard deviation of the measurement's noise


class Kept(NamedTuple):
    """What a fit returns: the output that the stop rule chose, its running average, and the step it was made at."""

    output: Image
    average: Image
    step: Int[Array, ""]


class Accepted(NamedTuple):
    """Ulyanov's backtracking: iterations counted, the last accepted PSNR to the measurement, and its parameters."""

    count: Int[Array, ""]
    psnr: Scalar
    params: PyTree


class DipState(NamedTuple):
    """One fit. `average` is the exponential average of the outputs; `code` changes in the variants that update it."""

    step: Int[Array, ""]
    params: PyTree
    statistics: PyTree  # BatchNorm's running ones: kept, never used, since a fit stays in training mode
    opt_state: PyTree
    code: Code
    average: Image
    accepted: Accepted | None
    kept: Kept
    stopped: Bool[Array, ""]
    stop_state: PyTree
    key: Key[Array, ""]


def noise_code(key: Key[Array, ""], height: int, width: int, depth: int = 32) -> Code:
    """Uniform noise in [0, 0.1) (Ulyanov et al. 2018, section 4)."""
    return 0.1 * jax.random.uniform(key, (height, width, depth))


def meshgrid_code(height: int, width: int) -> Code:
    """x and y from 0 to 1: the code for large holes (Ulyanov et al. 2018, section 3.3). Sides must exceed 1."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return jnp.asarray(np.stack([x, y], -1), jnp.float32)


def squared_error(observed: Float[Array, "*n"], measurement: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The misfit of Gaussian noise, value by value."""
    return jnp.square(observed - measurement)


def no_penalty(output: Image, code: Code) -> Scalar:
    """Plain DIP: min |A f(z) - y|^2 (Ulyanov et al. 2018, eq. 2)."""
    return jnp.zeros((), output.dtype)


def total_variation(weight: float) -> Penalty:
    """DIP-TV (Liu et al. 2019): + weight * (mean |vertical differences| + mean |horizontal differences|)."""
    def penalty(output, code):
        return weight * sum(jnp.abs(jnp.diff(output, axis=axis)).mean() for axis in (0, 1))

    return penalty


def autoencode(weight: float) -> Penalty:
    """+ weight * |f(z) - z|^2: the output should be its own code.

    With `code_rate` and several `draws` this is self-guided DIP (Liang et al. 2024); with `refresh_code` it is aSeqDIP,
    whose code becomes the output every few steps (Alkhouri et al. 2024, algorithm 1). The code must have the
    output's shape.
    """
    return lambda output, code: weight * jnp.mean(jnp.square(output - code))


def psnr_of(error: Scalar) -> Scalar:
    """PSNR in dB of a mean squared error, for pictures in [0, 1]."""
    return -10 * jnp.log10(error)


def backtrack(count: Int[Array, ""], last: Scalar, psnr: Scalar, drop: float) -> tuple[Flag, Flag]:
    """Ulyanov's rule: (fall back to the accepted parameters?, accept these?); neither at multiples of 100."""
    look = count % 100 != 0
    falls = look & (psnr - last < -drop)
    return falls, look & ~falls


def _weights(problem: DipProblem) -> tuple[Array, Array]:
    """What is known, and what of that is held out; 1 and 0 where the problem does not say."""
    one = jnp.ones((1,) * problem.measurement.ndim, problem.measurement.dtype)
    known = one if problem.known is None else problem.known
    return known, 0 * one if problem.held_out is None else problem.held_out


def _weighted_mean(values: Array, weight: Array) -> Scalar:
    weight = jnp.broadcast_to(weight, values.shape)
    return jnp.sum(values * weight) / jnp.maximum(weight.sum(), 1)


def _curves(problem: DipProblem, state: DipState, evidence: Evidence, score: Scalar) -> Curves:
    curves = {"loss": evidence.loss, "score": score, "held_out": evidence.held_out, "active": ~state.stopped}
    if problem.reference is not None:
        curves["psnr"] = psnr_of(jnp.mean(jnp.square(evidence.output - problem.reference)))
        curves["psnr_average"] = psnr_of(jnp.mean(jnp.square(evidence.average - problem.reference)))
    return curves


def _where(condition: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda new, old: jnp.where(condition, new, old), new, old)


@dataclasses.dataclass(frozen=True)
class Dip:
    """How to fit `network` so that observe(network(code)) is the measurement; `dataclasses.replace` makes a variant.

    Each step adds `code_jitter` * N(0, 1) to the code and averages the outputs of `draws` such codes, cropped to
    `size`. `code_rate` learns the code too, at that multiple of the network's rate; `refresh_code` replaces it by the
    output every so many steps; `fall_back` backtracks when the PSNR to the measurement falls by so many dB. 0: never.
    """

    network: nn.Module
    optimizer: optax.GradientTransformation
    observe: Callable[[Image], Array] = identity
    stopper: Stopper = never()
    oracle: Callable[[Image], Stopper] | None = None
    """STUDY ONLY: a rule that is made from the clean picture, in place of `stopper`."""
    code_jitter: float = 1 / 30
    average_decay: float = 0.99
    misfit: Callable[[Array, Array], Array] = squared_error
    penalty: Penalty = no_penalty
    size: tuple[int, int] | None = None
    draws: int = 1
    code_rate: float = 0.0
    refresh_code: int = 0
    fall_back: float = 0.0

    def init(self, problem: DipProblem, key: Key[Array, ""]) -> DipState:
        """A fit with random weights. On the host; stack such states for a batch."""
        init_key, run_key = jax.random.split(key)
        return self.start(problem, initial_variables(self.network, init_key, problem.code[None]), run_key)

    def start(self, problem: DipProblem, variables: PyTree, key: Key[Array, ""]) -> DipState:
        """A fit with given weights; `key` is for the jitter of the code."""
        params = variables["params"]
        statistics = {name: tree for name, tree in variables.items() if name != "params"}
        shape = jax.eval_shape(self._generate, params, statistics, problem.code[None])[0]
        blank = jnp.zeros(shape.shape, shape.dtype)
        anchor = problem.measurement if problem.measurement.shape == blank.shape else blank
        state = DipState(
            step=jnp.int32(0), params=params, statistics=statistics, code=problem.code, average=blank,
            opt_state=self.optimizer.init((params, problem.code if self.code_rate else None)),
            accepted=Accepted(jnp.int32(0), jnp.zeros((), blank.dtype), params) if self.fall_back else None,
            kept=Kept(blank, blank, jnp.int32(-1)), stopped=jnp.bool_(False),
            stop_state=self._rule(problem).init(anchor), key=None,
        )
        return jax.tree.map(jnp.copy, state)._replace(key=key)  # copies, since a state may be donated

    def restart(self, problem: DipProblem, state: DipState) -> DipState:
        """The same network and optimiser, as they are, before another problem; the stop rule begins anew."""
        fresh = self.start(problem, {"params": state.params, **state.statistics}, state.key)
        return state._replace(code=fresh.code, kept=fresh.kept, stopped=fresh.stopped,
                              stop_state=self._rule(problem).restart(state.stop_state, fresh.stop_state))

    def step(self, problem: DipProblem, state: DipState, jitter: Codes) -> tuple[DipState, Curves]:
        """One update, with a given standard normal draw for the code."""
        learned = state.params, (state.code if self.code_rate else None)
        gradient, (output, statistics, loss) = jax.grad(self._loss, has_aux=True)(
            learned, problem, state, jitter)
        (change, code_change), opt_state = self.optimizer.update(gradient, state.opt_state, learned)
        params, accepted = self._fall(state, loss)
        code = state.code + self.code_rate * code_change if self.code_rate else state.code
        if self.refresh_code:
            code = jnp.where((state.step + 1) % self.refresh_code == 0, output, code)
        decay = self.average_decay
        average = jnp.where(state.step == 0, output, decay * state.average + (1 - decay) * output)
        sigma = jnp.zeros_like(loss) if problem.sigma is None else problem.sigma
        evidence = Evidence(output, average, loss, self._held_out(problem, average), sigma)
        stop_state, decision = self._rule(problem).update(state.stop_state, evidence)
        new = DipState(
            state.step + 1, optax.apply_updates(params, change), statistics, opt_state, code, average, accepted,
            _where(decision.keep, Kept(output, average, state.step), state.kept), decision.stop, None, None)
        # A stopped fit is frozen, but for its rule's state: nobody asks it again, and a ring of outputs is large.
        new = _where(state.stopped, state._replace(stop_state=None, key=None), new)
        return new._replace(stop_state=stop_state, key=state.key), _curves(problem, state, evidence, decision.score)

    def advance(self, problem: DipProblem, state: DipState, num_steps: int) -> tuple[DipState, Curves]:
        """`num_steps` updates in one scan; the draw of an update depends on the fit's key and the step alone."""
        def draw_and_step(state, _):
            key = jax.random.fold_in(state.key, state.step)
            return self.step(problem, state, jax.random.normal(key, (self.draws, *state.code.shape), state.code.dtype))

        return jax.lax.scan(draw_and_step, state, length=num_steps)

    def advance_one(self, problem: DipProblem, state: DipState, num_steps: int) -> tuple[DipState, Curves]:
        """`advance` of a single fit, not for vmap: the devices of a CPU share the rows of a large picture."""
        if not bands.pays(problem.code.shape):
            return self.advance(problem, state, num_steps)
        with bands.shared():
            return self.advance(problem, state._replace(code=bands.banded(state.code)), num_steps)

    def advance_all(self, problems: DipProblem, states: DipState, num_steps: int) -> tuple[DipState, Curves]:
        """`advance` for a batch. On a CPU every device has its share, one fit after the other, and those that have
        stopped cost nothing; elsewhere all at once, the stopped ones included."""
        count = divisor(states.step.shape[0], jax.local_device_count())
        one = partial(self.advance_one if count == 1 else self.advance, num_steps=num_steps)

        def idle(problem, state):
            shapes = jax.eval_shape(one, problem, state)[1]
            return state, jax.tree.map(lambda curve: jnp.zeros(curve.shape, curve.dtype), shapes)

        if jax.default_backend() != "cpu":
            return jax.vmap(one)(problems, states)

        def share(problems, states):
            return jax.lax.map(lambda fit: jax.lax.cond(fit[1].stopped, idle, one, *fit), (problems, states))

        if count == 1:
            return share(problems, states)
        mesh, fits = Mesh(np.array(jax.local_devices()[:count]), ("fits",)), PartitionSpec("fits")
        return jax.shard_map(share, mesh=mesh, in_specs=fits, out_specs=fits, check_vma=False)(problems, states)

    def _held_out(self, problem: DipProblem, average: Image) -> Scalar:
        """Misfit of the average to what is kept back from the fit."""
        known, held_out = _weights(problem)
        if problem.held_out is None:
            return jnp.zeros((), average.dtype)
        return _weighted_mean(self.misfit(self.observe(average), problem.measurement), known * held_out)

    def _rule(self, problem: DipProblem) -> Stopper:
        return self.oracle(problem.reference) if self.oracle else self.stopper

    def _generate(self, params: PyTree, statistics: PyTree, codes: Codes) -> tuple[Image, PyTree]:
        variables = {"params": params, **statistics}
        outputs, statistics = self.network.apply(variables, codes, train=True, mutable=["batch_stats"])
        height, width = self.size or outputs.shape[1:3]
        return outputs.mean(0)[:height, :width], dict(statistics)

    def _loss(self, learned: PyTree, problem: DipProblem, state: DipState, jitter: Codes) -> tuple[Scalar, tuple]:
        params, code = learned
        code = state.code if code is None else code
        output, statistics = self._generate(params, state.statistics, code[None] + self.code_jitter * jitter)
        errors = self.misfit(self.observe(output), problem.measurement)
        known, held_out = _weights(problem)
        loss = _weighted_mean(errors, known * (1 - held_out))
        return loss + self.penalty(output, code), (output, statistics, loss)

    def _fall(self, state: DipState, loss: Scalar) -> tuple[PyTree, Accepted | None]:
        """Ulyanov's backtracking; the gradient that was taken at the bad parameters is applied all the same."""
        if state.accepted is None:
            return state.params, None
        count, last, good = state.accepted
        psnr = psnr_of(loss)
        falls, accept = backtrack(count, last, psnr, self.fall_back)
        accepted = Accepted(count + ~falls, jnp.where(accept, psnr, last), _where(accept, state.params, good))
        return _where(falls, good, state.params), accepted
