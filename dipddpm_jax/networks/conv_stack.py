"""System 002's networks: 3x3 convolutions in a row with ReLU between them, no norm, no skip, no sigmoid."""
from flax import linen as nn

from dipddpm_jax.networks.layers import Conv
from dipddpm_jax.types import Features, Images, Labels, Times


class ConvStack(nn.Module):
    """DIPModel. Inner widths (64, 64), (64, 128, 64) and (64, 128, 256, 128) are the 3, 4 and 5 layers of the report.

    Time, labels and `train` are ignored.
    """

    widths: tuple[int, ...] = (64, 64)
    channels: int = 3

    @nn.compact
    def __call__(
        self, x: Images, t: Times | None = None, labels: Labels | None = None, train: bool = False
    ) -> Features:
        for i, width in enumerate(self.widths, 1):
            x = nn.relu(Conv(width, padding=1, name=f"conv{i}")(x))
        return Conv(self.channels, padding=1, name=f"conv{len(self.widths) + 1}")(x)
