"""System 000 (MarceloGennari/diffusion_mnist): BatchNorm UNet with linear attention, ancestral and DDIM chains."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .diffusion import NoiseAt, OnStep, Tables, add_noise, ancestral

LEARNING_RATE = 2e-4


def sinusoidal(t: Tensor, dim: int) -> Tensor:
    """All sines, then all cosines, of t * 10000^(-j / (dim/2 - 1)); t is the raw step."""
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, device=t.device) * (-math.log(10000) / (half - 1)))
    angles = t[:, None] * frequencies.to(t.dtype)[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class TemporalEmbedding(nn.Module):
    """Adds one linear read-out of the sinusoidal time vector to every channel."""

    def __init__(self, dim: int, channels: int):
        super().__init__()
        self.dim = dim
        self.linear = nn.Linear(dim, channels)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x + self.linear(sinusoidal(t, self.dim))[:, :, None, None]


class LabelEmbedding(nn.Module):
    """Adds a learnt vector per class to every channel; labels of shape (1,) serve the whole batch."""

    def __init__(self, dim: int, channels: int, num_classes: int):
        super().__init__()
        self.lemb = nn.Embedding(num_classes, dim)
        self.linear = nn.Linear(dim, channels)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return x + self.linear(self.lemb(label))[:, :, None, None]


class ResidualBlock(nn.Module):
    """conv, then a normalised second convolution added to the un-normalised first one."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.feat = nn.Sequential(
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return x + self.feat(x)


class ChannelNorm(nn.Module):
    """Normalises each pixel over its channels, with a gain and no shift; eps 1e-5 in every dtype."""

    def __init__(self, channels: int):
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
        return (x - mean) * torch.rsqrt(variance + 1e-5) * self.g


class LinearAttention(nn.Module):
    """Attention whose cost is linear in the pixels: softmax of q over features, of k over positions; no residual."""

    def __init__(self, channels: int, heads: int = 4, features: int = 32):
        super().__init__()
        self.heads, self.features = heads, features
        self.to_qkv = nn.Conv2d(channels, 3 * heads * features, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(heads * features, channels, 1), ChannelNorm(channels))

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        qkv = self.to_qkv(x).reshape(batch, 3, self.heads, self.features, height * width)
        q, k, v = qkv.unbind(1)
        q = q.softmax(dim=-2) * self.features**-0.5
        k = k.softmax(dim=-1)
        context = k @ (v / (height * width)).transpose(-1, -2)
        out = context.transpose(-1, -2) @ q
        return self.to_out(out.reshape(batch, -1, height, width))


class UNet(nn.Module):
    """The eps network for 1-channel images; height and width divisible by 4; `num_classes=0` is unconditional."""

    def __init__(self, ch: tuple[int, int, int, int] = (64, 128, 128, 64), dim_emb: int = 1024, num_classes: int = 0):
        super().__init__()
        self.conditional = num_classes > 0
        c0, c1, c2, c3 = ch
        halve = {"kernel_size": 4, "stride": 2, "padding": 1, "bias": False}
        self.block1, self.down1 = ResidualBlock(1, c0), nn.Conv2d(c0, c0, **halve)
        self.block2, self.down2 = ResidualBlock(c0, c1), nn.Conv2d(c1, c1, **halve)
        self.block3, self.attention1 = ResidualBlock(c1, c2), LinearAttention(c2)
        self.up1, self.block4 = nn.ConvTranspose2d(c2, c2, **halve), ResidualBlock(c1 + c2, c3)
        self.up2, self.block5 = nn.ConvTranspose2d(c3, c3, **halve), ResidualBlock(c3 + c0, 1)
        self.out = nn.Conv2d(1, 1, 1)
        for i, channels in enumerate((1, c0, c1, c1 + c2, c3 + c0), 1):
            self.add_module(f"embedding{i}", TemporalEmbedding(dim_emb, channels))
        if self.conditional:
            for i, channels in enumerate((c0, c1, c2, c3, c3 + c0), 1):
                self.add_module(f"label_emb{i}", LabelEmbedding(dim_emb, channels, num_classes))

    def add_label(self, number: int, x: Tensor, label: Tensor | None) -> Tensor:
        """x plus the class embedding of that number; x itself in the unconditional network."""
        return getattr(self, f"label_emb{number}")(x, label) if self.conditional else x

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        x = self.embedding1(x, t)
        x1 = self.embedding2(self.add_label(1, self.block1(x), label), t)
        x2 = self.embedding3(self.add_label(2, self.block2(self.down1(x1)), label), t)
        x = self.attention1(self.add_label(3, self.block3(self.down2(x2)), label))
        x = self.embedding4(torch.cat([x2, self.up1(x)], dim=1), t)
        x = self.up2(self.add_label(4, self.block4(x), label))
        x = self.embedding5(self.add_label(5, torch.cat([x, x1], dim=1), label), t)
        return self.out(self.block5(x))


def train_step(
    net: UNet,
    optimizer: torch.optim.Optimizer,
    tables: Tables,
    x0: Tensor,
    label: Tensor | None = None,
    t: Tensor | None = None,
    eps: Tensor | None = None,
) -> Tensor:
    """One Adam step on mean (eps - net(x_t, t))^2; t (0..T-1) and eps are drawn unless given. Returns the loss."""
    t = torch.randint(len(tables.betas), (len(x0),), device=x0.device) if t is None else t
    eps = torch.randn_like(x0) if eps is None else eps
    loss = F.mse_loss(net(add_noise(tables, x0, t, eps), t.to(x0.dtype), label), eps)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def predictor(net: UNet, label: Tensor | None) -> Callable[[Tensor, int], Tensor]:
    """eps of the network for a whole batch at one integer step."""
    return lambda x, t: net(x, x.new_full((len(x),), t), label)


def sample(
    net: UNet,
    tables: Tables,
    x: Tensor,
    grid: Iterable[int] = range(999, -1, -1),
    label: Tensor | None = None,
    noise: NoiseAt | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Ancestral chain over `grid` (the report: 500..0), variance beta_t; t=1 and t=0 add no noise. Eval mode."""
    return ancestral(predictor(net, label), tables, x, grid, 2, noise, on_step)


@torch.inference_mode()
def sample_ddim(
    net: UNet,
    tables: Tables,
    x: Tensor,
    grid: Iterable[int] = range(999, -1, -1),
    label: Tensor | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Deterministic DDIM visiting every step down to 0; the last update returns the estimate of x0."""
    predict = predictor(net, label)
    signal, sigma = tables.alpha_bars.sqrt().tolist(), (1 - tables.alpha_bars).sqrt().tolist()
    for k, t in enumerate(grid):
        eps = predict(x, t)
        x0 = (x - sigma[t] * eps) / signal[t]
        x = x0 if t == 0 else signal[t - 1] * x0 + sigma[t - 1] * (x - signal[t] * x0) / sigma[t]
        if on_step is not None:
            on_step(k, x, eps)
    return x
