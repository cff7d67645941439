"""Networks: published parameter counts, sizes that fit or do not, the quirks that are kept, number types."""
import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from parity.networks import compiled

from dipddpm_jax import networks
from dipddpm_jax.config import diffusion
from dipddpm_jax.config.presets import PRESETS
from dipddpm_jax.networks import (
    AttentionUNet,
    ContextUnet,
    ConvStack,
    ResidualDenoiser,
    SkipNet,
    SmallUNet,
    TwoConvs,
)
from dipddpm_jax.networks.context_unet import enlargement
from dipddpm_jax.networks.layers import (
    BatchNorm,
    ConvTranspose,
    Dense,
    double_size,
    initial_variables,
    max_pool,
    windows,
)
from dipddpm_jax.types import NULL_LABEL, UserError

KEY = jax.random.key(0)
F16 = SkipNet(3, (128,) * 5, (128,) * 5, (4,) * 5)
SNAIL = SkipNet(3, (8, 16, 32, 64, 128), (8, 16, 32, 64, 128), (0, 0, 0, 4, 4))


def shapes(network, *pictures: int, labels=None):
    """Shapes of the variables and of the output, without computing anything."""
    x, t = jax.ShapeDtypeStruct(pictures, jnp.result_type(float)), jax.ShapeDtypeStruct(pictures[:1], jnp.int32)
    return jax.eval_shape(lambda x, t: network.init_with_output(KEY, x, t, labels, train=True), x, t)[::-1]


def size(tree) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("network, picture, parameters, frozen", [
    (AttentionUNet(), (28, 28, 1), 2_053_136, 0),
    (AttentionUNet(10), (28, 28, 1), 2_629_136, 0),
    (SmallUNet(), (28, 28, 1), 506_852, 100_000),
    (SkipNet(), (32, 32, 1), 36_953, 0),
    (F16, (64, 64, 32), 2_217_831, 0),
    (ConvStack((64, 64)), (16, 16, 3), 40_451, 0),
    (ConvStack((64, 128, 64)), (16, 16, 3), 151_171, 0),
    (ConvStack((64, 128, 256, 128)), (16, 16, 3), 669_315, 0),
    (TwoConvs(), (16, 16, 3), 168, 0),
    (ResidualDenoiser(), (16, 16, 3), 1_680, 10_000),
    (ContextUnet(width=32), (64, 64, 3), 478_467, 0),
    (ContextUnet(width=128), (64, 64, 3), 7_578_627, 0),
    (ContextUnet(10, width=32, channels=1), (28, 28, 1), 414_529, 0),
], ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None)
def test_parameter_counts_are_the_published_ones(network, picture, parameters, frozen):
    variables, output = shapes(network, 2, *picture)
    assert size(variables["params"]) == parameters
    assert size(variables.get("buffers", {})) == frozen
    assert output.shape == (2, *picture[:2], picture[2] if network is not F16 else 3)


NETWORKS = [config for config in diffusion.NETWORKS if config is not diffusion.OwnNetwork]


@pytest.mark.parametrize("config", NETWORKS, ids=lambda config: config.__name__)
def test_a_network_and_its_configuration_have_the_same_defaults(config):
    network = {field.name: field.default for field in dataclasses.fields(getattr(networks, config.__name__))}
    named = {field.name: field.default for field in dataclasses.fields(config)}
    assert {name: network[name] for name in named} == named


def test_the_speed_page_times_the_network_that_train_py_trains():
    cases = pytest.importorskip("benchmarks.cases", reason="PyTorch is not installed")
    timed = cases.recommended_network()
    assert (timed.width, timed.blocks, timed.num_classes, timed.num_steps) == (32, 1, 10, 1000)
    assert {k: getattr(timed, k) for k in dataclasses.asdict(PRESETS["unet"][1].network)} == dataclasses.asdict(
        PRESETS["unet"][1].network)


@pytest.mark.parametrize("side, factor", [(28, 7), (56, 7), (84, 7), *((s, 8) for s in (32, 64, 96, 128, 160, 192))])
def test_sides_that_context_unet_takes(side, factor):
    assert enlargement(side, side) == factor
    assert shapes(ContextUnet(width=8), 1, side, side, 3)[1].shape == (1, side, side, 3)


