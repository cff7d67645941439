"""An educated start: a deep image prior whose weights begin as the trained denoiser's, not at random.

As EDIP (Barbano et al. 2022): a network that was trained on other pictures is fitted to the one that was measured, from
a first guess of it instead of noise. Here the network is the denoiser at one fixed, small time.
"""
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key, PyTree

from dipddpm_jax.diffusion.training import Pixels
from dipddpm_jax.dip import crossfit, stopping
from dipddpm_jax.dip.codes import fixed
from dipddpm_jax.dip.fit import Dip, DipState
from dipddpm_jax.dip.folds import fold_masks
from dipddpm_jax.dip.problem import DipProblem
from dipddpm_jax.hybrids.prior import DiffusionPrior, time_of_noise
from dipddpm_jax.inverse.measurement import Measurement, Restoration, Restore
from dipddpm_jax.inverse.noises import gaussian_sigma
from dipddpm_jax.inverse.operators import Operator
from dipddpm_jax.types import Denoise, Image, Images


class AtTime(nn.Module):
    """A denoiser at one time as a network of one input: x_t to its clean picture, in pixels. Its weights are given."""

    denoiser: Callable[[PyTree], Denoise]
    time: int
    pixels: Pixels

    def __call__(self, x: Images, train: bool = False) -> Images:
        return self.pixels.to_pixels(self.denoiser(self.variables["params"])(x, jnp.int32(self.time)).x0)


def educated_start(
    prior: DiffusionPrior, folds: int = 5, steps: int = 200, rate: float = 1e-4, level: float = 0.1,
    patience: int = 60, average_decay: float = 0.95, smoothness: float = 0.01,
) -> Restore:
    """`folds` fits of f_theta(z) = x0_theta(a z + noise, t), which lower mean |A f_theta(z) - y|^2 by Adam from the
    trained weights, and their mean (`dip.crossfit`): each is blind to another part of y, in the loss and in z, and
    keeps the average of its outputs with the lowest error there.

    z is the smooth picture that explains what is seen, and t the time of the noise of y, or of `level` (white is 1) if
    that is more; noise that z lacks is added to it, afresh at every step. Raises UserError for a prior without weights,
    and for noise that is not Gaussian or out of the schedule's reach. Not for use under `jit`.
    """
    learned = prior.weights()

    def signal(time: int) -> float:
        return float(np.sqrt(prior.schedule.alpha_bars[time]))

    @functools.lru_cache
    def fit_for(operator: Operator, sigma: float) -> Dip:
        time = time_of_noise(prior, max(sigma, level))
        added = signal(time) * max(level**2 - sigma**2, 0.0) ** 0.5 / prior.pixels.std
        return Dip(AtTime(learned.denoiser, time, prior.pixels), optax.adam(rate), operator.forward,
                   stopping.held_out(patience), code_rule=fixed(added), average_decay=average_decay)

    def restore(measurement: Measurement, key: Key[Array, ""]) -> Restoration:
        sigma = float(gaussian_sigma(measurement.noise))
        fit = fit_for(measurement.operator, sigma)
        a = signal(fit.network.time)
        known = crossfit.observed_pixels(measurement, key)
        parts = fold_masks(jax.random.fold_in(key, 0), known, folds)

        def start(part: Float[Array, "h w 1"], place: Int[Array, ""]) -> tuple[DipProblem, DipState]:
            z = smooth_explanation(measurement.operator, measurement.y, known * (1 - part), smoothness)
            problem = DipProblem(a * prior.pixels.to_network(z[None])[0], measurement.y, known=known, held_out=part)
            return problem, fit.start(problem, {"params": learned.params}, jax.random.fold_in(key, 1 + place))

        problems, states = jax.vmap(start)(parts, jnp.arange(folds))
        states = crossfit.run_fits(fit, problems, states, steps)
        return crossfit.mean_of_fits(measurement, known, parts, states.kept.average, int(states.step.sum()))

    return restore


@functools.partial(jax.jit, static_argnums=0)
def smooth_explanation(
    operator: Operator, y: Float[Array, "..."], seen: Float[Array, "..."], smoothness: float | Float[Array, ""]
) -> Image:
    """argmin_x |seen (A x - y)|^2 + smoothness |gradient of x|^2, by conjugate gradients."""
    def energy(x: Image) -> Float[Array, ""]:
        steps = [jnp.square(jnp.diff(x, axis=axis)).sum() for axis in (0, 1)]
        return (jnp.square(seen * operator.forward(x)).sum() + smoothness * sum(steps)) / 2

    wanted = operator.adjoint(seen * y)
    return jax.scipy.sparse.linalg.cg(jax.grad(energy), wanted, tol=1e-6, maxiter=300)[0]
