"""A deep image prior guided by a diffusion prior: the fit is pulled towards what the denoiser makes of it.

As uDiG-DIP (Liang et al. 2024): the untrained network explains the measurement, the trained one says what pictures look
like, at noise levels that fall.
"""
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Key

from dipddpm_jax.dip.codes import noise_code
from dipddpm_jax.hybrids.prior import (
    DiffusionPrior,
    Task,
    Transition,
    grid_from,
    restorer,
    time_of_noise,
)
from dipddpm_jax.inverse.measurement import Restoration, Restore
from dipddpm_jax.networks.layers import initial_variables
from dipddpm_jax.types import Images


def guided_fit(
    prior: DiffusionPrior, network: nn.Module, levels: int = 50, fit_steps: int = 20, weight: float = 1.0,
    learning_rate: float = 0.01, first: float = 0.5,
) -> Restore:
    """For each of `levels` times, from the one of noise `first` (white is 1) down: b = x0(a f(z) + s eps, t), then
    `fit_steps` of Adam on mean |A f(z) - y|^2 + lambda mean |f(z) - b|^2, `weight` being lambda.

    The measurement is one picture and so is what comes back: f(z) after the last step, one chain, no deviation.
    """
    optimizer = optax.adam(learning_rate)
    grid = grid_from(prior, time_of_noise(prior, first), levels)

    def method(task: Task, rows: Transition) -> Images:
        code_key, init_key = jax.random.split(task.keys[0])
        code = noise_code(code_key, *task.shape[:2])[None]
        variables = initial_variables(network, init_key, code)
        fixed = {name: tree for name, tree in variables.items() if name != "params"}

        def picture(params) -> Images:
            out, _ = network.apply({"params": params, **fixed}, code, train=True, mutable=["batch_stats"])
            return out[:, : task.shape[0], : task.shape[1]]

        def loss(params, belief):
            f = picture(params)
            return jnp.mean((task.operator.forward(f[0]) - task.y) ** 2) + weight * jnp.mean((f - belief) ** 2)

        def level(carry, c: Transition):
            noised = c.a * task.pixels.to_network(picture(carry[0])) + c.noise * task.normal(c.t)[:1]
            belief = task.pixels.to_pixels(task.denoise(noised, c.t).x0)

            def update(carry, _):
                params, state = carry
                change, state = optimizer.update(jax.grad(loss)(params, belief), state, params)
                return (optax.apply_updates(params, change), state), None

            return jax.lax.scan(update, carry, length=fit_steps)[0], None

        params = variables["params"]
        (params, _), _ = jax.lax.scan(level, (params, optimizer.init(params)), rows)
        return task.pixels.to_network(picture(params))

    inner = restorer(prior, method, lambda sigma: grid, 1)

    def restore(measurement, key: Key[Array, ""]) -> Restoration:
        found = inner(measurement, key)
        return found._replace(evidence=found.evidence._replace(steps=(len(grid) - 1) * fit_steps))

    return restore
