"""What all restorers by a diffusion model share: the trained prior and its units, and how chains become a restoration.

A method is a function (task, rows of transitions) -> pictures, one chain a key of the task; `restorer` compiles it
once for an operator and makes it a `Restore`. Those that begin with noise are given by their step from one time to an
earlier one, for `reverse`. Chains run in the network's units, measurements are pixels in [0, 1].
"""
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from dipddpm_jax.diffusion import spacings
from dipddpm_jax.diffusion.schedules import NoiseSchedule
from dipddpm_jax.diffusion.training import Pixels
from dipddpm_jax.errors import UserError
from dipddpm_jax.inverse.measurement import Cost, Measurement, Restoration, Restore
from dipddpm_jax.inverse.noises import gaussian_sigma
from dipddpm_jax.inverse.operators import Operator, Ridge
from dipddpm_jax.types import Denoise, Images

Spacing = Callable[[NoiseSchedule, int, int], np.ndarray]  # (schedule, steps, start) -> decreasing times, to 0
REACH = 0.5  # a time serves for a noise level if its own is at most twice as much


class Learned(NamedTuple):
    """Trained weights of a denoiser, and what makes a denoiser of any weights of that kind."""

    params: PyTree
    denoiser: Callable[[PyTree], Denoise]


class DiffusionPrior(NamedTuple):
    """A denoiser, the schedule that its times belong to, the units of its pictures, how the times of chains are spaced,
    and the weights, for methods that go on learning them; an exact denoiser has none."""

    denoise: Denoise
    schedule: NoiseSchedule
    pixels: Pixels = Pixels()
    spacing: Spacing = spacings.even_log_snr
    learned: Learned | None = None

    def weights(self) -> Learned:
        """What can be learned further. Raises UserError where there is nothing."""
        if self.learned is None:
            raise UserError("this method goes on learning the weights of the prior's network, and a denoiser in closed "
                            "form has none: take the prior of a trained network")
        return self.learned


class Task(NamedTuple):
    """What a method sees: the denoiser, the measurement, and a key for each of its chains."""

    denoise: Denoise
    y: Float[Array, "..."]
    sigma: float | Float[Array, ""]
    keys: Key[Array, "n"]
    operator: Operator
    pixels: Pixels
    seen: Float[Array, "n ..."] | None = None  # 1 where a chain may look at y, else 0; None: everywhere

    @property
    def level(self) -> Float[Array, ""]:
        """Standard deviation of the measurement's noise in the network's units."""
        return jnp.asarray(self.sigma / self.pixels.std, self.y.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """(h, w, c) of the pictures that the operator measures."""
        return jax.eval_shape(self.operator.adjoint, self.y).shape

    def normal(self, t: Int[Array, ""], stream: int = 0, shape: tuple[int, ...] | None = None) -> Float[Array, "n ..."]:
        """A standard normal draw for each chain at time t, of the picture's shape or another; one a `stream`."""
        def one(key):
            return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, t), stream), shape or self.shape)

        return jax.vmap(one)(self.keys)

    def signs(self, t: Int[Array, ""]) -> Images:
        """A random sign for each pixel of each chain."""
        return jnp.sign(self.normal(t, 7))

    def missing(
        self, x0: Images, ridge: Ridge | Float[Array, "n"], y: Float[Array, "n ..."] | None = None
    ) -> Images:
        """A^T (A A^T + ridge I)^-1 (y - A x0) for each chain, x0 and the answer in the network's units.

        x0 + missing is the nearest picture to x0 that explains y, argmin |A x - y|^2 + ridge |x - x0|^2. Chains may
        have a ridge and a measurement each. What a chain must not look at counts as explained, for masks exactly so.
        """
        count = x0.shape[:1]
        ys = jnp.broadcast_to(self.y, count + self.y.shape) if y is None else y
        ridges = jnp.broadcast_to(jnp.asarray(ridge, x0.dtype), count)
        left = ys - jax.vmap(self.operator.forward)(self.pixels.to_pixels(x0))
        return jax.vmap(self.operator.solve)(left if self.seen is None else self.seen * left, ridges) / self.pixels.std


Grid = tuple[int, ...]  # decreasing times, to 0
Method = Callable[[Task, "Transition"], Images]  # pictures in the network's units, one a chain, by the rows of a grid
Step = Callable[[Task, Images, "Transition"], Images]  # x_t -> x_s


def as_argument(denoise: Denoise) -> jax.tree_util.Partial:
    """The denoiser as compiled programs take it: the arrays of one that is a `Partial` are data to them."""
    return denoise if isinstance(denoise, jax.tree_util.Partial) else jax.tree_util.Partial(denoise)


