"""Deep image prior: fit a network, from random weights, to one measurement; stop before it learns the noise.

A fit is pure functions of a state: `start` makes it, `step` moves it by one update with a given draw of the code's
jitter, `advance` scans many of them with draws of its own. All that differs between two fits is in `DipProblem`, so
that `vmap` fits many pictures or seeds. The literature's variants are values: a penalty, a rule for the code, an
optimiser that backtracks (`dip.variants`, `dip.codes`).
"""
import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Bool, Int, Key, PyTree

from dipddpm_jax.dip.codes import Code, CodeRule, Codes, CodeStep, fixed
from dipddpm_jax.dip.problem import DipProblem, check_evidence, fitted_mean, held_out_mean
from dipddpm_jax.dip.stopping import Evidence, Scalar, Stopper, never
from dipddpm_jax.dip.variants import Penalty, no_penalty
from dipddpm_jax.inverse.noises import psnr_of, squared_error
from dipddpm_jax.inverse.operators import identity
from dipddpm_jax.networks.layers import initial_variables
from dipddpm_jax.types import Image

Curves = dict[str, Array]


class Kept(NamedTuple):
    """What a fit returns: the output that the stop rule chose, its running average, and the step it was made at."""

    output: Image
    average: Image
    step: Int[Array, ""]


class DipState(NamedTuple):
    """One fit. `average` is the exponential average of the outputs; `code` changes in the variants that update it."""

    step: Int[Array, ""]
    params: PyTree
    statistics: PyTree  # BatchNorm's running ones: kept, never used, since a fit stays in training mode
    opt_state: PyTree
    code: Code
    code_state: PyTree
    average: Image
    kept: Kept
    stopped: Bool[Array, ""]
    stop_state: PyTree
    key: Key[Array, ""]


