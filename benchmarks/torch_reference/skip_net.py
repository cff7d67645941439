"""Ulyanov's hourglass with skips, with the child numbering of the original, and the DIP loop of system 001."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SYSTEM001 = {"down": (8, 16, 32), "up": (8, 16, 32), "skip": (0, 4, 4)}
F16 = {"inputs": 32, "outputs": 3, "down": (128,) * 5, "up": (128,) * 5, "skip": (4,) * 5}
ACTIVATIONS = {
    "LeakyReLU": lambda: nn.LeakyReLU(0.2, inplace=True),
    "Swish": nn.SiLU,
    "ELU": nn.ELU,
    "none": nn.Sequential,
}
POOLS = {"avg": nn.AvgPool2d, "max": nn.MaxPool2d}


class Concat(nn.Module):
    """Joins the outputs of two branches on channels, centre-cropped to the smaller height and width."""

    def __init__(self, skip: nn.Module, deeper: nn.Module):
        super().__init__()
        self.add_module("0", skip)
        self.add_module("1", deeper)

    def forward(self, x: Tensor) -> Tensor:
        outputs = [branch(x) for branch in self.children()]
        height, width = min(y.shape[2] for y in outputs), min(y.shape[3] for y in outputs)
        return torch.cat([self.crop(y, height, width) for y in outputs], dim=1)

    @staticmethod
    def crop(y: Tensor, height: int, width: int) -> Tensor:
        """The centre, offset floor(difference / 2)."""
        top, left = (y.shape[2] - height) // 2, (y.shape[3] - width) // 2
        return y[:, :, top : top + height, left : left + width]


def numbered(modules: Sequence[nn.Module]) -> nn.Sequential:
    """A Sequential whose children count from 1, as in the original state names."""
    sequence = nn.Sequential()
    for number, module in enumerate(modules, 1):
        sequence.add_module(str(number), module)
    return sequence


@dataclass(frozen=True)
class Style:
    """The choices that all levels share; the defaults are those of system 001 and of the F16 recipe."""

    act: str = "LeakyReLU"
    pad: str = "reflection"
    downsample: str = "stride"
    upsample: str = "bilinear"
    bias: bool = True
    one_by_one: bool = True
    sigmoid: bool = True

    def conv(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
        """(reflection pad), convolution, (pool): the original's three-part convolution."""
        pool = stride > 1 and self.downsample != "stride"
        width = (kernel - 1) // 2
        reflect = self.pad == "reflection"
        padding, conv_stride = 0 if reflect else width, 1 if pool else stride
        conv = nn.Conv2d(inputs, outputs, kernel, conv_stride, padding, bias=self.bias)
        parts = [nn.ReflectionPad2d(width)] if reflect else []
        return nn.Sequential(*parts, conv, *([POOLS[self.downsample](stride)] if pool else []))

    def conv_bn_act(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
        """Convolution, BatchNorm, activation."""
        return [self.conv(inputs, outputs, kernel, stride), nn.BatchNorm2d(outputs), ACTIVATIONS[self.act]()]


def level(
    index: int, inputs: int, down: Sequence[int], up: Sequence[int], skip: Sequence[int], style: Style
) -> list[nn.Module]:
    """Children of one hourglass level, from its input to `up[index]` channels at about the input's size."""
    deepest = index == len(down) - 1
    branch = style.conv_bn_act(inputs, down[index], 3, 2) + style.conv_bn_act(down[index], down[index], 3)
    if not deepest:
        branch.append(numbered(level(index + 1, down[index], down, up, skip, style)))
    branch.append(nn.Upsample(scale_factor=2, mode=style.upsample))
    body: nn.Module = numbered(branch)
    if skip[index]:
        body = Concat(numbered(style.conv_bn_act(inputs, skip[index], 1)), body)
    joined = skip[index] + (down[index] if deepest else up[index + 1])
    children = [body, nn.BatchNorm2d(joined), *style.conv_bn_act(joined, up[index], 3)]
    return children + (style.conv_bn_act(up[index], up[index], 1) if style.one_by_one else [])


def skip_net(
    inputs: int = 1,
    outputs: int = 1,
    down: Sequence[int] = (8, 16, 32),
    up: Sequence[int] = (8, 16, 32),
    skip: Sequence[int] = (0, 4, 4),
    style: Style | None = None,
) -> nn.Sequential:
    """Ulyanov's `skip`; the defaults are the DIP of system 001 (36,953 parameters). Odd sizes may grow."""
    style = style or Style()
    children = level(0, inputs, down, up, skip, style) + [style.conv(up[0], outputs, 1)]
    return numbered(children + ([nn.Sigmoid()] if style.sigmoid else []))


class Backtracking:
    """Ulyanov's rule: fall back to the accepted parameters when PSNR against the measurement drops by over 5 dB."""

    def __init__(self, show_every: int = 100, drop: float = 5.0):
        self.show_every, self.drop = show_every, drop
        self.counter, self.last_psnr, self.accepted = 0, 0.0, None

    def update(self, psnr: float, parameters: Sequence[Tensor] = ()) -> bool:
        """True if it fell back: parameters restored, counter kept; BatchNorm buffers and Adam moments left alone."""
        if self.counter % self.show_every:
            if psnr - self.last_psnr < -self.drop:
                with torch.no_grad():
                    for parameter, saved in zip(parameters, self.accepted or (), strict=False):
                        parameter.copy_(saved)
                return True
            self.accepted = [parameter.detach().clone() for parameter in parameters]
            self.last_psnr = psnr
        self.counter += 1
        return False


class DipStep(NamedTuple):
    """What the loop saw at one iteration, before its Adam step."""

    out: Tensor
    average: Tensor
    loss: Tensor
    fell_back: bool


def fit_dip(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    target: Tensor,
    code: Tensor,
    iterations: int,
    code_jitter: float = 1 / 30,
    average_decay: float = 0.99,
    noise: Callable[[int], Tensor] | None = None,
    backtracking: Backtracking | None = None,
    on_step: Callable[[int, DipStep], None] | None = None,
) -> Tensor:
    """Fits net(code + fresh jitter) to `target`, images in [0,1], in train mode; returns the averaged output."""
    net.train()
    parameters, average = list(net.parameters()), None
    for i in range(iterations):
        optimizer.zero_grad(set_to_none=True)
        out = net(code + code_jitter * (torch.randn_like(code) if noise is None else noise(i)))
        loss = F.mse_loss(out, target)
        loss.backward()
        output = out.detach()
        average = output if average is None else average_decay * average + (1 - average_decay) * output
        # The gradient of this iteration is applied even after a fall back, as in the original.
        fell_back = backtracking is not None and backtracking.update(-10 * math.log10(loss.item()), parameters)
        optimizer.step()
        if on_step is not None:
            on_step(i, DipStep(output, average, loss.detach(), fell_back))
    return average
