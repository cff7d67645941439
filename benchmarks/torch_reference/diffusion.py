"""Noise tables, forward noising and the ancestral chain that systems 000, 001 and 004 share."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

NoiseAt = Callable[[int], Tensor]  # table index t -> the standard normal draw added by the update at t
OnStep = Callable[[int, Tensor, Tensor], None]  # (iteration counted from 0, x after the update, eps of the network)


class Tables(NamedTuple):
    """Per-step coefficients in the reference's own index (0..T-1, or 0..T for system 004)."""

    betas: Tensor
    alphas: Tensor
    alpha_bars: Tensor

    def to(self, device: torch.device | str) -> "Tables":
        """The same tables on another device."""
        return Tables(*(table.to(device) for table in self))


def tables_from(betas: Tensor) -> Tables:
    """alpha = 1 - beta and its running product, in the dtype of `betas`."""
    alphas = 1 - betas
    return Tables(betas, alphas, torch.cumprod(alphas, 0))


def linear_tables(low: float, high: float, steps: int) -> Tables:
    """Linear betas from `low` to `high`: (1e-4, 0.01, 1000) in system 000, (1e-4, 0.02, 1000) in system 001."""
    return tables_from(torch.linspace(low, high, steps))


def add_noise(tables: Tables, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps with one table index per sample."""
    alpha_bar = tables.alpha_bars[t].view(-1, 1, 1, 1)
    return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps


@torch.inference_mode()
def ancestral(
    predict: Callable[[Tensor, int], Tensor],
    tables: Tables,
    x: Tensor,
    times: Iterable[int],
    last_noisy: int,
    noise: NoiseAt | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """DDPM, algorithm 2, with variance beta_t; updates at t < `last_noisy` add no noise (the systems differ in it)."""
    eps_scale = ((1 - tables.alphas) / (1 - tables.alpha_bars).sqrt()).tolist()  # floats: no device wait in the loop
    shrink = (1 / tables.alphas.sqrt()).tolist()
    sigma = tables.betas.sqrt().tolist()
    for k, t in enumerate(times):
        eps = predict(x, t)
        x = (x - eps_scale[t] * eps) * shrink[t]
        if t >= last_noisy:
            x = x + sigma[t] * (torch.randn_like(x) if noise is None else noise(t))
        if on_step is not None:
            on_step(k, x, eps)
    return x