@pytest.mark.parametrize("network, picture, message", [
    *((ContextUnet(width=8), (side, side, 3), "legal sides are 32, 64") for side in (16, 30, 48, 60, 72, 224 + 32)),
    (ContextUnet(width=8), (28, 32, 3), "28x32"),
    (AttentionUNet(), (30, 28, 1), "multiples of 4"),
    (SmallUNet(), (32, 32, 1), "28x28 pixels, not 32x32"),
])
def test_other_sides_are_refused_in_words(network, picture, message):
    with pytest.raises(UserError, match=message):
        shapes(network, 1, *picture)


@pytest.mark.parametrize("network, side, out", [
    (SkipNet(), (36, 44), (36, 44)), (SkipNet(), (33, 35), (34, 36)),  # the first level has no skip to crop to
    (SkipNet(1, (4, 6), (4, 6), (4, 0)), (33, 35), (33, 35)), (SNAIL, (50, 70), (56, 72)),
    (SkipNet(1, (4, 6), (4, 6), (2, 2), downsample="max", upsample="nearest", padding="zeros"), (22, 26), (20, 24)),
])
def test_skip_net_takes_any_size_and_may_return_another(network, side, out):
    assert shapes(network, 1, *side, 2)[1].shape == (1, *out, network.channels)


@pytest.mark.parametrize("network, picture", [
    (AttentionUNet(10, (8, 8, 8, 8), 16), (8, 8, 1)), (SmallUNet(20, 8, (2, 2, 2)), (28, 28, 1)),
    (SkipNet(), (16, 16, 1)), (ConvStack((4,), 1), (8, 8, 1)), (TwoConvs(1), (8, 8, 1)),
    (ResidualDenoiser(1, 2), (8, 8, 1)), (ContextUnet(3, 10, 8, 1), (28, 28, 1)),
], ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None)
@pytest.mark.parametrize("kind", [jnp.float64, jnp.bfloat16])
def test_numbers_keep_their_type(network, picture, kind):
    """float64 throughout (no hidden float32), and bfloat16 wherever the input is."""
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, kind), shapes(network, 2, *picture)[0])
        x, t = jax.ShapeDtypeStruct((2, *picture), kind), jax.ShapeDtypeStruct((2,), jnp.int32)
        apply = partial(network.apply, train=True, mutable=["batch_stats"], rngs={"noise": KEY})
        text = str(jax.make_jaxpr(apply)(variables, x, t))
        assert jax.eval_shape(apply, variables, x, t)[0].dtype == kind
        if kind == jnp.float64:
            assert "f32[" not in text and "f16[" not in text


def test_first_time_embedding_of_small_unet_has_no_effect():
    """It shifts a one-channel picture by one number, which the first LayerNorm takes away."""
    network, x, t = SmallUNet(20, 8, (2, 2, 2)), jax.random.normal(KEY, (1, 28, 28, 1)), jnp.array([7])
    variables = initial_variables(network, KEY, x, t)
    changed = traverse_util.path_aware_map(lambda path, v: v + 5 if path[1].startswith("te1") else v, variables)
    apply = compiled(network.apply)
    np.testing.assert_allclose(apply(changed, x, t), apply(variables, x, t), atol=1e-5)


def test_context_of_classes_and_of_sets():
    x = jnp.zeros((2, 28, 28, 1))
    system, script = ContextUnet(3), ContextUnet(3, context_value=-1.0)

    def context(network, labels):
        return network.apply({}, labels, x, method="context").tolist()

    for nothing in (None, jnp.full(2, NULL_LABEL), jnp.zeros((2, 3))):
        assert context(system, nothing) == [[0, 0, 0], [0, 0, 0]]
    assert context(system, jnp.array([2, 0])) == [[0, 0, 1], [1, 0, 0]]
    assert context(script, jnp.array([2, NULL_LABEL])) == [[0, 0, -1], [0, 0, 0]]
    assert context(system, jnp.array([[1.0, 0, 1], [0, 0, 0]])) == [[1, 0, 1], [0, 0, 0]]


