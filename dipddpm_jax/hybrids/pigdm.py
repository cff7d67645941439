"""Guidance by the pseudo-inverse: a denoiser of p(x0 | x_t, y) made of one of p(x0 | x_t) (PiGDM, Song et al. 2023).

If p(x0 | x_t) is taken to be N(x0(x_t), r^2 I), Tweedie's formula for the posterior gives, J = d x0(x_t) / d x_t,
E[x0 | x_t, y] = x0 + s_t^2 / a_t J^T A^T (r^2 A A^T + sigma^2 I)^-1 (y - A x0).
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dipddpm_jax.hybrids.prior import DiffusionPrior, Step, Task, Transition, reverse
from dipddpm_jax.inverse.measurement import Restore
from dipddpm_jax.types import Images

Backward = Callable[[Images], Images]  # v -> J^T v
Variance = Callable[[Transition, Backward, Images], Float[Array, "n"]]  # (transition, J^T, random signs) -> r^2


def unit_variance(c: Transition, backward: Backward, signs: Images) -> Float[Array, "n"]:
    """r^2 = s^2 / (s^2 + a^2), as if the data were N(0, I) in the network's units (Song et al. 2023, section 3.3)."""
    return jnp.broadcast_to(c.noise**2 / (c.noise**2 + c.a**2), signs.shape[:1])


def matched_variance(c: Transition, backward: Backward, signs: Images) -> Float[Array, "n"]:
    """r^2 = s^2 / a tr(J) / d, the mean variance of p(x0 | x_t), whose covariance is s^2 / a J (Tweedie's second-order
    formula; Boys et al. 2023); the trace by one vector of random signs (Hutchinson 1989)."""
    trace = (signs * backward(signs)).reshape(len(signs), -1).mean(1)
    return jnp.maximum(c.noise**2 / c.a * trace, 1e-8)


def pigdm(prior: DiffusionPrior, calls: int = 50, samples: int = 1, variance: Variance = unit_variance) -> Restore:
    """The denoiser of the posterior, walked by ancestral steps with the posterior's variance.

    A step costs the network's gradient beside its value; with `matched_variance` it costs two gradients.
    """
    return reverse(prior, guided_step(variance), calls, samples)


def guided_step(variance: Variance = unit_variance) -> Step:
    """One step of `pigdm`, for chains that begin elsewhere, as those of `estimate_start`."""
    def step(task: Task, x: Images, c: Transition) -> Images:
        x0, pull = jax.vjp(lambda x: task.denoise(x, c.t).x0, x)
        r2 = variance(c, lambda v: pull(v)[0], task.signs(c.t))
        explained = task.missing(x0, task.level**2 / r2) / r2[:, None, None, None]
        return c.posterior_step(x0 + c.noise**2 / c.a * pull(explained)[0], x, task.normal(c.s))

    return step
