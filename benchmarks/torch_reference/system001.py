"""System 001: LayerNorm UNet for 28x28 digits, its shortened chain, and k train-mode DIP passes in front of it."""

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from .diffusion import NoiseAt, OnStep, Tables, add_noise, ancestral

LEARNING_RATE = 1e-3


def sinusoidal_table(rows: int, dim: int) -> Tensor:
    """Row t: sin(t w_c) in even columns c, cos(t w_c) beside it; w_c = 10000^(-2c/dim) with c the COLUMN."""
    frequencies = 10000.0 ** (-2 * torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = torch.arange(rows)[:, None] * frequencies.float()[None, :]  # the original's angles are float32
    return torch.stack([angles.sin(), angles.cos()], dim=-1).reshape(rows, dim)


class Block(nn.Module):
    """LayerNorm over (C, H, W), then two 3x3 convolutions with SiLU; the norm's parameters exist even if unused."""

    def __init__(self, shape: tuple[int, int, int], outputs: int, normalize: bool = True):
        super().__init__()
        self.normalize = normalize
        self.ln = nn.LayerNorm(shape)
        self.conv1 = nn.Conv2d(shape[0], outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ln(x) if self.normalize else x
        return F.silu(self.conv2(F.silu(self.conv1(x))))


def stage(side: int, channels: tuple[int, ...]) -> nn.Sequential:
    """A row of blocks through the given channel counts at one spatial size."""
    pairs = zip(channels[:-1], channels[1:], strict=True)
    return nn.Sequential(*(Block((inputs, side, side), outputs) for inputs, outputs in pairs))


def time_mlp(dim: int, channels: int) -> nn.Sequential:
    """Linear, SiLU, Linear from the table row to one number per channel."""
    return nn.Sequential(nn.Linear(dim, channels), nn.SiLU(), nn.Linear(channels, channels))


class UNet(nn.Module):
    """The eps network; t are table rows 0..n_steps-1, shape (N,) or (N,1); images are 28x28, one channel."""

    def __init__(self, n_steps: int = 1000, time_emb_dim: int = 100, widths: tuple[int, int, int] = (10, 20, 40)):
        super().__init__()
        w1, w2, w3 = widths
        self.time_embed = nn.Embedding.from_pretrained(sinusoidal_table(n_steps, time_emb_dim), freeze=True)
        times = {"1": 1, "2": w1, "3": w2, "_mid": w3, "4": 2 * w3, "5": 2 * w2, "_out": 2 * w1}
        for name, channels in times.items():
            self.add_module(f"te{name}", time_mlp(time_emb_dim, channels))
        self.b1, self.down1 = stage(28, (1, w1, w1, w1)), nn.Conv2d(w1, w1, 4, 2, 1)
        self.b2, self.down2 = stage(14, (w1, w2, w2, w2)), nn.Conv2d(w2, w2, 4, 2, 1)
        self.b3 = stage(7, (w2, w3, w3, w3))
        self.down3 = nn.Sequential(nn.Conv2d(w3, w3, 2), nn.SiLU(), nn.Conv2d(w3, w3, 4, 2, 1))
        self.b_mid = stage(3, (w3, w2, w2, w3))
        self.up1 = nn.Sequential(nn.ConvTranspose2d(w3, w3, 4, 2, 1), nn.SiLU(), nn.ConvTranspose2d(w3, w3, 2))
        self.b4, self.up2 = stage(7, (2 * w3, w3, w2, w2)), nn.ConvTranspose2d(w2, w2, 4, 2, 1)
        self.b5, self.up3 = stage(14, (2 * w2, w2, w1, w1)), nn.ConvTranspose2d(w1, w1, 4, 2, 1)
        self.b_out = stage(28, (2 * w1, w1, w1, w1))
        self.b_out[2].normalize = False
        self.conv_out = nn.Conv2d(w1, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        row = self.time_embed(t.flatten())

        def timed(mlp: nn.Module, features: Tensor) -> Tensor:
            return features + mlp(row)[:, :, None, None]

        o1 = self.b1(timed(self.te1, x))
        o2 = self.b2(timed(self.te2, self.down1(o1)))
        o3 = self.b3(timed(self.te3, self.down2(o2)))
        x = self.b_mid(timed(self.te_mid, self.down3(o3)))
        x = self.b4(timed(self.te4, torch.cat([o3, self.up1(x)], dim=1)))
        x = self.b5(timed(self.te5, torch.cat([o2, self.up2(x)], dim=1)))
        x = self.b_out(timed(self.te_out, torch.cat([o1, self.up3(x)], dim=1)))
        return self.conv_out(x)


def train_step(
    net: UNet,
    optimizer: torch.optim.Optimizer,
    tables: Tables,
    x0: Tensor,
    t: Tensor | None = None,
    eps: Tensor | None = None,
) -> Tensor:
    """One Adam step on mean (net(x_t, t) - eps)^2; t (0..T-1) and eps are drawn unless given. Returns the loss."""
    t = torch.randint(len(tables.betas), (len(x0),), device=x0.device) if t is None else t
    eps = torch.randn_like(x0) if eps is None else eps
    loss = F.mse_loss(net(add_noise(tables, x0, t, eps), t), eps)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def filter_noise(dip: nn.Module, x: Tensor, times: int) -> Tensor:
    """Sends x through the DIP `times` times, in whatever mode it is (the system: train mode, so its buffers move)."""
    for _ in range(times):
        x = dip(x)
    return x


def resize(x: Tensor, side: int) -> Tensor:
    """Bilinear, antialiased resize to side x side: what torchvision's tensor Resize does."""
    return F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False, antialias=True)


def start_noise(dip: nn.Module, x: Tensor, times: int, side: int = 28) -> Tensor:
    """Start of the DIP+DDPM chain: 32x32 noise, `times` DIP passes, resized to the size of the diffusion model."""
    return resize(filter_noise(dip, x, times), side)


def generate(
    net: UNet,
    tables: Tables,
    x: Tensor,
    grid: Iterable[int] = range(999, -1, -1),
    noise: NoiseAt | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Ancestral chain, no noise at t=0, no clipping; fewer steps are range(steps - 1, -1, -1), without re-spacing."""

    def predict(x: Tensor, t: int) -> Tensor:
        return net(x, torch.full((len(x),), t, device=x.device))

    return ancestral(predict, tables, x, grid, 1, noise, on_step)


def enlarge(picture: np.ndarray, side: int = 32) -> np.ndarray:
    """The digit that the DIP is fitted to: bilinear in uint8, as PIL does it."""
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR))


def gif_indices(table_steps: int, steps: int, frames: int = 100) -> list[int]:
    """Iterations (from 0) that become GIF frames: floor(linspace(0, table_steps, frames)), and the last iteration."""
    wanted = set(np.linspace(0, table_steps, frames).astype(int).tolist())
    return [i for i in range(steps) if i in wanted or i == steps - 1]


def gif_frame(x: Tensor) -> np.ndarray:
    """Images tiled in floor(sqrt n) rows, each stretched to 0..255 by its own range and truncated to uint8."""
    low = x.amin(dim=(1, 2, 3), keepdim=True)
    x = x - low
    x = (x * (255 / x.amax(dim=(1, 2, 3), keepdim=True))).to(torch.uint8)
    count, channels, height, width = x.shape
    rows = math.isqrt(count)
    grid = x.reshape(rows, count // rows, channels, height, width).permute(0, 3, 1, 4, 2)
    return grid.reshape(rows * height, -1, channels).cpu().numpy()


def generate_frames(generator: Callable[[OnStep], Tensor], table_steps: int, steps: int) -> list[np.ndarray]:
    """GIF frames of one chain, without the 33 repeats of the last; `generator` runs it with the given callback."""
    wanted, frames = set(gif_indices(table_steps, steps)), []

    def keep(k: int, x: Tensor, eps: Tensor) -> None:
        if k in wanted:
            frames.append(gif_frame(x))

    generator(keep)
    return frames
