"""Derivatives of layers in both modes and of second order, sums in pairs, and programs for other platforms."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

from dipddpm_jax import dip
from dipddpm_jax.diffusion import samplers, schedules
from dipddpm_jax.diffusion.denoisers import from_network
from dipddpm_jax.networks import SkipNet, SmallUNet
from dipddpm_jax.networks.layers import BatchNorm, double_size
from dipddpm_jax.networks.pixels import over_pixels, to_pixels


def our_norm(x, scale, bias):
    stats = {"mean": jnp.zeros(x.shape[-1], x.dtype), "var": jnp.ones(x.shape[-1], x.dtype)}
    return BatchNorm().apply({"params": {"scale": scale, "bias": bias}, "batch_stats": stats}, x, True,
                             mutable=["batch_stats"])[0]


def plain_norm(x, scale, bias):
    mean, var = x.mean((0, 1, 2), keepdims=True), x.var((0, 1, 2), keepdims=True)
    return (x - mean) / jnp.sqrt(var + 1e-5) * scale[None, None, None] + bias[None, None, None]


def double(x, method):
    return double_size(x, method)


def plain_double(x, method):
    b, h, w, c = x.shape
    return jax.image.resize(x, (b, 2 * h, 2 * w, c), method)


@pytest.mark.parametrize("ours, plain, extra", [
    (our_norm, plain_norm, 2), (partial(double, method="bilinear"), partial(plain_double, method="bilinear"), 0),
    (partial(double, method="nearest"), partial(plain_double, method="nearest"), 0),
], ids=["BatchNorm", "bilinear", "nearest"])
def test_every_derivative_is_that_of_the_plain_formula(ours, plain, extra):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        primals, tangents = (tuple(jnp.asarray(rng.normal(1, 2, s)) for s in [(2, 5, 6, 3)] + [(3,)] * extra)
                             for _ in range(2))

        def everything(f):
            gradient = jax.grad(lambda *p: jnp.sum(jnp.sin(f(*p))), tuple(range(len(primals))))
            linear = jax.linearize(f, *primals)[1]
            return f(*primals), jax.jvp(f, primals, tangents)[1], linear(*tangents), gradient(*primals), jax.jvp(
                gradient, primals, tangents)[1]

        got, wanted = (jax.jit(lambda f=f: everything(f))() for f in (ours, plain))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-9)


@pytest.mark.parametrize("shape", [(2, 28, 28, 1), (1, 32, 32, 8), (3, 7, 5, 2), (16, 28, 28, 10)])
def test_sums_over_pixels_round_little(shape):
    """The share of a gradient's sum that is lost; a single accumulator loses up to 4e-6 of these."""
    x = np.random.default_rng(1).normal(0.3, 1, shape).astype(np.float32)
    exact, scale = (a.astype(np.float64).sum((0, 1, 2)) for a in (x, np.abs(x)))
    x = jnp.asarray(x)
    total = jax.jit(over_pixels)(x)
    assert np.max(np.abs(total - exact) / scale) < 1e-7
    spread = jax.vmap(to_pixels)(jnp.stack([total, 2 * total]), jnp.stack([x, x]))
    assert spread.shape == (2, *shape) and float(spread[1, 0, 0, 0, 0]) == 2 * float(total[0])
    assert jnp.array_equal(jax.grad(lambda r: jnp.sum(to_pixels(r, x) * x))(total), jax.jit(over_pixels)(x))


def test_a_sampling_chain_and_a_batch_of_fits_lower_for_every_platform(monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda *_: 1)  # else a CPU's devices are part of the program
    network, schedule = SmallUNet(20, 8, (2, 2, 2)), schedules.linear(20)
    x, key = jax.ShapeDtypeStruct((2, 28, 28, 1), jnp.float32), jax.eval_shape(lambda: jax.random.split(
        jax.random.key(0), 2))
    variables = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros(x.shape), jnp.ones(2, jnp.int32)))

    def chain(variables, keys):
        noise = samplers.gaussian_noise(keys, (28, 28, 1))
        denoise = from_network(lambda x, t, labels: network.apply(variables, x, t, labels), schedule)
        return samplers.ancestral(denoise, schedule, noise(jnp.int32(20)), np.arange(20, -1, -1), noise).x

    fit = dip.Dip(SkipNet(1, (4,), (4,), (2,)), optax.adam(1e-2))
    problems = dip.DipProblem(*(jax.ShapeDtypeStruct((3, 8, 8, 1), jnp.float32),) * 2)
    states = jax.eval_shape(jax.vmap(fit.init), problems, jax.eval_shape(lambda: jax.random.split(
        jax.random.key(0), 3)))
    advance = partial(dip.advance_all, fit, num_steps=2)
    for program, inputs, forward in ((chain, (variables, key), 30), (advance, (problems, states), 6)):
        everywhere = export.export(jax.jit(program), platforms=["cpu", "cuda", "tpu"])(*inputs)
        assert everywhere.platforms == ("cpu", "cuda", "tpu")
        for platform in ("cuda", "tpu"):
            text = export.export(jax.jit(program), platforms=[platform])(*inputs).mlir_module()
            assert text.count("stablehlo.convolution") >= forward
            assert "batch_group_count = 1" in text and text.count("stablehlo.while") == 1  # the chain, the steps
