"""Restoring pictures with a trained diffusion model as the prior (sample.py --restore)."""
import math
import shlex
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from flax.errors import FlaxError

from dipddpm_jax import devices, memory, pretrained
from dipddpm_jax.commands import fit_cost
from dipddpm_jax.commands.measurements import load_measurements
from dipddpm_jax.commands.model import Model
from dipddpm_jax.commands.restoration_files import restore_and_write
from dipddpm_jax.commands.sizes import SURELY_FITS
from dipddpm_jax.config.dip import CROSS_FIT, DipConfig
from dipddpm_jax.config.restore_by_prior import PRIOR_METHODS, RestoreOptions, chosen_method
from dipddpm_jax.config.saved import RESTORED
from dipddpm_jax.errors import UserError
from dipddpm_jax.hybrids import (
    adaptation,
    ddnm,
    decoupled,
    diffpir,
    dps,
    educated_start,
    estimate_start,
    learned_start,
    pigdm,
    plugged_prior,
    trained_self_diffusion,
    truncated_reverse,
)
from dipddpm_jax.hybrids.prior import DiffusionPrior
from dipddpm_jax.inverse.measurement import Restore

MAKERS: dict[str, Callable[..., Restore]] = {
    "truncated": truncated_reverse.truncated_reverse, "ddnm": ddnm.ddnm, "diffpir": diffpir.diffpir, "dps": dps.dps,
    "pigdm": pigdm.pigdm, "matched": partial(pigdm.pigdm, variance=pigdm.matched_variance),
    "weighted": partial(pigdm.pigdm, variance=pigdm.weighted_variance),
    "decoupled": decoupled.decoupled, "adapted": adaptation.adapted, "cross-fit-start": estimate_start.cross_fit_start,
}


BY_ITSELF: dict[str, Callable[[DiffusionPrior], Restore]] = {
    "one-step": truncated_reverse.one_step, "educated-start": educated_start.educated_start,
    "one-step-turned": partial(truncated_reverse.one_step, turned=True),
    "plug-and-play": plugged_prior.plugged_prior,
    "self-diffusion": trained_self_diffusion.trained_self_diffusion,
}


MULTIPLES = (1, 2, 4, 8, 16, 32)  # of sides, that networks which halve pictures need


def make_restorer(prior: DiffusionPrior, options: RestoreOptions) -> Restore:
    """The restorer that a method's name stands for."""
    name = chosen_method(options)
    if name in BY_ITSELF:
        return BY_ITSELF[name](prior)
    if name == "learned-start":
        return learned_start.learned_start(prior, options.samples)
    return MAKERS[name](prior, options.calls, options.samples)


def check_fit(model: Model, shape: tuple[int, int, int]) -> int:
    """The number of pixels whose multiples the model's network takes as sides, to which pictures are padded.

    Raises UserError for pictures of a size or number of channels that the network cannot take.
    """
    trained = model.facts.image_shape
    height, width, channels = shape
    said = f"the pictures have {width}x{height} pixels and {channels} channels, and this model was trained on " \
           f"{trained[1]}x{trained[0]} with {trained[2]}"
    if channels != trained[2]:
        others = [name for name in pretrained.PRIORS for facts in [pretrained.configuration_of_prior(name)[1]]
                  if facts.image_shape[2] == channels and not facts.label_names]
        raise UserError(f"{said}: the channels must be equal" + "".join(f"; try --prior {name}" for name in others))
    for multiple in MULTIPLES:
        padded = (1, height + -height % multiple, width + -width % multiple, channels)
        if padded[1] >= 2 * height or padded[2] >= 2 * width:
            break  # there is not so much to mirror
        try:
            if jax.eval_shape(lambda x: model.apply(x, 1), jax.ShapeDtypeStruct(padded, jnp.float32)).shape == padded:
                return multiple
        except (UserError, TypeError, ValueError, ZeroDivisionError, FlaxError):
            continue
    raise UserError(f"{said}: its network cannot take them")


def check_chains_memory(prior: DiffusionPrior, shape: tuple[int, ...], chains: int = 1, gradient: bool = False) -> None:
    """Raises UserError when one network call of all chains, with its gradient or not, on pictures of that shape would
    not fit into memory."""
    if 4 * chains * math.prod(shape) * SURELY_FITS < memory.host_memory() and jax.default_backend() == "cpu":
        return
    x, count = jax.ShapeDtypeStruct((chains, *shape), jnp.float32), [devices.forward_bytes]
    if gradient:
        count.append(devices.gradient_bytes)
    needed = max(count_bytes(lambda x: prior.denoise(x, jnp.int32(1)).x0, x) for count_bytes in count)
    how = f" in {chains} chains" if chains > 1 else ""
    try:
        devices.check_memory(needed, f"restoring a picture of {shape[1]}x{shape[0]} pixels by this prior{how}")
    except UserError as error:
        fewer = "fewer --samples or " if chains > 1 else ""
        raise UserError(f"{error}; {fewer}parts of the picture need less") from None


def restore_with_model(
    model: Model, source: str, options: RestoreOptions, config: DipConfig, out: Path | None, argv: list[str]
) -> str:
    """Restores the pictures and writes them; returns what to tell the user. Raises UserError."""
    given = load_measurements(config)
    shape = (*given.size, given.measurements.shape[-1])
    prior = model.prior(multiple=check_fit(model, shape))
    name = chosen_method(options)
    method = PRIOR_METHODS[name]
    check_chains_memory(prior, shape, (options.samples if method.samples else 1) + method.more, method.gradient)
    if name == "cross-fit-start":
        fit_cost.require_memory_for_fits(CROSS_FIT["folds"], shape)
    restore = make_restorer(prior, options)
    record = {RESTORED: asdict(options), "weights": source, "method": name}
    report = {"method": f"{name}: {method.what}", "prior": source}
    return restore_and_write(lambda i: restore, given, config, out, record, report,
                             shlex.join(["python", "sample.py", *argv]))
