"""PyTorch-like layers and their initialisers: what the networks are written in.

A layer's parameters start as PyTorch's do, so that training curves can be compared, not only forwards. Attribute
names of the networks are PyTorch's; `torch_weights` turns them into state_dict names by one rule.
"""
import functools
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, Literal
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jaxtyping import Array, Float, Key, PyTree

from dipddpm_jax import convolution
from dipddpm_jax.convolution import bands
from dipddpm_jax.types import Features, Images

Rows = Float[Array, "c"]  # a number for each channel

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
        y = convolution.conv(x, kernel.astype(x.dtype), self.stride, ((p, p), (p, p)), self.mode)
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
        if not train:
            return _normalised(x, kept_mean.value, jnp.sqrt(kept_var.value + self.epsilon), scale, bias)
        y = jax.lax.stop_gradient(x).astype(jnp.promote_types(x.dtype, jnp.float32))
        mean = y.mean((0, 1, 2))
        var = jnp.square(y - mean[None, None, None]).mean((0, 1, 2))
        if self.is_mutable_collection("batch_stats") and not self.is_initializing():
            n = x.size // c
            kept_mean.value = (1 - self.momentum) * kept_mean.value + self.momentum * mean
            kept_var.value = (1 - self.momentum) * kept_var.value + self.momentum * var * (n / max(n - 1, 1))
        return _normalised_by_itself(x, mean, jnp.sqrt(var + self.epsilon), scale, bias)


def _normalised(x: Images, mean: Rows, deviation: Rows, scale: Rows, bias: Rows) -> Features:
    mean, gain, bias = (row.astype(x.dtype)[None, None, None] for row in (mean, scale / deviation, bias))
    return (x - mean) * gain + bias  # a single shift would cost digits where the mean is large


_normalised_by_itself = jax.custom_vjp(_normalised)  # mean and deviation are those of x


def _by_itself_backward(kept: tuple[Array, ...], g: Features) -> tuple:
    """Ioffe and Szegedy 2015, section 3: two sums, of which autodiff makes at least four."""
    x, mean, deviation, scale = kept
    mean_, deviation_, gain = (row[None, None, None] for row in (mean, deviation, scale / deviation))
    n, wide = x.size // x.shape[-1], g.astype(mean.dtype)
    normal = (x.astype(mean.dtype) - mean_) / deviation_
    d_scale, d_bias = (wide * normal).sum((0, 1, 2)), wide.sum((0, 1, 2))
    dx = gain * (wide - (d_bias[None, None, None] + normal * d_scale[None, None, None]) / n)
    return dx.astype(x.dtype), None, None, d_scale.astype(scale.dtype), d_bias.astype(scale.dtype)


_normalised_by_itself.defvjp(lambda *args: (_normalised(*args), args[:4]), _by_itself_backward)


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
    double = _bilinear if method == "bilinear" else partial(jnp.repeat, repeats=2)
    count = bands.sharing()
    if count > 1 and x.shape[1] % count == 0:
        x = bands.by_rows(lambda band: double(band, axis=1)[:, 2:-2], x, halo=1, edge="edge")
    else:
        x = double(x, axis=1)
    return double(x, axis=2)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _bilinear(x: Features, axis: int) -> Features:
    n, wide = x.shape[axis], _edges_repeated(x, axis)
    before, after = (0.25 * jax.lax.slice_in_dim(wide, i, i + n, axis=axis) for i in (0, 2))
    return jnp.stack([before + 0.75 * x, 0.75 * x + after], axis + 1).reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])


def _bilinear_backward(axis: int, _: None, g: Features) -> tuple[Features]:
    """Written out: of the slices above, autodiff makes sums of padded arrays, ten times as slow on a CPU."""
    wide = _edges_repeated(g, axis)
    a, b, c, d = (jax.lax.slice_in_dim(wide, i, i + g.shape[axis] - 1, 2, axis) for i in range(4))
    return (0.25 * (a + d) + 0.75 * (b + c),)


_bilinear.defvjp(lambda x, axis: (_bilinear(x, axis), None), _bilinear_backward)


def _edges_repeated(x: Features, axis: int) -> Features:
    first, last = (jax.lax.slice_in_dim(x, i, i + 1, axis=axis) for i in (0, x.shape[axis] - 1))
    return jnp.concatenate([first, x, last], axis)


def sinusoid(t: Float[Array, "b"], dim: int, divisor: int) -> Float[Array, "b d"]:
    """[sin(t f), cos(t f)] with f_j = 10000^(-j / divisor), j < dim / 2 (Vaswani et al. 2017, section 3.5)."""
    # Rounded where the originals round: an exact exponent would move the angle by 6e-5 at t = 1000.
    exponent = np.arange(dim // 2, dtype=np.float32) * np.float32(-np.log(10_000) / divisor)
    angle = t[:, None] * jnp.asarray(np.float32(np.exp(np.float64(exponent))), t.dtype)[None]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


def in_order(layers: Any, x: Float[Array, "b ..."], *args: Any) -> Float[Array, "b ..."]:
    """Applies layers in order; `args` go to each of them."""
    for layer in layers:
        x = layer(x, *args)
    return x


def gelu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The exact GELU, PyTorch's default; flax's takes twice the time, since it computes erfc."""
    return 0.5 * x * (1 + jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype)))
