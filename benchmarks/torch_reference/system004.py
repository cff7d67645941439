"""System 004: ContextUnet with class or multi-label context, and TeaPearce's classifier-free guidance of it."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .diffusion import NoiseAt, OnStep, Tables, add_noise, ancestral

LEARNING_RATE = 1e-4


class ResidualConvBlock(nn.Module):
    """Two conv-BatchNorm-activation layers; with `residual` the input (or the first layer) is added, over 1.414."""

    def __init__(self, inputs: int, outputs: int, act: Callable[[], nn.Module], residual: bool = False):
        super().__init__()
        self.residual, self.same = residual, inputs == outputs
        self.conv1 = nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), act())
        self.conv2 = nn.Sequential(nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), act())

    def forward(self, x: Tensor) -> Tensor:
        first = self.conv1(x)
        second = self.conv2(first)
        if not self.residual:
            return second
        return ((x if self.same else first) + second) / 1.414


class Down(nn.Module):
    """Residual block and 2x2 max pooling."""

    def __init__(self, inputs: int, outputs: int, act: Callable[[], nn.Module]):
        super().__init__()
        self.model = nn.Sequential(ResidualConvBlock(inputs, outputs, act), nn.MaxPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class Up(nn.Module):
    """Joins the skip, doubles the size, two residual blocks."""

    def __init__(self, inputs: int, outputs: int, act: Callable[[], nn.Module]):
        super().__init__()
        self.model = nn.Sequential(
            nn.ConvTranspose2d(inputs, outputs, 2, 2),
            ResidualConvBlock(outputs, outputs, act),
            ResidualConvBlock(outputs, outputs, act),
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.model(torch.cat([x, skip], dim=1))


class EmbedFC(nn.Module):
    """Linear, activation, Linear of a flattened vector."""

    def __init__(self, inputs: int, outputs: int, act: Callable[[], nn.Module]):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(inputs, outputs), act(), nn.Linear(outputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.flatten(1) if x.dim() > 1 else x[:, None])[:, :, None, None]


class ContextUnet(nn.Module):
    """The eps network of (x, context vector, t/T); side/4 must equal up_kernel * floor(side/4/7)."""

    def __init__(
        self,
        in_channels: int = 3,
        n_feat: int = 128,
        n_classes: int = 24,
        up_kernel: int = 8,
        act: Callable[[], nn.Module] = nn.GELU,
    ):
        super().__init__()
        f = n_feat
        self.init_conv = ResidualConvBlock(in_channels, f, act, residual=True)
        self.down1, self.down2 = Down(f, f, act), Down(f, 2 * f, act)
        self.to_vec = nn.Sequential(nn.AvgPool2d(7), act())
        self.timeembed1, self.timeembed2 = EmbedFC(1, 2 * f, act), EmbedFC(1, f, act)
        self.contextembed1, self.contextembed2 = EmbedFC(n_classes, 2 * f, act), EmbedFC(n_classes, f, act)
        self.up0 = nn.Sequential(
            nn.ConvTranspose2d(2 * f, 2 * f, up_kernel, up_kernel), nn.GroupNorm(8, 2 * f), nn.ReLU()
        )
        self.up1, self.up2 = Up(4 * f, f, act), Up(2 * f, f, act)
        self.out = nn.Sequential(
            nn.Conv2d(2 * f, f, 3, padding=1), nn.GroupNorm(8, f), nn.ReLU(), nn.Conv2d(f, in_channels, 3, padding=1)
        )

    def forward(self, x: Tensor, context: Tensor, t: Tensor) -> Tensor:
        x = self.init_conv(x)
        d1 = self.down1(x)
        d2 = self.down2(d1)
        u = self.up0(self.to_vec(d2))
        u = self.up1(self.contextembed1(context) * u + self.timeembed1(t), d2)
        u = self.up2(self.contextembed2(context) * u + self.timeembed2(t), d1)
        return self.out(torch.cat([u, x], dim=1))


def _tables(betas: Tensor) -> Tables:
    alphas = 1 - betas
    return Tables(betas, alphas, torch.cumsum(alphas.log(), 0).exp())


def linear_tables(low: float = 1e-4, high: float = 0.02, steps: int = 400) -> Tables:
    """T+1 entries, beta_t linear in t/T; training and sampling use 1..T (abar_0 is 1 - low, not 1)."""
    return _tables((high - low) * torch.arange(steps + 1, dtype=torch.float32) / steps + low)


def cosine_tables(low: float = 1e-4, high: float = 0.02, steps: int = 400) -> Tables:
    """The report's cosine betas of period 50, largest at t = 0, 50, 100, ..."""
    wave = torch.cos(2 * math.pi * torch.arange(steps + 1, dtype=torch.float32) / 50)
    return _tables((high - low) / 2 * wave + (high + low) / 2)


def drop_context(labels: Tensor, dropped: Tensor, n_classes: int) -> Tensor:
    """TeaPearce's context: kept labels are NEGATED one-hots, labels with `dropped` = 1 are zeros."""
    return -(1 - dropped)[:, None] * F.one_hot(labels, n_classes)


def train_step(
    net: ContextUnet,
    optimizer: torch.optim.Optimizer,
    tables: Tables,
    x0: Tensor,
    context: Tensor,
    t: Tensor | None = None,
    eps: Tensor | None = None,
) -> Tensor:
    """One Adam step on mean (eps - net(x_t, context, t/T))^2; t in 1..T and eps are drawn unless given."""
    steps = len(tables.betas) - 1
    t = torch.randint(1, steps + 1, (len(x0),), device=x0.device) if t is None else t
    eps = torch.randn_like(x0) if eps is None else eps
    loss = F.mse_loss(net(add_noise(tables, x0, t, eps), context, t.to(x0.dtype) / steps), eps)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def sample(
    net: ContextUnet,
    tables: Tables,
    x: Tensor,
    context: Tensor,
    grid: Iterable[int] | None = None,
    noise: NoiseAt | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """System 004 as written: no guidance; i = T..1 with variance beta_i, no noise at i = 1. Network in eval mode."""
    steps = len(tables.betas) - 1

    def predict(x: Tensor, i: int) -> Tensor:
        return net(x, context, x.new_full((len(x),), i / steps))

    return ancestral(predict, tables, x, range(steps, 0, -1) if grid is None else grid, 2, noise, on_step)


def sample_guided(
    net: ContextUnet,
    tables: Tables,
    x: Tensor,
    context: Tensor,
    weight: float,
    grid: Iterable[int] | None = None,
    noise: NoiseAt | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Classifier-free guidance (1+w) eps_c - w eps_0 in one doubled batch; the zero context is unconditional."""
    steps = len(tables.betas) - 1
    both = torch.cat([context, torch.zeros_like(context)])

    def predict(x: Tensor, i: int) -> Tensor:
        doubled = torch.cat([x, x])
        conditional, unconditional = net(doubled, both, x.new_full((len(doubled),), i / steps)).chunk(2)
        return (1 + weight) * conditional - weight * unconditional

    return ancestral(predict, tables, x, range(steps, 0, -1) if grid is None else grid, 2, noise, on_step)


def stored_frames(steps: int) -> list[int]:
    """The i whose x both scripts keep: i % 20 == 0, i == T or i < 8 (27 of 400)."""
    return [i for i in range(steps, 0, -1) if i % 20 == 0 or i == steps or i < 8]
