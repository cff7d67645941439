"""Exact posteriors: what can be known of a picture when the prior is a mixture of Gaussians around given pictures.

The prior is x ~ (1/n) sum_i N(x_i, s^2 I); one picture makes it a Gaussian. Its denoiser is in closed form, and so are,
for y = A x + N(0, sigma^2 I), the posterior's weights, mean, deviation and samples: bounds that no method beats. With
rho = sigma^2 / s^2 and R y = A^T (A A^T + rho I)^-1 y (`Operator.solve`), component i of the posterior is
N(x_i + R (y - A x_i), s^2 (I - R A)), whose covariance is the same for all i. So one application of R to y serves all
components; what depends on the x_i alone is computed once for an operator and a noise level.
"""
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dipddpm_jax.diffusion.schedules import NoiseSchedule
from dipddpm_jax.diffusion.training import Pixels
from dipddpm_jax.inverse.measurement import Measurement, Restoration, Restore
from dipddpm_jax.inverse.noises import gaussian_sigma
from dipddpm_jax.inverse.operators import Operator
from dipddpm_jax.types import Denoise, Image, Images, Prediction

NETWORK = Pixels()
EXACT = jax.lax.Precision.HIGHEST  # a distance among thousands: GPUs and TPUs would round the factors to 10 or 7 bits
CHUNK = 64  # unit pictures whose response is computed at once


class Mixture(NamedTuple):
    """The prior (1/n) sum_i N(centres[i], deviation^2 I), pixels in [0, 1]."""

    centres: Images
    deviation: float

    def draw(self, key: Key[Array, ""], count: int) -> Images:
        """`count` pictures; not clipped."""
        which, noise = jax.random.split(key)
        rows = jax.random.randint(which, (count,), 0, len(self.centres))
        shape = (count, *self.centres.shape[1:])
        return self.centres[rows] + self.deviation * jax.random.normal(noise, shape, self.centres.dtype)


def exact_denoiser(prior: Mixture, schedule: NoiseSchedule, pixels: Pixels = NETWORK) -> Denoise:
    """The denoiser E[x0 | x_t] that a network trained without end on this prior would be.

    x_t = a x0 + s_t eps in the network's units (`pixels`), where the prior has centres c_i and deviation v:
    E[x0 | x_t] = m + g (x_t - a m), m = sum_i w_i c_i, g = a v^2 / (a^2 v^2 + s_t^2),
    w = softmax(-|x_t - a c_i|^2 / (2 (a^2 v^2 + s_t^2))).
    What comes back is a pytree, so that a compiled function can take it as an argument.
    """
    centres = pixels.to_network(prior.centres)
    rows = centres.reshape(len(centres), -1)
    middle = rows.mean(0)  # distances are taken around it: smaller numbers, smaller rounding errors
    rows = rows - middle[None]
    deviation = float(prior.deviation) / pixels.std
    inner = partial(_mixture_denoise, schedule, deviation)
    return jax.tree_util.Partial(inner, rows, jnp.square(rows).sum(1), middle)


def _mixture_denoise(
    schedule: NoiseSchedule, deviation: float, rows: Float[Array, "n d"], norms: Float[Array, "n"],
    middle: Float[Array, "d"], x: Images, t: Int[Array, ""],
) -> Prediction:
    a, s = (scale(t).astype(x.dtype) for scale in (schedule.signal_scale, schedule.noise_scale))
    spread = jnp.square(a * deviation) + jnp.square(s)
    flat = x.reshape(len(x), -1) - a * middle[None]
    products = jnp.matmul(flat, rows.T, precision=EXACT)
    weights = jax.nn.softmax((a * products - jnp.square(a) / 2 * norms[None]) / spread, -1)
    mean = jnp.matmul(weights, rows, precision=EXACT)
    x0 = (middle[None] + mean + a * deviation**2 / spread * (flat - a * mean)).reshape(x.shape)
    return Prediction(x0=x0, eps=(x - a * x0) / jnp.maximum(s, 1e-8))


class Inference(NamedTuple):
    """All that the posteriors of a prior, an operator A and a noise level share, whatever was measured.

    `moved` are the centres without what A sees of them, x_i - R A x_i; `energy` is x_i^T R A x_i / s^2, around
    `middle`, the mean centre; `within` is the diagonal of s^2 (I - R A), the variance of every component.
    """

    prior: Mixture
    sigma: float | Float[Array, ""]
    middle: Image
    moved: Images
    energy: Float[Array, "n"]
    within: Image


