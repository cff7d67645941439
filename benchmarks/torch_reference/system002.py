"""System 002: a plain convolution stack fitted to one clean picture in stages of falling noise, with early stopping."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn
from torch.nn import functional as F

LEARNING_RATE = 0.005
CHANNELS = {3: (3, 64, 64, 3), 4: (3, 64, 128, 64, 3), 5: (3, 64, 128, 256, 128, 3)}


class ConvStack(nn.Module):
    """3x3 convolutions with bias through `channels`, ReLU between them and nothing at the end."""

    def __init__(self, channels: Sequence[int] = CHANNELS[3]):
        super().__init__()
        for number, (inputs, outputs) in enumerate(zip(channels[:-1], channels[1:], strict=True), 1):
            self.add_module(f"conv{number}", nn.Conv2d(inputs, outputs, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = self.children()
        x = first(x)
        for conv in rest:
            x = conv(F.relu(x))
        return x


@dataclass
class StopRule:
    """Stops after `patience` evaluations without a gain of `min_gain` dB; the count is never reset on improvement."""

    patience: int = 50
    min_gain: float = 0.001
    best: float = 0.0
    count: int = 0

    def start_stage(self) -> None:
        """A new stage counts from zero again but keeps the best PSNR of the stages before."""
        self.count = 0

    def update(self, psnr: float) -> bool:
        """True when the stage must stop after this evaluation."""
        if psnr - self.best >= self.min_gain:
            self.best = psnr
            return False
        self.count += 1
        return self.count >= self.patience


@dataclass
class History:
    """Losses per epoch, scores per evaluation, the epoch at which each stage stopped (None: never), stage scores."""

    loss: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    stops: list[int | None] = field(default_factory=list)
    stage_psnr: list[float] = field(default_factory=list)
    stage_ssim: list[float] = field(default_factory=list)


def train_step(
    net: nn.Module, optimizer: torch.optim.Optimizer, noisy: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """One Adam step on mean (net(noisy) - target)^2. Returns the loss and the output, both from before the step."""
    out = net(noisy)
    loss = F.mse_loss(out, target)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach(), out.detach()


def scores(out: Tensor, clean: np.ndarray) -> tuple[float, float]:
    """PSNR and SSIM of the output, clipped to [0,1], against the clean HWC picture."""
    picture = out[0].permute(1, 2, 0).cpu().numpy().clip(0, 1)
    psnr = peak_signal_noise_ratio(clean, picture, data_range=1)
    return float(psnr), float(structural_similarity(clean, picture, data_range=1, channel_axis=-1))


def fit_stages(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    clean: np.ndarray,
    noisy: Sequence[np.ndarray],
    epochs: Sequence[int],
    patience: int = 50,
    eval_every: int = 10,
) -> History:
    """Fits one stage per noisy HWC picture in [0,1]; the weights, Adam's moments and the best PSNR carry over.

    Evaluated after the step, on the output from before it. `stage_psnr` is the best so far, `stage_ssim` the last one.
    """
    device = next(net.parameters()).device
    as_batch = [torch.as_tensor(p, dtype=torch.float32, device=device).permute(2, 0, 1)[None] for p in (clean, *noisy)]
    target, inputs = as_batch[0], as_batch[1:]
    rule, history = StopRule(patience), History()
    for x, last in zip(inputs, epochs, strict=True):
        rule.start_stage()
        losses, stop = [], None
        for epoch in range(last):
            loss, out = train_step(net, optimizer, x, target)
            losses.append(loss)
            if epoch % eval_every == 0 or epoch == last - 1:
                psnr, ssim = scores(out, clean)
                history.psnr.append(psnr)
                history.ssim.append(ssim)
                if rule.update(psnr):
                    stop = epoch
                    break
        history.loss += torch.stack(losses).tolist()
        history.stops.append(stop)
        history.stage_psnr.append(rule.best)
        history.stage_ssim.append(history.ssim[-1])
    return history


def noisy_versions(clean: np.ndarray, levels: Sequence[float], rng: np.random.Generator) -> list[np.ndarray]:
    """One noisy copy per level, drawn before training and clipped to [0,1]."""
    return [np.clip(clean + rng.normal(0, level, clean.shape), 0, 1) for level in levels]


def level_experiment(
    channels: Sequence[int],
    clean: np.ndarray,
    schedules: dict[str, Sequence[float]],
    epochs: Sequence[int],
    rng: np.random.Generator,
    patience: int = 50,
) -> dict[str, History]:
    """A fresh net per schedule of noise levels; each is reported by its stage scores and their means."""
    results = {}
    for name, levels in schedules.items():
        net = ConvStack(channels)
        optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
        results[name] = fit_stages(net, optimizer, clean, noisy_versions(clean, levels, rng), epochs, patience)
    return results
