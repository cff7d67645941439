"""DPS: each reverse step is followed by one down the misfit of the believed clean picture (Chung et al. 2023)."""
import jax
import jax.numpy as jnp

from dipddpm_jax.hybrids.prior import DiffusionPrior, Task, Transition, reverse
from dipddpm_jax.inverse.measurement import Restore
from dipddpm_jax.types import Images


def dps(prior: DiffusionPrior, calls: int = 50, samples: int = 1, step_size: float = 1.0) -> Restore:
    """Algorithm 1: x_s <- posterior step of x_t with x0(x_t), less zeta grad_{x_t} |y - A x0(x_t)|, the norm (not its
    square) in the network's units. `step_size` is zeta (0.3 to 1 in the paper, with 1000 steps)."""
    def step(task: Task, x: Images, c: Transition) -> Images:
        def misfit(x: Images):
            x0 = task.denoise(x, c.t).x0
            seen = jax.vmap(task.operator.forward)(task.pixels.to_pixels(x0))
            residual = (task.y[None] - seen).reshape(len(x), -1) / task.pixels.std
            return jnp.sqrt(jnp.square(residual).sum(1) + 1e-12).sum(), x0

        gradient, x0 = jax.grad(misfit, has_aux=True)(x)
        return c.posterior_step(x0, x, task.normal(c.s)) - step_size * gradient

    return reverse(prior, step, calls, samples)
