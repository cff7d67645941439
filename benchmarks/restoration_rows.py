"""The rows of benchmarks/restoration.py: which restorers there are, what for, and which go on from others."""
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.restoration_page import BACK, ONCE_MORE, PLUGGED, UNDONE
from benchmarks.restoration_tasks import (
    BEHIND,
    CUT_OFF,
    DENOISE,
    HOLES,
    INVERSE,
    TASKS,
    bicubic,
    biharmonic,
    nothing,
    richardson_lucy,
    with_error,
)
from benchmarks.together_rows import oracle
from dipddpm_jax import classical
from dipddpm_jax.commands import restorers
from dipddpm_jax.dip import Dip, crossfit, folds
from dipddpm_jax.dip.pixel_pairs import pixel_pairs
from dipddpm_jax.dip.self_diffusion import self_diffusion
from dipddpm_jax.hybrids.averaged import averaged
from dipddpm_jax.hybrids.pigdm import pigdm, weighted_variance
from dipddpm_jax.hybrids.plugged_prior import plugged_prior, plugged_prior_and_patches
from dipddpm_jax.hybrids.prior import DiffusionPrior
from dipddpm_jax.hybrids.truncated_reverse import one_step, truncated_reverse
from dipddpm_jax.inverse import plug_and_play
from dipddpm_jax.inverse.anscombe import stabilised
from dipddpm_jax.inverse.cut_off import without_cut_off
from dipddpm_jax.inverse.measurement import Cost, Measurement, Restoration, Restore
from dipddpm_jax.inverse.nonlocal_bayes import nonlocal_bayes, nonlocal_bayes_after
from dipddpm_jax.inverse.operators import mask_of

BEGUN: dict[str, Restoration] = {}  # what rows made of the picture at hand


class Row(NamedTuple):
    """A method: how its restorer is made, what for, whether it is told the true level of the noise, and what it goes on
    from. One whose name ends in "oracle" makes the restorer of a clean picture, which it sees."""

    make: Callable[[], Restore | Callable[[np.ndarray], Restore]]
    tasks: tuple[str, ...] = (*DENOISE, *CUT_OFF)
    told: bool = False
    draws: bool = True  # whether a seed changes it
    begins: tuple[str, ...] = ()  # rows whose restorations it goes on from, and whose seconds are its own, too


def adam_fit(channels: int) -> Dip:
    """The small hourglass by Adam, which is the default for small noisy pictures alone."""
    return crossfit.a_fit(channels=channels)


def one_fit(fits: Callable[[int], Dip] | None = None) -> Restore:
    """One deep image prior, by default DIP-TV with a weight by the noise, stopped by a tenth of the pixels."""
    fit_for = crossfit.remembered(fits)

    def restore(measurement: Measurement, key: jax.Array) -> Restoration:
        known = crossfit.observed_pixels(measurement, key)
        fit = fit_for(measurement, known)
        parts = folds.fold_masks(jax.random.fold_in(key, 0), known, 10)[:1]
        problems, begun = crossfit.start_fold_fits(fit, measurement, known, parts, key)
        small = fit.network == crossfit.small_skip_net(known.shape[-1])
        states = crossfit.run_fits(fit, problems, begun, 1200 if small else crossfit.MOST_STEPS)
        return Restoration(states.kept.average[0], None, Cost(steps=int(states.step[0])))

    return restore


def for_channels(make: Callable[[int], Restore]) -> Restore:
    """A restorer that is made, once, for as many channels as the picture at hand has."""
    made = functools.cache(make)

    def restore(measurement: Measurement, key: jax.Array) -> Restoration:
        shape = jax.eval_shape(measurement.operator.adjoint, measurement.y).shape
        return made(shape[-1])(measurement, key)

    return restore


def bm3d_denoiser() -> Restore:
    """BM3D (Dabov et al. 2007) by its authors' package; of colour, CBM3D."""
    from bm3d import bm3d, bm3d_rgb

    return classical.gaussian_denoiser(lambda y, sigma: (bm3d_rgb if y.shape[-1] == 3 else bm3d)(y, sigma), "BM3D")


def photo_prior(calls: int = 0, turned: bool = False) -> Callable[[], Restore]:
    """The pretrained prior `photos` (or `photos-grey`): one call at the time of the noise (or eight, turned), or the
    mean of four chains of so many."""
    return by_photo_prior(
        lambda prior: stabilised(truncated_reverse(prior, calls, 4) if calls else one_step(prior, turned)))


