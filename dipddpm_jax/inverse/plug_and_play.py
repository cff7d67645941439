"""Plug-and-play: what takes noise off a picture restores it behind an operator, too (half-quadratic splitting: Zhang et
al. 2021, IEEE TPAMI 44, section 4, whose denoiser is a trained network).

Turn by turn, for levels t that fall,

    x = argmin |A x - y|^2 / sigma^2 + lambda |x - z|^2 / t^2,    z = x without errors of standard deviation t.

The first is exact (`Operator.solve`), the second any denoiser's work.
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from dipddpm_jax.inverse.measurement import Measurement, Restoration, Restore
from dipddpm_jax.inverse.noises import Gaussian
from dipddpm_jax.inverse.operators import identity
from dipddpm_jax.types import Image

TURNS = 24
COARSE, FINE = 50 / 255, 1 / 255  # t of the first turn and of the last, unless the noise's is larger
SHARE = 0.3  # lambda; this and the above were chosen on three photographs, for patches (`inverse.nonlocal_bayes`)
LEAST_SIGMA = 0.5 / 255  # of the noise, which counts as no less

Remove = Callable[[Image, float, Image], Image]
"""(x, t, z of the turn before) -> z."""


def plug_and_play(remove: Remove) -> Restore:
    """A restorer behind any operator, by TURNS of a denoiser. Noise counts as having its mean variance everywhere. The
    key is not used."""
    def restore(measurement: Measurement, key: Key[Array, ""]) -> Restoration:
        y, operator, noise = measurement
        variance = max(float(jnp.mean(noise.variance(y))), LEAST_SIGMA**2)
        z = operator.solve(y, variance / COARSE**2)
        for level in np.geomspace(COARSE, max(FINE, variance**0.5), TURNS):
            x = z + operator.solve(y - operator.forward(z), SHARE * variance / level**2)
            z = remove(x, float(level), z)
        return Restoration(z)

    return restore


def removed_by(denoise: Restore) -> Remove:
    """What a restorer of Gaussian noise takes off."""
    return lambda x, level, before: denoise(Measurement(x, identity, Gaussian(level)), jax.random.key(0)).picture


def mean_of(*removes: Remove) -> Remove:
    """The mean of what several make of a turn."""
    return lambda *turn: sum(remove(*turn) for remove in removes) / len(removes)