def test_residual_denoiser_injects_its_noise_in_evaluation_too():
    network, x, t = ResidualDenoiser(1, 3), jnp.ones((2, 8, 8, 1)), jnp.array([501, 1])
    variables = initial_variables(network, KEY, x, t)
    variables = {**variables, "params": jax.tree.map(jnp.zeros_like, variables["params"])}
    noise = jax.random.normal(KEY, (3, *x.shape))
    sigma = jnp.array([0.005, 0.0])[:, None, None, None]  # 0.01 i / 1000 at i = t - 1
    apply = compiled(network.apply)
    np.testing.assert_allclose(apply(variables, x, t, noise=noise), x + sigma * noise.sum(0), atol=1e-6)
    draws = [apply(variables, x, t, rngs={"noise": jax.random.key(k)}) for k in (1, 1, 2)]
    assert jnp.array_equal(draws[0], draws[1]) and not jnp.array_equal(draws[0], draws[2])
    assert jnp.array_equal(draws[0][1], x[1])  # sigma is 0 at the reference's step 0
    with pytest.raises(Exception, match="noise"):
        network.apply(variables, x, t)


@pytest.mark.parametrize("method", ["bilinear", "nearest"])
@pytest.mark.parametrize("h, w, c", [(1, 5, 1), (7, 2, 3)])
def test_double_size_is_jax_image_resize(h, w, c, method):
    x = jax.random.normal(KEY, (2, h, w, c))

    def of_jax(x):
        return jax.image.resize(x, (2, 2 * h, 2 * w, c), method)

    y, g = of_jax(x), jnp.asarray(np.random.default_rng(1).normal(size=(2, 2 * h, 2 * w, c)), jnp.float32)
    np.testing.assert_allclose(double_size(x, method), y, atol=1e-6)
    gradients = (jax.vjp(f, x)[1](g)[0] for f in (partial(double_size, method=method), of_jax))
    np.testing.assert_allclose(*gradients, atol=2e-6)


def test_batch_norm_has_the_gradient_that_autodiff_finds():
    """Through mean and variance too; in float64, where rounding hides no error of the formula."""
    def plain(x, scale, bias):
        mean, var = x.mean((0, 1, 2), keepdims=True), x.var((0, 1, 2), keepdims=True)
        return (x - mean) / jnp.sqrt(var + 1e-5) * scale[None, None, None] + bias[None, None, None]

    def ours(x, scale, bias):
        stats = {"mean": jnp.zeros(4), "var": jnp.ones(4)}
        return BatchNorm().apply({"params": {"scale": scale, "bias": bias}, "batch_stats": stats}, x, True)

    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, g = (jnp.asarray(rng.normal(3, 2, (3, 5, 6, 4))) for _ in range(2))
        (y, pull), (wanted, pull_plain) = (jax.vjp(f, x, jnp.arange(1.0, 5), jnp.ones(4)) for f in (ours, plain))
        for found, right in zip((y, *pull(g)), (wanted, *pull_plain(g)), strict=True):
            np.testing.assert_allclose(found, right, atol=1e-11)


@pytest.mark.parametrize("size", [2, 7])
def test_windows_pool_like_flax_and_drop_the_rest(size):
    x = jax.random.normal(KEY, (2, 16, 23, 3))
    step = (size, size)
    np.testing.assert_allclose(windows(x, size).mean((2, 4)), nn.avg_pool(x, step, step), atol=1e-6)
    assert jnp.array_equal(max_pool(x, size), nn.max_pool(x, step, step))


@pytest.mark.parametrize("layer, x, fan_in", [
    (Dense(200), jnp.ones((1, 50)), 50),
    (ConvTranspose(30, 4), jnp.ones((1, 3, 3, 20)), 30 * 16),  # PyTorch counts OUTPUT channels here
])
def test_parameters_start_as_in_pytorch(layer, x, fan_in):
    params = initial_variables(layer, KEY, x)["params"]
    for values in params.values():
        assert jnp.abs(values).max() <= fan_in**-0.5
        assert values.std() == pytest.approx((3 * fan_in) ** -0.5, rel=0.15)