class Posterior(NamedTuple):
    """p(x | y): the weights of the prior's components, the mean, and the standard deviation of each pixel."""

    weights: Float[Array, "n"]
    mean: Image
    deviation: Image


@partial(jax.jit, static_argnames="operator")
def infer(prior: Mixture, operator: Operator, sigma: float | Float[Array, ""]) -> Inference:
    """What `posterior_of` and `posterior_samples` need of the same operator; sigma = 0 takes its pseudo-inverse."""
    middle, ridge = prior.centres.mean(0), (sigma / prior.deviation) ** 2

    def seen(image: Image) -> Image:
        return operator.solve(operator.forward(image), ridge)

    def seen_of_itself(i: Int[Array, ""]) -> Float[Array, ""]:
        unit = jnp.zeros(middle.size, middle.dtype).at[i].set(1)
        return seen(unit.reshape(middle.shape)).reshape(-1)[i]

    around = prior.centres - middle[None]
    explained = jax.lax.map(seen, around, batch_size=CHUNK)
    gains = jax.lax.map(seen_of_itself, jnp.arange(middle.size), batch_size=CHUNK).reshape(middle.shape)
    energy = (around * explained).reshape(len(around), -1).sum(1) / prior.deviation**2
    within = prior.deviation**2 * jnp.maximum(1 - gains, 0)
    return Inference(prior, sigma, middle, around - explained, energy, within)


def _explained(given: Inference, operator: Operator, y: Float[Array, "..."], image: Image) -> Image:
    """R (y - A image)."""
    return operator.solve(y - operator.forward(image), (given.sigma / given.prior.deviation) ** 2)


def _weights(given: Inference, explained: Image) -> Float[Array, "n"]:
    """log w_i = x_i^T R y / s^2 - x_i^T R A x_i / (2 s^2) + const, with x_i and y around the mean centre.

    It is -r^T (s^2 A A^T + sigma^2 I)^-1 r / 2 with r = y - A x_i, less what all share: the determinants are equal.
    """
    around = (given.prior.centres - given.middle[None]).reshape(len(given.energy), -1)
    products = jnp.matmul(around, explained.reshape(-1), precision=EXACT)
    return jax.nn.softmax(products / given.prior.deviation**2 - given.energy / 2)


@partial(jax.jit, static_argnames="operator")
def posterior_of(given: Inference, operator: Operator, y: Float[Array, "..."]) -> Posterior:
    """The exact posterior of one measurement: its mean is sum_i w_i (x_i + R (y - A x_i)), its variance that within
    the components plus that between their means."""
    explained = _explained(given, operator, y, given.middle)
    weights = _weights(given, explained)
    flat = given.moved.reshape(len(weights), -1)
    shift = jnp.matmul(weights, flat, precision=EXACT)
    between = jnp.matmul(weights, jnp.square(flat - shift[None]), precision=EXACT)
    mean = given.middle + explained + shift.reshape(explained.shape)
    return Posterior(weights, mean, jnp.sqrt(given.within + between.reshape(explained.shape)))


@partial(jax.jit, static_argnames=("operator", "count"))
def posterior_samples(
    given: Inference, operator: Operator, y: Float[Array, "..."], key: Key[Array, ""], count: int
) -> Images:
    """Independent draws of p(x | y): a component by its weight, then Matheron's rule: for x and y' = A x + noise drawn
    from that component, x + R (y - y') has the posterior's law."""
    weights = _weights(given, _explained(given, operator, y, given.middle))

    def one(key: Key[Array, ""]) -> Image:
        which, noise, error = jax.random.split(key, 3)
        centre = given.prior.centres[jax.random.choice(which, len(weights), p=weights)]
        x = centre + given.prior.deviation * jax.random.normal(noise, centre.shape, centre.dtype)
        return x + _explained(given, operator, y - given.sigma * jax.random.normal(error, y.shape, y.dtype), x)

    return jax.vmap(one)(jax.random.split(key, count))


def exact_posterior(prior: Mixture, samples: int = 0) -> Restore:
    """The restorer that gives back the posterior's mean and deviation, and as many samples of it.

    Raises UserError for noise that is not Gaussian.
    """
    def restore(measurement: Measurement, key: Key[Array, ""]) -> Restoration:
        y, operator, noise = measurement
        given = infer(prior, operator, gaussian_sigma(noise))
        mean, spread = posterior_of(given, operator, y)[1:]
        drawn = posterior_samples(given, operator, y, key, samples) if samples else None
        return Restoration(mean, spread, samples=drawn)

    return restore
