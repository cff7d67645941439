"""Spacings of a grid: which of the times 1 .. T a sampler with few transitions visits.

A spacing is a function (schedule, num_steps) -> grid, integer times that decrease from `start` to 0. A sampler's error
depends on the steps in sigma = noise / signal, whose logarithm some schedules change very unevenly in time.
"""
import numpy as np
from jaxtyping import Float, Int

from dipddpm_jax.diffusion.schedules import NoiseSchedule, strided_grid

MOST_NOISE = 200.0  # the largest sigma to start from; the linear schedule of Ho et al. 2020 ends at 157
LITTLE_SIGNAL = 0.05  # a start that leaves more than this of the signal is not noise


def sigmas(schedule: NoiseSchedule) -> Float[np.ndarray, "levels"]:
    """noise_scale / signal_scale at times 0 .. T, the sigma of Karras et al. 2022; infinite where no signal is left."""
    with np.errstate(divide="ignore"):
        return np.sqrt((1 - schedule.alpha_bars) / schedule.alpha_bars)


def start_time(schedule: NoiseSchedule) -> int:
    """The last time at which noise is at most 200 times the signal; there every sampler starts from N(0, 1).

    Later ones would multiply a network's error by sigma (20,291 at the end of the cosine schedule of 1000 steps) and
    overflow float32. If more than 5 % of the signal is left at that time, it is the next one.
    """
    time = int(np.flatnonzero(sigmas(schedule) <= MOST_NOISE)[-1])
    left = np.sqrt(schedule.alpha_bars[time])
    return time + 1 if left > LITTLE_SIGNAL and time < schedule.num_steps else time


def even_time(schedule: NoiseSchedule, num_steps: int, start: int | None = None) -> Int[np.ndarray, "grid"]:
    """Times that are evenly spread over start .. 0, as DDIM's. Raises ValueError for more transitions than times."""
    return strided_grid(_checked(schedule, num_steps, start), num_steps)


def even_log_snr(schedule: NoiseSchedule, num_steps: int, start: int | None = None) -> Int[np.ndarray, "grid"]:
    """log(signal / noise) evenly spread from `start` to time 1, then 0 (Lu et al. 2022, section 3.3).

    Raises ValueError for more transitions than times.
    """
    return _spread(schedule, num_steps, start, np.log, np.exp)


def karras(
    schedule: NoiseSchedule, num_steps: int, start: int | None = None, rho: float = 7.0
) -> Int[np.ndarray, "grid"]:
    """sigma^(1/rho) evenly spread from `start` to time 1, then 0 (Karras et al. 2022, eq. 5).

    Raises ValueError for more transitions than times.
    """
    return _spread(schedule, num_steps, start, lambda sigma: sigma ** (1 / rho), lambda root: root**rho)


def _checked(schedule: NoiseSchedule, num_steps: int, start: int | None) -> int:
    start = start_time(schedule) if start is None else start
    if not 1 <= num_steps <= start <= schedule.num_steps:
        raise ValueError(f"{num_steps} transitions do not fit between time {start} and time 0 of {schedule.num_steps}")
    return start


def _spread(schedule, num_steps, start, transform, inverse):
    """Even steps of transform(sigma) from `start` to time 1, each moved to the time whose log sigma is nearest."""
    start = _checked(schedule, num_steps, start)
    levels = np.log(sigmas(schedule)[1 : start + 1])
    ends = transform(np.exp(levels[-1])), transform(np.exp(levels[0]))
    wanted = np.log(inverse(np.linspace(*ends, num_steps)))
    return _whole(np.append(np.interp(wanted, levels, np.arange(1, start + 1)), 0))


def _whole(times: Float[np.ndarray, "grid"]) -> Int[np.ndarray, "grid"]:
    """The nearest whole times that still decrease strictly and end at 0."""
    grid = np.maximum(np.round(times), np.arange(len(times))[::-1]).astype(np.int32)
    for i in range(1, len(grid)):
        grid[i] = min(grid[i], grid[i - 1] - 1)
    return grid
