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
    """r^2 = tr(C) / d, the mean variance of p(x0 | x_t), whose covariance is C = s^2 / a J (Tweedie's second-order
    formula; Boys et al. 2023); the trace by one vector of random signs (Hutchinson 1989).

    It counts at least as much as its estimate may be wrong by: at the first times, where s / a is large, that of a
    trained network may come out below 0. Where a picture is uncertain in few directions, as photographs are in their
    coarse features, steps along these go too far, and chains diverge: take `weighted_variance`.
    """
    trace, _, error = _traces(backward, signs)
    return jnp.maximum(c.noise**2 / c.a * jnp.maximum(trace, error), 1e-8)


def weighted_variance(c: Transition, backward: Backward, signs: Images) -> Float[Array, "n"]:
    """r^2 = tr(C^2) / tr(C): the mean of the variances of p(x0 | x_t) along C's axes, each weighed by itself, since the
    correction C A^T (...) goes along those that are large. At least `matched_variance`, and equal if all are alike."""
    trace, squares, error = _traces(backward, signs)
    return jnp.maximum(c.noise**2 / c.a * squares / jnp.maximum(trace, error), 1e-8)


def _traces(backward: Backward, signs: Images) -> tuple[Float[Array, "n"], Float[Array, "n"], Float[Array, "n"]]:
    """tr(J) / d and tr(J^2) / d by one vector of signs n, and how far off the first may be, |J n| / d."""
    pulled = backward(signs).reshape(len(signs), -1)
    squares = jnp.square(pulled).mean(1)
    return (signs.reshape(pulled.shape) * pulled).mean(1), squares, jnp.sqrt(squares / pulled.shape[1])


def pigdm(prior: DiffusionPrior, calls: int = 50, samples: int = 1, variance: Variance = unit_variance) -> Restore:
    """The denoiser of the posterior, walked by ancestral steps with the posterior's variance.

    A step costs the network's gradient beside its value; with the variances that need J it costs two gradients.
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
