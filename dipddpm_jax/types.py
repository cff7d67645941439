"""Array types shared by the whole package."""
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dipddpm_jax.errors import UserError as UserError

Images = Float[Array, "b h w c"]
Image = Float[Array, "h w c"]
Features = Float[Array, "b _ _ _"]  # of a layer, whose sides and channels may differ from its input's
Times = Int[Array, "b"]
Labels = Int[Array, "b"] | Float[Array, "b k"]  # one class an image, or a multi-hot vector of several
NULL_LABEL = -1  # one_hot(-1) is all zeros: "no class"


class Prediction(NamedTuple):
    """What a denoiser believes about x_t: the clean image and the noise in it."""

    x0: Images
    eps: Images


Denoise = Callable[[Images, Int[Array, ""]], Prediction]  # (x_t, t) -> Prediction
NoiseAt = Callable[[Int[Array, ""]], Images]  # t -> the standard normal draw used to reach time t


def no_labels(labels: Labels) -> Labels:
    """The labels that say "no class": NULL_LABEL for class indices, zeros for multi-hot vectors."""
    return jnp.full_like(labels, NULL_LABEL if jnp.issubdtype(labels.dtype, jnp.integer) else 0)
