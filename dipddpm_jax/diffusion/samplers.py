"""Reverse processes. Each walks x along `grid`, a decreasing array of times, in one lax.scan.

Coefficients of all transitions t -> s are computed first, in float64 and in the notation of the paper;
the scan body is then one line. Starting from an estimate instead of pure noise needs no option: give
the noised estimate as `x` and a grid that starts at its noise level. All have one signature,
(denoise, schedule, x, grid, noise, keep=None, own options); to write one of your own, do likewise.
"""
from collections.abc import Callable
from types import SimpleNamespace
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from dipddpm_jax.diffusion.schedules import NoiseSchedule
from dipddpm_jax.types import Denoise, Images, NoiseAt


class Sample(NamedTuple):
    """The last x, and x after each transition, or after those of `keep` (XLA drops a path that nobody uses)."""

    x: Images
    path: Float[Array, "steps b h w c"]


Keep = Int[np.ndarray, "kept"] | None  # which transitions 0 .. len(grid) - 2 the path holds; None: all
DEIS_DEGREE = 2


def gaussian_noise(keys: Key[Array, "b"], shape: tuple[int, ...]) -> NoiseAt:
    """One stream per image, indexed by time: image i depends on keys[i] alone."""
    return lambda t: jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, t), shape))(keys)


def recorded_noise(draws: Float[Array, "levels b h w c"]) -> NoiseAt:
    """Replays draws[t], e.g. the ones that a PyTorch run used to reach time t."""
    return lambda t: draws[t]


def _walk(step: Callable, carry, keep: Keep, **coefficients: np.ndarray):
    """Scans step(carry, row of coefficients) -> (carry, x). With `keep`, memory does not grow with the steps."""
    x = jax.tree.leaves(carry)[0]
    rows = {k: jnp.asarray(v, jnp.int32 if v.dtype.kind == "i" else x.dtype) for k, v in coefficients.items()}
    if keep is None:
        return jax.lax.scan(lambda carry, row: step(carry, SimpleNamespace(**row)), carry, rows)
    places = np.full(len(coefficients["t"]), len(keep))  # all that is not kept is written to one spare place
    places[keep] = np.arange(len(keep))

    def body(carry, row):
        (carry, kept), (place, row) = carry, row
        carry, x = step(carry, SimpleNamespace(**row))
        return (carry, jax.lax.dynamic_update_index_in_dim(kept, x, place, 0)), None

    kept = jnp.zeros((len(keep) + 1, *x.shape), x.dtype)
    (carry, kept), _ = jax.lax.scan(body, (carry, kept), (jnp.asarray(places, jnp.int32), rows))
    return carry, kept[:-1]


def _transitions(schedule: NoiseSchedule, grid: np.ndarray):
    if len(grid) < 2 or np.any(np.diff(grid) >= 0) or grid[0] > schedule.num_steps or grid[-1] < 0:
        raise ValueError(f"a grid must decrease within {schedule.num_steps} .. 0; got {list(grid[:3])} .. {grid[-1]}")
    t, s = np.asarray(grid[:-1], np.int32), np.asarray(grid[1:], np.int32)
    return t, s, schedule.alpha_bars[t], schedule.alpha_bars[s]


def _check_signal(t: np.ndarray, bar_t: np.ndarray) -> None:
    """Raises ValueError where x / signal overflows float32."""
    if bar_t[0] < 1e-60:
        raise ValueError(f"no signal is left at time {t[0]}: start at spacings.start_time(schedule)")


def ancestral(
    denoise: Denoise, schedule: NoiseSchedule, x: Images, grid: Int[np.ndarray, "grid"], noise: NoiseAt,
    keep: Keep = None, variance: Literal["beta", "posterior"] = "beta", quiet_steps: int = 1,
) -> Sample:
    """DDPM, algorithm 2, on any grid; the last `quiet_steps` transitions add no noise (1 in the paper)."""
    t, s, bar_t, bar_s = _transitions(schedule, grid)
    alpha = schedule.alpha_between(t, s)
    var = (1 - alpha) * (1 if variance == "beta" else (1 - bar_s) / (1 - bar_t))
    noisy = np.arange(len(t)) < len(t) - quiet_steps

    def step(x, c):
        x = c.gain * x - c.eps_scale * denoise(x, c.t).eps + c.sigma * noise(c.s)
        return x, x

    return Sample(*_walk(step, x, keep, t=t, s=s, gain=1 / np.sqrt(alpha), sigma=np.where(noisy, np.sqrt(var), 0),
                         eps_scale=(1 - alpha) / np.sqrt(1 - bar_t) / np.sqrt(alpha)))


