"""The restorers that `dipddpm_jax.restore` and `train.py dip --method` know by name, besides the deep image prior that
their options describe."""
from collections.abc import Callable, Mapping
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dipddpm_jax import classical
from dipddpm_jax.commands import fit_cost
from dipddpm_jax.commands.restore_by_prior import check_chains_memory, check_fit
from dipddpm_jax.commands.starts import load_prior
from dipddpm_jax.config.dip import CROSS_FIT
from dipddpm_jax.dip.crossfit import cross_fitted, small_skip_net
from dipddpm_jax.dip.pixel_pairs import pixel_pairs
from dipddpm_jax.dip.self_diffusion import self_diffusion
from dipddpm_jax.errors import UserError
from dipddpm_jax.hybrids.estimate_start import Start, at_error, estimate_start
from dipddpm_jax.hybrids.pigdm import guided_step, pigdm, weighted_variance
from dipddpm_jax.hybrids.plugged_prior import plugged_prior, plugged_prior_and_patches
from dipddpm_jax.hybrids.prior import DiffusionPrior
from dipddpm_jax.hybrids.truncated_reverse import one_step
from dipddpm_jax.inverse import operators, splitting
from dipddpm_jax.inverse.anscombe import stabilised
from dipddpm_jax.inverse.measurement import Measurement, Restoration, Restore
from dipddpm_jax.inverse.noises import Gaussian
from dipddpm_jax.inverse.nonlocal_bayes import nonlocal_bayes, nonlocal_bayes_after
from dipddpm_jax.inverse.referee import stacked

PHOTO_CHANNELS = (1, 3)  # that there is a prior of photographs for
FOLDS = CROSS_FIT["folds"]
CALLS, CHAINS = 50, 4  # of a prior that a measurement guides
FEW_CALLS, FEW_CHAINS = 8, 8  # of a prior that goes on from an estimate
QUIET = 3 / 255  # standard deviation of noise that self-diffusion need not be stopped for
EXACT = 1e-6  # variance, white being 1: noise below this is too weak to be split


def _self_diffusion(channels: int) -> Restore:
    """As published where there is hardly any noise; else shorter, averaged, and stopped by what it does not see."""
    network = small_skip_net(channels)
    whole, stopped = self_diffusion(network), self_diffusion(network, steps=25, average_decay=0.99, held_out=0.1)

    def restore(measurement: Measurement, key: Key[Array, ""]) -> Restoration:
        quiet = float(jnp.mean(measurement.noise.variance(measurement.y))) < QUIET**2
        return (whole if quiet else stopped)(measurement, key)

    return _within_memory(restore, partial(fit_cost.require_memory_for_fits, 1))


def _within_memory(restore: Restore, require: Callable[[tuple[int, int, int]], None]) -> Restore:
    """A restorer that asks first: `require` raises UserError where memory cannot hold a picture of this shape."""
    def restore_what_fits(measurement: Measurement, key: Key[Array, ""]) -> Restoration:
        require(jax.eval_shape(measurement.operator.adjoint, measurement.y).shape)
        return restore(measurement, key)

    return restore_what_fits


def photographs_prior(channels: int) -> DiffusionPrior:
    """The pretrained prior of photographs with so many channels, for pictures of any size.

    Raises UserError unless they are grey or red, green and blue.
    """
    if channels not in PHOTO_CHANNELS:
        raise UserError(f"method 'photos' takes pictures in grey or in red, green and blue; got {channels} channels")
    model = load_prior("photos" if channels == 3 else "photos-grey")
    odd = (65, 65, channels)  # sides that are multiples of nothing, so that pictures of all sides are padded enough
    return model.prior(multiple=check_fit(model, odd))


def _photos(channels: int) -> Restore:
    """One step to denoise, chains that the measurement guides to fill holes; behind another operator, plug-and-play."""
    prior = photographs_prior(channels)
    memory = partial(check_chains_memory, prior)
    denoise = _within_memory(stabilised(one_step(prior, turned=True)), memory)
    fill = _within_memory(pigdm(prior, CALLS, CHAINS, weighted_variance),
                          partial(memory, chains=CHAINS, gradient=True))
    plugged = _within_memory(plugged_prior(prior), memory)

    def restore(measurement: Measurement, key: Key[Array, ""]) -> Restoration:
        if measurement.operator == operators.identity:
            return denoise(measurement, key)
        return (plugged if _behind(measurement) else fill)(measurement, key)

    return restore


def _photos_bayes(channels: int) -> Restore:
    """Patches after `_photos`, which counts as a cross-fit, to denoise; both in each turn to sharpen or enlarge.
    Raises UserError where pixels are missing."""
    prior = photographs_prior(channels)
    after = nonlocal_bayes_after(_made(_photos, channels), FOLDS)
    plugged = _within_memory(plugged_prior_and_patches(prior), partial(check_chains_memory, prior))

    def restore(measurement: Measurement, key: Key[Array, ""]) -> Restoration:
        if measurement.operator == operators.identity:
            return after(measurement, key)
        if not _behind(measurement):
            raise UserError("method 'photos-bayes' denoises, sharpens and enlarges; where pixels are missing "
                            "'nonlocal-bayes' is as good without the prior")
        return plugged(measurement, key)

    return restore


