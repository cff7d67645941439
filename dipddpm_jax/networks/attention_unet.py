"""System 000's UNet: BatchNorm, linear attention at the bottom, optionally class-conditional.

Quirks kept: no residual around the attention; time enters raw (0 .. T - 1) through one linear layer and no
activation; the skip stands first in the lower concatenation, second in the upper one; the last block has one channel.
"""
import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from dipddpm_jax.networks.initial import torch_embedding
from dipddpm_jax.networks.layers import BatchNorm, Conv, ConvTranspose, Dense, sinusoid
from dipddpm_jax.types import NULL_LABEL, Features, Images, Labels, Times, UserError


class TemporalEmbedding(nn.Module):
    """Adds one linear read-out of the sinusoidal time vector to every channel."""

    dim: int

    @nn.compact
    def __call__(self, x: Images, t: Float[Array, "b"]) -> Images:
        # half - 1, not half: the slowest frequency is exactly 1 / 10000
        shift = Dense(x.shape[-1], name="linear")(sinusoid(t, self.dim, self.dim // 2 - 1))
        return x + shift[:, None, None]


class LabelEmbedding(nn.Module):
    """Adds a learnt vector per class to every channel; NULL_LABEL looks up zeros (the original has no such label)."""

    dim: int
    num_classes: int

    @nn.compact
    def __call__(self, x: Images, labels: Labels) -> Images:
        rows = nn.Embed(self.num_classes, self.dim, embedding_init=torch_embedding, name="lemb")(labels)
        rows = jnp.where((labels >= 0)[:, None], rows, 0).astype(x.dtype)
        return x + Dense(x.shape[-1], name="linear")(rows)[:, None, None]


class ResConvBlock(nn.Module):
    """A convolution, plus a second one of it between BatchNorms; the skip is the un-normalised first one."""

    width: int

    def setup(self):
        self.conv1 = Conv(self.width, padding=1, use_bias=False)
        self.feat = [BatchNorm(), nn.leaky_relu, Conv(self.width, padding=1, use_bias=False), BatchNorm()]

    def __call__(self, x: Images, train: bool) -> Features:
        x = self.conv1(x)
        norm1, leaky, conv, norm2 = self.feat
        return x + leaky(norm2(conv(leaky(norm1(x, train))), train))


class ChannelNorm(nn.Module):
    """Normalises each pixel over its channels; a gain and no shift.

    The original's epsilon is 1e-5 in float32 and 1e-3 in any other type; here it is 1e-5 throughout.
    """

    @nn.compact
    def __call__(self, x: Images) -> Images:
        g = self.param("g", nn.initializers.ones, (1, 1, 1, x.shape[-1]))
        centred = x - x.mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5) * g.astype(x.dtype)


class LinearAttention(nn.Module):
    """Attention whose cost is linear in the pixels (Shen et al. 2018, eq. 4): softmax of q over features, of k over
    positions. v is divided by the number of positions, so the output is tiny before its norm."""

    heads: int = 4
    features: int = 32

    @nn.compact
    def __call__(self, x: Images) -> Images:
        b, h, w, c = x.shape
        qkv = Conv(3 * self.heads * self.features, 1, use_bias=False, name="to_qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(b, h * w, 3, self.heads, self.features), 2, 0)
        q = nn.softmax(q, -1) * self.features**-0.5
        context = jnp.einsum("bnhd,bnhe->bhde", nn.softmax(k, 1), v / (h * w))
        out = jnp.einsum("bhde,bnhd->bnhe", context, q).reshape(b, h, w, self.heads * self.features)
        return ChannelNorm(name="to_out_1")(Conv(c, 1, name="to_out_0")(out))


def _down(width: int) -> Conv:
    return Conv(width, 4, stride=2, padding=1, use_bias=False)


def _up(width: int) -> ConvTranspose:
    return ConvTranspose(width, 4, stride=2, padding=1, use_bias=False)


class AttentionUNet(nn.Module):
    """UNet (num_classes None) and ConditionalUNet of diffusion_mnist; sides must be multiples of 4."""

    num_classes: int | None = None
    widths: tuple[int, int, int, int] = (64, 128, 128, 64)
    time_dim: int = 1024
    channels: int = 1

    def setup(self):
        a, b, c, d = self.widths
        for i in range(1, 6):
            setattr(self, f"embedding{i}", TemporalEmbedding(self.time_dim))
            if self.num_classes is not None:
                setattr(self, f"label_emb{i}", LabelEmbedding(self.time_dim, self.num_classes))
        self.block1, self.down1 = ResConvBlock(a), _down(a)
        self.block2, self.down2 = ResConvBlock(b), _down(b)
        self.block3, self.attention1 = ResConvBlock(c), LinearAttention()
        self.up1, self.block4 = _up(c), ResConvBlock(d)
        self.up2, self.block5 = _up(d), ResConvBlock(self.channels)
        self.out = Conv(self.channels, 1)

    def __call__(self, x: Images, t: Times, labels: Labels | None = None, train: bool = False) -> Images:
        if x.shape[1] % 4 or x.shape[2] % 4:
            raise UserError(f"this UNet halves the picture twice: sides must be multiples of 4, not {x.shape[1:3]}")
        if labels is None:
            labels = jnp.full(x.shape[:1], NULL_LABEL)
        time = (t - 1).astype(x.dtype)  # the original counts its steps from 0

        def label(i, x):
            return x if self.num_classes is None else getattr(self, f"label_emb{i}")(x, labels)

        x = self.embedding1(x, time)
        x1 = self.embedding2(label(1, self.block1(x, train)), time)
        x2 = self.embedding3(label(2, self.block2(self.down1(x1), train)), time)
        y = self.attention1(label(3, self.block3(self.down2(x2), train)))
        y = self.embedding4(jnp.concatenate([x2, self.up1(y)], -1), time)
        y = self.up2(label(4, self.block4(y, train)))
        y = self.embedding5(label(5, jnp.concatenate([y, x1], -1)), time)
        return self.out(self.block5(y, train))
