"""One picture from memory, restored by a deep image prior: NumPy in, NumPy out."""
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Shaped
from tqdm import tqdm

from dipddpm_jax.commands import fit_cost
from dipddpm_jax.commands.dip import Batch
from dipddpm_jax.commands.fits import make_fit, make_fits, start_fits
from dipddpm_jax.commands.measurements import Measurements, blended, made_black_again
from dipddpm_jax.commands.outcome import outcome
from dipddpm_jax.commands.restoration_files import measurement_of
from dipddpm_jax.commands.restorers import check_method, restorer_for
from dipddpm_jax.commands.sources import LEAST_SIDE
from dipddpm_jax.config.dip import AS_IT_IS, DipConfig, recommended
from dipddpm_jax.config.dip_ranges import check_dip, check_name
from dipddpm_jax.errors import UserError
from dipddpm_jax.inverse.cut_off import estimate_sigma_cut_off
from dipddpm_jax.inverse.impulses import not_impulses
from dipddpm_jax.inverse.whiteness import FAR, is_correlated, level_at


class Units(NamedTuple):
    """What a picture's numbers mean: `low` is 0 and `low + span` is 1 inside."""

    low: float
    span: float
    dtype: np.dtype
    grey: bool  # whether the picture came without an axis of channels

    def inside(self, picture: Shaped[np.ndarray, "h w c"]) -> Float[np.ndarray, "h w c"]:
        return ((picture.astype(np.float64) - self.low) / self.span).astype(np.float32)

    def outside(self, picture: Float[np.ndarray, "h w c"]) -> np.ndarray:
        values = np.clip(picture.astype(np.float64), 0, 1) * self.span + self.low
        values = np.rint(values) if self.dtype.kind in "ui" else values
        return (values[..., 0] if self.grey else values).astype(self.dtype)


def restore(
    noisy: np.ndarray, *, task: str = "denoise", mask: np.ndarray | None = None, factor: int | None = None,
    blur: float | None = None, sigma: float | None = None, network: str | None = None, stop: str = "held-out",
    num_steps: int | None = None, folds: int | None = None, seed: int = 0, progress: bool = False,
    method: str = "dip", blend: float = 0.0, peak: float | None = None, impulse: bool = False,
) -> np.ndarray:
    """Restores one picture by fitting an untrained network to it (deep image prior, Ulyanov et al. 2018), until a rule
    that sees nothing but the picture says stop: restored = f(z), z fixed noise, min |A f(z) - noisy|^2.

    `noisy` is grey (h, w) or has channels last (h, w, c), of any integer or float type; bytes go from 0 to 255, all
    others from the lowest to the highest number of the picture, beyond which nothing can come out. What comes back has
    its type, units and shape (for `task="superres"`, sides `factor` times as long).

    `task` is "denoise"; "inpaint", where `mask` (h, w) is not 0 where the picture is known; "superres" by `factor`; or
    "deblur", where `blur` is the standard deviation of the blur in pixels. `sigma` is that of the noise in the
    picture's units, estimated if it is None: stop="discrepancy" uses it, total variation, and what undoes the bias of
    noise that was cut off at black and white (`inverse.cut_off`). With `peak` the noise is that of photons, so many at
    the picture's highest number (bytes: at 255) and none at 0, and `sigma` what reading them out adds. With `impulse`,
    pixels that are black or white against what is about them count as missing (`inverse.impulses`). `blend`, 0 to 1, is
    the share of `noisy` that is mixed back in where it is known.
    `network`, `stop`, `num_steps` and `folds` are those of `dipddpm-jax dip`, whose defaults they have: ten fits
    for a small noisy picture, one else, then nonlocal Bayes to denoise or inpaint. `progress` shows a bar. Equal
    seeds give equal pictures. `method` "dip" is that. The others of `commands.restorers.RESTORERS` take none of its
    options but `sigma`, and show no bar: "photos", a pretrained model of photographs, which denoises, sharpens or
    enlarges in seconds, and fills small pictures in a minute; "photos-bayes"; "cross-fit", "cross-fit-bayes";
    "cross-fit-photos", from which that model goes on; "self-diffusion", "pixel-pairs", "nonlocal-bayes",
    "non-local-means", "total-variation", "wavelets"; "auto", a weighted average, to sharpen or enlarge "photos-bayes".

    Raises UserError for what is no picture, for options that do not fit, and for fits or a prior beyond memory.
    """
    chosen = {name: value for name, value in (("network", network), ("num_steps", num_steps), ("folds", folds))
              if value is not None}
    for name, value in (("task", task), ("network", network or DipConfig.network), ("stop", stop)):
        check_name(DipConfig, name, value)
    picture, known, units = _checked(noisy, task, mask, peak is not None)
    _check_options(task, factor=factor, blur=blur)
    if stop == "oracle":
        raise UserError("stop='oracle' needs the clean picture, which is not known here")
    if method != "dip":
        check_method(method, {**chosen, **({} if stop == "held-out" else {"stop": stop})}, sigma)
    config = DipConfig(
        task=task, sigma=None if sigma is None else 255 * float(sigma) / units.span, stop=stop, blend=blend, seed=seed,
        peak=peak, impulse=0.5 if impulse else None,  # any share says that there are some
        factor=4 if factor is None else factor, blur=1.6 if blur is None else blur, **chosen)
    check_dip(config)
    config = recommended(config, chosen, picture.shape[0] * picture.shape[1])
    unused = task not in AS_IT_IS and peak is None and stop != "discrepancy" and config.variant != "tv"
    if method == "dip" and sigma is not None and unused:
        raise UserError(f"sigma does nothing for task={task!r} with stop={stop!r}: it is for stop='discrepancy'")
    y = units.inside(picture)
    known = not_impulses(y) if impulse else known
    correlated = task == "denoise" and known is None and is_correlated(y)
    estimated = level_at(y, FAR) if correlated else estimate_sigma_cut_off(y, known)
    level = estimated if sigma is None or peak is not None else sigma / units.span
    scale = config.factor if task == "superres" else 1
    size = (y.shape[0] * scale, y.shape[1] * scale)
    y = y if known is None else y * known
    given = Measurements(("picture",), y[None], None, None if known is None else known[None], np.float32([level]), size,
                         correlated=correlated)
    return units.outside(_fitted(config, given, progress) if method == "dip" else _by_method(method, config, given))