def _behind(measurement: Measurement) -> bool:
    """Whether something else than a mask stands before the picture."""
    operator = measurement.operator
    return operators.mask_of(operator, jax.eval_shape(operator.adjoint, measurement.y).shape) is None


def refined(estimate: Restore, channels: int, start: Start = at_error) -> Restore:
    """Chains that begin with an estimate, noised as far as it is wrong by its own account, and that the measurement
    guides, by the pretrained prior of photographs."""
    prior = photographs_prior(channels)
    chains = estimate_start(prior, estimate, start, FEW_CALLS, FEW_CHAINS, guided_step(weighted_variance))
    return _within_memory(chains, partial(check_chains_memory, prior, chains=FEW_CHAINS, gradient=True))


def _cross_fit(channels: int) -> Restore:
    return _within_memory(cross_fitted(folds=FOLDS), partial(fit_cost.require_memory_for_fits, FOLDS))


RESTORERS: dict[str, Callable[[int], Restore]] = {  # name -> restorer of pictures with so many channels
    "photos": _photos,
    "photos-bayes": _photos_bayes,
    "cross-fit": _cross_fit,
    "cross-fit-bayes": lambda channels: nonlocal_bayes_after(_made(_cross_fit, channels), FOLDS),
    "cross-fit-photos": lambda channels: refined(_made(_cross_fit, channels), channels),
    "self-diffusion": _self_diffusion,
    "pixel-pairs": lambda channels: pixel_pairs(),
    "nonlocal-bayes": lambda channels: nonlocal_bayes(),
    "non-local-means": lambda channels: classical.non_local_means(),
    "total-variation": lambda channels: classical.total_variation_denoising(),
    "wavelets": lambda channels: classical.bayes_shrink(),
}
DENOISERS = ("photos", "cross-fit-bayes", "nonlocal-bayes", "pixel-pairs", "total-variation")  # what "auto" averages
FILLERS = ("nonlocal-bayes", "photos", "cross-fit-photos")  # and where pixels are missing
UNTRAINED_FILLERS = ("nonlocal-bayes", "cross-fit")  # where the prior of photographs cannot be asked
WITHOUT_SIGMA = ("pixel-pairs",)


def check_method(method: str, options: Mapping[str, object], sigma: float | None = None) -> None:
    """Raises UserError for a method that is not known, for options that only a deep image prior takes, and for the
    noise's `sigma` where the method has no use for it."""
    if method != "auto" and method not in RESTORERS:
        raise UserError(f"unknown method {method!r}: known are dip, auto, {', '.join(RESTORERS)}")
    if options:
        raise UserError(f"method {method!r} does not take {', '.join(sorted(options))}, which method 'dip' does")
    if method in WITHOUT_SIGMA and sigma is not None:
        raise UserError(f"method {method!r} makes no use of sigma; leave it out")


def restorer_for(method: str, measurement: Measurement, known: Float[Array, "h w 1"] | None) -> Restore:
    """The restorer of a name of RESTORERS, or of "auto": the referee's average of those that suit the measurement, and
    behind an operator other than a mask (0 in `known` where pixels are missing), where the referee can keep nothing
    back, `photos-bayes`, or patches alone for channels that there is no prior for.

    Raises UserError where there is neither an operator nor noise.
    """
    channels = measurement.y.shape[-1]
    if method != "auto":
        return _made(RESTORERS[method], channels)
    if known is not None:
        trained = channels in PHOTO_CHANNELS and isinstance(measurement.noise, Gaussian)
        names = FILLERS if trained else UNTRAINED_FILLERS
        return stacked(_of(names, channels), split=splitting.split_pixels(known))
    if measurement.operator != operators.identity:
        return _made(RESTORERS["photos-bayes" if channels in PHOTO_CHANNELS else "nonlocal-bayes"], channels)
    if float(jnp.mean(measurement.noise.variance(measurement.y))) < EXACT:
        raise UserError("method 'auto' judges what restores noise or missing pixels; here there are none to judge by: "
                        f"choose one of {', '.join(RESTORERS)}")
    return stacked(_of(tuple(name for name in DENOISERS if name != "photos" or channels in PHOTO_CHANNELS), channels))


def _of(names: tuple[str, ...], channels: int) -> Mapping[str, Restore]:
    return {name: _made(RESTORERS[name], channels) for name in names}


@lru_cache
def _made(maker: Callable[[int], Restore], channels: int) -> Restore:
    """One restorer for all pictures: another one would be compiled anew."""
    return maker(channels)
