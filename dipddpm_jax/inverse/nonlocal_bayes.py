"""Nonlocal Bayes (`inverse.patches`): one picture restored by what repeats in it, in seconds and without a network.

To denoise, its passes follow each other, each with the picture of the one before for its pilot. Where pixels are
missing, the noise that known ones count as having falls, since as long as the pilot is wrong in the holes, so is what
it says of the patches. Behind another operator, passes take turns with the measurement. The pilot may also be what
others restored: what a deep image prior has smoothed away, but repeats in the picture, comes back.
"""
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from dipddpm_jax.errors import UserError
from dipddpm_jax.inverse.anscombe import stabilised
from dipddpm_jax.inverse.cut_off import variance_left
from dipddpm_jax.inverse.measurement import Measurement, Restoration, Restore
from dipddpm_jax.inverse.operators import filled, identity, mask_of
from dipddpm_jax.inverse.patches import LEAST, Groups, Mask, nonlocal_bayes_pass
from dipddpm_jax.inverse.plug_and_play import plug_and_play
from dipddpm_jax.types import Image

FIRST, SECOND, LATER = Groups(90, 3), Groups(60, 3), Groups(40, 3)  # FIRST: more than there are numbers in a patch
LAST = Groups(20, 2)  # with a pilot of fitted networks: chosen on three photographs, cross-fitted
HOLES = Groups(40, 3)  # where pixels are missing, and passes take longest
FALLING = ((1e-3, 4), (3e-4, 4), (1e-4, 4), (3e-5, 4))
"""Where pixels are missing: the least variance that noise counts as having, white being 1, and for how many passes.
Chosen on three photographs."""
AFTER = FALLING[1:]  # after fits
ALONE = 2  # fits that nonlocal Bayes alone counts as in the pilot


def nonlocal_bayes() -> Restore:
    """A restorer of Gaussian and Poisson noise: four passes, the first with the noisy picture for its own pilot. Of
    Gaussian noise or none, also where pixels are missing: up to 16, the first with holes filled from their rims; and
    behind any other operator, by `plug_and_play`. The key is not used."""
    denoise = stabilised(lambda measurement, key: Restoration(
        _alone(measurement.y, measurement.noise.variance(measurement.y))))
    behind = plug_and_play(remove_by_patches)

    def restore(measurement: Measurement, key: Key[Array, ""]) -> Restoration:
        y, known = measurement.y, _known(measurement)
        if known is None:
            return behind(measurement, key)
        if bool(known.all()):
            return denoise(measurement._replace(operator=identity), key)
        pilot = jnp.asarray(filled(np.asarray(y), np.asarray(known)))
        return Restoration(_in_holes(measurement, known, pilot, FALLING))

    return restore


def nonlocal_bayes_after(estimate: Restore, fits: int = 1) -> Restore:
    """A restorer that goes on from an estimate, the mean of so many `fits` (`refine_by_patches`). To denoise,
    `evidence` says the error of the estimate, which is a little larger; where pixels are missing it is far larger,
    and none is said. Raises UserError unless the picture's own pixels were measured, all or some."""
    def restore(measurement: Measurement, key: Key[Array, ""]) -> Restoration:
        known = _known(measurement)
        if known is None:
            raise UserError("nonlocal Bayes goes on from estimates of pictures whose own pixels were measured, all or "
                            "some; with another operator it stands alone")
        found = estimate(measurement, key)
        evidence = found.evidence if bool(known.all()) else found.evidence._replace(error=None)
        picture = refine_by_patches(measurement, found.picture, fits)
        return found._replace(picture=picture, evidence=evidence, samples=None)

    return restore


def refine_by_patches(measurement: Measurement, picture: Image, fits: int = 1) -> Image:
    """What passes make of a restored picture that is the mean of so many `fits`. To denoise, one pass, its pilot the
    mean of these and of nonlocal Bayes alone, which counts as two fits more. Where pixels are missing, the last passes
    of nonlocal Bayes alone, the picture their first pilot. The noise must be independent from pixel to pixel."""
    y, noise, known = measurement.y, measurement.noise, _known(measurement)
    if not bool(known.all()):
        return _in_holes(measurement, known, _put_back(picture, measurement, known), AFTER)
    alone = nonlocal_bayes()(measurement, jax.random.key(0)).picture
    pilot = (fits * picture + ALONE * alone) / (fits + ALONE)
    return nonlocal_bayes_pass(y, variance_left(pilot, y, noise), pilot, LAST)


def remove_by_patches(x: Image, level: float, before: Image) -> Image:
    """A pass as one turn of `plug_and_play`, whose pilot is the picture of the turn before."""
    return nonlocal_bayes_pass(x, jnp.full_like(x, level**2), before, LATER)


def _known(measurement: Measurement) -> Mask | None:
    """1 where a picture's own pixels were measured, 0 where they are missing, in one channel if all miss the same; None
    behind another operator."""
    known = mask_of(measurement.operator, jax.eval_shape(measurement.operator.adjoint, measurement.y).shape)
    return known if known is None or bool((known != known[..., :1]).any()) else known[..., :1]


def _alone(y: Image, variance: Image) -> Image:
    first = nonlocal_bayes_pass(y, variance, None, FIRST)
    second = nonlocal_bayes_pass(y, variance, first, SECOND)
    third = nonlocal_bayes_pass(y, variance, second, LATER)
    return nonlocal_bayes_pass(y, variance, third, LATER)


def _in_holes(
    measurement: Measurement, known: Mask, pilot: Image, falling: Sequence[tuple[float, int]]
) -> Image:
    """Passes with the picture of the one before for their pilot, until what noise counts as having falls no more."""
    y, noise = measurement.y, measurement.noise
    for level, passes in falling:
        for _ in range(passes):
            variance = jnp.maximum(noise.variance(pilot), level)
            pilot = _put_back(nonlocal_bayes_pass(y, variance, pilot, HOLES, known), measurement, known)
        if level <= float(noise.variance(pilot).mean()):
            break
    return pilot


def _put_back(picture: Image, measurement: Measurement, known: Mask) -> Image:
    """The picture with its known pixels as they were measured, if they have no noise."""
    exact = jnp.max(measurement.noise.variance(picture)) <= LEAST
    return jnp.where((known > 0) & exact, measurement.y, picture)
