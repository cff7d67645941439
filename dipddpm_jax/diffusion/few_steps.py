"""Consistency distillation: a network whose pictures take one call, or two, learns from one that takes many.

With z = x / noise and u = signal / noise the probability flow is dz/du = D(x_t, t), where D is the believed clean
picture. A jump from time t to an earlier end b therefore asks for the mean of D over u along the flow, and no more:

    f(x_t, t) = (z_b - z_t) / (u_b - u_t),  and DDIM's step with x0 = f leads from x_t to x_b exactly.

From noise to the picture there are `calls` such jumps (Heek et al. 2024); of one jump, b = 0, f is the consistency
function of Song et al. 2023. Both networks begin as the same trained one, the teacher, which then stays as it is.
"""
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Float64, Int, PyTree

from dipddpm_jax.diffusion import denoisers
from dipddpm_jax.diffusion.forward import Target, add_noise, prediction_of
from dipddpm_jax.diffusion.schedules import NoiseSchedule, strided_grid
from dipddpm_jax.diffusion.spacings import start_time
from dipddpm_jax.diffusion.training import rngs
from dipddpm_jax.types import Images, Labels

TEACHER = "teacher"  # where among the collections of a training state the trained network's variables are
ROUND = 1e-3  # root mean square error below which the loss is quadratic, above which it is linear


class Hops(NamedTuple):
    """Tables over the times t = 0 .. T, on the host: where the teacher hops to, and how much of the jump that is."""

    start: int  # sampling begins here; later times are not asked for
    earlier: Int[np.ndarray, "levels"]  # s(t), t's hop
    share: Float64[np.ndarray, "levels"]  # (u_s - u_t) / (u_b - u_t), of the jump from t to its end b


def hops_of(schedule: NoiseSchedule, calls: int, hops: int) -> Hops:
    """`hops` even hops of the teacher from the start to 0, none of them across the end of one of the `calls` jumps.

    The jumps are the transitions of `spacings.even_time`. Raises ValueError for more calls than hops, or hops than
    times.
    """
    start = start_time(schedule)
    if not 1 <= calls <= hops <= start:
        raise ValueError(f"{calls} calls, {hops} hops and {start} times: each must be at most the next")
    ends, times = strided_grid(start, calls)[::-1], np.arange(schedule.num_steps + 1)
    end = ends[np.clip(np.searchsorted(ends, times) - 1, 0, calls - 1)]
    earlier = np.maximum(times - -(-start // hops), end)
    with np.errstate(divide="ignore", invalid="ignore"):
        u = np.sqrt(schedule.alpha_bars / (1 - schedule.alpha_bars))
        share = np.where(earlier == end, 1.0, (u[earlier] - u) / (u[end] - u))  # 0 where u_b is infinite
    return Hops(start, earlier.astype(np.int32), share)


def distance(error: Images) -> Float[Array, ""]:
    """Mean over pictures of sqrt(|error|^2 + c^2) - c, |.|^2 the mean over pixels (Song and Dhariwal 2024, eq. 7)."""
    return jnp.mean(jnp.sqrt(jnp.mean(error**2, (1, 2, 3)) + ROUND**2) - ROUND)


def make_few_step_loss(
    network: nn.Module, schedule: NoiseSchedule, target: Target, hops: Hops, guidance: float, dtype: jnp.dtype
) -> Callable:
    """A loss as `training.make_loss` gives one; the teacher's variables are the collection TEACHER.

    x_s = DDIM(x_t, D(x_t, t)) by the guided teacher, and f(x_t, t) is compared with the mean of D over both parts of
    the jump, share D(x_t, t) + (1 - share) f(x_s, s), through which no gradient flows. Where the hop ends the jump,
    share is 1: that is the boundary condition. Errors of f are divided by noise_scale(t), as those of v are.
    """
    earlier, share = jnp.asarray(hops.earlier), jnp.asarray(hops.share, jnp.float32)

    def believed(variables: PyTree, labels: Labels | None, weight: float) -> Callable:
        def apply(x, t, labels):
            return network.apply(variables, x.astype(dtype), t, labels).astype(jnp.float32)

        if weight and labels is not None:
            return denoisers.guided(apply, schedule, labels, weight, target)
        return denoisers.from_network(apply, schedule, target, labels)

    def cast(params):
        return jax.tree.map(lambda p: p.astype(dtype), params)

    def loss(params, collections, images, labels, t, eps, key, train):
        collections = dict(collections)
        teacher = collections.pop(TEACHER)
        t = jnp.minimum(t, hops.start)
        s, part, scale = earlier[t], *(a.reshape(-1, 1, 1, 1) for a in (share[t], schedule.noise_scale(t)))
        x_t = add_noise(schedule, images, t, eps)
        x0, noise = believed({**teacher, "params": cast(teacher["params"])}, labels, guidance)(x_t, t)
        x_s = add_noise(schedule, x0, s, noise)
        student = {"params": cast(params), **collections}
        later = believed(jax.lax.stop_gradient(student), labels, 0.0)(x_s, jnp.maximum(s, 1)).x0
        output, new = network.apply(student, x_t.astype(dtype), t, labels, train=train,
                                    mutable=list(collections) if train else ["nothing"], rngs=rngs(key))
        jump = prediction_of(schedule, target, output.astype(jnp.float32), x_t, t).x0
        wanted = jax.lax.stop_gradient(later + part * (x0 - later))
        return distance((jump - wanted) / scale), {**collections, TEACHER: teacher, **new}

    return loss
