"""Parameters start as their modules declare, on the host and inside jit and vmap."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import traverse_util

from dipddpm_jax import dip
from dipddpm_jax.networks import SkipNet
from dipddpm_jax.networks.initial import torch_embedding
from dipddpm_jax.networks.layers import Conv, ConvTranspose, Dense, initial_variables

KEY = jax.random.key(3)


class Mixed(nn.Module):
    """Initialisers of others beside ours, under names that ours have too."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(400, kernel_init=nn.initializers.zeros, bias_init=nn.initializers.constant(2.0), name="head")(x)
        x = nn.Dense(300, kernel_init=nn.initializers.normal(0.02), name="small")(x)
        scale = self.param("scale", nn.initializers.normal(5.0), (1000,))
        self.variable("buffers", "table", lambda: jnp.arange(3.0))
        return Dense(200, name="ours")(x) + scale.sum()


def test_initialisers_are_what_modules_say():
    x = jnp.zeros((1, 50))
    variables = initial_variables(Mixed(), KEY, x)
    params, declared = variables["params"], Mixed().init(KEY, x)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, declared)
    assert not params["head"]["kernel"].any() and (params["head"]["bias"] == 2).all()
    assert not params["small"]["bias"].any()
    assert variables["buffers"]["table"].tolist() == [0, 1, 2]
    assert float(params["small"]["kernel"].std()) == pytest.approx(0.02, rel=0.05)
    assert float(params["scale"].std()) == pytest.approx(5, rel=0.1)
    assert float(params["ours"]["kernel"].std()) == pytest.approx((3 * 300) ** -0.5, rel=0.05)
    other = initial_variables(Mixed(), jax.random.key(4), x)["params"]
    assert (other["scale"] != params["scale"]).mean() > 0.99


def test_a_seed_starts_as_it_always_did():
    """Results of runs carry their seeds: these draws are those of the first release."""
    params = initial_variables(Conv(2, 1), jax.random.key(0), jnp.zeros((1, 4, 4, 4)))["params"]
    rng = np.random.default_rng([0, 0, 1574083243])  # the words of the key, and zlib.crc32(b"kernel")
    np.testing.assert_allclose(params["kernel"], rng.uniform(-1, 1, (1, 1, 4, 2)) / 2, rtol=1e-6)


class Ours(nn.Module):
    """All that the networks are made of."""

    @nn.compact
    def __call__(self, x):
        rows = nn.Embed(40, 16, embedding_init=torch_embedding)(jnp.zeros(1, jnp.int32))
        return ConvTranspose(16, 2)(nn.GroupNorm(2)(Conv(30, 3)(x))), Dense(300)(rows)


def test_both_ways_have_the_same_distribution():
    x = jnp.zeros((1, 4, 4, 8))
    host = traverse_util.flatten_dict(initial_variables(Ours(), KEY, x))
    traced = traverse_util.flatten_dict(jax.jit(lambda key: initial_variables(Ours(), key, x))(KEY))
    assert {k: (v.shape, v.dtype) for k, v in host.items()} == {k: (v.shape, v.dtype) for k, v in traced.items()}
    assert float(host["params", "Embed_0", "embedding"].std()) == pytest.approx(1, rel=0.1)
    for path, a in host.items():
        b = traced[path]
        if a.size >= 256:
            assert float(a.std()) == pytest.approx(float(b.std()), rel=0.15), path
            assert abs(float(a.mean() - b.mean())) < 6 * float(b.std()) / a.size**0.5, path
        bound = 1.05 * float(jnp.abs(b).max())
        assert path[-1] in ("bias", "embedding") or float(jnp.abs(a).max()) <= max(bound, 1e-9), path


def test_fits_start_inside_jit_and_vmap():
    fit = dip.Dip(SkipNet(1, (4,), (4,), (2,)), optax.adam(1e-2))
    rng = np.random.default_rng(0)
    problems = dip.DipProblem(*(jnp.asarray(rng.uniform(size=(3, 8, 8, 1)), jnp.float32) for _ in range(2)))
    keys = jax.random.split(KEY, 3)
    states = jax.jit(jax.vmap(fit.init))(problems, keys)
    one = jax.jit(fit.init)(jax.tree.map(lambda leaf: leaf[1], problems), keys[1])
    first, second = (jax.tree.leaves(tree.params) for tree in (states, one))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a[1], b, atol=1e-7)
    eager = fit.init(jax.tree.map(lambda leaf: leaf[1], problems), keys[1])
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), eager) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), one)
    ended, curves = jax.jit(jax.vmap(fit.advance, (0, 0, None)), static_argnums=2)(problems, states, 2)
    assert ended.step.tolist() == [2, 2, 2] and np.isfinite(curves["loss"]).all()
