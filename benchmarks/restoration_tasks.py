"""What benchmarks/restoration.py measures of a clean picture, and the classical rows that are of no use elsewhere."""
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dipddpm_jax.inverse import impulses, operators
from dipddpm_jax.inverse.cut_off import estimate_sigma_cut_off
from dipddpm_jax.inverse.measurement import Cost, Measurement, Restoration, Restore
from dipddpm_jax.inverse.noises import Gaussian, Noise, Poisson


class Task(NamedTuple):
    """What is measured of a clean picture (h, w, c), whether the level of its noise is estimated, the share of its
    pixels that impulses strike, which count as missing where they are found, and whether it is cut off at black and
    white, as a file of 8 bits would be."""

    operator: Callable[[jax.Array, int, int], operators.Operator]  # (key, height, width) -> A
    noise: Noise
    estimated: bool = False
    impulses: float = 0.0
    cut_off: bool = False


def keeps(share: float) -> Callable[[jax.Array, int, int], operators.Operator]:
    return lambda key, height, width: operators.masked(operators.random_mask(key, height, width, share))


def whole(key: jax.Array, height: int, width: int) -> operators.Operator:
    return operators.identity


TASKS = {
    **{f"sigma-{sigma}": Task(whole, Gaussian(sigma / 255), True) for sigma in (15, 25, 50)},
    **{f"cut-{sigma}": Task(whole, Gaussian(sigma / 255), True, cut_off=True) for sigma in (25, 50)},
    "poisson-30": Task(whole, Poisson(30.0)),
    "read-out": Task(whole, Poisson(30.0, 20 / 255)),
    "impulse-30": Task(whole, Gaussian(0.0), impulses=0.3),
    "inpaint-50": Task(keeps(0.5), Gaussian(0.0)),
    "inpaint-10": Task(keeps(0.1), Gaussian(0.0)),
    "superres-4": Task(lambda _, height, width: operators.downsample(height, width, 4), Gaussian(0.0)),
    "deblur-1.6": Task(lambda _, height, width: operators.blur(height, width, 1.6), Gaussian(2**0.5 / 255)),
}
DENOISE = ("sigma-15", "sigma-25", "sigma-50", "poisson-30", "read-out")
CUT_OFF = ("cut-25", "cut-50")
HOLES = ("impulse-30", "inpaint-50", "inpaint-10")
BEHIND = ("superres-4", "deblur-1.6")
INVERSE = (*HOLES, *BEHIND)


def measured(task: Task, clean: np.ndarray, place: int, seed: int, told: bool) -> Measurement:
    """The measurement of a picture: noise and mask depend on its place and the seed, for all methods alike."""
    mask_key, noise_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), place))
    operator = task.operator(mask_key, *clean.shape[:2])
    y = task.noise.draw(noise_key, operator.forward(jnp.asarray(clean)))
    if task.cut_off:
        y = jnp.clip(y, 0, 1)
    if task.impulses:
        y = impulses.add_impulses(mask_key, y, task.impulses)
        operator = operators.masked(jnp.asarray(impulses.not_impulses(np.asarray(y))))
        y = operator.forward(y)
    noise = task.noise
    if task.estimated and not told:
        noise = Gaussian(estimate_sigma_cut_off(np.asarray(y)))
    return Measurement(y, operator, noise)


def nothing(measurement: Measurement, key: jax.Array) -> Restoration:
    """The nearest picture that explains the measurement: y itself, holes black, A^T (A A^T + r)^-1 y."""
    ridge = 0.01 if float(jnp.mean(measurement.noise.variance(measurement.y))) else 0.0
    denoises = measurement.operator == operators.identity
    return Restoration(measurement.y if denoises else measurement.operator.solve(measurement.y, ridge))


def biharmonic(measurement: Measurement, key: jax.Array) -> Restoration:
    """Holes filled by the biharmonic equation (scikit-image), for masks."""
    from skimage.restoration import inpaint_biharmonic

    holes = np.asarray(measurement.operator.forward(jnp.ones_like(measurement.y)))[..., 0] == 0
    return Restoration(jnp.asarray(inpaint_biharmonic(np.asarray(measurement.y), holes, channel_axis=-1), jnp.float32))


def with_error(fill: Restore) -> Restore:
    """What fills holes, and how wrong it is there: by a tenth of the known pixels that it is not shown."""
    def restore(measurement: Measurement, key: jax.Array) -> Restoration:
        known = measurement.operator.forward(jnp.ones_like(measurement.y))[..., :1]
        hidden = operators.held_out_mask(key, known, 0.1)
        shown = operators.masked(known * (1 - hidden))
        blind = fill(Measurement(shown.forward(measurement.y), shown, measurement.noise), key).picture
        wrong = jnp.sum(hidden * (blind - measurement.y) ** 2) / jnp.sum(hidden * jnp.ones_like(measurement.y))
        return Restoration(fill(measurement, key).picture, None, Cost(error=float(wrong * (1 - known.mean()))))

    return restore


def bicubic(measurement: Measurement, key: jax.Array) -> Restoration:
    """Cubic interpolation (scikit-image) to the sides that the operator takes."""
    from skimage.transform import resize

    shape = jax.eval_shape(measurement.operator.adjoint, measurement.y).shape
    return Restoration(jnp.asarray(resize(np.asarray(measurement.y), shape, order=3, mode="edge"), jnp.float32))


def richardson_lucy(blur: float, steps: int = 30) -> Restore:
    """Richardson and Lucy's multiplicative updates (scikit-image), which read the blur's kernel off the operator's
    standard deviation; the picture is mirrored at its edges first."""
    def restore(measurement: Measurement, key: jax.Array) -> Restoration:
        from skimage.restoration import richardson_lucy as updates

        reach = int(np.ceil(4 * blur))
        line = np.exp(-0.5 * (np.arange(-reach, reach + 1) / blur) ** 2)
        kernel = np.outer(line, line) / line.sum() ** 2
        edges = ((2 * reach,) * 2,) * 2
        found = [updates(np.pad(np.maximum(channel, 0), edges, "symmetric"), kernel, steps)
                 for channel in np.moveaxis(np.asarray(measurement.y, np.float64), -1, 0)]
        inner = slice(2 * reach, -2 * reach)
        return Restoration(jnp.asarray(np.stack(found, -1)[inner, inner], jnp.float32))

    return restore
