"""Fewer products, the same convolution and gradient, however the tiles are cut into pieces."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dipddpm_jax.convolution import winograd


def plain(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("piece", [1, 40_000, 10**9], ids=["a row of tiles", "some", "everything"])
@pytest.mark.parametrize("shape, width", [((3, 10, 14, 5), 7), ((2, 18, 4, 6), 4), ((1, 4, 4, 1), 1)])
def test_result_and_gradient_equal_the_plain_convolution(shape, width, piece, monkeypatch):
    monkeypatch.setattr(winograd, "PIECE_BYTES", piece)
    x, kernel = normal(0, *shape), normal(1, 3, 3, shape[-1], width)
    wanted, pull = jax.vjp(lambda kernel: plain(x, kernel), kernel)
    g = normal(2, *wanted.shape)
    for got, exact in ((jax.jit(winograd.correlate)(x, kernel), wanted),
                       (jax.jit(winograd.kernel_gradient)(x, g), pull(g)[0])):
        assert got.shape == exact.shape
        np.testing.assert_allclose(got, exact, rtol=0, atol=1e-5 * np.abs(exact).max())


def test_the_error_of_many_channels_is_some_1e_6():
    x, kernel = normal(0, 1, 18, 18, 256), normal(1, 3, 3, 256, 8)
    with jax.enable_x64(True):
        exact = np.asarray(plain(jnp.asarray(np.float64(x)), jnp.asarray(np.float64(kernel))))
    assert np.abs(np.asarray(winograd.correlate(x, kernel)) - exact).max() < 3e-6 * np.abs(exact).max()


def test_a_piece_stays_within_its_bytes_where_a_row_of_tiles_does():
    for n, rows, columns, channels in ((64, 14, 14, 128), (64, 7, 7, 256), (1, 128, 128, 64), (6, 5, 5, 512)):
        pictures, lines = winograd._piece(n, rows, columns, channels)
        assert n % pictures == rows % lines == 0 and (pictures == 1 or lines == rows)
        assert pictures * lines == 1 or pictures * lines * columns * channels * 64 <= winograd.PIECE_BYTES
