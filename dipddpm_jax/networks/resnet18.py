"""ResNet18 with a label per output: the evaluator that says which objects a picture of (i)CLEVR shows.

Names are those of torchvision's resnet18 with the course's head, Sequential(Linear, Sigmoid), so that its
checkpoint.pth imports; the sigmoid itself is left to the loss or the score, which need logits or their order.
"""
from functools import reduce
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from dipddpm_jax.networks.layers import BatchNorm, Conv, Dense, in_order
from dipddpm_jax.types import Features, Images


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, fig. 2), projected by 1x1 where the shape changes."""

    width: int
    stride: int = 1

    def setup(self):
        self.conv1, self.bn1 = Conv(self.width, stride=self.stride, padding=1, use_bias=False), BatchNorm()
        self.conv2, self.bn2 = Conv(self.width, padding=1, use_bias=False), BatchNorm()
        if self.stride > 1:
            self.downsample = [Conv(self.width, 1, stride=self.stride, use_bias=False), BatchNorm()]

    def __call__(self, x: Images, train: bool) -> Features:
        y = nn.relu(self.bn1(self.conv1(x), train))
        y = self.bn2(self.conv2(y), train)
        shortcut = self.downsample[1](self.downsample[0](x), train) if self.stride > 1 else x
        return nn.relu(y + shortcut)


def halved(x: Features) -> Features:
    """MaxPool2d(3, stride=2, padding=1). Of slices: on a CPU the gradient of nn.max_pool takes eight times as long."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    h, w = x.shape[1:3]
    values = [padded[:, i : i + h : 2, j : j + w : 2] for i in range(3) for j in range(3)]
    return reduce(lambda a, b: jnp.where(a >= b, a, b), values)  # of equal ones the first, as in PyTorch


class ResNet18(nn.Module):
    """Logits of labels (He et al. 2016, table 1, 18 layers). Pictures in [-1, 1], of any size; the course's are 64x64.

    Called as the other networks are, but looks at the picture alone. `widths[0]` is also that of the stem.
    """

    num_classes: int = 24
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)

    def setup(self):
        a, b, c, d = self.widths
        self.conv1, self.bn1 = Conv(a, 7, stride=2, padding=3, use_bias=False), BatchNorm()
        self.layer1 = [BasicBlock(a), BasicBlock(a)]
        self.layer2 = [BasicBlock(b, 2), BasicBlock(b)]
        self.layer3 = [BasicBlock(c, 2), BasicBlock(c)]
        self.layer4 = [BasicBlock(d, 2), BasicBlock(d)]
        self.fc = [Dense(self.num_classes)]

    def features(self, x: Images, train: bool = False) -> Float[Array, "b d"]:
        """What the last layer sees: its means over the picture."""
        y = nn.relu(self.bn1(self.conv1(x), train))
        y = halved(y)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            y = in_order(layer, y, train)
        return jnp.mean(y, (1, 2))

    def head(self, features: Float[Array, "b d"]) -> Float[Array, "b k"]:
        """Logits of features."""
        return self.fc[0](features)

    def __call__(self, x: Images, t: Any = None, labels: Any = None, train: bool = False) -> Float[Array, "b k"]:
        return self.head(self.features(x, train))
