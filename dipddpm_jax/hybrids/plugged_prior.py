"""A diffusion prior behind an operator, plug-and-play (Zhang et al. 2021, DPIR, whose denoiser was trained for nothing
else): in each turn of `inverse.plug_and_play` one call of the network takes off what is wrong (`one_step`)."""
from dipddpm_jax.hybrids.prior import DiffusionPrior
from dipddpm_jax.hybrids.truncated_reverse import one_step
from dipddpm_jax.inverse.measurement import Restore
from dipddpm_jax.inverse.nonlocal_bayes import remove_by_patches
from dipddpm_jax.inverse.plug_and_play import mean_of, plug_and_play, removed_by


def plugged_prior(prior: DiffusionPrior) -> Restore:
    """A restorer of photographs behind any operator: its levels were chosen for them. One picture, no samples."""
    return plug_and_play(removed_by(one_step(prior)))


def plugged_prior_and_patches(prior: DiffusionPrior) -> Restore:
    """The same, with the mean of the network's call and of a pass of nonlocal Bayes in each turn."""
    return plug_and_play(mean_of(removed_by(one_step(prior)), remove_by_patches))
