"""The code z, a network's input: how it is drawn, and the rules by which it is perturbed and moves during a fit."""
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from dipddpm_jax.types import Image

Code = Float[Array, "p q k"]  # a network's input need not have the sides of its output
Codes = Float[Array, "draws p q k"]
JITTER = 1 / 30  # standard deviation of the noise on the code in Ulyanov et al. 2018


def noise_code(key: Key[Array, ""], height: int, width: int, depth: int = 32) -> Code:
    """Uniform noise in [0, 0.1) (Ulyanov et al. 2018, section 4)."""
    return 0.1 * jax.random.uniform(key, (height, width, depth))


def meshgrid_code(height: int, width: int) -> Code:
    """x and y from 0 to 1: the code for large holes (Ulyanov et al. 2018, section 3.3). Sides must exceed 1."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return jnp.asarray(np.stack([x, y], -1), jnp.float32)


def multiscale_code(
    key: Key[Array, ""], height: int, width: int, depth: int = 32, cells: tuple[int, ...] = (16, 8, 4, 2),
) -> Code:
    """Uniform noise in [0, 1) in cells of several sides in pixels, enlarged bilinearly: for networks that look at few
    pixels, such as plain convolutions, to which white noise looks alike everywhere, so that they fit a constant."""
    shapes = [(-(-height // cell), -(-width // cell), depth // len(cells)) for cell in cells]
    coarse = [jax.random.uniform(jax.random.fold_in(key, i), shape) for i, shape in enumerate(shapes)]
    return jnp.concatenate([jax.image.resize(c, (height, width, c.shape[-1]), "bilinear") for c in coarse], -1)


class CodeStep(NamedTuple):
    """What a rule for the code may look at after a step."""

    step: Int[Array, ""]  # steps made before this one
    output: Image
    gradient: Code | None = None  # of the loss with respect to the code; None unless the rule is `differentiated`


class CodeRule(NamedTuple):
    """init(code) -> state; update(state, code, CodeStep) -> state, code of the next step.

    At every step the network sees `draws` codes z + jitter * N(0, 1), and the mean of their outputs is the output.
    """

    init: Callable[[Code], PyTree]
    update: Callable[[PyTree, Code, CodeStep], tuple[PyTree, Code]]
    jitter: float = JITTER
    draws: int = 1
    differentiated: bool = False


def fixed(jitter: float = JITTER, draws: int = 1) -> CodeRule:
    """The code stays as it is (Ulyanov et al. 2018)."""
    return CodeRule(lambda code: (), lambda state, code, step: (state, code), jitter, draws)


def learned(optimizer: optax.GradientTransformation, jitter: float = JITTER, draws: int = 2) -> CodeRule:
    """The code is learned too, by an optimiser of its own: self-guided DIP (Liang et al. 2024) with `autoencode`."""
    def update(state, code, step):
        change, state = optimizer.update(step.gradient, state, code)
        return state, optax.apply_updates(code, change)

    return CodeRule(optimizer.init, update, jitter, draws, differentiated=True)


def refreshed(every: int = 2, jitter: float = 0.0) -> CodeRule:
    """The code becomes the output every so many steps: aSeqDIP (Alkhouri et al. 2024, algorithm 1) with `autoencode`.
    The code must have the output's shape."""
    def update(state, code, step):
        return state, jnp.where((step.step + 1) % every == 0, step.output, code)

    return CodeRule(lambda code: (), update, jitter)
