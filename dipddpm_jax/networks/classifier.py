"""A small classifier of small pictures, whose last hidden layer is what sets of pictures are compared in."""
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from dipddpm_jax.networks.layers import BatchNorm, Conv, Dense, max_pool
from dipddpm_jax.types import Images


class Classifier(nn.Module):
    """Logits of classes for pictures in [-1, 1] of any size from 4x4: pairs of 3x3 convolutions, halved between them.

    Called as the other networks are, but looks at the picture alone. `widths[-1]` is the number of features.
    """

    num_classes: int = 10
    widths: tuple[int, ...] = (16, 32, 64)

    def setup(self):
        self.conv = [Conv(w, padding=1, use_bias=False) for w in self.widths for _ in range(2)]
        self.bn = [BatchNorm() for _ in self.conv]
        self.fc = Dense(self.num_classes)

    def features(self, x: Images, train: bool = False) -> Float[Array, "b d"]:
        """What the last layer sees: its means over the picture."""
        for i, (conv, bn) in enumerate(zip(self.conv, self.bn)):
            x = max_pool(x, 2) if i and i % 2 == 0 else x
            x = nn.relu(bn(conv(x), train))
        return jnp.mean(x, (1, 2))

    def head(self, features: Float[Array, "b d"]) -> Float[Array, "b k"]:
        """Logits of features."""
        return self.fc(features)

    def __call__(self, x: Images, t: Any = None, labels: Any = None, train: bool = False) -> Float[Array, "b k"]:
        return self.head(self.features(x, train))
