"""Noise2Noise from the pixel pairs of one picture (ZS-N2N: Mansour and Heckel 2023, "Zero-Shot Noise2Noise").

Two pictures of half the sides, made of different pixels of the same noisy one, show nearly the same scene under
independent noise: a tiny network that predicts one from the other cannot learn the noise of either.
"""
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Key

from dipddpm_jax.dip.stopping import Scalar
from dipddpm_jax.errors import UserError
from dipddpm_jax.inverse.measurement import Cost, Measurement, Restoration, Restore
from dipddpm_jax.inverse.operators import identity
from dipddpm_jax.networks.layers import Conv, initial_variables
from dipddpm_jax.types import Features, Image, Images


class PairNet(nn.Module):
    """The noise in a picture, from two 3x3 convolutions of `width` channels and a 1x1 one (their section 3.3)."""

    channels: int = 1
    width: int = 48

    @nn.compact
    def __call__(self, x: Images) -> Features:
        for i in (1, 2):
            x = nn.leaky_relu(Conv(self.width, padding=1, name=f"conv{i}")(x), 0.2)
        return Conv(self.channels, 1, name="conv3")(x)


def pixel_pair(image: Image) -> Float[Array, "2 h2 w2 c"]:
    """The means of the two diagonals of every 2x2 block (their eq. 5); a last odd row or column is left out."""
    height, width = (side // 2 * 2 for side in image.shape[:2])
    a, b, c, d = (image[i:height:2, j:width:2] for i in (0, 1) for j in (0, 1))
    return jnp.stack([(a + d) / 2, (b + c) / 2])


def pair_loss(noise_of: Callable[[Images], Features], image: Image) -> Scalar:
    """Residual and consistency loss (their eq. 6 and 8), where the restored picture is g(x) = x - f(x):
        L_res = 1/2 (mean |g(D1 y) - D2 y|^2 + mean |g(D2 y) - D1 y|^2)
        L_cons = 1/2 (mean |g(D1 y) - D1 g(y)|^2 + mean |g(D2 y) - D2 g(y)|^2)
    """
    pair = pixel_pair(image)
    restored = pair - noise_of(pair)
    whole = image - noise_of(image[None])[0]
    return jnp.mean(jnp.square(restored - pair[::-1])) + jnp.mean(jnp.square(restored - pixel_pair(whole)))


def pixel_pairs(width: int = 48, steps: int = 2000, learning_rate: float = 1e-3, halve_every: int = 1000) -> Restore:
    """Denoises by ZS-N2N: y - f(y), f the minimiser of `pair_loss` after `steps` of Adam, whose rate is halved every
    `halve_every` steps. For independent noise of mean 0, whatever its law; neither kind nor level is looked at.

    Raises UserError where the picture is not measured pixel by pixel, or has a side of one pixel.
    """
    optimizer = optax.adam(optax.exponential_decay(learning_rate, halve_every, 0.5, staircase=True))

    @functools.partial(jax.jit, static_argnums=0)
    def fitted(network, params, image):
        def step(state, _):
            params, opt_state = state
            gradient = jax.grad(lambda p: pair_loss(lambda x: network.apply({"params": p}, x), image))(params)
            change, opt_state = optimizer.update(gradient, opt_state, params)
            return (optax.apply_updates(params, change), opt_state), None

        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=steps)
        return image - network.apply({"params": params}, image[None])[0]

    def restore(measurement: Measurement, key: Key[Array, ""]) -> Restoration:
        y = measurement.y
        if measurement.operator != identity or y.ndim != 3 or min(y.shape[:2]) < 2:
            raise UserError("pixel pairs denoise a picture (h, w, c) of at least 2x2 pixels whose every pixel was "
                            f"measured; a measurement of shape {y.shape} through another operator has no such pairs")
        network = PairNet(y.shape[-1], width)
        params = initial_variables(network, key, y[None])["params"]
        return Restoration(fitted(network, params, y), None, Cost(steps=steps))

    return restore
