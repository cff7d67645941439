"""What a deep image prior is fitted to: the measurement, which of its pixels count, and the network's first code."""
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dipddpm_jax.dip.codes import Code
from dipddpm_jax.dip.stopping import Scalar
from dipddpm_jax.errors import UserError
from dipddpm_jax.types import Image

EVIDENCE = {
    "held_out": "a mask of pixels that are kept back from the fit (inverse.operators.held_out_mask draws one)",
    "sigma": "the standard deviation of the noise (inverse.noise_level.estimate_sigma estimates it)",
    "reference": "the clean picture, which only a study has",
}


class DipProblem(NamedTuple):
    """All that differs between two fits. Pictures are in [0, 1]; what is None is absent."""

    code: Code  # the network's input z
    measurement: Float[Array, "..."]
    reference: Image | None = None  # the clean picture, for the curves only: no rule sees it
    known: Float[Array, "..."] | None = None  # 1 where the measurement holds, 0 where it is missing
    held_out: Float[Array, "..."] | None = None  # 1 where the measurement is kept back from the fit, for a stop rule
    sigma: Scalar | None = None  # standard deviation of the measurement's noise


def check_evidence(problem: DipProblem, needs: tuple[str, ...]) -> None:
    """Raises UserError where a stop rule would judge by evidence that the problem does not hold, or nothing is fitted.

    Masks are looked into unless they are traced (under `jit` or `vmap`).
    """
    for need in needs:
        if getattr(problem, need) is None:
            raise UserError(f"the stop rule judges by DipProblem.{need}, which is missing: give {EVIDENCE[need]}")
    known, held_out = _weights(problem)
    if any(isinstance(mask, jax.core.Tracer) for mask in (known, held_out)):
        return
    known, held_out = np.asarray(known), np.asarray(held_out)
    if not np.any(known * (1 - held_out)):
        raise UserError("there is nothing to fit: DipProblem.known is 0 everywhere, or all that is known is held out")
    if "held_out" in needs and not np.any(known * held_out):
        raise UserError("DipProblem.held_out holds no pixel that is known, so the stop rule would judge by nothing; "
                        "inverse.operators.held_out_mask draws among the known ones")


def fitted_mean(problem: DipProblem, errors: Array) -> Scalar:
    """Mean of the errors over what is known and not held out."""
    known, held_out = _weights(problem)
    return _weighted_mean(errors, known * (1 - held_out))


def held_out_mean(problem: DipProblem, errors: Array) -> Scalar:
    """Mean of the errors over what is known and held out; infinite where that is nothing: no rule takes it for good."""
    known, held_out = _weights(problem)
    weight = jnp.broadcast_to(known * held_out, errors.shape)
    return jnp.where(weight.sum() > 0, _weighted_mean(errors, weight), jnp.inf)


def _weights(problem: DipProblem) -> tuple[Array, Array]:
    """What is known, and what of that is held out; 1 and 0 where the problem does not say."""
    one = jnp.ones((1,) * problem.measurement.ndim, problem.measurement.dtype)
    known = one if problem.known is None else problem.known
    return known, 0 * one if problem.held_out is None else problem.held_out


def _weighted_mean(values: Array, weight: Array) -> Scalar:
    weight = jnp.broadcast_to(weight, values.shape)
    return jnp.sum(values * weight) / jnp.maximum(weight.sum(), 1)


def is_stuck(problem: DipProblem, observed: Float[Array, "*n"], share: float = 0.25) -> Bool[Array, ""]:
    """True if a fit lies near a constant: the known pixels of observe(output) vary by less than `share` of what the
    measurement varies by beyond its noise, sqrt(var(y) - sigma^2), channels apart; no clean picture is asked.

    To be asked some hundred steps after the start; False for a measurement that holds little but noise (less than a
    tenth of sigma^2). Dead ReLUs and codes that do not tell places apart are what makes a fit stuck: another key, a
    lower learning rate or another code helps.
    """
    known = jnp.broadcast_to(_weights(problem)[0], observed.shape)
    axes = tuple(range(observed.ndim - 1))

    def variance(x):
        count = jnp.maximum(known.sum(axes, keepdims=True), 1)
        mean = jnp.sum(known * x, axes, keepdims=True) / count
        return jnp.mean(jnp.sum(known * jnp.square(x - mean), axes, keepdims=True) / count)

    noise = 0.0 if problem.sigma is None else jnp.square(problem.sigma)
    signal = variance(problem.measurement) - noise
    return (signal > 0.1 * noise) & (variance(observed) < share**2 * signal)
