"""System 003: residual blocks that inject noise, in evaluation too, and the auto-encoder in front of them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEARNING_RATE = 1e-3
BlockNoise = Callable[[int], Tensor]  # block number -> N(0,1) of the shape of x


def sigma_table(name: str, steps: int = 1000) -> Tensor:
    """Standard deviation per step: linear 0..0.01, exponential 0.1 * 0.95^i, or half a cosine from 1 to 0."""
    i = torch.arange(steps)
    tables = {
        "linear": lambda: 0.01 * i / steps,
        "exponential": lambda: 0.1 * 0.95**i,
        "cosine": lambda: 0.5 * (1 + torch.cos(torch.pi * i / steps)),
    }
    return tables[name]().float()


def two_convs(channels: int) -> nn.Sequential:
    """conv, ReLU, conv at constant width."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
    )


class DIP(nn.Module):
    """The report's "DIP": two convolutions trained as an auto-encoder of the data set."""

    def __init__(self, channels: int = 3):
        super().__init__()
        self.net = two_convs(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Block(nn.Module):
    """x + sigma_t z - net(x); the table is a frozen parameter that all blocks share."""

    def __init__(self, channels: int, sigma_schedule: nn.Parameter):
        super().__init__()
        self.net = two_convs(channels)
        self.sigma_schedule = sigma_schedule

    def forward(self, x: Tensor, t: Tensor | int, z: Tensor) -> Tensor:
        return x + self.sigma_schedule[t] * z - self.net(x)


class DDPM(nn.Module):
    """Ten blocks in a row at the same scalar t (0..999); every pass draws one noise per block unless given."""

    def __init__(self, sigmas: Tensor, channels: int = 3, num_blocks: int = 10):
        super().__init__()
        shared = nn.Parameter(sigmas, requires_grad=False)
        self.blocks = nn.ModuleList(Block(channels, shared) for _ in range(num_blocks))

    def forward(self, x: Tensor, t: Tensor | int, noise: BlockNoise | None = None) -> Tensor:
        for number, block in enumerate(self.blocks):
            x = block(x, t, torch.randn_like(x) if noise is None else noise(number))
        return x


def train_dip_step(dip: DIP, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    """One Adam step on mean (dip(x) - x)^2. Returns the loss."""
    loss = F.mse_loss(dip(x), x)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def train_step(
    net: DDPM,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    target: Tensor,
    t: Tensor | int | None = None,
    noise: BlockNoise | None = None,
) -> Tensor:
    """One Adam step on mean (net(x, t) - target)^2, one t for the batch; x is the target itself or the DIP of it."""
    steps = len(net.blocks[0].sigma_schedule)
    t = torch.randint(steps, (), device=x.device) if t is None else t
    loss = F.mse_loss(net(x, t, noise), target)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


@torch.inference_mode()
def denoise_image(
    net: DDPM,
    x: Tensor,
    passes: int = 10,
    times: list[int] | None = None,
    noise: Callable[[int, int], Tensor] | None = None,
    on_pass: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """The report's evaluation: `passes` passes, each at a fresh random t with fresh noise(pass, block); no DIP."""
    steps = len(net.blocks[0].sigma_schedule)
    times = torch.randint(steps, (passes,)).tolist() if times is None else times
    for k, t in enumerate(times):
        x = net(x, t, None if noise is None else (lambda block, k=k: noise(k, block)))
        if on_pass is not None:
            on_pass(k, x)
    return x
