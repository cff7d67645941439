"""PyTorch-like layers and their initialisers: what the networks are written in.

A layer's parameters start as PyTorch's do, so that training curves can be compared, not only forwards. Attribute
names of the networks are PyTorch's; `torch_weights` turns them into state_dict names by one rule.
"""
import functools
from collections.abc import Callable
from functools import reduce
from typing import Any, Literal
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jaxtyping import Array, Float, Key, PyTree

from dipddpm_jax import convolution
from dipddpm_jax.types import Features, Images

# PyTorch's default (kaiming_uniform with a = sqrt 5): U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)).
torch_kernel = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def torch_bias(fan_in: int) -> Callable[..., Array]:
    """PyTorch's default bias: U(-1 / sqrt(fan_in), 1 / sqrt(fan_in))."""
    scale = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    return lambda key, shape, dtype=jnp.float32: scale(key, (fan_in, *shape), dtype)[0]


def initial_variables(network: nn.Module, key: Key[Array, ""], *example: Any) -> PyTree:
    """What `network.init(key, *example)` gives, in a tenth of the time: its compilation is the slowest of all.

    Every parameter starts by its name as the layers below have it: kernels and their biases uniform as in PyTorch,
    embeddings N(0, 1), scales 1, gains and the other biases 0. A leaf's draw depends on the key and its path alone.
    """
    key_words = np.asarray(jax.random.key_data(key)).ravel().tolist()
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), example)
    params, constants = _what_to_fill(network, like)

    def start(path: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng([*key_words, crc32("/".join(path).encode())])
        kernel = params.get((*path[:-1], "kernel"))
        match path[-1]:
            case "kernel" | "bias" if kernel is not None:
                return rng.uniform(-1, 1, shape) / np.sqrt(np.prod(kernel.shape[:-1]))
            case "embedding":
                return rng.normal(size=shape)
            case "scale" | "g":
                return np.ones(shape)
            case "bias" | "gain":
                return np.zeros(shape)
        raise ValueError(f"no rule says how {'.'.join(path)} starts")

    filled = {path: jnp.asarray(start(path, leaf.shape), leaf.dtype) for path, leaf in params.items()}
    return {"params": traverse_util.unflatten_dict(filled), **jax.tree.map(jnp.asarray, constants)}


@functools.lru_cache(maxsize=16)
def _what_to_fill(network: nn.Module, example: tuple[Any, ...]) -> tuple[dict, PyTree]:
    """(parameters' shapes by path, buffers and running statistics): the same for every key."""
    def init():
        keys = {"params": jax.random.key(0), "noise": jax.random.key(0)}
        return network.init(keys, *jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), example))

    @jax.jit
    def constants():  # little is left to compile
        return {name: tree for name, tree in init().items() if name != "params"}

    params = traverse_util.flatten_dict(jax.eval_shape(init)["params"])
    return params, jax.tree.map(np.asarray, constants())


class Conv(nn.Module):
    """Conv2d. `padding` counts pixels on every side; `mode` says what they hold."""

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: int = 0
    mode: Literal["zeros", "reflect"] = "zeros"
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Images) -> Features:
        k, p = self.kernel_size, self.padding
        shape = (k, k, x.shape[-1], self.features)
        kernel = self.param("kernel", torch_kernel, shape)
        if self.mode == "reflect" and p:
            x, p = jnp.pad(x, ((0, 0), (p, p), (p, p), (0, 0)), mode="reflect"), 0
        y = convolution.conv(x, kernel.astype(x.dtype), self.stride, ((p, p), (p, p)))
        if self.use_bias:
            bias = self.param("bias", torch_bias(int(np.prod(shape[:3]))), (self.features,))
            y = y + bias.astype(x.dtype)[None, None, None]
        return y


class ConvTranspose(nn.Module):
    """ConvTranspose2d. The kernel is (height, width, OUT, IN), so that its fan-in is PyTorch's."""

    features: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Images) -> Features:
        k = self.kernel_size
        kernel = self.param("kernel", torch_kernel, (k, k, self.features, x.shape[-1]))
        y = convolution.conv_transpose(x, kernel.astype(x.dtype), self.stride, self.padding)
        if self.use_bias:
            bias = self.param("bias", torch_bias(k * k * self.features), (self.features,))
            y = y + bias.astype(x.dtype)[None, None, None]
        return y


