"""Training state, one step, and a chunk of steps as one lax.scan.

All randomness of step i follows from fold_in(key, i), and the order of the data in epoch e from fold_in(order key, e):
resuming needs no other state, and is exact.
"""
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key, PyTree, UInt8

from dipddpm_jax.diffusion.forward import Pair
from dipddpm_jax.networks.layers import BatchNorm, initial_variables
from dipddpm_jax.types import Images, Labels, Times, no_labels

ORDER = 2**31 - 1  # fold_in constant of the data order: no step number reaches it
AUGMENT = 2**31 - 2  # that of what is done to the pictures of a step


class TrainState(NamedTuple):
    """Arrays only: what a checkpoint holds is what a step needs."""

    step: Int[Array, ""]
    params: PyTree
    collections: PyTree  # running statistics and frozen tables
    ema_params: PyTree
    opt_state: PyTree
    key: Key[Array, ""]  # never advanced: step i uses fold_in(key, i)


class Metrics(NamedTuple):
    """Loss and gradient norm of a step; from the first that are not finite on, it and all later updates are dropped."""

    loss: Float[Array, "*n"]
    grad_norm: Float[Array, "*n"]


class Pixels(NamedTuple):
    """How [0, 1] pixels become network input: (pixel - mean) / std."""

    mean: float = 0.5
    std: float = 0.5

    def to_network(self, pictures: Images) -> Images:
        """Pixels in [0, 1] to network input."""
        return (pictures - self.mean) / self.std

    def to_pixels(self, x: Images) -> Images:
        """Network range to pixels, not clipped; (x - mean) / std backwards."""
        return x * self.std + self.mean

    def encode(self, images: UInt8[Array, "b h w c"]) -> Images:
        """Bytes to network input."""
        return self.to_network(images.astype(jnp.float32) / 255)

    def decode(self, x: Images) -> UInt8[Array, "b h w c"]:
        """Network range to bytes, clipped and rounded."""
        return jnp.round(jnp.clip(self.to_pixels(x), 0, 1) * 255).astype(jnp.uint8)


def init_state(
    network: nn.Module, optimizer: optax.GradientTransformation, images: Images, labels: Labels | None,
    key: Key[Array, ""],
) -> TrainState:
    """Step 0. `images` and `labels` only give shapes; one of each suffices."""
    init_key, run_key = jax.random.split(key)
    variables = initial_variables(network, init_key, images, jnp.ones(images.shape[0], jnp.int32), labels)
    params = variables.pop("params")
    ema_params = jax.tree.map(jnp.copy, params)  # a copy, since the state is donated
    return TrainState(jnp.int32(0), params, variables, ema_params, optimizer.init(params), run_key)


def random_draws(
    key: Key[Array, ""], num_steps: int, images: Images, labels: Labels | None, drop_rate: float
) -> tuple[Int[Array, "b"], Images, Labels | None]:
    """All randomness of one step: times 1..num_steps, noise, labels with some dropped."""
    t_key, eps_key, drop_key = jax.random.split(key, 3)
    t = jax.random.randint(t_key, images.shape[:1], 1, num_steps + 1)
    eps = jax.random.normal(eps_key, images.shape)
    if labels is not None:
        dropped = jax.random.bernoulli(drop_key, drop_rate, labels.shape[:1])
        labels = jnp.where(dropped.reshape((-1,) + (1,) * (labels.ndim - 1)), no_labels(labels), labels)
    return t, eps, labels


def ema_decay_at(step: Int[Array, ""], decay: float) -> Float[Array, ""]:
    """Shorter at the start, so that the average forgets the random weights: min(decay, (1 + step) / (10 + step))."""
    return jnp.minimum(decay, (1 + step) / (10 + step))


def rngs(key: Key[Array, ""]) -> dict[str, Key[Array, ""]]:
    """The streams that a network may draw from: parameters, and the noise that system 003 injects."""
    return {"params": key, "noise": jax.random.fold_in(key, ORDER)}


def make_loss(
    network: nn.Module, pair: Pair, dtype: jnp.dtype, weights: Callable[[Times], Float[Array, "b"]] | None = None
) -> Callable:
    """loss(params, collections, images, labels, t, eps, key, train) -> (mean squared error, new collections).

    The method is the pair that is regressed: that of diffusion is `partial(forward.training_pair, schedule, target)`.
    `weights` are those of the pictures' squared errors, by their times; None counts all alike.
    """

    def loss(params, collections, images, labels, t, eps, key, train):
        x_t, wanted = pair(images, t, eps)
        cast = jax.tree.map(lambda p: p.astype(dtype), params)
        output, new = network.apply({"params": cast, **collections}, x_t.astype(dtype), t, labels, train=train,
                                    mutable=list(collections) if train else ["nothing"], rngs=rngs(key))
        errors = (output.astype(jnp.float32) - wanted) ** 2
        if weights is not None:
            errors = errors * weights(t).reshape((-1,) + (1,) * (errors.ndim - 1))
        return jnp.mean(errors), {**collections, **new}

    return loss


