"""Which way of computing a convolution on a CPU pays, by its size and by how the cores are shared out."""
import math
import os

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

FEW = 16  # channels that XLA's fast convolution on a CPU leaves to a slower one
MANY_PRODUCTS = 100_000_000  # of a convolution on one device, from which on fewer are worth their compilation
PIECE_BYTES = 1_000_000  # of patches held at once: they should stay in a core's cache


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def divisor(n: int, most: int) -> int:
    """The largest divisor of n that is at most `most`, but at least 1."""
    return max(d for d in range(1, n + 1) if n % d == 0 and d <= max(most, 1))


def shared_out() -> bool:
    """Whether this is what one device does of a computation that several share (shard_map)."""
    return any(axis == AxisType.Manual for axis in jax.sharding.get_abstract_mesh().axis_types)


def lane_count(n: int) -> int:
    """Over how many devices a batch of n may be spread."""
    return 1 if shared_out() else divisor(n, jax.device_count())


def suits_winograd(output: tuple[int, ...], kernel: tuple[int, ...], dtype: jnp.dtype) -> bool:
    """True if Winograd is faster: with enough channels and pixels, and one core for each device, since its many small
    operations do not run on several cores."""
    (n, h, w, _), (kh, kw, c, o), lanes = output, kernel, lane_count(output[0])
    enough = min(c, o) >= 32 and 9 * n * h * w * c * o >= MANY_PRODUCTS * lanes
    one_core_each = (shared_out() or lanes == jax.device_count()) and jax.device_count() >= cores()
    return kh == kw == 3 and enough and one_core_each and dtype == jnp.float32


def small(x: tuple[int, ...], kernel: tuple[int, ...]) -> bool:
    """True if all im2col patches fit in one piece, for which many fits at once are best as one batched product."""
    return math.prod(x) * kernel[0] * kernel[1] * 4 <= PIECE_BYTES


def pixel_group(width: int, kernel: tuple[int, ...]) -> int:
    """How many pixels of a row to take as one. XLA's fast convolution takes more than 16 channels, and few channels
    leave vectors half empty; the work grows by half or so, the time falls to a half or a fifth."""
    _, kw, c, o = kernel
    few = max(c, o) <= FEW or (max(c, o) <= 20 and 8 < min(c, o) <= 12)
    fitting = [s for s in (2, 4, 8) if kw > 1 and kw <= s + 1 and width % s == 0]
    return next((s for s in fitting if s * max(c, o) > FEW), max(fitting, default=1)) if few else 1
