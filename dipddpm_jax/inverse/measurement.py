"""What is restored and what comes back: the two values between a user's picture and every method that restores it."""
from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float, Key

from dipddpm_jax.inverse.noises import Noise
from dipddpm_jax.inverse.operators import Operator
from dipddpm_jax.types import Image, Images


class Measurement(NamedTuple):
    """y = A x + noise of one picture x in [0, 1]; the clean picture is not in it."""

    y: Float[Array, "..."]
    operator: Operator
    noise: Noise


class Cost(NamedTuple):
    """What a restoration took and what it says of itself."""

    calls: int = 0  # evaluations of a trained network on the whole picture
    steps: int = 0  # updates of an untrained one
    error: float | None = None  # estimated mean squared error, where the method has an estimate
    weights: dict[str, float] | None = None  # of an average's parts, by name


class Restoration(NamedTuple):
    """What a restorer gives back; `spread` is its standard deviation per pixel where it has one, and `samples` are the
    pictures whose mean and spread these are where it draws from a posterior."""

    picture: Image
    spread: Image | None = None
    evidence: Cost = Cost()
    samples: Images | None = None


Restore = Callable[[Measurement, Key[Array, ""]], Restoration]
"""A restorer: non-local means, an untrained network, a posterior sampler. It never sees the clean picture."""
