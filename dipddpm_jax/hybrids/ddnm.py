"""DDNM: the believed clean picture is replaced by the measurement where the operator sees it (Wang et al. 2022)."""
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dipddpm_jax.errors import UserError
from dipddpm_jax.hybrids.prior import DiffusionPrior, Task, Transition, reverse
from dipddpm_jax.inverse.measurement import Measurement, Restoration, Restore
from dipddpm_jax.inverse.noises import gaussian_sigma
from dipddpm_jax.inverse.operators import Operator
from dipddpm_jax.types import Images

MOST_GAIN = 2.0  # of noise by a pseudo-inverse; a mask and downsampling have at most 1, a blur of 1.6 pixels 1e4


def ddnm(prior: DiffusionPrior, calls: int = 50, samples: int = 1) -> Restore:
    """DDNM+ (eqs. 17 to 19 with Sigma_t = lambda_t I): x0 <- x0 + lambda_t A^+ (y - A x0), and then the posterior step
    with its noise lowered by what the measurement brings along, sqrt(sigma_s^2 - (x0_gain lambda_t sigma)^2), where
    lambda_t = min(1, sigma_s / (x0_gain sigma)). For sigma = 0 it is DDNM (eq. 13).

    The noise of A^+ y is taken to be sigma in every direction: the restorer raises UserError for a noisy measurement
    whose operator's pseudo-inverse multiplies noise, as that of a blur does.
    """
    def step(task: Task, x: Images, c: Transition) -> Images:
        x0 = task.denoise(x, c.t).x0
        brought = c.x0_gain * task.level
        share = jnp.where(brought <= c.deviation, 1.0, c.deviation / jnp.maximum(brought, 1e-12))
        x0 = x0 + share * task.missing(x0, 0.0)
        left = jnp.sqrt(jnp.maximum(c.deviation**2 - (share * brought) ** 2, 0))
        return c._replace(deviation=left).posterior_step(x0, x, task.normal(c.s))

    chains = reverse(prior, step, calls, samples)

    def restore(measurement: Measurement, key: Key[Array, ""]) -> Restoration:
        gain = noise_gain(measurement.operator, measurement.y)
        if gain > MOST_GAIN and gaussian_sigma(measurement.noise) > 0:
            raise UserError(f"DDNM+ takes up noise as it is, and to invert this operator multiplies it by {gain:.2g}: "
                            "for a noisy picture take matched, pigdm or diffpir")
        return chains(measurement, key)

    return restore


def noise_gain(operator: Operator, y: Float[Array, "..."]) -> float:
    """Standard deviation, per pixel, of A^+ n for standard normal n of the shape of `y`."""
    noise = jax.random.normal(jax.random.key(0), y.shape, y.dtype)
    return float(jnp.sqrt(jnp.mean(jnp.square(operator.solve(noise, 0.0)))))
