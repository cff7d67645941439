"""Self-diffusion (Luo and Huang 2025, arXiv 2510.21417): an untrained network learns to undo falling noise on its own
estimate.

The sound form of system 002: what is noised is the current estimate, not the measurement, and the loss looks at the
measurement alone. The noise decides how fine the details are that the network can learn at a level.
"""
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Key, PyTree

from dipddpm_jax.dip.folds import error_of_one
from dipddpm_jax.inverse.cut_off import variance_left
from dipddpm_jax.inverse.measurement import Cost, Measurement, Restoration, Restore
from dipddpm_jax.inverse.operators import Operator
from dipddpm_jax.networks.layers import initial_variables
from dipddpm_jax.types import Image


class SelfDiffusion(NamedTuple):
    """Where a restoration stands between two levels; `estimate` is noised next, `average` is that of all outputs."""

    params: PyTree
    statistics: PyTree
    opt_state: PyTree
    estimate: Image
    average: Image


def level_sigmas(levels: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> Float[np.ndarray, "levels"]:
    """Falling noise levels sigma_t = sqrt(1 - prod_{i <= t} (1 - beta_i)), t = T-1 .. 0, beta rising evenly from
    `beta_start` to `beta_end`: those of a short linear schedule."""
    return np.sqrt(1 - np.cumprod(1 - np.linspace(beta_start, beta_end, levels)))[::-1]


def self_diffusion(
    network: nn.Module, levels: int = 40, steps: int = 100, learning_rate: float = 1e-3, beta_end: float = 0.02,
    average_decay: float = 0.0, held_out: float = 0.0,
) -> Restore:
    """Restores by self-diffusion. From x_T ~ N(0, I), for t = T-1 .. 0:
        xi_t = x_{t+1} + sigma_t eps_t                 eps_t ~ N(0, I), one draw a level
        theta <- theta - Adam(grad mean |A f_theta(xi_t) - y|^2)       `steps` times; theta and Adam's state go on
        x_t = f_theta(xi_t)

    `network` gives pictures of the measured one's channels; larger ones are cropped. What is returned is the
    exponential average of all outputs with `average_decay`, whose 0 is the paper's last output. The paper has no stop
    rule, and the network comes to fit the noise. With a share `held_out` of y left out of the loss, the average of the
    level that has the lowest error there is returned, and that error less the noise's variance is the evidence's.
    """
    sigmas = level_sigmas(levels, beta_end=beta_end)
    optimizer = optax.adam(learning_rate)
    program = functools.lru_cache(maxsize=4)(functools.partial(_level, network, optimizer, steps, average_decay))

    def restore(measurement: Measurement, key: Key[Array, ""]) -> Restoration:
        y, operator = measurement.y, measurement.operator
        like = jax.eval_shape(operator.adjoint, y)
        init_key, start_key, noise_key, held_key = jax.random.split(key, 4)
        start = jax.random.normal(start_key, like.shape, like.dtype)
        variables = initial_variables(network, init_key, start[None])
        statistics = {name: tree for name, tree in variables.items() if name != "params"}
        state = SelfDiffusion(variables["params"], statistics, optimizer.init(variables["params"]), start,
                              jnp.zeros_like(start))
        seen = operator.forward(jnp.ones_like(start)) != 0
        held = seen & (jax.random.uniform(held_key, seen.shape) < held_out)
        level, kept = program(operator), (np.inf, start)
        for i, sigma in enumerate(sigmas):
            noise = jnp.asarray(sigma, start.dtype) * jax.random.normal(jax.random.fold_in(noise_key, i), start.shape)
            weight = 1 - average_decay ** ((i + 1) * steps)  # of an average that began at 0
            state, error = level(state, y, held, noise, jnp.asarray(weight, start.dtype))
            if not held_out or error < kept[0]:
                kept = float(error), state.average / weight
        error, picture = kept
        error = _whole_error(error, picture, measurement, seen, held) if held_out else None
        return Restoration(picture, None, Cost(steps=levels * steps, error=error))

    return restore


def _whole_error(error: float, picture: Image, measurement: Measurement, known: Array, held: Array) -> float:
    """The estimated mean squared error of A x, from the error on what was `held` out, noise included."""
    observed, seen = measurement.operator.forward(picture), known & ~held
    variance = jnp.broadcast_to(
        variance_left(observed, measurement.y, measurement.noise, known.astype(observed.dtype)), known.shape)
    noise, fitted = jnp.mean(variance, where=known), jnp.mean(jnp.square(observed - measurement.y), where=seen)
    return max(float(error_of_one(error - float(noise), float(fitted), float(noise), float(seen.mean()))), 0.0)


def _level(
    network: nn.Module, optimizer: optax.GradientTransformation, steps: int, decay: float, operator: Operator,
) -> Callable[[SelfDiffusion, Array, Array, Image, Array], tuple[SelfDiffusion, Array]]:
    """The compiled program of one level: `steps` updates in one scan, and the error of the average, divided by its
    weight, on what is held out."""
    def loss_of(params, statistics, noised, y, held):
        variables = {"params": params, **statistics}
        output, statistics = network.apply(variables, noised[None], train=True, mutable=["batch_stats"])
        output = output[0, : noised.shape[0], : noised.shape[1]]
        misfit = jnp.square(operator.forward(output) - y)
        return jnp.mean(jnp.where(held, 0, misfit)), (output, dict(statistics))

    @jax.jit
    def level(state: SelfDiffusion, y: Array, held: Array, noise: Image, weight: Array) -> tuple[SelfDiffusion, Array]:
        noised = state.estimate + noise

        def step(state, _):
            gradient, (output, statistics) = jax.grad(loss_of, has_aux=True)(
                state.params, state.statistics, noised, y, held)
            change, opt_state = optimizer.update(gradient, state.opt_state, state.params)
            params = optax.apply_updates(state.params, change)
            average = decay * state.average + (1 - decay) * output
            return SelfDiffusion(params, statistics, opt_state, output, average), None

        state, _ = jax.lax.scan(step, state, length=steps)
        wrong = jnp.square(operator.forward(state.average / weight) - y)
        return state, jnp.sum(jnp.where(held, wrong, 0)) / jnp.maximum(jnp.sum(held), 1)

    return level
