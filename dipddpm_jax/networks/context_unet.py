"""System 004's ContextUnet: a UNet whose context multiplies and whose time shifts the features on the way up.

One class serves both originals: system 004 (64x64, several of 24 classes) and TeaPearce (28x28, one digit, fed as -1).
Quirks kept: the "vector" at the bottom is the map that 7x7 pooling leaves (2x2 for a side of 64; leftover rows and
columns are dropped); residual sums are divided by 1.414, not sqrt 2.
"""
from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from dipddpm_jax.networks.layers import (
    BatchNorm,
    Conv,
    ConvTranspose,
    Dense,
    gelu,
    group_norm,
    in_order,
    max_pool,
    windows,
)
from dipddpm_jax.types import Features, Images, Labels, Times, UserError

Activation = Literal["gelu", "relu"]
POOL = 7


def enlargement(height: int, width: int) -> int:
    """How much the bottom map grows again: 8 in system 004, 7 in TeaPearce's script, as the sides demand.

    Raises UserError for sides at which neither gives back the map that it is joined with.
    """
    for factor in (8, 7):
        if all(side % 4 == 0 and 4 * factor <= side == 4 * factor * (side // 4 // POOL) for side in (height, width)):
            return factor
    raise UserError(f"the maps of this network do not fit together for pictures of {height}x{width}; legal sides are "
                    "32, 64, 96, 128, 160, 192, or the multiples of 28")


def _act(name: Activation, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    return gelu(x) if name == "gelu" else nn.relu(x)


class ResidualConvBlock(nn.Module):
    """Two convolutions with BatchNorm; the first one of the network adds its input (or first half) and scales."""

    width: int
    act: Activation
    residual: bool = False

    def setup(self):
        self.conv1 = [Conv(self.width, padding=1), BatchNorm()]
        self.conv2 = [Conv(self.width, padding=1), BatchNorm()]

    def __call__(self, x: Images, train: bool) -> Features:
        first = _act(self.act, self.conv1[1](self.conv1[0](x), train))
        second = _act(self.act, self.conv2[1](self.conv2[0](first), train))
        if not self.residual:
            return second
        return ((x if x.shape[-1] == self.width else first) + second) / 1.414


class UnetDown(nn.Module):
    """A block, then 2x2 max pooling."""

    width: int
    act: Activation

    def setup(self):
        self.model = [ResidualConvBlock(self.width, self.act)]

    def __call__(self, x: Images, train: bool) -> Features:
        return max_pool(in_order(self.model, x, train), 2)


class UnetUp(nn.Module):
    """Joins the skip, doubles the size, two blocks."""

    width: int
    act: Activation

    def setup(self):
        block = (self.width, self.act)
        self.model = [ConvTranspose(self.width, 2, stride=2), ResidualConvBlock(*block), ResidualConvBlock(*block)]

    def __call__(self, x: Features, skip: Features, train: bool) -> Features:
        return in_order(self.model[1:], self.model[0](jnp.concatenate([x, skip], -1)), train)


class EmbedFC(nn.Module):
    """Dense, activation, Dense."""

    width: int
    act: Activation

    def setup(self):
        self.model = [Dense(self.width), lambda x: _act(self.act, x), Dense(self.width)]

    def __call__(self, x: Float[Array, "b i"]) -> Float[Array, "b 1 1 o"]:
        return in_order(self.model, x)[:, None, None]


class ContextUnet(nn.Module):
    """The eps network of (x, t / num_steps, context). Sides S must satisfy S / 4 == 8 floor(S / 28), or 7 for 8.

    `context_value` is what a present class is fed as: 1 in system 004, -1 in TeaPearce's script (its mask has the sign
    turned, in training and in sampling alike). No class is a vector of zeros.
    """

    num_classes: int = 24
    num_steps: int = 400
    width: int = 128
    channels: int = 3
    act: Activation = "gelu"
    context_value: float = 1.0

    def setup(self):
        f, act = self.width, self.act
        self.init_conv = ResidualConvBlock(f, act, residual=True)
        self.down1, self.down2 = UnetDown(f, act), UnetDown(2 * f, act)
        self.timeembed1, self.timeembed2 = EmbedFC(2 * f, act), EmbedFC(f, act)
        self.contextembed1, self.contextembed2 = EmbedFC(2 * f, act), EmbedFC(f, act)
        # GroupNorm is followed by ReLU even where the rest of the network has GELU.
        self.up0 = [None, group_norm(8), nn.relu]  # child 0 depends on the size: see below
        self.up1, self.up2 = UnetUp(f, act), UnetUp(f, act)
        self.out = [Conv(f, padding=1), group_norm(8), nn.relu, Conv(self.channels, padding=1)]

    def context(self, labels: Labels | None, like: Images) -> Float[Array, "b k"]:
        """The vector that stands for the labels: one class an image, or any number of them."""
        if labels is None:
            return jnp.zeros((like.shape[0], self.num_classes), like.dtype)
        if jnp.issubdtype(labels.dtype, jnp.integer):
            labels = nn.one_hot(labels, self.num_classes)
        return self.context_value * labels.astype(like.dtype)

    @nn.compact
    def __call__(self, x: Images, t: Times, labels: Labels | None = None, train: bool = False) -> Images:
        factor = enlargement(*x.shape[1:3])
        context, time = self.context(labels, x), (t.astype(x.dtype) / self.num_steps)[:, None]
        x = self.init_conv(x, train)
        down1 = self.down1(x, train)
        down2 = self.down2(down1, train)
        bottom = _act(self.act, windows(down2, POOL).mean((2, 4)))
        y = in_order(self.up0[1:], ConvTranspose(2 * self.width, factor, stride=factor, name="up0_0")(bottom))
        y = self.up1(self.contextembed1(context) * y + self.timeembed1(time), down2, train)
        y = self.up2(self.contextembed2(context) * y + self.timeembed2(time), down1, train)
        return in_order(self.out, jnp.concatenate([y, x], -1))
