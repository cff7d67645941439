"""DiffPIR: plug-and-play restoration inside a diffusion's reverse process (Zhu et al. 2023)."""
import jax.numpy as jnp

from dipddpm_jax.hybrids.prior import DiffusionPrior, Task, Transition, reverse
from dipddpm_jax.inverse.measurement import Restore
from dipddpm_jax.types import Images


def diffpir(
    prior: DiffusionPrior, calls: int = 50, samples: int = 1, weight: float = 7.0, fresh: float = 0.3
) -> Restore:
    """Algorithm 1: x0 <- argmin |A x - y|^2 + rho_t |x - x0|^2, rho_t = lambda sigma^2 / (s_t / a_t)^2;
    eps = (x_t - a_t x0) / s_t; x_s = a_s x0 + s_s (sqrt(1 - zeta) eps + sqrt(zeta) z).

    `weight` is lambda (7 to 10 in the paper), `fresh` is zeta, the share of noise that is new.
    """
    def step(task: Task, x: Images, c: Transition) -> Images:
        x0 = task.denoise(x, c.t).x0
        x0 = x0 + task.missing(x0, weight * (task.level * c.a / c.noise) ** 2)
        eps = (x - c.a * x0) / c.noise
        return c.a_s * x0 + c.noise_s * (jnp.sqrt(1 - fresh) * eps + jnp.sqrt(fresh) * task.normal(c.s))

    return reverse(prior, step, calls, samples)
