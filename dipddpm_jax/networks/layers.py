"""PyTorch-like layers: what the networks are written in.

A layer's parameters start as PyTorch's do, so that training curves can be compared, not only forwards. Attribute
names of the networks are PyTorch's; `torch_weights` turns them into state_dict names by one rule.
"""
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from dipddpm_jax import convolution
from dipddpm_jax.networks.initial import initial_variables as initial_variables
from dipddpm_jax.networks.initial import torch_kernel, torch_uniform
from dipddpm_jax.networks.pixels import Rows, over_pixels, rest_of_mean, to_pixels, without_share
from dipddpm_jax.networks.resizing import double_size as double_size
from dipddpm_jax.networks.resizing import max_pool as max_pool
from dipddpm_jax.networks.resizing import windows as windows
from dipddpm_jax.types import Features, Images


class Conv(nn.Module):
    """Conv2d. `padding` counts pixels on every side; `mode` says what they hold."""

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: int = 0
    mode: Literal["zeros", "reflect"] = "zeros"
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Images) -> Features:
        k, p = self.kernel_size, self.padding
        shape = (k, k, x.shape[-1], self.features)
        kernel = self.param("kernel", torch_kernel, shape)
        y = convolution.conv(x, kernel.astype(x.dtype), self.stride, ((p, p), (p, p)), self.mode)
        if self.use_bias:
            bias = self.param("bias", torch_uniform(int(np.prod(shape[:3]))), (self.features,))
            y = y + to_pixels(bias.astype(x.dtype), y)
        return y


class ConvTranspose(nn.Module):
    """ConvTranspose2d. The kernel is (height, width, OUT, IN), so that its fan-in is PyTorch's."""

    features: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Images) -> Features:
        k = self.kernel_size
        kernel = self.param("kernel", torch_kernel, (k, k, self.features, x.shape[-1]))
        y = convolution.conv_transpose(x, kernel.astype(x.dtype), self.stride, self.padding)
        if self.use_bias:
            bias = self.param("bias", torch_uniform(k * k * self.features), (self.features,))
            y = y + to_pixels(bias.astype(x.dtype), y)
        return y


class Dense(nn.Module):
    """Linear. The kernel is (in, out)."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        kernel = self.param("kernel", torch_kernel, (x.shape[-1], self.features))
        bias = self.param("bias", torch_uniform(x.shape[-1]), (self.features,))
        y = x @ kernel.astype(x.dtype)
        return y + to_pixels(bias.astype(x.dtype), y)


class BatchNorm(nn.Module):
    """BatchNorm2d: normalises by the biased variance of the batch, and keeps a running UNBIASED one (momentum 0.1)."""

    epsilon: float = 1e-5
    momentum: float = 0.1

    @nn.compact
    def __call__(self, x: Images, train: bool) -> Features:
        c = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        kept_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,))
        kept_var = self.variable("batch_stats", "var", jnp.ones, (c,))
        if not train:
            return _normalised(x, kept_mean.value, jnp.sqrt(kept_var.value + self.epsilon), scale, bias)
        y, mean, var = _normalised_by_itself(x, scale, bias, self.epsilon)
        if self.is_mutable_collection("batch_stats") and not self.is_initializing():
            n = x.size // c
            kept_mean.value = (1 - self.momentum) * kept_mean.value + self.momentum * mean
            kept_var.value = (1 - self.momentum) * kept_var.value + self.momentum * var * (n / max(n - 1, 1))
        return y


def _normalised(x: Images, mean: Rows, deviation: Rows, scale: Rows, bias: Rows) -> Features:
    mean, gain, bias = (to_pixels(row.astype(x.dtype), x) for row in (mean, scale / deviation, bias))
    return (x - mean) * gain + bias  # a single shift would cost digits where the mean is large


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _normalised_by_itself(x: Images, scale: Rows, bias: Rows, epsilon: float) -> tuple[Features, Rows, Rows]:
    """x normalised by its own mean and variance over batch and pixels, and these two."""
    mean, rest, var = _moments(x)
    deviation = jnp.sqrt(var + epsilon)
    return _normalised(x, mean, deviation, scale, bias - rest * (scale / deviation)), mean, var


def _moments(x: Images) -> tuple[Rows, Rows, Rows]:
    """Mean, what its rounding left over, and biased variance of each channel, in float32 or more.

    A mean that is off by a rounding moves all pixels alike, which a later sum over pixels does not forgive.
    """
    x, n = x.astype(jnp.promote_types(x.dtype, jnp.float32)), x.size // x.shape[-1]
    mean = over_pixels(x) / n
    return mean, rest_of_mean(x, mean), over_pixels(jnp.square(x - to_pixels(mean, x))) / n


@_normalised_by_itself.defjvp
def _by_itself_tangents(epsilon: float, primals: tuple, tangents: tuple) -> tuple:
    """Ioffe and Szegedy 2015, section 3: dy = P(scale / deviation * dx) + N dscale + dbias.

    N is the normalised x, and P takes out its share and the mean. P is its own transpose, so that the gradient needs
    two sums, of which autodiff makes at least four. The statistics count as constants.
    """
    (x, scale, bias), (dx, d_scale, d_bias) = primals, tangents
    mean, rest, var = _moments(x)  # once: devices that share a picture would exchange them twice
    deviation = jnp.sqrt(var + epsilon)
    y = _normalised(x, mean, deviation, scale, bias - rest * (scale / deviation))
    wide, shrink = x.astype(mean.dtype), 1 / deviation  # to divide every pixel would cost a picture more in memory
    normal = (wide - to_pixels(mean, wide)) * to_pixels(shrink, wide) - to_pixels(rest * shrink, wide)
    moved = to_pixels((scale * shrink).astype(mean.dtype), wide) * dx.astype(mean.dtype)
    rows = (to_pixels(row.astype(mean.dtype), wide) for row in (d_scale, d_bias))
    dy = without_share(moved, normal) + normal * next(rows) + next(rows)
    statistics = jax.lax.stop_gradient((mean, var))
    return (y, *statistics), (dy.astype(y.dtype), jnp.zeros_like(mean), jnp.zeros_like(var))


def group_norm(groups: int) -> nn.GroupNorm:
    """GroupNorm with PyTorch's epsilon and the exact (two-pass) variance."""
    return nn.GroupNorm(groups, epsilon=1e-5, use_fast_variance=False)


def image_norm() -> nn.LayerNorm:
    """LayerNorm over (height, width, channels) jointly, with one gain per element, as system 001 has it."""
    axes = (-3, -2, -1)
    return nn.LayerNorm(epsilon=1e-5, reduction_axes=axes, feature_axes=axes, use_fast_variance=False)


def sinusoid(t: Float[Array, "b"], dim: int, divisor: int) -> Float[Array, "b d"]:
    """[sin(t f), cos(t f)] with f_j = 10000^(-j / divisor), j < dim / 2 (Vaswani et al. 2017, section 3.5)."""
    # Rounded where the originals round: an exact exponent would move the angle by 6e-5 at t = 1000.
    exponent = np.arange(dim // 2, dtype=np.float32) * np.float32(-np.log(10_000) / divisor)
    angle = t[:, None] * jnp.asarray(np.float32(np.exp(np.float64(exponent))), t.dtype)[None]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


def in_order(layers: Any, x: Float[Array, "b ..."], *args: Any) -> Float[Array, "b ..."]:
    """Applies layers in order; `args` go to each of them."""
    for layer in layers:
        x = layer(x, *args)
    return x


def gelu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The exact GELU, PyTorch's default; flax's takes twice the time, since it computes erfc."""
    return 0.5 * x * (1 + jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype)))