class Dense(nn.Module):
    """Linear. The kernel is (in, out)."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        kernel = self.param("kernel", torch_kernel, (x.shape[-1], self.features))
        bias = self.param("bias", torch_bias(x.shape[-1]), (self.features,))
        return x @ kernel.astype(x.dtype) + bias.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


class BatchNorm(nn.Module):
    """BatchNorm2d: normalises by the biased variance of the batch, and keeps a running UNBIASED one (momentum 0.1)."""

    epsilon: float = 1e-5
    momentum: float = 0.1

    @nn.compact
    def __call__(self, x: Images, train: bool) -> Features:
        c = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        kept_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,))
        kept_var = self.variable("batch_stats", "var", jnp.ones, (c,))
        mean, var = kept_mean.value, kept_var.value
        if train:
            y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
            mean = y.mean((0, 1, 2))
            var = jnp.square(y - mean[None, None, None]).mean((0, 1, 2))
            if self.is_mutable_collection("batch_stats") and not self.is_initializing():
                n = x.size // c
                kept_mean.value = (1 - self.momentum) * kept_mean.value + self.momentum * mean
                kept_var.value = (1 - self.momentum) * kept_var.value + self.momentum * var * (n / max(n - 1, 1))
        rows = (mean, scale / jnp.sqrt(var + self.epsilon), bias)
        mean, gain, bias = (row.astype(x.dtype)[None, None, None] for row in rows)
        return (x - mean) * gain + bias  # a single shift would cost digits where the mean is large


def group_norm(groups: int) -> nn.GroupNorm:
    """GroupNorm with PyTorch's epsilon and the exact (two-pass) variance."""
    return nn.GroupNorm(groups, epsilon=1e-5, use_fast_variance=False)


def image_norm() -> nn.LayerNorm:
    """LayerNorm over (height, width, channels) jointly, with one gain per element, as system 001 has it."""
    axes = (-3, -2, -1)
    return nn.LayerNorm(epsilon=1e-5, reduction_axes=axes, feature_axes=axes, use_fast_variance=False)


def windows(x: Images, size: int) -> Float[Array, "b _ {size} _ {size} c"]:
    """Non-overlapping windows, for pooling over axes 2 and 4; leftover rows and columns are dropped, as in PyTorch."""
    b, h, w, c = x.shape
    h, w = h // size, w // size
    return x[:, : h * size, : w * size].reshape(b, h, size, w, size, c)


def max_pool(x: Images, size: int) -> Features:
    """The largest of each window; of equal ones the first gets the gradient, as in PyTorch.

    Not `max`, whose gradient divides by the number of equal values: 0 where a compiler rounds them twice.
    """
    w = windows(x, size)
    values = [w[:, :, i, :, j] for i in range(size) for j in range(size)]
    return reduce(lambda a, b: jnp.where(a >= b, a, b), values)


def double_size(x: Images, method: Literal["bilinear", "nearest"]) -> Features:
    """Upsample(scale_factor=2): half-pixel centres, edges repeated."""
    for axis in (1, 2):
        before = after = x
        if method == "bilinear":
            edges = [(1, 1) if a == axis else (0, 0) for a in range(4)]
            padded, n = jnp.pad(x, edges, mode="edge"), x.shape[axis]
            before = 0.75 * x + 0.25 * jax.lax.slice_in_dim(padded, 0, n, axis=axis)
            after = 0.75 * x + 0.25 * jax.lax.slice_in_dim(padded, 2, n + 2, axis=axis)
        x = jnp.stack([before, after], axis + 1).reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])
    return x


def sinusoid(t: Float[Array, "b"], dim: int, divisor: int) -> Float[Array, "b d"]:
    """[sin(t f), cos(t f)] with f_j = 10000^(-j / divisor), j < dim / 2 (Vaswani et al. 2017, section 3.5)."""
    # Rounded where the originals round: an exact exponent would move the angle by 6e-5 at t = 1000.
    exponent = np.arange(dim // 2, dtype=np.float32) * np.float32(-np.log(10_000) / divisor)
    angle = t[:, None] * jnp.asarray(np.float32(np.exp(np.float64(exponent))), t.dtype)[None]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


def chain(layers: Any, x: Float[Array, "b ..."], *args: Any) -> Float[Array, "b ..."]:
    """Applies layers in order; `args` go to each of them."""
    for layer in layers:
        x = layer(x, *args)
    return x


def gelu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The exact GELU, PyTorch's default; flax's takes twice the time, since it computes erfc."""
    return 0.5 * x * (1 + jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype)))
