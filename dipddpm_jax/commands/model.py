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

from dipddpm_jax import checkpoints, devices
from dipddpm_jax.commands import builders
from dipddpm_jax.config import saved
from dipddpm_jax.config.diffusion import AUTOENCODE, TrainConfig
from dipddpm_jax.config.few_step import NO_DENOISER
from dipddpm_jax.config.sampler import SamplerConfig, begins_with_pictures, check_guidance
from dipddpm_jax.config.saved import Facts
from dipddpm_jax.diffusion import denoisers, spacings, training
from dipddpm_jax.diffusion.samplers import gaussian_noise
from dipddpm_jax.diffusion.schedules import NoiseSchedule
from dipddpm_jax.errors import UserError
from dipddpm_jax.hybrids.passes import denoise_pictures
from dipddpm_jax.hybrids.prior import DiffusionPrior, Learned, Spacing
from dipddpm_jax.types import Denoise, Images, Labels, Times


class Model(NamedTuple):
    """A network with weights, and all that says how to use it."""

    config: TrainConfig
    facts: Facts
    network: nn.Module
    weights: PyTree
    step: int | None = None  # of the run that the weights come from

    @property
    def schedule(self) -> NoiseSchedule:
        """What the network was trained on; time 0 is the clean picture."""
        return builders.make_schedule(self.config.schedule)

    @property
    def pixels(self) -> training.Pixels:
        """Between bytes and the range of the network: encode and decode."""
        return training.Pixels(self.config.pixel_mean, self.config.pixel_std)

    def apply(self, x: Images, t: Times | int, labels: Labels | np.ndarray | None = None) -> Images:
        """The network's output for x_t at times 1 .. T, one for all pictures or one each; `config.target` says what.

        Labels are class indices (-1: none), or 0 and 1 for each of several; None: without labels.
        """
        return self.network.apply(self.weights, x, jnp.broadcast_to(t, x.shape[:1]), labels)

    def denoiser(self, labels: Labels | np.ndarray | None = None, guidance: float = 0.0) -> Denoise:
        """The function (x_t, t) -> Prediction(x0, eps) that every sampler takes, for one label a picture of the batch.

        Guidance is the weight w of (1 + w) conditional - w unconditional. Raises UserError for labels, or guidance
        without them, where the model cannot use them.
        """
        if labels is not None and not self.facts.label_names:
            raise UserError("this model was trained without labels")
        if guidance and labels is None:
            raise UserError("guidance needs labels")
        check_guidance(guidance)
        labels = None if labels is None else jnp.asarray(labels)
        return builders.make_denoiser(self.config, SamplerConfig(guidance=guidance), self.network, self.weights,
                                      labels, guidance)

    def prior(self, spacing: Spacing = spacings.even_log_snr, multiple: int = 1) -> DiffusionPrior:
        """What restorers take: the denoiser without labels, and its weights for those that go on learning them; for
        pictures of any size if the network takes those whose sides are a `multiple`. Raises UserError for a few-step
        model, which is no denoiser."""
        if self.config.few_step is not None:
            raise UserError(f"restoring {NO_DENOISER}")
        fixed = {name: tree for name, tree in self.weights.items() if name != "params"}

        def denoiser(params: PyTree) -> Denoise:
            return denoisers.padded(self._replace(weights={"params": params, **fixed}).denoiser(), multiple)

        return DiffusionPrior(denoiser(self.weights["params"]), self.schedule, self.pixels, spacing,
                              Learned(self.weights["params"], denoiser))


MOST_FRAMED = 400  # pictures whose way from noise is kept


class NotFinite(UserError):
    """Pictures came out as NaN or infinite."""


class Drawn(NamedTuple):
    """Pictures, their animation if asked for, and the seconds of the second and later batches."""

    images: UInt8[np.ndarray, "n h w c"]
    frames: UInt8[np.ndarray, "frames n h w c"] | None
    seconds: float


