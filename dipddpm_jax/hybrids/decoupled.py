"""Decoupled steps: a clean picture is drawn that explains the measurement, and is noised afresh to the next level.

As DAPS (Zhang et al. 2024): errors of one level do not travel to the next, since nothing but the clean picture does.
"""
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dipddpm_jax.hybrids.pigdm import Backward, Variance, matched_variance
from dipddpm_jax.hybrids.prior import DiffusionPrior, Task, Transition, reverse
from dipddpm_jax.inverse.measurement import Restore
from dipddpm_jax.types import Images


def noise_variance(c: Transition, backward: Backward, signs: Images) -> Float[Array, "n"]:
    """r^2 = (s / a)^2, as DAPS takes it: never less than the truth, whatever the data are."""
    return jnp.broadcast_to((c.noise / c.a) ** 2, signs.shape[:1])


def decoupled(
    prior: DiffusionPrior, calls: int = 50, samples: int = 1, variance: Variance = matched_variance
) -> Restore:
    """p(x0 | x_t) is taken to be N(x0(x_t), r^2 I). x0 is drawn from its posterior given y, exactly by Matheron's rule
    (the paper takes Langevin steps): x' = x0(x_t) + r z, x0 = x' + A^T (A A^T + rho I)^-1 (y + sigma n - A x') with
    rho = sigma^2 / r^2; then x_s = a_s x0 + s_s z' with fresh noise.

    With `matched_variance`, which costs a network's gradient beside its value, this is exact for N(m, v^2 I) data on
    any grid.
    """
    def step(task: Task, x: Images, c: Transition) -> Images:
        x0, pull = jax.vjp(lambda x: task.denoise(x, c.t).x0, x)
        r2 = variance(c, lambda v: pull(v)[0], task.signs(c.t))
        x0 = x0 + jnp.sqrt(r2)[:, None, None, None] * task.normal(c.s, 1)
        y = task.y[None] + task.sigma * task.normal(c.s, 2, task.y.shape)
        x0 = x0 + task.missing(x0, task.level**2 / r2, y)
        return c.a_s * x0 + c.noise_s * task.normal(c.s)

    return reverse(prior, step, calls, samples)