def guided_prior(chains: int = 4) -> Restore:
    """Four chains (or more) of 20 calls, guided by the measurement with the weighted variance (PiGDM); `sample.py
    --restore` takes 50 calls."""
    return by_photo_prior(lambda prior: pigdm(prior, 20, chains, weighted_variance))()


def plugged_bm3d() -> Restore:
    return plug_and_play.plug_and_play(plug_and_play.removed_by(bm3d_denoiser()))


def by_photo_prior(make: Callable[[DiffusionPrior], Restore]) -> Callable[[], Restore]:
    """A restorer that a prior makes, here the pretrained one of photographs."""
    return lambda: for_channels(lambda channels: make(restorers.photographs_prior(channels)))


def begun(name: str) -> Restore:
    """What a row of that name has made of the picture at hand."""
    return lambda measurement, key: BEGUN[name]


def undone(name: str) -> Restore:
    """What a row of that name has made of the picture at hand, without the bias of noise that was cut off."""
    def restore(measurement: Measurement, key: jax.Array) -> Restoration:
        found = BEGUN[name]
        return found._replace(picture=without_cut_off(found.picture, measurement.y, measurement.noise))

    return restore


def with_known(name: str) -> Restore:
    """What a row of that name has made of the picture at hand, with the known pixels as they were measured."""
    def restore(measurement: Measurement, key: jax.Array) -> Restoration:
        found = BEGUN[name]
        known = mask_of(measurement.operator, found.picture.shape)
        return found._replace(picture=jnp.where(known > 0, measurement.y, found.picture))

    return restore


def refined(estimate: Restore) -> Restore:
    """An estimate, noised as far as it says that it is wrong, and walked back in eight calls of the prior of
    photographs that the measurement guides; the mean of eight chains."""
    return for_channels(lambda channels: restorers.refined(estimate, channels))


def refined_oracle(truth: np.ndarray) -> Restore:
    """`refined` of the cross-fit at hand, from the best of several levels for this very picture, `together_rows.TRIED`
    times the true error: how much the rule that finds the level loses."""
    estimate, channels = begun("cross-fit"), truth.shape[-1]
    make = functools.partial(restorers.refined, estimate, channels)
    return oracle(restorers.photographs_prior(channels), estimate, lambda level: make(start=level))(truth)


def self_diffused(steps: int, decay: float = 0.0, held_out: float = 0.0) -> Callable[[], Restore]:
    return lambda: self_diffusion(crossfit.small_skip_net(1), 40, steps, average_decay=decay, held_out=held_out)


