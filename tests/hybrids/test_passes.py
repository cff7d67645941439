"""System 003's repeated passes against its loop written out."""
import jax
import jax.numpy as jnp
import numpy as np

from dipddpm_jax.hybrids.passes import denoise_pictures
from dipddpm_jax.networks import ResidualDenoiser


def test_a_picture_is_denoised_as_if_it_were_alone():
    network = ResidualDenoiser(3, 2, num_steps=10)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
    variables = network.init({"params": jax.random.key(0), "noise": jax.random.key(1)}, x, jnp.ones(2, jnp.int32))
    keys, times = jax.random.split(jax.random.key(3), 2), jnp.array([3, 9, 1])
    both = denoise_pictures(network, variables, x, times, keys)
    np.testing.assert_allclose(both[:, 1:], denoise_pictures(network, variables, x[1:], times, keys[1:]), atol=1e-5)
    expected = x[1:]
    for i, t in enumerate(times):
        noise = jax.random.normal(jax.random.fold_in(keys[1], i), (2, 8, 8, 3))
        expected = network.apply(variables, expected, t[None], noise=noise[:, None])
        np.testing.assert_allclose(both[i, 1:], expected, atol=1e-5)
