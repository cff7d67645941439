"""From configuration to functions: the one place where names of networks, schedules, samplers become code."""
import dataclasses
import functools
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float, PyTree

from dipddpm_jax import networks
from dipddpm_jax.config.diffusion import AUTOENCODE, SCHEDULES, OptimizerConfig, OwnNetwork, ScheduleConfig, TrainConfig
from dipddpm_jax.config.own import own_function
from dipddpm_jax.config.sampler import SAMPLERS, Sampler, SamplerConfig, begins_with_pictures, is_own
from dipddpm_jax.config.saved import Facts
from dipddpm_jax.diffusion import augmentation, denoisers, few_steps, samplers, schedules, spacings
from dipddpm_jax.diffusion.forward import Pair, min_snr, training_pair
from dipddpm_jax.diffusion.training import Pixels, TrainState, init_state, make_loss, rngs
from dipddpm_jax.errors import UserError
from dipddpm_jax.hybrids import passes
from dipddpm_jax.networks.muon import muon
from dipddpm_jax.types import Denoise, Images, Labels


def make_schedule(c: ScheduleConfig) -> schedules.NoiseSchedule:
    """The noise schedule that a configuration names. Raises UserError for one of the user's that is none."""
    if not is_own(c.name):
        return getattr(schedules, c.name)(c.num_steps, *(getattr(c, field) for field in SCHEDULES[c.name]))
    schedule = own_function("--schedule.name", c.name)(c.num_steps)
    bars = getattr(schedule, "alpha_bars", np.zeros(0))
    if len(bars) != c.num_steps + 1 or bars[0] != 1 or not np.all(np.diff(bars) < 0) or not bars[-1] >= 0:
        raise UserError(f"--schedule.name {c.name} must return a NoiseSchedule whose alpha_bars fall from 1 in "
                        f"{c.num_steps} steps")
    return schedule


def make_pair(config: TrainConfig) -> Pair:
    """What the network is trained on: the pair of diffusion for the target, or that of system 003."""
    if config.target == AUTOENCODE:
        return passes.autoencoding_pair
    return partial(training_pair, make_schedule(config.schedule), config.target)


def make_weights(config: TrainConfig) -> Callable | None:
    """The weights of the squared errors by time; None for all alike."""
    if config.weighting == "uniform":
        return None
    return partial(min_snr, make_schedule(config.schedule), config.target)


def make_augment(config: TrainConfig) -> Callable | None:
    """What is done to training pictures at random; None for nothing."""
    if not config.mirror and not config.shift:
        return None
    return partial(augmentation.augmented, mirror=config.mirror, shift=config.shift)


def make_run_loss(config: TrainConfig, network: nn.Module) -> Callable:
    """The loss that a run falls, as `training.make_loss` gives one. Raises UserError for hops that do not fit."""
    if (few := config.few_step) is None:
        return make_loss(network, make_pair(config), jnp.dtype(config.compute), make_weights(config))
    schedule = make_schedule(config.schedule)
    try:
        hops = few_steps.hops_of(schedule, few.calls, few.hops)
    except ValueError as error:
        raise UserError(f"--hops {few.hops} does not fit this schedule: {error}") from None
    return few_steps.make_few_step_loss(network, schedule, config.target, hops, few.guidance, jnp.dtype(config.compute))


def check_names(config: TrainConfig) -> None:
    """Raises UserError for a schedule or sampler of the user's that cannot be had, before anything is written."""
    make_schedule(config.schedule)
    if not begins_with_pictures(config.sampler):
        make_sampler(config.sampler)


def remarks(schedule: schedules.NoiseSchedule, target: str) -> list[str]:
    """What is to be said of a schedule before a run or a chain begins, a line each; nothing of a sound one."""
    start, end = spacings.start_time(schedule), schedule.num_steps
    left, sigma = np.sqrt(schedule.alpha_bars[start]), spacings.sigmas(schedule)
    said = []
    if left > spacings.LITTLE_SIGNAL:
        said.append(f"The schedule ends with {left:.0%} of the signal left, but sampling begins with pure noise: the "
                    "pictures are not quite distributed as the data. More noise mends it: --schedule.num-steps, "
                    "--schedule.last-beta, or the schedule cosine.")
    if target == "eps" and start < end:
        said.append(f"Sampling begins at time {start} of {end}, where noise is {sigma[start]:.0f} times the signal; at "
                    f"{end} it is {sigma[end]:.0f} times, and would multiply the errors of a network for eps.")
    return said


def make_network(config: Any, facts: Facts, num_steps: int) -> nn.Module:
    """The Linen module of the same name, with what follows from data and schedule filled in.

    One of the user's own is what its function returns. Raises UserError when it cannot take pictures of this shape.
    """
    derived = {"channels": facts.image_shape[-1], "num_classes": len(facts.label_names) or None, "num_steps": num_steps}
    if isinstance(config, OwnNetwork):
        function = own_function("--network.function", config.function)
        try:
            network = function(**_taken(function, derived))
        except TypeError as error:
            raise UserError(f"--network.function {config.function}: called with channels, num_classes and num_steps, "
                            f"those of them that it names, it says: {error}") from error
        if not isinstance(network, nn.Module):
            raise UserError(f"--network.function {config.function} must return a flax.linen Module, not "
                            f"{type(network).__name__}")
    else:
        kind = getattr(networks, type(config).__name__)
        known = {f.name for f in dataclasses.fields(kind)}
        given = {k: v for k, v in derived.items() if k in known and v is not None}
        network = kind(**dataclasses.asdict(config), **given)
    try:
        variable_shapes(network, facts)
    except UserError:
        raise
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{type(network).__name__} cannot take pictures of {'x'.join(map(str, facts.image_shape))} "
                        f"({str(error).splitlines()[0][:120]})") from None
    return network


