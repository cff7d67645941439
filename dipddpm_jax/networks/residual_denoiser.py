"""System 003's networks: blocks that subtract a small network and inject noise, and the auto-encoder called "DIP".

Quirks kept: noise is injected in every block, in evaluation too; the small network does not see the time; each block
holds a copy of the same frozen sigma table, so that names agree with the original's.
"""
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Float64

from dipddpm_jax.networks.layers import Conv, in_order
from dipddpm_jax.types import Images, Labels, Times

Sigmas = Literal["linear", "exponential", "cosine"]


def sigma_table(kind: Sigmas, num_steps: int = 1000) -> Float64[np.ndarray, "steps"]:
    """System 003: how much noise a block injects at time i + 1. No product of them is formed and x is not scaled.

    Its "polynomial" table is printed with the formula of the cosine one.
    """
    i = np.arange(num_steps)
    match kind:
        case "linear":
            return 0.01 * i / num_steps
        case "exponential":
            return 0.1 * 0.95**i
        case "cosine":
            return 0.5 * (1 + np.cos(np.pi * i / num_steps))


class TwoConvs(nn.Module):
    """The report's "DIP": convolution, ReLU, convolution at constant width. Time, labels and `train` are ignored."""

    channels: int = 3

    def setup(self):
        self.net = [Conv(self.channels, padding=1), nn.relu, Conv(self.channels, padding=1)]

    def __call__(
        self, x: Images, t: Times | None = None, labels: Labels | None = None, train: bool = False
    ) -> Images:
        return in_order(self.net, x)


class NoisyBlock(nn.Module):
    """x + sigma_t noise - net(x)."""

    channels: int
    sigmas: Sigmas
    num_steps: int

    def setup(self):
        self.net = [Conv(self.channels, padding=1), nn.relu, Conv(self.channels, padding=1)]
        self.sigma_schedule = self.variable(
            "buffers", "sigma_schedule", lambda: jnp.asarray(sigma_table(self.sigmas, self.num_steps), jnp.float32))

    def __call__(self, x: Images, t: Times, noise: Images) -> Images:
        sigma = self.sigma_schedule.value[t - 1].astype(x.dtype)  # the original counts its steps from 0
        return x + sigma[:, None, None, None] * noise - in_order(self.net, x)


class ResidualDenoiser(nn.Module):
    """The report's "DDPM": blocks in a row, all at the same time t.

    `noise` holds one N(0, 1) draw a block; without it they come from the stream "noise" of `apply`'s rngs.
    """

    channels: int = 3
    num_blocks: int = 10
    sigmas: Sigmas = "linear"
    num_steps: int = 1000

    def setup(self):
        block = (self.channels, self.sigmas, self.num_steps)
        self.blocks = [NoisyBlock(*block) for _ in range(self.num_blocks)]

    def __call__(
        self, x: Images, t: Times, labels: Labels | None = None, train: bool = False,
        noise: Float[Array, "blocks b h w c"] | None = None,
    ) -> Images:
        if noise is None:
            noise = jax.random.normal(self.make_rng("noise"), (self.num_blocks, *x.shape), x.dtype)
        for block, draw in zip(self.blocks, noise):
            x = block(x, t, draw)
        return x
