"""Deep image priors and diffusion models together: each hybrid is another start, grid, training pair or network.

None is a mode of a sampler. What stands here is what they need besides the general samplers and wrappers.
"""

import jax
from flax import linen as nn
from jaxtyping import Array, Float, PyTree

from dipddpm_jax.types import Features, Images


def resize(x: Images, height: int, width: int) -> Features:
    """Bilinear with antialiasing and half-pixel centres: what torchvision's Resize does to a tensor."""
    return jax.image.resize(x, (x.shape[0], height, width, x.shape[3]), "bilinear", antialias=True)


def dip_passes(
    network: nn.Module, variables: PyTree, x: Images, times: int
) -> tuple[Float[Array, "times b h w c"], PyTree]:
    """What x becomes after 1 .. `times` passes through a fitted DIP, and its running statistics after each.

    The network stays in training mode, as system 001 leaves it: pictures of one batch see one another.
    """
    fixed = {name: tree for name, tree in variables.items() if name != "batch_stats"}

    def one_pass(carry, _):
        x, moving = carry
        x, moving = network.apply({**fixed, **moving}, x, train=True, mutable=["batch_stats"])
        return (x, dict(moving)), (x, dict(moving))

    moving = {name: tree for name, tree in variables.items() if name == "batch_stats"}
    return jax.lax.scan(one_pass, (x, moving), length=times)[1]


def filtered_noise(network: nn.Module, variables: PyTree, noise: Images, times: int, side: int) -> Features:
    """System 001's start of the chain: noise, `times` DIP passes, resized to side x side. times=0 only resizes."""
    filtered = dip_passes(network, variables, noise, times)[0][-1] if times else noise
    return resize(filtered, side, side)