def _checked(
    noisy: np.ndarray, task: str, mask: np.ndarray | None, counts: bool
) -> tuple[Shaped[np.ndarray, "h w c"], Float[np.ndarray, "h w 1"] | None, Units]:
    """The picture with an axis of channels, what is known of it, and its units. Raises UserError."""
    array = np.asarray(noisy)
    if array.dtype.kind not in "uif" or array.ndim not in (2, 3) or 0 in array.shape:
        raise UserError("a picture is an array of integers or floats, (height, width) or (height, width, channels); "
                        f"got {array.dtype} of shape {array.shape}")
    if min(array.shape[:2]) < LEAST_SIDE:
        raise UserError(f"a picture needs at least {LEAST_SIDE}x{LEAST_SIDE} pixels; got shape {array.shape}")
    picture = array if array.ndim == 3 else array[..., None]
    known = _known(picture, task, mask)
    values = picture if known is None else picture[known[..., 0]]
    if not np.isfinite(values).all():
        raise UserError("the picture holds numbers that are not finite (inf or nan)")
    low, high = (0.0, 255.0) if array.dtype == np.uint8 else (float(values.min()), float(values.max()))
    if counts:
        low = 0.0
        if not high > 0:
            raise UserError(f"with peak, numbers stand for photons; the highest of the picture is {high:g}")
    if values.min() == values.max():
        raise UserError("all numbers of the picture are equal: there is nothing to restore")
    units = Units(low, high - low, array.dtype, array.ndim == 2)
    if known is None:
        return picture, None, units
    return np.where(known, picture, array.dtype.type(low)), known.astype(np.float32), units


def _known(
    picture: Shaped[np.ndarray, "h w c"], task: str, mask: np.ndarray | None
) -> Bool[np.ndarray, "h w 1"] | None:
    if (task == "inpaint") != (mask is not None):
        raise UserError("task 'inpaint' needs a mask that says where the picture is known, and no other task takes one")
    if mask is None:
        return None
    mask = np.asarray(mask)
    if mask.shape not in (picture.shape[:2], (*picture.shape[:2], 1)):
        raise UserError(f"the mask has shape {mask.shape} and the picture {picture.shape[:2]}; they must be equal")
    known = (mask != 0).reshape(*picture.shape[:2], 1)
    if known.all() or not known.any():
        raise UserError(f"by the mask {'nothing of the picture is missing' if known.all() else 'nothing is known'}: it "
                        "is not 0 where the picture is known, and 0 where it is missing")
    return known


def _check_options(task: str, factor: int | None, blur: float | None) -> None:
    for name, value, owner in (("factor", factor, "superres"), ("blur", blur, "deblur")):
        if (task == owner) != (value is not None):
            raise UserError(f"task {owner!r} needs {name}, and no other task takes it")


def _by_method(method: str, config: DipConfig, given: Measurements) -> Float[np.ndarray, "h w c"]:
    """The picture restored by another method than a fit, in [0, 1]. Raises UserError when it is not finite."""
    measurement, known = measurement_of(given, 0, config), None if given.known is None else given.known[0]
    restore_it = restorer_for(method, measurement, None if known is None else jnp.asarray(known))
    found = np.asarray(restore_it(measurement, jax.random.key(config.seed)).picture)
    if not np.isfinite(found).all():
        raise UserError(f"method {method!r} made NaN or infinite numbers of this picture; another may help")
    found = made_black_again(config, given, 0, found)
    return blended(config.blend, found, given.measurements[0], known) if config.blend else found


def _fitted(config: DipConfig, given: Measurements, progress: bool) -> Float[np.ndarray, "h w c"]:
    """The restored picture in [0, 1]. Raises UserError when the fit diverges."""
    boxes, channels = fit_cost.fit_boxes(config, given.size), given.measurements.shape[-1]
    fit = make_fit(config, channels, boxes[0][2:])
    fit_cost.check_fit_memory(config, fit, boxes, channels, 1)
    fits = make_fits(config, given)
    batch = Batch(fit, fits.problems, start_fits(config, fit, fits), jax.default_backend() != "cpu")
    step, chunk = 0, fit_cost.short_chunk(config, boxes, 1, config.num_steps)
    with tqdm(total=config.num_steps, unit="step", dynamic_ncols=True, disable=not progress) as bar:
        while step < config.num_steps and not np.all(batch.part.stopped):
            count = min(chunk, config.num_steps - step)
            _, curves = batch.advance(count)
            if not np.isfinite(curves["loss"][curves["active"]]).all():
                raise UserError(f"the fit diverged: its loss is not finite by step {step + count}")
            step += count
            batch.compact()
            bar.update(count)
    return outcome(config, given, fit, fits, batch.states()).restored[0].mean(0)
