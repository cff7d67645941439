"""System 001's UNet: LayerNorm over the whole feature map, three levels, 28x28 pixels.

Quirks kept: `te1` adds one scalar to a one-channel image, and the first LayerNorm takes it away again, so it has no
effect; `b_out_2.ln` exists and is never used; skips stand first in every concatenation.
"""
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from dipddpm_jax.networks.layers import Conv, ConvTranspose, Dense, image_norm, in_order
from dipddpm_jax.types import Features, Images, Labels, Times, UserError


def time_table(num_steps: int, dim: int) -> Float[Array, "levels dim"]:
    """Row t: sin and cos of t * 10000^(-2c/dim) with c the even COLUMN, so frequencies fall twice as fast as usual.

    Raises ValueError for an odd `dim`.
    """
    if dim % 2:
        raise ValueError(f"the time table needs an even width; got {dim}")
    frequency = np.float32(1 / 10_000 ** (2 * np.arange(0, dim, 2) / dim))
    angle = np.float32(np.arange(num_steps)[:, None] * frequency)  # rounded as the original rounds, for an equal table
    return jnp.asarray(np.stack([np.sin(angle), np.cos(angle)], -1).reshape(num_steps, dim), jnp.float32)


class TimeTable(nn.Module):
    """A frozen embedding. A buffer, since the original stores it (and a checkpoint may hold another table)."""

    num_steps: int
    dim: int

    @nn.compact
    def __call__(self, rows: Times) -> Float[Array, "b d"]:
        return self.variable("buffers", "embedding", time_table, self.num_steps, self.dim).value[rows]


class Block(nn.Module):
    """LayerNorm, convolution, SiLU, convolution, SiLU; no residual."""

    width: int
    normalize: bool = True

    def setup(self):
        self.ln = image_norm()
        self.conv1 = Conv(self.width, padding=1)
        self.conv2 = Conv(self.width, padding=1)

    def __call__(self, x: Images) -> Features:
        normal = self.ln(x)  # called even when unused, since the original holds the parameters
        return nn.silu(self.conv2(nn.silu(self.conv1(normal if self.normalize else x))))


def _down(width: int) -> Conv:
    return Conv(width, 4, stride=2, padding=1)


def _up(width: int) -> ConvTranspose:
    return ConvTranspose(width, 4, stride=2, padding=1)


def _time(width: int) -> list:
    return [Dense(width), nn.silu, Dense(width)]


class SmallUNet(nn.Module):
    """MyUNet. `widths` of 10, 20, 40 is the original; heights and widths of pictures must be 28."""

    num_steps: int = 1000
    time_dim: int = 100
    widths: tuple[int, int, int] = (10, 20, 40)
    channels: int = 1

    def setup(self):
        a, b, c = self.widths
        self.time_embed = TimeTable(self.num_steps, self.time_dim)
        self.te1, self.b1, self.down1 = _time(self.channels), [Block(a), Block(a), Block(a)], _down(a)
        self.te2, self.b2, self.down2 = _time(a), [Block(b), Block(b), Block(b)], _down(b)
        self.te3, self.b3 = _time(b), [Block(c), Block(c), Block(c)]
        self.down3 = [Conv(c, 2), nn.silu, _down(c)]
        self.te_mid, self.b_mid = _time(c), [Block(b), Block(b), Block(c)]
        self.up1 = [_up(c), nn.silu, ConvTranspose(c, 2)]
        self.te4, self.b4, self.up2 = _time(2 * c), [Block(c), Block(b), Block(b)], _up(b)
        self.te5, self.b5, self.up3 = _time(2 * b), [Block(b), Block(a), Block(a)], _up(a)
        self.te_out, self.b_out = _time(2 * a), [Block(a), Block(a), Block(a, normalize=False)]
        self.conv_out = Conv(self.channels, padding=1)

    def __call__(self, x: Images, t: Times, labels: Labels | None = None, train: bool = False) -> Images:
        if x.shape[1:3] != (28, 28):
            raise UserError(f"this UNet is for pictures of 28x28 pixels, not {x.shape[1]}x{x.shape[2]}")
        time = self.time_embed(t - 1).astype(x.dtype)  # the original counts its steps from 0

        def stage(embed, blocks, x):
            return in_order(blocks, x + in_order(embed, time)[:, None, None, :])

        x1 = stage(self.te1, self.b1, x)
        x2 = stage(self.te2, self.b2, self.down1(x1))
        x3 = stage(self.te3, self.b3, self.down2(x2))
        mid = stage(self.te_mid, self.b_mid, in_order(self.down3, x3))
        y = stage(self.te4, self.b4, jnp.concatenate([x3, in_order(self.up1, mid)], -1))
        y = stage(self.te5, self.b5, jnp.concatenate([x2, self.up2(y)], -1))
        y = stage(self.te_out, self.b_out, jnp.concatenate([x1, self.up3(y)], -1))
        return self.conv_out(y)