def ddim(
    denoise: Denoise, schedule: NoiseSchedule, x: Images, grid: Int[np.ndarray, "grid"], noise: NoiseAt,
    keep: Keep = None, eta: float = 0.0,
) -> Sample:
    """DDIM, eq. 12. eta = 0 is deterministic, eta = 1 is `ancestral` with the posterior variance."""
    t, s, bar_t, bar_s = _transitions(schedule, grid)
    var = eta**2 * (1 - bar_s) / (1 - bar_t) * (1 - bar_t / bar_s)  # eq. 16, squared

    def step(x, c):
        x0, eps = denoise(x, c.t)
        x = c.signal * x0 + c.eps_scale * eps + (c.sigma * noise(c.s) if eta else 0.0)
        return x, x

    return Sample(*_walk(step, x, keep, t=t, s=s, signal=np.sqrt(bar_s), eps_scale=np.sqrt(1 - bar_s - var),
                         sigma=np.sqrt(var)))


def heun(
    denoise: Denoise, schedule: NoiseSchedule, x: Images, grid: Int[np.ndarray, "grid"], noise: NoiseAt | None = None,
    keep: Keep = None,
) -> Sample:
    """Karras et al. 2022, algorithm 1, for y = x / signal with sigma = noise / signal; deterministic.

    It averages the slopes at both ends of a transition, so that sigma must not fall far in one: take `spacings.karras`.
    Raises ValueError for a grid that starts where float32 cannot hold x / signal.
    """
    t, s, bar_t, bar_s = _transitions(schedule, grid)
    _check_signal(t, bar_t)
    signal_t, signal_s = np.sqrt(bar_t), np.sqrt(bar_s)
    sigma_t, sigma_s = np.sqrt(1 - bar_t) / signal_t, np.sqrt(1 - bar_s) / signal_s

    def slope(y, signal, t):
        return denoise(signal * y, t).eps  # dy/dsigma

    def step(y, c):
        d = slope(y, c.signal_t, c.t)
        euler = y + c.dsigma * d
        second = slope(euler, c.signal_s, jnp.maximum(c.s, 1))
        d = jnp.where(c.s == 0, d, (d + second) / 2)  # there is no slope at the clean image
        y = y + c.dsigma * d
        return y, c.signal_s * y

    y, path = _walk(step, x / signal_t[0].astype(x.dtype), keep, t=t, s=s, signal_t=signal_t, signal_s=signal_s,
                    dsigma=sigma_s - sigma_t)
    return Sample(y * signal_s[-1].astype(x.dtype), path)


def dpmpp_2m(
    denoise: Denoise, schedule: NoiseSchedule, x: Images, grid: Int[np.ndarray, "grid"], noise: NoiseAt | None = None,
    keep: Keep = None,
) -> Sample:
    """DPM-Solver++(2M), Lu et al. 2022, algorithm 2; deterministic, first order on the first and last transition."""
    t, s, bar_t, bar_s = _transitions(schedule, grid)
    with np.errstate(divide="ignore"):
        h = np.log(bar_s / (1 - bar_s)) / 2 - np.log(bar_t / (1 - bar_t)) / 2  # infinite into t = 0
    extrapolate = np.zeros_like(h)
    extrapolate[1:] = h[1:] / (2 * h[:-1])
    extrapolate[~np.isfinite(extrapolate)] = 0

    def step(carry, c):
        x, old_x0 = carry
        x0 = denoise(x, c.t).x0
        x = c.scale * x + c.gain * (x0 + c.extrapolate * (x0 - old_x0))
        return (x, x0), x

    (x, _), path = _walk(step, (x, jnp.zeros_like(x)), keep, t=t, scale=np.sqrt((1 - bar_s) / (1 - bar_t)),
                         gain=-np.sqrt(bar_s) * np.expm1(-h), extrapolate=extrapolate)
    return Sample(x, path)


