"""Self-diffusion with a prior: falling noise on the network's own estimate, by one that begins as the trained network.

`dip.self_diffusion` (Luo and Huang 2025) learns everything from one picture. Here the network is a diffusion model's
denoiser at the time of each level's noise, so that without a step of learning the levels are a chain of it, and what is
learned is what the picture tells beyond the prior.
"""
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from dipddpm_jax.diffusion import spacings
from dipddpm_jax.dip import crossfit
from dipddpm_jax.dip.folds import fold_masks
from dipddpm_jax.hybrids.prior import DiffusionPrior, Transition, grid_from, transitions
from dipddpm_jax.inverse.measurement import Measurement, Restoration, Restore
from dipddpm_jax.inverse.operators import Operator
from dipddpm_jax.types import Image


class _Fold(NamedTuple):
    """A fit that is blind to one part of y: its weights, what is noised next (network units), and the picture (pixels)
    of the level with the lowest error on that part."""

    params: PyTree
    opt_state: PyTree
    estimate: Image
    kept: Image
    kept_error: Float[Array, ""]


def trained_self_diffusion(
    prior: DiffusionPrior, levels: int = 20, steps: int = 10, rate: float = 1e-4, folds: int = 5
) -> Restore:
    """The mean of `folds` self-diffusions from the trained weights theta, each blind to another part of y:
        x_t = a_t x + sqrt(1 - a_t^2) eps              x the current estimate, at first 0; eps afresh at each level
        theta <- theta - Adam(grad mean |A x0_theta(x_t, t) - y|^2)      `steps` times, on what the fit sees
        x = x0_theta(x_t, t)
    at `levels` falling times t. A fit keeps the x of the level with the lowest error on its blind part.

    Raises UserError for a prior without weights. Not for use under `jit`.
    """
    learned = prior.weights()
    optimizer = optax.adam(rate)
    grid = grid_from(prior, spacings.start_time(prior.schedule), levels)

    @partial(jax.jit, static_argnames="operator")
    def run(params, y, known, parts, keys, operator: Operator):
        like = jax.eval_shape(operator.adjoint, y)

        def fit(part: Float[Array, "p q 1"], key: Key[Array, ""]) -> Image:
            def errors(params: PyTree, x: Image, t: Array) -> tuple[Array, tuple[Image, Array]]:
                x0 = learned.denoiser(params)(x[None], t).x0
                wrong = jnp.square(operator.forward(prior.pixels.to_pixels(x0)[0]) - y)
                seen, blind = (jnp.broadcast_to(mask, wrong.shape) for mask in (known * (1 - part), known * part))
                return jnp.mean(seen * wrong), (x0[0], jnp.sum(blind * wrong) / jnp.maximum(blind.sum(), 1))

            def level(state: _Fold, c: Transition) -> tuple[_Fold, None]:
                x = c.a * state.estimate + c.noise * jax.random.normal(jax.random.fold_in(key, c.t), like.shape)

                def update(carry, _):
                    gradient = jax.grad(lambda params: errors(params, x, c.t)[0])(carry[0])
                    change, opt_state = optimizer.update(gradient, carry[1], carry[0])
                    return (optax.apply_updates(carry[0], change), opt_state), None

                (params, opt_state), _ = jax.lax.scan(update, (state.params, state.opt_state), length=steps)
                _, (x0, error) = errors(params, x, c.t)
                kept = jnp.where(error < state.kept_error, prior.pixels.to_pixels(x0[None])[0], state.kept)
                return _Fold(params, opt_state, x0, kept, jnp.minimum(error, state.kept_error)), None

            nothing = jnp.zeros(like.shape, like.dtype)
            begun = _Fold(params, optimizer.init(params), nothing, nothing, jnp.asarray(jnp.inf, like.dtype))
            return jax.lax.scan(level, begun, transitions(prior.schedule, grid))[0].kept

        return jax.lax.map(lambda fold: fit(*fold), (parts, keys))

    def restore(measurement: Measurement, key: Key[Array, ""]) -> Restoration:
        known = crossfit.observed_pixels(measurement, key)
        parts = fold_masks(jax.random.fold_in(key, 0), known, folds)
        keys = jax.random.split(jax.random.fold_in(key, 1), folds)
        pictures = run(learned.params, measurement.y, known, parts, keys, measurement.operator)
        count = folds * (len(grid) - 1) * steps
        found = crossfit.mean_of_fits(measurement, known, parts, pictures, count)
        return found._replace(evidence=found.evidence._replace(calls=folds * (len(grid) - 1)))

    return restore