def _taken(function: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments that the function names, or all if it takes any."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return given
    return {name: value for name, value in given.items() if name in parameters}


@functools.lru_cache(4)  # tracing a network takes half a second
def variable_shapes(network: nn.Module, facts: Facts) -> PyTree:
    """Parameters and other collections, as shapes."""
    return jax.eval_shape(lambda: network.init(rngs(jax.random.key(0)), jnp.zeros((1, *facts.image_shape)),
                                               jnp.ones(1, jnp.int32), example_labels(facts)))


def example_labels(facts: Facts) -> Labels | None:
    """Labels of one picture, for shapes."""
    if not facts.label_names:
        return None
    return jnp.zeros((1, len(facts.label_names))) if facts.multi_hot else jnp.zeros(1, jnp.int32)


def make_optimizer(c: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Adam, AdamW or Muon, with warm-up, a learning-rate schedule over `steps`, and gradient clipping."""
    after = max(steps - c.warmup_steps, 1)
    match c.decay:
        case "constant":
            rate = optax.constant_schedule(c.learning_rate)
        case "cosine":
            rate = optax.cosine_decay_schedule(c.learning_rate, after)
        case "linear":
            rate = optax.linear_schedule(c.learning_rate, 0.0, after)
        case "step":
            rate = optax.exponential_decay(c.learning_rate, c.decay_every, c.decay_factor, staircase=True)
    if c.warmup_steps:
        warmup = optax.linear_schedule(0.0, c.learning_rate, c.warmup_steps)
        rate = optax.join_schedules([warmup, rate], [c.warmup_steps])
    match c.name:
        case "adam":
            update = optax.adam(rate)
        case "adamw":
            update = optax.adamw(rate, weight_decay=c.weight_decay)
        case "muon":
            update = muon(rate)
    return update if c.clip_norm is None else optax.chain(optax.clip_by_global_norm(c.clip_norm), update)


def make_state(config: TrainConfig, network: nn.Module, facts: Facts) -> TrainState:
    """Step 0 of a run."""
    optimizer = make_optimizer(config.optimizer, config.steps)
    return init_state(network, optimizer, jnp.zeros((1, *facts.image_shape)), example_labels(facts),
                      jax.random.key(config.seed))


def make_sampler(c: SamplerConfig) -> Callable[..., samplers.Sample]:
    """(denoise, schedule, x, grid, noise, keep) -> Sample. Raises UserError for one of the user's that is none."""
    if not is_own(c.name):
        own = {option: getattr(c, option) for option in SAMPLERS[c.name].options}
        return partial(getattr(samplers, c.name), **own)
    function = own_function("--sampler", c.name)
    takes = set(inspect.signature(function).parameters)
    for option in ("variance", "quiet_steps", "eta"):
        if option not in takes and getattr(c, option) != getattr(SamplerConfig, option):
            raise UserError(f"--{option.replace('_', '-')} does nothing with the sampler {c.name}")
    own = {option: getattr(c, option) for option in ("variance", "quiet_steps", "eta") if option in takes}

    def sampler(denoise, schedule, x, grid, noise, keep=None):
        if keep is None or "keep" in takes:
            return function(denoise, schedule, x, grid, noise, **own, **({} if keep is None else {"keep": keep}))
        sample = function(denoise, schedule, x, grid, noise, **own)
        return sample._replace(path=sample.path[keep])

    return sampler


def sampling_grid(c: SamplerConfig, schedule: schedules.NoiseSchedule) -> np.ndarray:
    """The times that a sampler visits, from the last one that is safe to start at; fewer than asked for if need be."""
    row, start = SAMPLERS.get(c.name, Sampler()), spacings.start_time(schedule)
    return getattr(spacings, c.spacing or row.spacing)(schedule, min(c.num_steps or row.num_steps or start, start))


def make_denoiser(
    config: TrainConfig, sampler: SamplerConfig, network: nn.Module, variables: Any, labels: Labels | None,
    guidance: float | Float[Array, ""], most: int = 0,
) -> Denoise:
    """The denoiser of a trained network; guided if the sampler's guidance is not 0, by a weight that may be traced.

    `most` is how many labels a picture has at most, if each is to pull by itself. Raises UserError for a network that
    predicts neither the clean picture nor the noise (system 003's).
    """
    if config.target == AUTOENCODE:
        raise UserError("a network that was trained to autoencode denoises pictures by random_passes alone")
    schedule, pixels = make_schedule(config.schedule), Pixels(config.pixel_mean, config.pixel_std)

    def apply(x: Images, t: Any, labels: Labels | None) -> Images:
        return network.apply(variables, x, t, labels)

    if most:
        denoise = denoisers.composed(apply, schedule, (1 + guidance) * labels, most, config.target)
    elif sampler.guidance and labels is not None:
        denoise = denoisers.guided(apply, schedule, labels, guidance, config.target)
    else:
        denoise = denoisers.from_network(apply, schedule, config.target, labels)
    if sampler.clip:
        denoise = denoisers.clipped(denoise, schedule, -pixels.mean / pixels.std, (1 - pixels.mean) / pixels.std)
    return denoise
