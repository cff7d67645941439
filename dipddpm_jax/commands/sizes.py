"""What a training run will need of memory, estimated before anything of that size is made."""
import math

import jax
import jax.numpy as jnp

from dipddpm_jax import devices, memory
from dipddpm_jax.commands import builders
from dipddpm_jax.config.diffusion import TrainConfig
from dipddpm_jax.config.saved import Facts
from dipddpm_jax.diffusion import training
from dipddpm_jax.errors import UserError

SURELY_FITS = 10_000  # float32 values for each value of a batch: no network here keeps more
COPIES_OF_PARAMETERS = 5  # themselves, their average, their gradient and Adam's two moments


def training_bytes(config: TrainConfig, facts: Facts) -> int:
    """Bytes of a training step: its residuals, and the copies of the parameters; from shapes alone, about a second."""
    schedule = builders.make_schedule(config.schedule)
    network = builders.make_network(config.network, facts, schedule.num_steps)
    collections = dict(builders.variable_shapes(network, facts))
    params = collections.pop("params")
    loss = training.make_loss(network, builders.make_pair(config), jnp.dtype(config.compute))
    pictures = jax.ShapeDtypeStruct((config.batch_size, *facts.image_shape), jnp.float32)
    times = jax.ShapeDtypeStruct((config.batch_size,), jnp.int32)
    labels = jax.eval_shape(lambda: builders.example_labels(facts))
    if labels is not None:
        labels = jax.ShapeDtypeStruct((config.batch_size, *labels.shape[1:]), labels.dtype)

    def of_parameters(params, collections, pictures, labels, times, eps):
        return loss(params, collections, pictures, labels, times, eps, jax.random.key(0), True)[0]

    kept = devices.gradient_bytes(of_parameters, params, collections, pictures, labels, times, pictures)
    return kept + COPIES_OF_PARAMETERS * devices.tree_bytes(params)


def check_training(config: TrainConfig, facts: Facts) -> None:
    """Raises UserError when no step of this run fits into memory; costs nothing for a batch of small pictures."""
    values = config.batch_size * math.prod(facts.image_shape)
    if 4 * values * SURELY_FITS < memory.host_memory() and jax.default_backend() == "cpu":
        return
    size = "x".join(map(str, facts.image_shape[:2]))
    what = f"a training step on {config.batch_size} pictures of {size}"
    try:
        devices.check_memory(training_bytes(config, facts), what)
    except UserError as error:
        raise UserError(f"{error}; lower --image-size or --batch-size") from None
