"""Pictures from a trained model: many, in batches, each depending on its own seed alone."""
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import PyTree, UInt8

from dipddpm_jax import checkpoints, data, devices
from dipddpm_jax.commands import builders
from dipddpm_jax.config import saved
from dipddpm_jax.config.diffusion import TrainConfig
from dipddpm_jax.config.sampler import SamplerConfig
from dipddpm_jax.config.saved import Facts
from dipddpm_jax.diffusion import training
from dipddpm_jax.diffusion.samplers import gaussian_noise
from dipddpm_jax.errors import UserError
from dipddpm_jax.hybrids.passes import repeated_passes
from dipddpm_jax.torch_weights import import_torch, read


class Model(NamedTuple):
    """A network with weights, and all that says how to use it."""

    config: TrainConfig
    facts: Facts
    network: nn.Module
    weights: PyTree
    step: int | None = None  # of the run that the weights come from


class Drawn(NamedTuple):
    """Pictures, their animation if asked for, and the seconds of the second and later batches."""

    images: UInt8[np.ndarray, "n h w c"]
    frames: UInt8[np.ndarray, "frames n h w c"] | None
    seconds: float


def cycled_labels(data: Any, count: int) -> np.ndarray | None:
    """0, 1, 2, ... again and again; for several labels an image, those of the first held-out pictures."""
    if not data.facts.label_names:
        return None
    if data.facts.multi_hot:
        return np.resize(data.held_labels, (count, len(data.facts.label_names)))
    return np.arange(count, dtype=np.int32) % len(data.facts.label_names)


@partial(jax.jit, static_argnames=("config", "facts", "network", "sampler", "most", "num_frames"))
def _chain(weights, keys, labels, guidance, config, facts, network, sampler, most, num_frames):
    schedule = builders.make_schedule(config.schedule)
    pixels = training.Pixels(config.pixel_mean, config.pixel_std)
    noise = gaussian_noise(keys, facts.image_shape)
    grid = builders.sampling_grid(sampler, schedule)
    denoise = builders.make_denoiser(config, sampler, network, weights, labels, guidance, most)
    x = noise(jnp.int32(schedule.num_steps))
    sample = builders.make_sampler(sampler)(denoise, schedule, x, grid, noise)
    images = pixels.decode(sample.x)
    if not num_frames:
        return images, None
    chosen = np.unique(np.linspace(0, len(grid) - 2, num_frames).round().astype(int))
    frames = jax.vmap(pixels.decode)(jnp.concatenate([x[None], sample.path[chosen]]))
    return images, frames


@partial(jax.jit, static_argnames=("config", "network", "num_frames"))
def _passes(weights, keys, start, times, config, network, num_frames):
    """System 003: held-out pictures, denoised at random times."""
    pixels = training.Pixels(config.pixel_mean, config.pixel_std)
    shape = (network.num_blocks, *start.shape[1:])
    one = jax.vmap(lambda i, key: jax.random.normal(jax.random.fold_in(key, i), shape), (None, 0), 1)
    noise = jax.vmap(one, (0, None))(jnp.arange(times.shape[0]), keys)

    def apply(x, t, draws):
        return network.apply(weights, x, t, noise=draws)

    path = repeated_passes(apply, pixels.encode(start), times, noise)
    frames = jnp.concatenate([start[None], jax.vmap(pixels.decode)(path)])
    return frames[-1], frames if num_frames else None


def draw(
    model: Model, sampler: SamplerConfig, count: int, seed: int, labels: np.ndarray | None = None,
    num_frames: int = 0, batch_size: int = 64, pictures: UInt8[np.ndarray, "n h w c"] | None = None,
) -> Drawn:
    """`count` pictures; picture i depends on (seed, i, its label) alone, not on the batch it is drawn in.

    `pictures` are those that random_passes denoises. Raises UserError when a model and a sampler do not fit.
    """
    passes = sampler.name == "random_passes"
    if passes != (model.config.target == "autoencode"):
        raise UserError(f"sampler {sampler.name} does not fit a model that was trained to {model.config.target}: "
                        "random_passes is for the one that was trained to autoencode, and for no other")
    most = int(labels.sum(axis=1).max()) if sampler.compose and model.facts.multi_hot and labels is not None else 0
    program = replace(sampler, guidance=float(sampler.guidance != 0))  # all weights but 0 share one
    if passes:
        times = jax.random.randint(jax.random.key(seed), (sampler.num_steps or 10,), 1,
                                   model.config.schedule.num_steps + 1)
        pictures = np.resize(pictures, (count, *pictures.shape[1:]))
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(count))
    batch = min(batch_size, count)
    images, frames, seconds, weights = [], [], 0.0, model.weights
    for start in range(0, count, batch):
        rows = np.minimum(np.arange(start, start + batch), count - 1)  # the last batch is filled up: one program
        began = time.perf_counter()
        if passes:
            out, path = _passes(model.weights, keys[rows], pictures[rows], times, model.config, model.network,
                                 num_frames)
        else:
            own, weights = devices.spread((keys[rows], None if labels is None else labels[rows]), weights)
            out, path = _chain(weights, *own, jnp.float32(sampler.guidance), model.config, model.facts, model.network,
                               program, most, num_frames)
        keep = min(batch, count - start)
        images.append(np.asarray(out)[:keep])
        if num_frames:
            frames.append(np.asarray(path)[:, :keep])
        seconds += (time.perf_counter() - began) * (start > 0)
    return Drawn(np.concatenate(images), np.concatenate(frames, 1) if frames else None, seconds)


def load_run(workdir: Path, step: int | None = None) -> Model:
    """The trained model of a run, at its newest checkpoint or that of `step`. Raises UserError."""
    _, config, facts = saved.load(workdir / "config.json")
    network, shapes = abstract_model(config, facts)
    step = checkpoints.latest_step(workdir / "checkpoints") if step is None else step
    params = shapes.pop("params")
    weights = checkpoints.restore_weights(workdir / "checkpoints", params, shapes, step)
    return Model(config, facts, network, weights, step)


def abstract_model(config: TrainConfig, facts: Facts) -> tuple[nn.Module, dict[str, Any]]:
    """The network, and its variables as shapes on the first device."""
    network = builders.make_network(config.network, facts, config.schedule.num_steps)
    shapes = dict(builders.variable_shapes(network, facts))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return network, jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), shapes)


def load_model(path: Path, config: TrainConfig) -> Model:
    """A `Model` of somebody's PyTorch weights, for the network of a preset; with labels if they have any.

    Raises UserError when the file or its entries do not fit.
    """
    state, problem = read(path), None
    for facts in _facts_of(config):
        network = builders.make_network(config.network, facts, config.schedule.num_steps)
        try:
            weights = import_torch(state, builders.variable_shapes(network, facts))
            return Model(config, facts, network, weights)
        except UserError as error:
            problem = problem or error
    raise UserError(f"{path}: {problem}")


def _facts_of(config: TrainConfig) -> list[Facts]:
    """What the preset's data set would tell, without needing it: with its labels, and without."""
    known = data.describe(config.data)
    if known is None:
        raise UserError(f"what {config.data} holds is not known beforehand; name a preset of another data set")
    shape = known.image_shape
    if config.image_size:
        shape = config.image_size, config.image_size, shape[2]
    with_labels = [Facts(shape, known.label_names, known.several)] if config.labels else []
    return [*with_labels, Facts(shape)]
