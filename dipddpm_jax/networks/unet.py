"""The UNet we recommend: residual blocks, GroupNorm, self-attention, one embedding for time and labels.

Every residual branch ends in a zero gain, so the network starts as its skips (SkipInit, De and Smith 2020). With
`patch_size` 2 the picture is folded to a quarter of its pixels first: the choice that learns most per second.
"""
import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from dipddpm_jax.networks.layers import Conv, ConvTranspose, Dense, group_norm, sinusoid
from dipddpm_jax.networks.pixels import to_pixels
from dipddpm_jax.types import Features, Images, Labels, Times, UserError


def context_vector(labels: Labels, num_classes: int) -> Float[Array, "b k"]:
    """One-hot (NULL_LABEL gives zeros) or multi-hot, as floats."""
    return jax.nn.one_hot(labels, num_classes) if jnp.issubdtype(labels.dtype, jnp.integer) else labels


def fold(x: Images, size: int) -> Features:
    """Space to depth: each size x size square of pixels becomes channels."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // size, size, w // size, size, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // size, w // size, size * size * c)


def unfold(x: Images, size: int) -> Features:
    """Depth to space, the inverse of `fold`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, size, size, c // size**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h * size, w * size, c // size**2)


class Gain(nn.Module):
    """A zero gain per channel, on the end of a residual branch."""

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        gain = self.param("gain", nn.initializers.zeros, (x.shape[-1],))
        return x * to_pixels(gain.astype(x.dtype), x)


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, convolution, twice; the embedding scales and shifts between them."""

    features: int

    @nn.compact
    def __call__(self, x: Images, embedding: Float[Array, "b e"]) -> Features:
        scale, shift = jnp.split(Dense(2 * self.features, name="film")(nn.silu(embedding))[:, None, None], 2, -1)
        y = Conv(self.features, padding=1, name="conv1")(nn.silu(group_norm(8)(x)))
        y = group_norm(8)(y) * (1 + scale) + shift
        y = Gain()(Conv(self.features, padding=1, name="conv2")(nn.silu(y)))
        skip = x if x.shape[-1] == self.features else Conv(self.features, 1, name="skip")(x)
        return skip + y


class SelfAttention(nn.Module):
    """Attention between all pixels, heads of 32 channels."""

    @nn.compact
    def __call__(self, x: Images) -> Images:
        b, h, w, c = x.shape
        heads = max(c // 32, 1)
        qkv = Dense(3 * c, name="qkv")(group_norm(8)(x).reshape(b, h * w, c)).reshape(b, h * w, 3, heads, c // heads)
        y = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]).reshape(b, h * w, c)
        return x + Gain()(Dense(c, name="out")(y)).reshape(b, h, w, c)


class LabelAttention(nn.Module):
    """Attention from pixels to the labels that their picture has, and to one more entry that is always there.

    The embedding of several labels is their sum, the same everywhere; here the part of a picture that is becoming red
    can ask which of the objects is.
    """

    @nn.compact
    def __call__(self, x: Images, present: Float[Array, "b k"]) -> Images:
        b, h, w, c = x.shape
        heads, count = max(c // 32, 1), present.shape[1] + 1
        query = Dense(c, name="query")(group_norm(8)(x).reshape(b, h * w, c)).reshape(b, h * w, heads, c // heads)
        tables = [self.param(name, nn.initializers.normal(1.0), (count, c)) for name in ("keys", "values")]
        key, value = (jnp.broadcast_to(table.astype(x.dtype).reshape(count, heads, -1), (b, count, heads, c // heads))
                      for table in tables)
        seen = jnp.pad(present > 0, ((0, 0), (0, 1)), constant_values=True)[:, None, None]
        y = jax.nn.dot_product_attention(query, key, value, mask=seen).reshape(b, h * w, c)
        return x + Gain()(Dense(c, name="out")(y)).reshape(b, h, w, c)


class UNet(nn.Module):
    """`multipliers` has one entry a resolution; attention where a feature map's side is at most `attention_size`, to
    the labels everywhere with `label_attention`.

    Raises UserError for pictures whose sides cannot be halved often enough.
    """

    num_steps: int = 1000
    num_classes: int | None = None
    channels: int = 1
    width: int = 64
    multipliers: tuple[int, ...] = (1, 2)
    blocks: int = 1
    attention_size: int = 8
    patch_size: int = 2
    label_attention: bool = False

    @nn.compact
    def __call__(self, x: Images, t: Times, labels: Labels | None = None, train: bool = False) -> Images:
        step = self.patch_size * 2 ** (len(self.multipliers) - 1)
        if x.shape[1] % step or x.shape[2] % step:
            raise UserError(f"this UNet needs sides that are multiples of {step}; got {x.shape[1]}x{x.shape[2]}")
        wide = 4 * self.width
        time = sinusoid(t * (1000 / self.num_steps), self.width, self.width // 2).astype(x.dtype)
        embedding = Dense(wide, name="time2")(nn.silu(Dense(wide, name="time1")(time)))
        if self.num_classes is not None and labels is not None:
            present = context_vector(labels, self.num_classes).astype(x.dtype)
            embedding += Dense(wide, name="label")(present)

        def block(x, features):
            x = ResidualBlock(features)(x, embedding)
            if self.label_attention and self.num_classes is not None:
                x = LabelAttention()(x, jnp.zeros((len(x), self.num_classes)) if labels is None else present)
            return SelfAttention()(x) if x.shape[1] <= self.attention_size else x

        x = Conv(self.width, padding=1, name="stem")(fold(x, self.patch_size))
        skips = [x]
        for level, multiplier in enumerate(self.multipliers):
            if level:
                x = Conv(x.shape[-1], 2, stride=2, name=f"down{level}")(x)
                skips.append(x)
            for _ in range(self.blocks):
                x = block(x, multiplier * self.width)
                skips.append(x)
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for _ in range(self.blocks + 1):
                x = block(jnp.concatenate([x, skips.pop()], -1), multiplier * self.width)
            if level:
                x = ConvTranspose(self.width * self.multipliers[level - 1], 2, stride=2, name=f"up{level}")(x)
        x = nn.silu(group_norm(8)(x))
        x = Gain()(Conv(self.channels * self.patch_size**2, padding=1, name="head")(x))
        return unfold(x, self.patch_size)