def restorer(
    prior: DiffusionPrior, method: Method, grid_for: Callable[[float], Grid], samples: int, calls_a_step: int = 1
) -> Restore:
    """The mean and standard deviation of `samples` chains on the grid for the measurement's sigma.

    Raises UserError for noise that is not Gaussian, and what `grid_for` raises.
    """
    denoise = as_argument(prior.denoise)

    @partial(jax.jit, static_argnames="operator")
    def run(denoise, y, sigma, keys, rows, operator: Operator):
        return prior.pixels.to_pixels(method(Task(denoise, y, sigma, keys, operator, prior.pixels), rows))

    def restore(measurement: Measurement, key: Key[Array, ""]) -> Restoration:
        sigma = float(gaussian_sigma(measurement.noise))
        grid = grid_for(sigma)
        keys = jax.random.split(key, samples)
        # The times are data, not part of the program: another level of noise compiles nothing.
        rows = transitions(prior.schedule, grid)
        pictures = run(denoise, measurement.y, sigma, keys, rows, measurement.operator)
        return restoration_of(pictures, Cost(calls=calls_a_step * (len(grid) - 1) * samples))

    return restore


def restoration_of(pictures: Images, cost: Cost) -> Restoration:
    """One chain's picture, or the mean and standard deviation of several chains."""
    if len(pictures) == 1:
        return Restoration(pictures[0], None, cost)
    return Restoration(pictures.mean(0), pictures.std(0, ddof=1), cost, pictures)


def time_of_noise(prior: DiffusionPrior, sigma: float) -> int:
    """The time whose noise_scale / signal_scale is nearest to `sigma`, white being 1, on a logarithmic scale.

    Raises UserError where the schedule has none: below half of its first level, or above its last (or 200 times the
    signal).
    """
    levels = spacings.sigmas(prior.schedule)[1 : 1 + spacings.start_time(prior.schedule)] * prior.pixels.std
    if not REACH * levels[0] <= sigma <= levels[-1]:
        raise UserError(f"noise of sigma {255 * sigma:.3g} is out of reach: the schedule of this prior goes from "
                        f"{255 * levels[0]:.2g} to {255 * levels[-1]:.3g} (of 255)")
    return 1 + int(np.argmin(np.abs(np.log(levels) - np.log(sigma))))


def grid_from(prior: DiffusionPrior, start: int, calls: int) -> Grid:
    """Times from `start` to 0 for at most `calls` network calls, spread as the prior's spacing says."""
    return tuple(int(t) for t in prior.spacing(prior.schedule, min(calls, start), start))


class Transition(NamedTuple):
    """From time t to an earlier s: a = sqrt(abar) and noise = sqrt(1 - abar) at both, and the posterior of x_s given
    x_t and x0 (Ho et al. 2020, eq. 7): mean x0_gain x0 + x_gain x_t, standard deviation `deviation`."""

    t: Int[Array, "*n"]
    s: Int[Array, "*n"]
    a: Float[Array, "*n"]
    noise: Float[Array, "*n"]
    a_s: Float[Array, "*n"]
    noise_s: Float[Array, "*n"]
    x0_gain: Float[Array, "*n"]
    x_gain: Float[Array, "*n"]
    deviation: Float[Array, "*n"]

    def posterior_step(self, x0: Images, x: Images, normal: Images) -> Images:
        """A draw of x_s given x_t = x and x0."""
        return self.x0_gain * x0 + self.x_gain * x + self.deviation * normal


def transitions(schedule: NoiseSchedule, grid: Grid) -> Transition:
    """One row for each transition of the grid, to be scanned; computed in float64 on the host."""
    t, s = np.asarray(grid[:-1], np.int32), np.asarray(grid[1:], np.int32)
    bar_t, bar_s = schedule.alpha_bars[t], schedule.alpha_bars[s]
    alpha = bar_t / bar_s
    rows = (np.sqrt(bar_t), np.sqrt(1 - bar_t), np.sqrt(bar_s), np.sqrt(1 - bar_s),
            np.sqrt(bar_s) * (1 - alpha) / (1 - bar_t), np.sqrt(alpha) * (1 - bar_s) / (1 - bar_t),
            np.sqrt((1 - alpha) * (1 - bar_s) / (1 - bar_t)))
    return Transition(jnp.asarray(t), jnp.asarray(s), *(jnp.asarray(row, jnp.result_type(float)) for row in rows))


def unguided(task: Task, x: Images, c: Transition) -> Images:
    """An ancestral step (posterior variance), which takes no notice of the measurement."""
    return c.posterior_step(task.denoise(x, c.t).x0, x, task.normal(c.s))


def deterministic(task: Task, x: Images, c: Transition) -> Images:
    """A step of DDIM (Song et al. 2021, eq. 12, eta = 0), which takes no notice of the measurement."""
    found = task.denoise(x, c.t)
    return c.a_s * found.x0 + c.noise_s * found.eps


def reverse(prior: DiffusionPrior, step: Step, calls: int, samples: int, calls_a_step: int = 1) -> Restore:
    """Chains of `calls` steps from noise at the schedule's end; the restorer of a method that is given by its step."""
    grid = grid_from(prior, spacings.start_time(prior.schedule), calls)

    def method(task: Task, rows: Transition) -> Images:
        return jax.lax.scan(lambda x, c: (step(task, x, c), None), task.normal(rows.t[0]), rows)[0]

    return restorer(prior, method, lambda sigma: grid, samples, calls_a_step)
