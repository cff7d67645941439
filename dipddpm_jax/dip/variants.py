"""The literature's variants of a deep image prior, as values: penalties on the output, and backtracking.

A variant on the command line is a row of VARIANTS: its penalty, its rule for the code (`dip.codes`), its defaults.
"""
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, PyTree

from dipddpm_jax.dip import codes
from dipddpm_jax.dip.codes import CodeRule
from dipddpm_jax.dip.problem import DipProblem
from dipddpm_jax.dip.stopping import Scalar
from dipddpm_jax.errors import UserError
from dipddpm_jax.inverse.noises import psnr_of
from dipddpm_jax.types import Image

Penalty = Callable[[Image, DipProblem], Scalar]  # (output, problem with the present code) -> what is added to the loss
TV_BY_NOISE = 0.4  # weight of DIP-TV by the noise's standard deviation; chosen on photographs, sigma 15 to 50 of 255
TV_AT_LEAST = 0.002  # weight where there is hardly any noise; not tuned


def no_penalty(output: Image, problem: DipProblem) -> Scalar:
    """Plain DIP: min |A f(z) - y|^2 (Ulyanov et al. 2018, eq. 2)."""
    return jnp.zeros((), output.dtype)


def total_variation(weight: float | None = None) -> Penalty:
    """DIP-TV (Liu et al. 2019): + weight * (mean |vertical differences| + mean |horizontal differences|).

    Without a weight it is `TV_BY_NOISE` times the standard deviation of the measurement's noise (`problem.sigma`), but
    at least `TV_AT_LEAST`: the weight is a threshold for differences, and the best one grows with their noise. Raises
    UserError when the fit is traced where neither is given.
    """
    def penalty(output, problem):
        if weight is None and problem.sigma is None:
            raise UserError("total variation without a weight is weighed by DipProblem.sigma, which is missing: give "
                            "the weight, or the standard deviation of the noise")
        chosen = jnp.maximum(TV_BY_NOISE * problem.sigma, TV_AT_LEAST) if weight is None else weight
        return chosen * sum(jnp.abs(jnp.diff(output, axis=axis)).mean() for axis in (0, 1))

    return penalty


def autoencode(weight: float) -> Penalty:
    """+ weight * mean (f(z) - z)^2: the output should be its own code, which must have the output's shape.

    With `codes.learned` this is self-guided DIP (Liang et al. 2024); with `codes.refreshed` it is aSeqDIP (Alkhouri
    et al. 2024, algorithm 1).
    """
    return lambda output, problem: weight * jnp.mean(jnp.square(output - problem.code))


class Accepted(NamedTuple):
    """Ulyanov's backtracking: iterations counted, the last accepted PSNR to the measurement, and its parameters."""

    count: Int[Array, ""]
    psnr: Scalar
    params: PyTree


def backtrack(count: Int[Array, ""], last: Scalar, psnr: Scalar, drop: float) -> tuple[Bool[Array, ""], ...]:
    """Ulyanov's rule: (fall back to the accepted parameters?, accept these?); neither at multiples of 100."""
    look = count % 100 != 0
    falls = look & (psnr - last < -drop)
    return falls, look & ~falls


def backtracking(optimizer: optax.GradientTransformation, drop: float = 5.0) -> optax.GradientTransformationExtraArgs:
    """`optimizer`, going back to the last accepted parameters when the PSNR to the measurement falls by `drop` dB.

    As in the code of Ulyanov et al. 2018 the change that was computed at the bad parameters is applied all the same.
    `update` wants the misfit as `value`, as optax's other rules of this kind do; its state is (Accepted, optimizer's).
    """
    inner = optax.with_extra_args_support(optimizer)

    def init(params):
        return Accepted(jnp.int32(0), jnp.zeros((), jax.tree.leaves(params)[0].dtype), params), inner.init(params)

    def update(gradient, state, params=None, *, value: Scalar, **extra: Any):
        (count, last, good), inner_state = state
        change, inner_state = inner.update(gradient, inner_state, params, value=value, **extra)
        psnr = psnr_of(value)
        falls, accept = backtrack(count, last, psnr, drop)
        change = jax.tree.map(lambda c, to, now: jnp.where(falls, c + (to - now), c), change, good, params)
        good = jax.tree.map(lambda now, old: jnp.where(accept, now, old), params, good)
        return change, (Accepted(count + ~falls, jnp.where(accept, psnr, last), good), inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


class Variant(NamedTuple):
    """A variant by name: `penalty(weight)`, `code_rule(optimizer, jitter)`, its default weight and learning rate."""

    penalty: Callable[[float | None], Penalty] = lambda weight: no_penalty
    weight: float | None = None
    code_rule: Callable[[optax.GradientTransformation, float], CodeRule] = lambda optimizer, jitter: codes.fixed(jitter)
    learning_rate: float = 0.01
    starts_from_measurement: bool = False  # the first code is the measurement, of the output's shape


VARIANTS = {
    "plain": Variant(),
    "tv": Variant(total_variation),
    "self-guided": Variant(autoencode, 0.1, codes.learned, starts_from_measurement=True),
    "aseqdip": Variant(autoencode, 1.0, lambda optimizer, jitter: codes.refreshed(), 0.001, True),
}
