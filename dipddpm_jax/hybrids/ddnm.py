"""DDNM: the believed clean picture is replaced by the measurement where the operator sees it (Wang et al. 2022)."""
import jax.numpy as jnp

from dipddpm_jax.hybrids.prior import DiffusionPrior, Task, Transition, reverse
from dipddpm_jax.inverse.measurement import Restore
from dipddpm_jax.types import Images


def ddnm(prior: DiffusionPrior, calls: int = 50, samples: int = 1) -> Restore:
    """DDNM+ (eqs. 17 to 19 with Sigma_t = lambda_t I): x0 <- x0 + lambda_t A^+ (y - A x0), and then the posterior step
    with its noise lowered by what the measurement brings along, sqrt(sigma_s^2 - (x0_gain lambda_t sigma)^2), where
    lambda_t = min(1, sigma_s / (x0_gain sigma)). For sigma = 0 it is DDNM (eq. 13).

    The noise of A^+ y is taken to be sigma in every direction; small singular values make it more, against that.
    """
    def step(task: Task, x: Images, c: Transition) -> Images:
        x0 = task.denoise(x, c.t).x0
        brought = c.x0_gain * task.level
        share = jnp.where(brought <= c.deviation, 1.0, c.deviation / jnp.maximum(brought, 1e-12))
        x0 = x0 + share * task.missing(x0, 0.0)
        left = jnp.sqrt(jnp.maximum(c.deviation**2 - (share * brought) ** 2, 0))
        return c._replace(deviation=left).posterior_step(x0, x, task.normal(c.s))

    return reverse(prior, step, calls, samples)
