"""Noise schedules: how much signal is left at each time t = 0 (clean) .. T (noise).

Tables are float64 on the host. The reference systems' index conventions are absorbed here: whatever they call
their entries, alpha_bars[t] is the product of (1 - beta) over the t transitions from the clean image.
"""
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int


class NoiseSchedule(NamedTuple):
    """Tables in float64 on the host: alpha_bars[t] for t in 0..T, and betas[i] for the transition from i to i + 1.

    Time 0 is the clean image: alpha_bars[0] == 1. The betas follow from the alpha_bars except in system 004.
    """

    alpha_bars: Float64[np.ndarray, "levels"]
    betas: Float64[np.ndarray, "steps"]

    @property
    def num_steps(self) -> int:
        return len(self.alpha_bars) - 1

    def signal_scale(self, t: Int[Array, "*n"]) -> Float[Array, "*n"]:
        """sqrt(alpha_bar_t)."""
        return jnp.asarray(np.sqrt(self.alpha_bars), jnp.result_type(float))[t]

    def noise_scale(self, t: Int[Array, "*n"]) -> Float[Array, "*n"]:
        """sqrt(1 - alpha_bar_t)."""
        return jnp.asarray(np.sqrt(1 - self.alpha_bars), jnp.result_type(float))[t]

    def alpha_between(self, t: Int[np.ndarray, "n"], s: Int[np.ndarray, "n"]) -> Float64[np.ndarray, "n"]:
        """The product of (1 - beta) over the transitions from s to a later t: what `ancestral` undoes."""
        logs = np.concatenate([[0.0], np.cumsum(np.log1p(-self.betas))])  # products of 20,000 betas leave float64
        return np.exp(logs[t] - logs[s])


def from_betas(betas: Float[np.ndarray, "steps"]) -> NoiseSchedule:
    """betas[i] is the noise added going from time i to time i + 1 (DDPM, eq. 2).

    Raises ValueError unless every beta lies in (0, 1).
    """
    betas = np.asarray(betas, np.float64)
    if not len(betas) or not np.all((betas > 0) & (betas < 1)):
        raise ValueError(f"every beta must lie strictly between 0 and 1; got {np.min(betas)} .. {np.max(betas)}")
    return NoiseSchedule(np.concatenate([[1.0], np.cumprod(1 - betas)]), betas)


def _from_alpha_bars(alpha_bars: Float[np.ndarray, "levels"], max_beta: float = 1.0) -> NoiseSchedule:
    """The betas between neighbours; `max_beta` bounds the last ones where no signal is left."""
    return from_betas(np.minimum(1 - alpha_bars[1:] / alpha_bars[:-1], max_beta))


def from_betas_at_zero(betas: Float[np.ndarray, "levels"]) -> NoiseSchedule:
    """System 004 (TeaPearce's script): a table with an entry for time 0, which dims the picture at every later time.

    betas[0] is part of every alpha_bar although no transition adds it, so the last one (from 1 to 0) undoes betas[1]
    only. Raises ValueError as `from_betas` does.
    """
    return NoiseSchedule(np.concatenate([[1.0], from_betas(betas).alpha_bars[2:]]), np.asarray(betas[1:], np.float64))


def linear_at_zero(num_steps: int, first_beta: float = 1e-4, last_beta: float = 0.02) -> NoiseSchedule:
    """System 004 and TeaPearce: betas linear in t / num_steps, from time 0 on."""
    return from_betas_at_zero(np.linspace(first_beta, last_beta, num_steps + 1))


def waves_at_zero(num_steps: int, low: float = 1e-4, high: float = 0.02, period: int = 50) -> NoiseSchedule:
    """System 004's "cosine": betas that swing between `high` (at time 0) and `low`, eight times in 400 steps."""
    wave = np.cos(2 * np.pi * np.arange(num_steps + 1) / period)
    return from_betas_at_zero((high - low) / 2 * wave + (high + low) / 2)


def linear(
    num_steps: int, first_beta: float = 1e-4, last_beta: float = 0.02, beta_steps: int | None = None
) -> NoiseSchedule:
    """Ho et al. 2020, section 4; system 001 as it stands, system 000 with last_beta=0.01.

    The betas stand for `beta_steps` steps, 1000 in the paper, and are spread over `num_steps`, so that the same noise
    is reached: 1 - (1 - beta)^(beta_steps / num_steps). None takes them as they are, whatever num_steps is.
    """
    betas = np.linspace(first_beta, last_beta, num_steps)
    if beta_steps not in (None, num_steps):
        betas = -np.expm1(np.log1p(-betas) * beta_steps / num_steps)
    return from_betas(betas)


def cosine(num_steps: int, offset: float = 0.008, max_beta: float = 0.999) -> NoiseSchedule:
    """Nichol and Dhariwal 2021, eq. 17."""
    u = (np.arange(num_steps + 1) / num_steps + offset) / (1 + offset)
    return _from_alpha_bars(np.cos(u * np.pi / 2) ** 2, max_beta)


def flow(num_steps: int, max_beta: float = 0.999) -> NoiseSchedule:
    """Flow matching's straight path (1 - u) x_0 + u eps (Lipman et al. 2023), scaled to unit variance.

    Its noise is sigma = u / (1 - u); with the target v it is the same regression, up to a weight of each time.
    """
    u = np.arange(num_steps + 1) / num_steps
    return _from_alpha_bars((1 - u) ** 2 / ((1 - u) ** 2 + u**2), max_beta)


def lognormal(num_steps: int, mean: float = -1.2, std: float = 1.2, share: float = 0.95) -> NoiseSchedule:
    """EDM's training noise, ln sigma ~ N(mean, std^2) for pictures in [-1, 1] (Karras et al. 2022, table 1): times that
    are drawn evenly have noise so distributed.

    A part of 1 - `share` is spread evenly over the paper's ln .002 .. ln 80, so that a chain can begin with noise.
    """
    first, last = np.log(0.002), np.log(80.0)
    log_sigma = np.linspace(first, last, 20_001)
    normal = 0.5 + 0.5 * np.vectorize(math.erf)((log_sigma - mean) / (std * np.sqrt(2)))
    below = share * normal + (1 - share) * (log_sigma - first) / (last - first)
    below = (below - below[0]) / (below[-1] - below[0])
    sigma = np.exp(np.interp(np.arange(1, num_steps + 1) / num_steps, below, log_sigma))
    return _from_alpha_bars(np.concatenate([[1.0], 1 / (1 + sigma**2)]))


def strided_grid(start: int, num_steps: int, stop: int = 0) -> Int[np.ndarray, "grid"]:
    """Decreasing times start .. stop in `num_steps` transitions, evenly spread.

    Raises ValueError when there are fewer times between start and stop than transitions.
    """
    if not 1 <= num_steps <= start - stop:
        raise ValueError(f"{num_steps} transitions do not fit between time {start} and time {stop}")
    return np.round(np.linspace(start, stop, num_steps + 1)).astype(np.int32)


def time_at_snr(schedule: NoiseSchedule, snr: float) -> int:
    """The earliest time whose signal-to-noise ratio alpha_bar / (1 - alpha_bar) has fallen to `snr`."""
    wanted = snr / (1 + snr)
    return int(np.argmax(schedule.alpha_bars <= wanted)) if schedule.alpha_bars[-1] <= wanted else schedule.num_steps