@dataclasses.dataclass(frozen=True)
class Dip:
    """How to fit `network` so that observe(network(code)) is the measurement; `dataclasses.replace` makes a variant.

    Minimises the mean of misfit(observe(f(z)), y) over what is known and not held out, plus penalty(f(z), problem).
    Outputs are cropped to `size` (height, width) and averaged with `average_decay` from step to step.
    """

    network: nn.Module
    optimizer: optax.GradientTransformation
    observe: Callable[[Image], Array] = identity
    stopper: Stopper = never()
    oracle: Callable[[Image], Stopper] | None = None
    """STUDY ONLY: a rule that is made from the clean picture, in place of `stopper`."""
    code_rule: CodeRule = fixed()
    average_decay: float = 0.99
    misfit: Callable[[Array, Array], Array] = squared_error
    penalty: Penalty = no_penalty
    size: tuple[int, int] | None = None

    def init(self, problem: DipProblem, key: Key[Array, ""]) -> DipState:
        """A fit with random weights. Raises UserError when the problem lacks what the stop rule judges by."""
        init_key, run_key = jax.random.split(key)
        return self.start(problem, initial_variables(self.network, init_key, problem.code[None]), run_key)

    def start(self, problem: DipProblem, variables: PyTree, key: Key[Array, ""]) -> DipState:
        """A fit with given weights; `key` is for the jitter of the code. Raises UserError as `init` does."""
        rule = self._rule(problem)
        params = variables["params"]
        statistics = {name: tree for name, tree in variables.items() if name != "params"}
        shape = jax.eval_shape(self._generate, params, statistics, problem.code[None])[0]
        blank = jnp.zeros(shape.shape, shape.dtype)
        anchor = problem.measurement if problem.measurement.shape == blank.shape else blank
        state = DipState(
            step=jnp.int32(0), params=params, statistics=statistics, opt_state=self.optimizer.init(params),
            code=problem.code, code_state=self.code_rule.init(problem.code), average=blank,
            kept=Kept(blank, blank, jnp.int32(-1)), stopped=jnp.bool_(False), stop_state=rule.init(anchor), key=None)
        return jax.tree.map(jnp.copy, state)._replace(key=key)  # copies, since a state may be donated

    def restart(self, problem: DipProblem, state: DipState) -> DipState:
        """The same network and optimiser, as they are, before another problem; the stop rule begins anew."""
        fresh = self.start(problem, {"params": state.params, **state.statistics}, state.key)
        return state._replace(code=fresh.code, kept=fresh.kept, stopped=fresh.stopped,
                              stop_state=self._rule(problem).restart(state.stop_state, fresh.stop_state))

    def step(self, problem: DipProblem, state: DipState, jitter: Codes) -> tuple[DipState, Curves]:
        """One update, with a given standard normal draw for the code."""
        inputs = (state.params, state.code) if self.code_rule.differentiated else (state.params,)
        gradients, (output, statistics, loss) = jax.grad(self._loss, has_aux=True)(inputs, problem, state, jitter)
        change, opt_state = optax.with_extra_args_support(self.optimizer).update(
            gradients[0], state.opt_state, state.params, value=loss)
        code_state, code = self.code_rule.update(
            state.code_state, state.code, CodeStep(state.step, output, *gradients[1:]))
        decay = self.average_decay
        average = jnp.where(state.step == 0, output, decay * state.average + (1 - decay) * output)
        evidence = self._evidence(problem, output, average, loss)
        stop_state, decision = self._rule(problem).update(state.stop_state, evidence)
        new = DipState(
            state.step + 1, optax.apply_updates(state.params, change), statistics, opt_state, code, code_state, average,
            _where(decision.keep, Kept(output, average, state.step), state.kept), decision.stop, None, None)
        # A stopped fit is frozen, but for its rule's state: nobody asks it again, and a ring of outputs is large.
        new = _where(state.stopped, state._replace(stop_state=None, key=None), new)
        return new._replace(stop_state=stop_state, key=state.key), _curves(problem, state, evidence, decision.score)

    def advance(self, problem: DipProblem, state: DipState, num_steps: int) -> tuple[DipState, Curves]:
        """`num_steps` updates in one scan; the draw of an update depends on the fit's key and the step alone."""
        def draw_and_step(state, _):
            key, shape = jax.random.fold_in(state.key, state.step), (self.code_rule.draws, *state.code.shape)
            return self.step(problem, state, jax.random.normal(key, shape, state.code.dtype))

        return jax.lax.scan(draw_and_step, state, length=num_steps)

    def _rule(self, problem: DipProblem) -> Stopper:
        if self.oracle is None:
            check_evidence(problem, self.stopper.needs)
            return self.stopper
        check_evidence(problem, ("reference",))
        return self.oracle(problem.reference)

    def _evidence(self, problem: DipProblem, output: Image, average: Image, loss: Scalar) -> Evidence:
        zero = jnp.zeros_like(loss)
        held_out = zero if problem.held_out is None else held_out_mean(
            problem, self.misfit(self.observe(average), problem.measurement))
        return Evidence(output, average, loss, held_out, zero if problem.sigma is None else problem.sigma)

    def _generate(self, params: PyTree, statistics: PyTree, codes: Codes) -> tuple[Image, PyTree]:
        variables = {"params": params, **statistics}
        outputs, statistics = self.network.apply(variables, codes, train=True, mutable=["batch_stats"])
        height, width = self.size or outputs.shape[1:3]
        return outputs.mean(0)[:height, :width], dict(statistics)

    def _loss(self, inputs: tuple, problem: DipProblem, state: DipState, jitter: Codes) -> tuple[Scalar, tuple]:
        params, code = inputs if len(inputs) > 1 else (*inputs, state.code)
        output, statistics = self._generate(params, state.statistics, code[None] + self.code_rule.jitter * jitter)
        loss = fitted_mean(problem, self.misfit(self.observe(output), problem.measurement))
        return loss + self.penalty(output, problem._replace(code=code, reference=None)), (output, statistics, loss)


def _curves(problem: DipProblem, state: DipState, evidence: Evidence, score: Scalar) -> Curves:
    curves = {"loss": evidence.loss, "score": score, "held_out": evidence.held_out, "active": ~state.stopped}
    if problem.reference is not None:
        curves["psnr"] = psnr_of(jnp.mean(jnp.square(evidence.output - problem.reference)))
        curves["psnr_average"] = psnr_of(jnp.mean(jnp.square(evidence.average - problem.reference)))
    return curves


def _where(condition: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda new, old: jnp.where(condition, new, old), new, old)
