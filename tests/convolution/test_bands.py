"""Devices that share the rows of one picture compute what one device computes."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dipddpm_jax.convolution import bands as bands_module
from dipddpm_jax.convolution import conv
from dipddpm_jax.dip import Dip, DipProblem, advance_all, advance_one
from dipddpm_jax.networks import ConvStack, SkipNet
from dipddpm_jax.networks.layers import double_size

pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu" or jax.device_count() < 2,
                                reason="rows are shared by the devices of a CPU")
ROWS = 8 * jax.local_device_count()


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def both_ways(f, *args):
    """f's result and its gradients under one cotangent, on one device and shared."""
    g = jnp.cos(jnp.arange(jax.eval_shape(f, *args).size)).reshape(jax.eval_shape(f, *args).shape)

    def run(*args):
        y, pull = jax.vjp(f, *args)
        return y, *pull(g)

    @jax.jit
    def shared(*args):
        bands = jax.NamedSharding(bands_module.mesh(), bands_module.BANDS)
        picture = jax.lax.with_sharding_constraint(args[0], bands)
        with bands_module.shared():
            assert bands_module.sharing() == jax.local_device_count()
            return run(picture, *args[1:])

    return jax.jit(run)(*args), shared(*args)


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize("size, stride, channels", [(1, 1, (4, 6)), (3, 1, (4, 6)), (3, 2, (20, 6)), (5, 2, (4, 20))])
def test_conv(size, stride, channels, mode):
    x, kernel, ends = normal(0, 2, ROWS, 12, channels[0]), normal(1, size, size, *channels), (size // 2,) * 2
    alone, shared = both_ways(lambda x, k: conv(x, k, stride, (ends, ends), mode), x, kernel)
    for a, b in zip(alone, shared, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=2e-6 * np.abs(a).max())


@pytest.mark.parametrize("rows", [ROWS, ROWS + 1], ids=["even bands", "rows that do not divide"])
@pytest.mark.parametrize("method", ["bilinear", "nearest"])
def test_upsampling(method, rows):
    if rows != ROWS:
        x = normal(0, 2, rows, 6, 3)
        with bands_module.shared():
            shared = jax.jit(functools.partial(double_size, method=method))(x)
        np.testing.assert_allclose(shared, double_size(x, method), atol=1e-6)
        return
    alone, shared = both_ways(functools.partial(double_size, method=method), normal(0, 2, rows, 6, 3))
    for a, b in zip(alone, shared, strict=True):
        np.testing.assert_allclose(b, a, atol=2e-6)


@pytest.mark.parametrize("network", [ConvStack((8, 8)), SkipNet(3, (4, 4), (4, 4), (2, 2)),
                                     SkipNet(3, (4, 4), (4, 4), (2, 2), padding="zeros", upsample="nearest")],
                         ids=["stack", "skip net", "skip net, zeros, nearest"])
def test_a_fit(network, monkeypatch):
    fit, key = Dip(network, optax.sgd(0.01)), jax.random.key(0)
    problem = DipProblem(normal(0, ROWS, 12, 5), jax.nn.sigmoid(normal(1, ROWS, 12, 3)))
    state = fit.init(problem, key)
    program = jax.jit(functools.partial(advance_one, fit), static_argnums=2)
    end, alone = program(problem, state, 3)
    assert len(end.average.devices()) == 1  # too small to be shared
    monkeypatch.setattr(bands_module, "LARGE", 1)
    program = jax.jit(lambda *args: advance_one(fit, *args, 3)).lower(problem, state).compile()
    assert "all-gather" not in program.as_text()
    end, shared = program(problem, state)
    assert len(end.average.devices()) == jax.local_device_count()
    np.testing.assert_allclose(shared["loss"], alone["loss"], rtol=2e-5)
    single = jax.tree.map(lambda leaf: leaf[None], (problem, state))
    _, batch = jax.jit(lambda *args: advance_all(fit, *args, 3))(*single)
    np.testing.assert_allclose(batch["loss"][0], alone["loss"], rtol=2e-5)
