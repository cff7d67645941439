"""The restorers that `dipddpm_jax.restore` knows by name, besides the deep image prior that its options describe."""
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dipddpm_jax import classical
from dipddpm_jax.dip.crossfit import cross_fitted, small_skip_net
from dipddpm_jax.dip.pixel_pairs import pixel_pairs
from dipddpm_jax.dip.self_diffusion import self_diffusion
from dipddpm_jax.errors import UserError
from dipddpm_jax.inverse import operators, splitting
from dipddpm_jax.inverse.measurement import Measurement, Restoration, Restore
from dipddpm_jax.inverse.noises import Gaussian
from dipddpm_jax.inverse.referee import stacked

EXACT = 1e-3  # of white: noise below this is too weak to be split


def _self_diffusion(channels: int) -> Restore:
    return self_diffusion(small_skip_net(channels), steps=25, average_decay=0.99, held_out=0.1)


RESTORERS: dict[str, Callable[[int], Restore]] = {  # name -> restorer of pictures with so many channels
    "cross-fit": lambda channels: cross_fitted(),
    "self-diffusion": _self_diffusion,
    "pixel-pairs": lambda channels: pixel_pairs(),
    "non-local-means": lambda channels: classical.non_local_means(),
    "total-variation": lambda channels: classical.total_variation_denoising(),
    "wavelets": lambda channels: classical.bayes_shrink(),
}
DENOISERS = ("cross-fit", "pixel-pairs", "non-local-means", "total-variation")  # what "auto" averages
FILLERS = ("cross-fit", "self-diffusion")  # and where pixels are missing


def check_method(method: str, options: Mapping[str, object]) -> None:
    """Raises UserError for a method that is not known, and for options that only a deep image prior takes."""
    if method != "auto" and method not in RESTORERS:
        raise UserError(f"unknown method {method!r}: known are dip, auto, {', '.join(RESTORERS)}")
    if options:
        raise UserError(f"method {method!r} does not take {', '.join(sorted(options))}, which method 'dip' does")


def restore_by(
    method: str, y: Float[np.ndarray, "i j c"], operator: operators.Operator, known: Float[np.ndarray, "h w 1"] | None,
    sigma: float, seed: int,
) -> Restoration:
    """The restoration by a method of RESTORERS, or by "auto", the referee's average of those that suit the measurement.

    Raises UserError where the method cannot take the measurement, or the referee cannot judge it: without noise and
    without missing pixels nothing can be kept back that would tell more than what was measured.
    """
    channels, key = y.shape[-1], jax.random.key(seed)
    measurement = Measurement(jnp.asarray(y), operator, Gaussian(sigma))
    if method != "auto":
        return RESTORERS[method](channels)(measurement, key)
    if known is not None:
        return stacked(_of(FILLERS, channels), split=splitting.split_pixels(jnp.asarray(known)))(measurement, key)
    if operator != operators.identity or sigma < EXACT:
        raise UserError("method 'auto' judges what restores noise or missing pixels; here there are none to judge by: "
                        f"choose one of {', '.join(RESTORERS)}")
    return stacked(_of(DENOISERS, channels))(measurement, key)


def _of(names: tuple[str, ...], channels: int) -> Mapping[str, Restore]:
    return {name: RESTORERS[name](channels) for name in names}