def averaged_statistics(old: PyTree, new: PyTree, decay: Float[Array, ""]) -> PyTree:
    """BatchNorm's running statistics as an average as long as that of the parameters, whose decay is given.

    BatchNorm itself took new = old + 0.1 (batch - old); here the batch counts 1 - decay, and never more than 0.1.
    """
    weight = jnp.minimum(1.0, (1 - decay) / BatchNorm.momentum)
    return jax.tree.map(lambda old, new: old + weight * (new - old), old, new)


def make_train_step(
    loss_fn: Callable, num_steps: int, optimizer: optax.GradientTransformation, *, ema_decay: float, drop_rate: float,
    augment: Callable[[Key[Array, ""], Images], Images] | None = None,
) -> Callable[[TrainState, Images, Labels | None], tuple[TrainState, Metrics]]:
    """One optimizer update. A step whose loss or gradient is not finite changes nothing.

    `ema_decay` averages the parameters into `ema_params`, and BatchNorm's running statistics over as many steps; 0
    keeps both as they are. `drop_rate` is the share of pictures whose labels are hidden from the network, for guidance
    (0.1 in the commands; 0 if there is to be none). `augment` changes the pictures before anything else (see
    `diffusion.augmentation`).
    """

    def step(state: TrainState, images: Images, labels: Labels | None):
        key = jax.random.fold_in(state.key, state.step)
        if augment is not None:
            images = augment(jax.random.fold_in(key, AUGMENT), images)
        t, eps, labels = random_draws(key, num_steps, images, labels, drop_rate)
        (loss, collections), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, state.collections, images, labels, t, eps, key, True)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = ema_decay_at(state.step, ema_decay)
        if ema_decay and "batch_stats" in collections:
            collections = collections | {"batch_stats": averaged_statistics(
                state.collections["batch_stats"], collections["batch_stats"], decay)}
        ema_params = optax.incremental_update(params, state.ema_params, 1 - decay)
        new = TrainState(state.step + 1, params, collections, ema_params, opt_state, state.key)
        metrics = Metrics(loss, optax.tree.norm(grads))
        good = jnp.isfinite(metrics.loss) & jnp.isfinite(metrics.grad_norm)
        return jax.tree.map(lambda new, old: jnp.where(good, new, old), new, state), metrics

    return step


def make_chunk(
    step: Callable, batch_size: int, length: int, encode: Callable, place: Callable = lambda batch: batch,
    shardings: tuple[PyTree, PyTree] | None = None,
) -> Callable:
    """run(state, images, labels, num_steps): `num_steps` <= `length` steps in one program, whatever their number.

    `images` is the whole data set as bytes; `place` may spread a batch over devices, and `shardings` say where state
    and metrics stay. Metrics of steps not run are nan.
    """

    @partial(jax.jit, donate_argnames="state", out_shardings=shardings)
    def run(state: TrainState, images: UInt8[Array, "n h w c"], labels: Labels | None, num_steps: Int[Array, ""]):
        count = images.shape[0]
        per_epoch = count // batch_size
        first_epoch = state.step // per_epoch
        order_key = jax.random.fold_in(state.key, ORDER)
        last_epoch = (state.step + num_steps - 1) // per_epoch

        def order_of(epoch):  # a permutation takes time, and most chunks lie within one epoch
            return jax.lax.cond(
                epoch <= last_epoch, lambda: jax.random.permutation(jax.random.fold_in(order_key, epoch), count),
                lambda: jnp.arange(count))

        orders = jnp.stack([order_of(first_epoch + e) for e in range((length - 1) // per_epoch + 2)])

        def update(state: TrainState):
            order = orders[state.step // per_epoch - first_epoch]
            rows = jax.lax.dynamic_slice_in_dim(order, state.step % per_epoch * batch_size, batch_size)
            batch = place((images[rows], None if labels is None else labels[rows]))
            return step(state, encode(batch[0]), batch[1])

        nothing = Metrics(jnp.float32(jnp.nan), jnp.float32(jnp.nan))

        def body(state, i):
            return jax.lax.cond(i < num_steps, update, lambda state: (state, nothing), state)

        return jax.lax.scan(body, state, jnp.arange(length))

    return run
