"""How judges are trained: what on, which network, and one pass through the pictures as a pure function."""
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key, PyTree, UInt8

from dipddpm_jax import data
from dipddpm_jax.diffusion import augmentation
from dipddpm_jax.diffusion.training import Pixels
from dipddpm_jax.errors import UserError
from dipddpm_jax.judging.judges import JUDGED
from dipddpm_jax.networks.classifier import Classifier
from dipddpm_jax.networks.layers import initial_variables
from dipddpm_jax.networks.resnet18 import ResNet18
from dipddpm_jax.types import Images, Labels


class Recipe(NamedTuple):
    """What a judge is made of. `pool(seed, i)` gives the pictures and labels of the i-th pass."""

    network: nn.Module
    held: data.Dataset
    pool: Callable[[int, int], tuple[UInt8[np.ndarray, "n h w c"], np.ndarray]]
    passes: int
    learning_rate: float
    shift: int = 2  # pictures are moved by up to so many pixels
    noise: float = 0.25  # and get noise of a standard deviation up to this, in [-1, 1]: samples are never quite clean
    batch_size: int = 64


class State(NamedTuple):
    """Arrays only; step i draws from fold_in(key(seed), i)."""

    step: Int[Array, ""]
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree


def recipe(name: str, data_dir: Path | None = None) -> Recipe:
    """The recipe of "digits", "crops", "scenes", or a data set with one class a picture. Raises UserError."""
    if name == "scenes":
        return Recipe(ResNet18(widths=(24, 48, 64, 64)), data.load("scenes", "test", data_dir), fresh_scenes,
                      passes=72, learning_rate=2e-3, noise=0.12)
    train, held = (data.load(JUDGED.get(name, (name,))[0], split, data_dir) for split in ("train", "test"))
    if train.labels is None or train.labels.ndim > 1:
        raise UserError(f"no judge can be trained on {name}: it needs one class a picture")
    return Recipe(Classifier(len(train.label_names)), held, lambda seed, i: (train.images, train.labels),
                  passes=max(12, 150_000 // len(train.images)), learning_rate=3e-3)


def fresh_scenes(seed: int, i: int) -> tuple[UInt8[np.ndarray, "n h w c"], np.ndarray]:
    """4096 pictures that no data set and no other pass holds."""
    from dipddpm_jax.data import rendering, scenes

    rng = np.random.default_rng([2, seed, i])  # 0 and 1 begin those of the data set's two parts
    labels = scenes.draw_labels(4096, rng)
    return rendering.render(labels, rng), labels


def start(recipe: Recipe, key: Key[Array, ""]) -> State:
    """The training state before the first step: fresh weights and the optimizer's zeros."""
    variables = initial_variables(recipe.network, key, jnp.zeros((1, *recipe.held.images.shape[1:])))
    return State(jnp.int32(0), variables["params"], variables["batch_stats"], optimizer(recipe, 1).init(
        variables["params"]))


def optimizer(recipe: Recipe, steps: int) -> optax.GradientTransformation:
    """Adam; the rate rises over a twentieth of the steps and then falls along a cosine to 0."""
    rate = optax.warmup_cosine_decay_schedule(0.0, recipe.learning_rate, max(steps // 20, 1), max(steps, 2))
    return optax.chain(optax.clip_by_global_norm(5.0), optax.adam(rate))


def disturbed(images: Images, key: Key[Array, ""], recipe: Recipe) -> Images:
    """Each picture shifted along both sides, its edge repeated, and with noise of its own strength."""
    place, strength, noise = jax.random.split(key, 3)
    sigma = recipe.noise * jax.random.uniform(strength, (len(images), 1, 1, 1))
    return augmentation.moved(place, images, recipe.shift) + sigma * jax.random.normal(noise, images.shape)


def cross_entropy(logits: Float[Array, "b k"], labels: Labels) -> Float[Array, ""]:
    """Mean cross-entropy: of one class a picture (softmax), or summed over the labels that it may have (sigmoid)."""
    if labels.ndim == 1:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return optax.sigmoid_binary_cross_entropy(logits, labels).sum(1).mean()


def make_pass(recipe: Recipe, length: int) -> Callable[..., tuple[State, Float[Array, ""]]]:
    """run(state, images, labels, key): once through `length` pictures in random order -> (state, mean loss)."""
    per_pass = length // recipe.batch_size
    update = optimizer(recipe, per_pass * recipe.passes).update

    def loss_of(params, batch_stats, x, labels):
        logits, new = recipe.network.apply({"params": params, "batch_stats": batch_stats}, x, train=True,
                                           mutable=["batch_stats"])
        return cross_entropy(logits, labels), new["batch_stats"]

    @jax.jit
    def run(state: State, images: UInt8[Array, "n h w c"], labels: Labels, key: Key[Array, ""]):
        order = jax.random.permutation(jax.random.fold_in(key, -1 - state.step // per_pass), length)

        def body(state, i):
            rows = jax.lax.dynamic_slice_in_dim(order, i * recipe.batch_size, recipe.batch_size)
            x = disturbed(Pixels().encode(images[rows]), jax.random.fold_in(key, state.step), recipe)
            (loss, stats), grads = jax.value_and_grad(loss_of, has_aux=True)(
                state.params, state.batch_stats, x, labels[rows])
            updates, opt_state = update(grads, state.opt_state, state.params)
            return State(state.step + 1, optax.apply_updates(state.params, updates), stats, opt_state), loss

        state, losses = jax.lax.scan(body, state, jnp.arange(per_pass))
        return state, losses.mean()

    return run