@partial(jax.jit, static_argnames=("config", "facts", "network", "sampler", "most", "num_frames"))
def draw_batch(weights, keys, labels, guidance, config, facts, network, sampler, most, num_frames):
    """(pictures as bytes, whether each is finite, frames or None) of one batch, all transitions in one program."""
    schedule = builders.make_schedule(config.schedule)
    pixels = training.Pixels(config.pixel_mean, config.pixel_std)
    noise = gaussian_noise(keys, facts.image_shape)
    grid = builders.sampling_grid(sampler, schedule)
    denoise = builders.make_denoiser(config, sampler, network, weights, labels, guidance, most)
    x = noise(jnp.int32(schedule.num_steps))
    keep = np.unique(np.linspace(0, len(grid) - 2, num_frames).round().astype(int)) if num_frames else None
    sample = builders.make_sampler(sampler)(denoise, schedule, x, grid, noise, keep)
    frames = jax.vmap(pixels.decode)(jnp.concatenate([x[None], sample.path])) if num_frames else None
    return pixels.decode(sample.x), jnp.isfinite(sample.x).all((1, 2, 3)), frames


@partial(jax.jit, static_argnames=("config", "network", "num_frames"))
def _passes(weights, keys, start, times, config, network, num_frames):
    """System 003: held-out pictures, denoised at random times."""
    pixels = training.Pixels(config.pixel_mean, config.pixel_std)
    path = denoise_pictures(network, weights, pixels.encode(start), times, keys)
    frames = jnp.concatenate([start[None], jax.vmap(pixels.decode)(path)])
    return frames[-1], jnp.isfinite(path[-1]).all((1, 2, 3)), frames if num_frames else None


def _not_finite(model: Model, sampler: SamplerConfig, first: int, count: int) -> str:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(model.weights)]
    damaged = sum(not np.isfinite(leaf).all() for leaf in leaves)
    others = f" (and {count - 1} more of its batch)" if count > 1 else ""
    why = (f"{damaged} of the {len(leaves)} arrays of weights hold such values" if damaged else
           f"the weights are finite; less than guidance {sampler.guidance:g}, --clip True or another sampler may help")
    return f"picture {first}{others} came out as NaN or infinite: {why}"


def draw(
    model: Model, sampler: SamplerConfig, count: int, seed: int, labels: np.ndarray | None = None,
    num_frames: int = 0, batch_size: int = 64, pictures: UInt8[np.ndarray, "n h w c"] | None = None,
) -> Drawn:
    """`count` pictures; picture i depends on (seed, i, its label) alone, not on the batch it is drawn in.

    `pictures` are those that random_passes denoises. Only the first 400 pictures have frames. Raises UserError when a
    model and a sampler do not fit, and NotFinite for pictures that are not numbers.
    """
    passes = begins_with_pictures(sampler)
    if passes != (model.config.target == AUTOENCODE):
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
            out, finite, path = _passes(
                model.weights, keys[rows], pictures[rows], times, model.config, model.network, num_frames)
        else:
            own, weights = devices.spread((keys[rows], None if labels is None else labels[rows]), weights)
            out, finite, path = draw_batch(
                weights, *own, jnp.float32(sampler.guidance), model.config, model.facts, model.network, program, most,
                num_frames)
        keep = min(batch, count - start)
        images.append(np.asarray(out)[:keep])
        if len(bad := np.flatnonzero(~np.asarray(finite)[:keep])):
            raise NotFinite(_not_finite(model, sampler, start + int(bad[0]), len(bad)))
        if num_frames and start < MOST_FRAMED:
            frames.append(np.asarray(path)[:, :keep])
        seconds += (time.perf_counter() - began) * (start > 0)
    return Drawn(np.concatenate(images), np.concatenate(frames, 1) if frames else None, seconds)


def load_run(workdir: Path | str, step: int | None = None) -> Model:
    """The trained model of a run, at its newest checkpoint or that of `step`. Raises UserError."""
    workdir = Path(workdir)
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
