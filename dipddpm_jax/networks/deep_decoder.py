"""The deep decoder (Heckel and Hand 2019): 1x1 convolutions and upsampling only, too small to fit noise well."""
import jax
from flax import linen as nn

from dipddpm_jax.networks.layers import BatchNorm, Conv
from dipddpm_jax.types import Features, Images, Labels, Times


class DeepDecoder(nn.Module):
    """A code of (h, w, k) becomes a picture of (2^levels h, 2^levels w, channels) in [0, 1] (their eq. 1).

    Each level is a 1x1 convolution, bilinear x2, ReLU, and channel normalisation; one more without upsampling and a
    sigmoid end it. Times and labels are ignored.
    """

    widths: tuple[int, ...] = (128, 128, 128, 128, 128)
    channels: int = 3

    def setup(self):
        self.convs = [Conv(width, 1, use_bias=False) for width in self.widths]
        self.norms = [BatchNorm() for _ in self.widths]
        self.last = Conv(self.widths[-1], 1, use_bias=False)
        self.last_norm = BatchNorm()
        self.out = Conv(self.channels, 1, use_bias=False)

    def __call__(
        self, x: Images, t: Times | None = None, labels: Labels | None = None, train: bool = False
    ) -> Features:
        for conv, norm in zip(self.convs, self.norms):
            x = conv(x)
            x = jax.image.resize(x, (x.shape[0], 2 * x.shape[1], 2 * x.shape[2], x.shape[3]), "bilinear")
            x = norm(nn.relu(x), train)
        x = self.last_norm(nn.relu(self.last(x)), train)
        return nn.sigmoid(self.out(x))