ROWS: dict[str, Row] = {
    "nothing": Row(lambda: nothing, tuple(TASKS), draws=False),
    "biharmonic": Row(lambda: biharmonic, HOLES, draws=False),
    "bicubic": Row(lambda: bicubic, ("superres-4",), draws=False),
    "Richardson-Lucy": Row(lambda: richardson_lucy(1.6), ("deblur-1.6",), draws=False),
    "non-local means": Row(classical.non_local_means, draws=False),
    "non-local means, told": Row(classical.non_local_means, DENOISE[:3], True, False),
    "total variation": Row(classical.total_variation_denoising, draws=False),
    "BayesShrink": Row(classical.bayes_shrink, draws=False),
    "nonlocal Bayes": Row(nonlocal_bayes, tuple(TASKS), draws=False),
    "BM3D": Row(bm3d_denoiser, draws=False),
    "BM3D, told": Row(bm3d_denoiser, DENOISE[:3], True, False),
    "pixel pairs": Row(lambda: pixel_pairs(24, 1500)),
    "DIP": Row(lambda: one_fit(lambda channels: crossfit.a_fit(channels=channels, weight=0.0)), tuple(TASKS)),
    "DIP-TV": Row(one_fit, tuple(TASKS)),
    "DIP-TV, Adam": Row(lambda: one_fit(functools.partial(crossfit.a_fit, crossfit.tapered_skip_net)), ("sigma-25",)),
    "refit": Row(crossfit.refitted, tuple(TASKS)),
    "cross-fit": Row(crossfit.cross_fitted, tuple(TASKS)),
    "cross-fit, then nonlocal Bayes": Row(
        lambda: nonlocal_bayes_after(begun("cross-fit"), restorers.FOLDS), (*DENOISE, *CUT_OFF, *HOLES),
        begins=("cross-fit",)),
    "DIP-TV, then nonlocal Bayes": Row(lambda: nonlocal_bayes_after(begun("DIP-TV")), (*DENOISE, *CUT_OFF, *HOLES),
                                       begins=("DIP-TV",)),
    **{f"{name}, {BACK}": Row(functools.partial(with_known, name), HOLES, begins=(name,))
       for name in ("DIP", "DIP-TV", "cross-fit", "self-diffusion")},
    ONCE_MORE: Row(lambda: nonlocal_bayes_after(nonlocal_bayes()), DENOISE, draws=False),
    "prior photos, then nonlocal Bayes": Row(
        lambda: nonlocal_bayes_after(begun("prior photos, eight calls, turned"), 10), draws=False,
        begins=("prior photos, eight calls, turned",)),
    "cross-fit, 11 folds": Row(lambda: crossfit.cross_fitted(folds=11), HOLES),
    "cross-fit, Adam": Row(lambda: crossfit.cross_fitted(adam_fit, num_steps=1500), (*HOLES, "deblur-1.6")),
    "cross-fit, Adam, 12 folds": Row(lambda: crossfit.cross_fitted(adam_fit, 12, 1500), HOLES),
    "self-diffusion": Row(self_diffused(100), tuple(TASKS)),
    "self-diffusion, stopped": Row(self_diffused(25, 0.99, 0.1), tuple(TASKS)),
    "prior photos, one call": Row(photo_prior(), draws=False),
    "prior photos, one call, told": Row(photo_prior(), DENOISE[:3], True, False),
    "prior photos, eight calls, turned": Row(photo_prior(turned=True), draws=False),
    "prior photos, eight calls, told": Row(photo_prior(turned=True), DENOISE[:3], True, False),
    "half cross-fit, half prior photos": Row(lambda: averaged(crossfit.cross_fitted(), photo_prior(turned=True)()),
                                             DENOISE[:3]),
    "prior photos, 4 chains of 20": Row(photo_prior(20), DENOISE[:3]),
    "prior photos, guided": Row(guided_prior, INVERSE),
    f"BM3D, {PLUGGED}": Row(plugged_bm3d, BEHIND, draws=False),
    f"prior photos, {PLUGGED}": Row(by_photo_prior(plugged_prior), BEHIND, draws=False),
    f"nonlocal Bayes and prior photos, {PLUGGED}": Row(
        by_photo_prior(plugged_prior_and_patches), BEHIND, draws=False),
    "prior photos, guided, 32 chains": Row(functools.partial(guided_prior, 32), HOLES),
    "prior photos, guided, 96 chains": Row(functools.partial(guided_prior, 96), HOLES),
    "cross-fit, then prior photos": Row(lambda: refined(begun("cross-fit")), (*INVERSE, *DENOISE[:3]),
                                        begins=("cross-fit",)),
    "cross-fit, then prior photos, oracle": Row(lambda: refined_oracle, HOLES, begins=("cross-fit",)),
    "biharmonic, then prior photos": Row(lambda: refined(with_error(biharmonic)), HOLES),
    "nonlocal Bayes, then prior photos": Row(lambda: refined(with_error(nonlocal_bayes())), HOLES),
    "half cross-fit, half prior photos, guided": Row(
        lambda: averaged(begun("cross-fit"), begun("prior photos, guided")), INVERSE,
        begins=("cross-fit", "prior photos, guided")),
    **{f"{name}, {UNDONE}": Row(functools.partial(undone, name), CUT_OFF, begins=(name,))
       for name in ("BM3D", "non-local means", "prior photos, eight calls, turned", "cross-fit",
                    "cross-fit, then nonlocal Bayes")},
}
UNTRAINED = ("cross-fit, then nonlocal Bayes", "nonlocal Bayes", "pixel pairs", "total variation")
WHOLE = {  # rows that go on from others, as restorers that do all themselves: for other data than the picture at hand
    "cross-fit, then nonlocal Bayes": lambda: nonlocal_bayes_after(crossfit.cross_fitted(), restorers.FOLDS)}
JUDGED = {  # what the referee may choose from; BM3D is not ours to give
    "referee": ("prior photos, eight calls, turned", *UNTRAINED),  # as --method auto
    "referee, untrained": UNTRAINED,
    "referee, untrained, with BM3D": (*UNTRAINED, "BM3D"),
}
