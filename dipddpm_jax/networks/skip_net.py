"""Ulyanov's `skip`: the hourglass network that is fitted to one picture (Ulyanov et al. 2018, deep image prior).

Submodules carry the original's child numbers joined by "_": "1_1_7_2" is child 2 of child 7 of child 1 of child 1. A
Concat has children 0 (skip) and 1 (deeper); children of a Sequential count from 1, and the parts of one convolution
(reflection pad, convolution, pool) from 0, so the convolution itself is 1 with reflection padding and 0 without.
"""
from typing import Literal

import jax.numpy as jnp
from flax import linen as nn

from dipddpm_jax.networks.layers import BatchNorm, Conv, double_size, max_pool, windows
from dipddpm_jax.types import Features, Images, Labels, Times


def _centre(x: Images, height: int, width: int) -> Features:
    top, left = (x.shape[1] - height) // 2, (x.shape[2] - width) // 2
    return x[:, top : top + height, left : left + width]


class SkipNet(nn.Module):
    """`skip` with the options of its authors; the defaults are system 001's network (32x32 digits).

    Any size works: a stride of 2 halves odd sides upwards (pools: downwards), and what is joined is cropped to the
    smaller, so that the output can be LARGER than the input where a level has no skip. `train` means statistics of the
    batch, which is how a deep image prior is always run. Time and labels are ignored.
    """

    channels: int = 1
    down: tuple[int, ...] = (8, 16, 32)
    up: tuple[int, ...] = (8, 16, 32)
    skip: tuple[int, ...] = (0, 4, 4)
    down_size: int = 3
    up_size: int = 3
    skip_size: int = 1
    act: Literal["leaky_relu", "swish", "elu", "none"] = "leaky_relu"
    padding: Literal["reflect", "zeros"] = "reflect"
    downsample: Literal["stride", "avg", "max"] = "stride"
    upsample: Literal["bilinear", "nearest"] = "bilinear"
    use_bias: bool = True
    pointwise: bool = True
    """A 1x1 convolution after each level."""
    sigmoid: bool = True

    @nn.compact
    def __call__(
        self, x: Images, t: Times | None = None, labels: Labels | None = None, train: bool = False
    ) -> Features:
        y = self._level(x, 0, "", train)
        y = self._conv(y, self.channels, 1, "9" if self.pointwise else "6")
        return nn.sigmoid(y) if self.sigmoid else y

    def _level(self, x: Images, i: int, path: str, train: bool) -> Features:
        deeper = f"{path}1_1_" if self.skip[i] else f"{path}1_"
        y = self._block(x, self.down[i], self.down_size, deeper, 1, train, stride=2)
        y = self._block(y, self.down[i], self.down_size, deeper, 4, train)
        if i + 1 < len(self.down):
            y = self._level(y, i + 1, f"{deeper}7_", train)
        y = double_size(y, self.upsample)
        if self.skip[i]:
            side = self._block(x, self.skip[i], self.skip_size, f"{path}1_0_", 1, train)
            height, width = min(side.shape[1], y.shape[1]), min(side.shape[2], y.shape[2])
            y = jnp.concatenate([_centre(side, height, width), _centre(y, height, width)], -1)
        y = BatchNorm(name=f"{path}2")(y, train)
        y = self._block(y, self.up[i], self.up_size, path, 3, train)
        return self._block(y, self.up[i], 1, path, 6, train) if self.pointwise else y

    def _block(
        self, x: Images, width: int, size: int, path: str, child: int, train: bool, stride: int = 1
    ) -> Features:
        """Convolution, BatchNorm, activation: children `child`, `child + 1`, `child + 2`."""
        y = self._conv(x, width, size, f"{path}{child}", stride)
        y = BatchNorm(name=f"{path}{child + 1}")(y, train)
        match self.act:
            case "leaky_relu":
                return nn.leaky_relu(y, 0.2)
            case "swish":
                return nn.silu(y)
            case "elu":
                return nn.elu(y)
            case "none":
                return y

    def _conv(self, x: Images, width: int, size: int, path: str, stride: int = 1) -> Features:
        number = 1 if self.padding == "reflect" else 0
        pooled = stride > 1 and self.downsample != "stride"
        y = Conv(width, size, 1 if pooled else stride, (size - 1) // 2, self.padding, self.use_bias,
                 name=f"{path}_{number}")(x)
        if pooled:
            y = windows(y, stride).mean((2, 4)) if self.downsample == "avg" else max_pool(y, stride)
        return y