def unipc(
    denoise: Denoise, schedule: NoiseSchedule, x: Images, grid: Int[np.ndarray, "grid"], noise: NoiseAt | None = None,
    keep: Keep = None,
) -> Sample:
    """UniPC-2 for clean pictures with B(h) = e^-h - 1 (bh2), Zhao et al. 2023, algorithms 5 and 6; deterministic.

    Each x of a second-order predictor is corrected once the denoiser has seen it: third order without another call. The
    first transition has no past, the last no correction; the path holds the predictions.
    """
    t, _, bar_t, bar_s = _transitions(schedule, grid)
    with np.errstate(divide="ignore", invalid="ignore"):
        h = np.log(bar_s / (1 - bar_s)) / 2 - np.log(bar_t / (1 - bar_t)) / 2  # infinite into t = 0
        ratio = np.insert(h[1:] / h[:-1], 0, np.nan)  # -1 / r_1
        b = np.expm1(-h)
        first, second = (-b / h - 1) / b, 2 * ((b / h + 1) / h - 0.5) / b  # right side of eq. 11: 1/2, 1/3 as h -> 0
        old = (first - second) / (1 + 1 / ratio)  # rho_1; rho_2 = first - rho_1
        extrapolate, correct_old, correct_new = (np.where(np.isfinite(a), a, otherwise) for a, otherwise in (
            (ratio / 2, 0), (old * ratio, 0), (first - old, 0.5)))
    gain = -np.sqrt(bar_s) * b

    def shifted(a, initial):  # a row corrects the transition before it
        return np.insert(a[:-1], 0, initial)

    def step(carry, c):
        x, corrected, last, before = carry
        x0 = denoise(x, c.t).x0
        x = c.old_scale * corrected + c.old_gain * (
            last + c.correct_old * (last - before) + c.correct_new * (x0 - last))
        predicted = c.scale * x + c.gain * (x0 + c.extrapolate * (x0 - last))
        return (predicted, x, x0, last), predicted

    scale, nothing = np.sqrt((1 - bar_s) / (1 - bar_t)), jnp.zeros_like(x)
    (x, *_), path = _walk(step, (x, x, nothing, nothing), keep, t=t, scale=scale, gain=gain, extrapolate=extrapolate,
                          old_scale=shifted(scale, 1), old_gain=shifted(gain, 0),
                          correct_old=shifted(correct_old, 0), correct_new=shifted(correct_new, 0))
    return Sample(x, path)


def deis(
    denoise: Denoise, schedule: NoiseSchedule, x: Images, grid: Int[np.ndarray, "grid"], noise: NoiseAt | None = None,
    keep: Keep = None,
) -> Sample:
    """tAB-DEIS, Zhang and Chen 2023, eqs. 14 and 15: eps is a parabola in time through its last three values (tAB2).

    x_s / signal_s = x_t / signal_t + sum_j eps_j int_t^s L_j(u) d sigma(u), sigma = noise / signal; deterministic, of
    order 3 but for the first two transitions, of degrees 0 and 1. Between whole times sigma is taken as
    linear. Raises ValueError for a grid that starts without signal.
    """
    t, s, bar_t, bar_s = _transitions(schedule, grid)
    _check_signal(t, bar_t)
    sigma = np.sqrt((1 - schedule.alpha_bars[: t[0] + 1]) / schedule.alpha_bars[: t[0] + 1])
    rise, middles = np.diff(sigma), np.arange(t[0]) + 0.5
    weights = np.zeros((len(t), DEIS_DEGREE + 1))
    for i in range(len(t)):
        nodes = t[max(i - DEIS_DEGREE, 0) : i + 1][::-1].astype(float)
        for point in (middles[s[i] : t[i]] + side for side in (-0.5 / np.sqrt(3), 0.5 / np.sqrt(3))):  # Gauss-Legendre
            for j, node in enumerate(nodes):
                others = np.delete(nodes, j)
                values = np.prod((point[:, None] - others) / (node - others), axis=1)
                weights[i, j] -= (values * rise[s[i] : t[i]]).sum() / 2

    def step(carry, c):
        x, past = carry
        seen = (denoise(x, c.t).eps, *past)
        x = c.scale * x + sum(c.weights[j] * eps for j, eps in enumerate(seen))
        return (x, seen[:-1]), x

    signal_s = np.sqrt(bar_s)
    (x, _), path = _walk(step, (x, (jnp.zeros_like(x),) * DEIS_DEGREE), keep, t=t, scale=signal_s / np.sqrt(bar_t),
                         weights=signal_s[:, None] * weights)
    return Sample(x, path)


def consistency(
    denoise: Denoise, schedule: NoiseSchedule, x: Images, grid: Int[np.ndarray, "grid"], noise: NoiseAt,
    keep: Keep = None,
) -> Sample:
    """Song et al. 2023, algorithm 1, of a model by `few_steps` of one jump: x_s = signal_s f(x_t, t) + noise_scale_s z.

    Each transition ends at a clean picture, and fresh noise leads back to time s; one transition is f itself.
    """
    t, s, _, bar_s = _transitions(schedule, grid)

    def step(x, c):
        x = c.signal * denoise(x, c.t).x0 + c.sigma * noise(c.s)
        return x, x

    return Sample(*_walk(step, x, keep, t=t, s=s, signal=np.sqrt(bar_s), sigma=np.sqrt(1 - bar_s)))


def reference_frames(num_steps: int, table_steps: int, frames: int = 100) -> Int[np.ndarray, "n"]:
    """System 001's animation: which of the iterations 0 .. num_steps - 1 it keeps; always the last one.

    Frames are spread over the whole table, so that a shortened chain has fewer.
    """
    kept = np.floor(np.linspace(0, table_steps, frames)).astype(int)
    return np.union1d(kept[kept < num_steps], [num_steps - 1])
