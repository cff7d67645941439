"""Derivatives of both modes and of second order, and lowering for platforms that this machine does not have."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from dipddpm_jax.convolution import conv, conv_transpose
from dipddpm_jax.convolution import cost as cost_module

LAYOUT = ("NHWC", "HWIO", "NHWC")


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def lax_conv(x, kernel, stride, padding, mode):
    if mode == "reflect":
        x, padding = jnp.pad(x, ((0, 0), *padding, (0, 0)), mode="reflect"), ((0, 0), (0, 0))
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT)


def lax_conv_transpose(x, kernel, stride, padding):
    ends = [(k - 1 - padding,) * 2 for k in kernel.shape[:2]]
    turned = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    return lax.conv_general_dilated(x, turned, (1, 1), ends, lhs_dilation=(stride, stride), dimension_numbers=LAYOUT)


def every_derivative(f, x, kernel):
    """Value, jvp, linearize, jvp of the gradient (a Hessian-vector product), gradient of a squared gradient."""
    direction = normal(8, *x.shape), normal(9, *kernel.shape)

    def loss(x, kernel):
        return jnp.sum(jnp.sin(f(x, kernel)))

    @jax.jit
    def run(*primals):
        gradient = jax.grad(loss, (0, 1))
        y, linear = jax.linearize(f, *primals)
        squared = jax.grad(lambda *p: sum(jnp.sum(g**2) for g in gradient(*p)), (0, 1))
        return y, jax.jvp(f, primals, direction), linear(*direction), jax.jvp(gradient, primals, direction), squared(
            *primals)

    return run(x, kernel)


def assert_same(got, wanted, tolerance=2e-5):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * float(jnp.abs(b).max()))


@pytest.mark.parametrize("size, stride, padding, mode, widths", [
    (3, 1, ((1, 1), (1, 1)), "zeros", (3, 5)), (3, 1, ((1, 1), (1, 1)), "reflect", (20, 18)),
    (4, 2, ((1, 1), (1, 1)), "zeros", (5, 6)), (3, 2, ((1, 1), (1, 1)), "reflect", (2, 3)),
    (1, 1, ((0, 0), (0, 0)), "zeros", (4, 3)),
])
def test_conv_has_every_derivative(size, stride, padding, mode, widths):
    x, kernel = normal(0, 2, 9, 8, widths[0]), normal(1, size, size, *widths) / size
    ours, theirs = (partial(f, stride=stride, padding=padding, mode=mode) for f in (conv, lax_conv))
    assert_same(every_derivative(ours, x, kernel), every_derivative(theirs, x, kernel))


@pytest.mark.parametrize("size, stride, padding", [(4, 2, 1), (2, 1, 0), (7, 7, 0)])
def test_conv_transpose_has_every_derivative(size, stride, padding):
    x, kernel = normal(0, 2, 5, 4, 3), normal(1, size, size, 4, 3) / size
    ours, theirs = (partial(f, stride=stride, padding=padding) for f in (conv_transpose, lax_conv_transpose))
    assert_same(every_derivative(ours, x, kernel), every_derivative(theirs, x, kernel))


def test_fewer_products_have_every_derivative(monkeypatch):
    monkeypatch.setattr(cost_module, "MANY_PRODUCTS", 1_000_000)
    x, kernel = normal(0, 8, 8, 8, 32), normal(1, 3, 3, 32, 32) / 16
    ours, theirs = (partial(f, stride=1, padding=((1, 1), (1, 1)), mode="zeros") for f in (conv, lax_conv))
    assert_same(every_derivative(ours, x, kernel), every_derivative(theirs, x, kernel), 1e-4)


def test_derivatives_under_vmap():
    x, kernels = normal(0, 3, 2, 6, 6, 2), normal(1, 3, 3, 3, 2, 4)
    ours, theirs = (jax.vmap(partial(every_derivative, partial(
        f, stride=2, padding=((1, 1), (1, 1)), mode="zeros"))) for f in (conv, lax_conv))
    assert_same(ours(x, kernels), theirs(x, kernels))


def layers(x, kernels):
    """A loss that meets both operations, with strides and without."""
    same, down, up = kernels
    y = conv(jnp.tanh(conv(x, same, 1, ((1, 1), (1, 1)))), down, 2, ((1, 1), (1, 1)))
    return jnp.sum(conv_transpose(jnp.tanh(y), up, 2, 1) ** 2)


SHAPES = (jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32),
          tuple(jax.ShapeDtypeStruct(s, jnp.float32) for s in ((3, 3, 3, 3), (4, 4, 3, 6), (4, 4, 3, 6))))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_accelerators_get_plain_convolutions(platform):
    """Three forward, five backward, the sixth being the gradient to the pictures that nobody asks for."""
    step = jax.jit(jax.grad(layers, 1))
    text = export.export(step, platforms=[platform])(*SHAPES).mlir_module()
    assert text.count("stablehlo.convolution") == 8
    assert "stablehlo.dot_general" not in text and "stablehlo.while" not in text
    if jax.default_backend() == "cpu":
        here = step.lower(*SHAPES)
        assert "stablehlo.dot_general" in here.as_text() and "conditional" not in here.compile().as_text()


def test_one_program_for_all_platforms():
    step = jax.jit(lambda x, kernels: lax.scan(lambda k, _: (jax.tree.map(
        lambda a, g: a - 0.01 * g, k, jax.grad(layers, 1)(x, k)), None), kernels, length=2)[0])
    program = export.export(step, platforms=["cpu", "cuda", "tpu"])(*SHAPES)
    x, kernels = normal(0, 2, 8, 8, 3), tuple(normal(i, *s.shape) / 9 for i, s in enumerate(SHAPES[1]))
    assert_same(program.call(x, kernels), step(x, kernels))
