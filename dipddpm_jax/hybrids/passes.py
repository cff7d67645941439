"""System 003: the DIP in front of a denoiser, and its evaluation by repeated passes."""
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dipddpm_jax.types import Images, Times


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
