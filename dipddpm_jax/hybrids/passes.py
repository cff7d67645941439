"""System 003: a network that injects its own noise (`networks.ResidualDenoiser`), its training pair and evaluation.

It learns to give back its clean input, and denoises pictures by passing them through again and again, at random times.
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key, PyTree

from dipddpm_jax.types import Images, Times


def autoencoding_pair(x0: Images, t: Times, eps: Images) -> tuple[Images, Images]:
    """(input, wanted output) of the training: both are the clean picture, since the network injects the noise."""
    return x0, x0


def repeated_passes(
    apply: Callable[[Images, Times, Float[Array, "blocks b h w c"]], Images], x: Images, times: Int[Array, "passes"],
    noise: Float[Array, "passes blocks b h w c"],
) -> Float[Array, "passes b h w c"]:
    """System 003's evaluation: apply(x, t, noise) again and again, each pass at a time of its own (drawn at random)."""
    def one_pass(x, row):
        t, draws = row
        x = apply(x, jnp.full(x.shape[:1], t), draws)
        return x, x

    return jax.lax.scan(one_pass, x, (times, noise))[1]


def denoise_pictures(
    network: nn.Module, variables: PyTree, x: Images, times: Int[Array, "passes"], keys: Key[Array, "b"]
) -> Float[Array, "passes b h w c"]:
    """`repeated_passes` of a ResidualDenoiser over pictures; picture i draws its noise from keys[i] alone."""
    shape = (network.num_blocks, *x.shape[1:])
    one_pass = jax.vmap(lambda i, key: jax.random.normal(jax.random.fold_in(key, i), shape), (None, 0), 1)
    noise = jax.vmap(one_pass, (0, None))(jnp.arange(times.shape[0]), keys)

    def apply(x: Images, t: Times, draws: Float[Array, "blocks b h w c"]) -> Images:
        return network.apply(variables, x, t, noise=draws)

    return repeated_passes(apply, x, times, noise)
