"""Measuring report 001: chains that begin with noise passed through a deep image prior, and their controls.

The DDPM is trained once a size and kept in the user's cache folder; seeds differ in the DIP and in all noise drawn.
"""
import functools
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PyTree, UInt8

from dipddpm_jax import data, devices, dip, plots, records
from dipddpm_jax.data import pictures
from dipddpm_jax.diffusion import denoisers, forward, samplers, schedules, training
from dipddpm_jax.experiments import tables
from dipddpm_jax.hybrids import filtered_start
from dipddpm_jax.inverse import noise_level, noises, operators
from dipddpm_jax.judging import judges
from dipddpm_jax.judging.comparison import compare
from dipddpm_jax.networks import SkipNet, SmallUNet
from dipddpm_jax.types import Images

SCHEDULE, PIXELS, MOST_PASSES, EPOCHS = schedules.linear(1000), training.Pixels(), 50, (5, 10, 15, 20)
CHECKPOINTS = {end: tuple(end - i / 4 for i in range(8)) for end in EPOCHS[2:]}  # checkpoints before so many epochs
STEPS = (100, 200, 500, 900)
TORCH_COLUMNS = ("torch_plain", "torch_filtered")
Kind = Literal["noise", "DIP", "constant", "blurred", "scaled", "mean digit", "noised DIP", "DDIM"]


@dataclass(frozen=True)
class Start:
    """What a chain begins with; `passes`: how often the DIP is applied to the noise."""

    kind: Kind
    passes: int = 2


@dataclass(frozen=True)
class Length:
    """Chains of so many steps of a network trained for so many epochs; `inside`: with the DIP in training."""

    steps: int = 500
    epochs: int = 20
    inside: bool = False


@dataclass(frozen=True)
class Size:
    """`steps` of training stand for 20 epochs; chains visit every `stride`-th time (and have at most `most` steps, for
    smoke); `count` samples are judged; times are medians of `repeats`."""

    widths: tuple[int, int, int]
    steps: int
    batch: int
    stride: int
    count: int
    repeats: int
    data: str = "mnist5k"
    most: int = 1000


OtherWays = Callable[[Size, int], Mapping[str, Callable[[], object]]]


@functools.cache
def fitted_dip(seed: int) -> PyTree:
    """The report's DIP: 200 iterations towards one noisy digit at 32 x 32."""
    digits = data.load("mnist5k")
    five = pictures.square(digits.images[np.flatnonzero(digits.labels == 5)[0]], 32) / 255
    noise_key, code_key, key = jax.random.split(jax.random.key(seed), 3)
    target = noises.add_gaussian(noise_key, jnp.asarray(five, jnp.float32), 25 / 255)
    fit = dip.Dip(SkipNet(), dip.backtracking(optax.adam(0.01)))
    problem = dip.DipProblem(dip.noise_code(code_key, 32, 32, 1), target)
    state = jax.jit(functools.partial(fit.advance, num_steps=200))(problem, fit.init(problem, key))[0]
    return {"params": state.params, **state.statistics}


@functools.cache
def dip_outputs(seed: int, count: int) -> Float[Array, "n passes 28 28 1"]:
    """Noise of 32 x 32 after 1 .. 50 passes, resized; each picture alone, as the report draws them."""
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(seed), 1), (count, 32, 32, 1))
    network, variables = SkipNet(), fitted_dip(seed)

    def one(x: Float[Array, "h w 1"]) -> Float[Array, "passes i j 1"]:
        passes = filtered_start.dip_passes(network, variables, x[None], MOST_PASSES)[0][:, 0]
        return filtered_start.resize(passes, 28, 28)

    return jax.jit(lambda noise: jax.lax.map(one, noise))(noise)


def chain_start(setting: Start, steps: int, seed: int, count: int) -> Images:
    """x at time `steps`, in the range of the network."""
    key = jax.random.key(seed)
    noise = jax.random.normal(jax.random.fold_in(key, 2), (count, 28, 28, 1))
    filtered = dip_outputs(seed, count)[:, setting.passes - 1]
    t = jnp.int32(steps)
    match setting.kind:
        case "noise" | "DDIM":
            return noise
        case "DIP":
            return filtered
        case "constant":
            return jnp.broadcast_to(filtered.mean((1, 2, 3), keepdims=True), filtered.shape)
        case "blurred":
            smooth = jax.vmap(operators.blur(28, 28, 2.0))(noise)
            smooth = (smooth - smooth.mean((1, 2, 3), keepdims=True)) / smooth.std((1, 2, 3), keepdims=True)
            return filtered.mean((1, 2, 3), keepdims=True) + filtered.std((1, 2, 3), keepdims=True) * smooth
        case "scaled":
            return SCHEDULE.noise_scale(t) * noise
        case "mean digit":
            mean = PIXELS.encode(jnp.asarray(data.load("mnist5k").images)).mean(0, keepdims=True)
            return forward.add_noise(SCHEDULE, jnp.broadcast_to(mean, noise.shape), t, noise)
        case "noised DIP":
            return forward.add_noise(SCHEDULE, 2 * filtered - 1, t, noise)


def _inside_loss(network: SmallUNet, variables: PyTree):
    """The report's DIP inside training: two passes over x_t before the network sees it."""
    def loss(params, collections, images, labels, t, eps, key, train):
        x_t, wanted = forward.training_pair(SCHEDULE, "eps", images, t, eps)
        x = filtered_start.filtered_noise(SkipNet(), variables, filtered_start.resize(x_t, 32, 32), 2, 28)
        return jnp.mean(jnp.square(network.apply({"params": params, **collections}, x, t) - wanted)), collections

    return loss


def train_ddpm(size: Size, inside: bool, seed: int, chosen: Sequence[float | int]) -> dict[str, np.ndarray]:
    """The network's parameters (leaves of the tree) after each number of epochs chosen, and the losses."""
    network, optimizer = SmallUNet(widths=size.widths), optax.adam(1e-3)
    loss = _inside_loss(network, fitted_dip(seed)) if inside else training.make_loss(
        network, functools.partial(forward.training_pair, SCHEDULE, "eps"), jnp.dtype("float32"))
    step = training.make_train_step(loss, SCHEDULE.num_steps, optimizer, ema_decay=0.0, drop_rate=0.0)
    chunk = training.make_chunk(step, size.batch, 25, PIXELS.encode)
    images = data.load(size.data).images
    state = training.init_state(network, optimizer, jnp.zeros((1, 28, 28, 1)), None, jax.random.key(seed))
    kept, losses = {}, []
    for epochs in chosen:
        end = max(1, int(size.steps * epochs / EPOCHS[-1]))
        while len(losses) < end:
            count = min(25, end - len(losses))
            state, seen = chunk(state, images, None, jnp.int32(count))
            losses += np.asarray(seen.loss)[:count].tolist()
        kept |= {f"{epochs:g}_{i:03d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state.params))}
    return {**kept, "losses": np.array(losses)}


@functools.cache
def trained_ddpm(size: Size, inside: bool, seed: int = 0) -> dict[str, np.ndarray]:
    """What `train_ddpm` gives, from the user's cache folder if it is there."""
    chosen = EPOCHS[:1] if inside else sorted({*EPOCHS, *(epochs for of in CHECKPOINTS.values() for epochs in of)})
    recipe = f"{size.widths} {size.steps} {size.batch} {size.data} {inside} {chosen} {seed}"
    name = f"report-001-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.npz"
    return pictures.kept(records.cache_folder() / "runs" / name, recipe,
                         lambda: train_ddpm(size, inside, seed, chosen))


@functools.cache
def variables(size: Size, epochs: float | int, inside: bool, seed: int = 0) -> PyTree:
    """The variables of the DDPM of a training seed after so many epochs."""
    example = training.init_state(SmallUNet(widths=size.widths), optax.identity(), jnp.zeros((1, 28, 28, 1)), None,
                                  jax.random.key(0))
    stored, count = trained_ddpm(size, inside, seed), len(jax.tree.leaves(example.params))
    leaves = [jnp.asarray(stored[f"{epochs:g}_{i:03d}"]) for i in range(count)]
    return {"params": jax.tree.unflatten(jax.tree.structure(example.params), leaves), **example.collections}


@functools.cache
def chain(widths: tuple[int, int, int], steps: int, stride: int, ddim: bool = False, clip: bool = True):
    """x at time `steps` -> x at time 0: the report's shortened chain, or DDIM from time 1000 with as many calls.

    The report does not keep the believed picture within its range, so that its pictures drift to black or white.
    """
    network = SmallUNet(widths=widths)
    grid = schedules.strided_grid(1000, steps // stride) if ddim else np.append(np.arange(steps, 0, -stride), 0)
    sampler = samplers.ddim if ddim else samplers.ancestral

    @jax.jit
    def run(weights: PyTree, x: Images, keys: Key[Array, "n"]) -> Images:
        denoise = denoisers.from_network(lambda x, t, labels: network.apply(weights, x, t), SCHEDULE)
        denoise = denoisers.clipped(denoise, SCHEDULE) if clip else denoise
        return sampler(denoise, SCHEDULE, x, grid, samplers.gaussian_noise(keys, x.shape[1:])).x

    return run


@functools.cache
def referee() -> tuple[judges.Judge, UInt8[np.ndarray, "n 28 28 1"]]:
    """The judge of digits, and held-out ones."""
    return judges.load_judge("digits"), data.load("mnist5k", "test").images


def judged(images: UInt8[np.ndarray, "n 28 28 1"], seed: int) -> dict[str, float]:
    """Distances to held-out digits in the judge's features, and the judge's mean confidence in its choices."""
    judge, real = referee()
    real = real[: 32 * len(images)]  # all of them but for smoke
    found = compare(judge, images, real, seed=seed, splits=1)
    return {"fd": found["fd"], "kid": 1000 * found["kid"], "floor": found["floor"],
            "confidence": found["mean_confidence"],
            "noise": np.mean([noise_level.estimate_sigma(i / 255) for i in images])}


def stretched_as_reported(x: Float[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w c"]:
    """Pictures as the report shows them, each stretched to its own range; one of a single colour is black."""
    flat = np.ptp(x, (1, 2, 3)) == 0
    return plots.stretched(np.where(flat[:, None, None, None], np.linspace(0, 1, 28)[:, None], x))


def measure_starts(settings: Sequence[Start], size: Size, seeds: Sequence[int]) -> list[tables.Measured]:
    """Chains of all lengths from several kinds of start, all of which are of DDIM or none; one batch a length."""
    cells = list(zip(settings, seeds, strict=True))
    keys = jnp.concatenate([jax.random.split(jax.random.fold_in(jax.random.key(seed), 3), size.count)
                            for seed in seeds])
    weights, drawn, ddim = variables(size, 20, False), {}, settings[0].kind == "DDIM"
    for steps in STEPS:
        begin = jnp.concatenate([chain_start(setting, steps, seed, size.count) for setting, seed in cells])
        batch, whole = devices.spread((begin, keys), weights)
        for clip in (True, False):
            images = chain(size.widths, min(steps, size.most), size.stride, ddim, clip)(whole, *batch)
            drawn[steps, clip] = np.split(np.asarray(PIXELS.decode(images) if clip else images), len(cells))
    return [_judged_start(*cell, size, {key: images[i] for key, images in drawn.items()})
            for i, cell in enumerate(cells)]


def _judged_start(setting: Start, seed: int, size: Size, drawn: dict[tuple[int, bool], np.ndarray]) -> tables.Measured:
    """The numbers of one start; `drawn` holds its samples by (steps, clipped?), the clipped ones as bytes."""
    numbers, shown = {}, []
    for steps in STEPS:
        numbers |= {f"{name}{steps}": value for name, value in judged(drawn[steps, True], seed).items()}
        numbers[f"fd_shown{steps}"] = judged(stretched_as_reported(drawn[steps, False]), seed)["fd"]
        shown.append(drawn[steps, True][: min(8, size.count)])
    first = np.asarray(chain_start(setting, 500, seed, size.count))
    fine_noise = np.mean([noise_level.estimate_sigma(x) for x in first])
    numbers |= {"mean": first.mean(), "sd": first.std(), "fine_noise": fine_noise}
    sheet = plots.tile(np.concatenate(shown), len(shown[0]))
    return tables.Measured(numbers, {}, {f"rows: {', '.join(map(str, STEPS))} steps": sheet})


def measure_length(setting: Length, size: Size, seed: int) -> tables.Measured:
    """Other networks: fewer epochs, or the DIP inside training."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 3), size.count)
    x = chain_start(Start("DIP", 2 if setting.steps == 1000 else 3), setting.steps, seed, size.count)
    weights = variables(size, setting.epochs, setting.inside)
    images = np.asarray(PIXELS.decode(chain(size.widths, min(setting.steps, size.most), size.stride)(weights, x, keys)))
    losses = trained_ddpm(size, setting.inside)["losses"][: max(1, size.steps * setting.epochs // EPOCHS[-1])]
    sheet = plots.tile(images[:8], min(8, size.count))
    return tables.Measured({**judged(images, seed), "loss": losses[-100:].mean()}, {}, {"samples": sheet})


@jax.jit
def _begin(prior: PyTree, noise: Images) -> Float[Array, "b 28 28 1"]:
    return filtered_start.filtered_noise(SkipNet(), prior, noise, 2, 28)


def measure_time(setting: Length, size: Size, seed: int, others: OtherWays | None = None) -> tables.Measured:
    """Seconds (of the clock) for one picture, all times visited; medians of several, taken in turns, compilation
    apart. `others(size, steps)` are timed too, by the names of columns: PyTorch's, which are nan where nobody gives
    them (`benchmarks/report_001_times.py` does)."""
    weights, steps = variables(size, 20, False), min(setting.steps, size.most)
    run = chain(size.widths, steps, min(1000 // size.most, size.stride), clip=False)
    keys = jax.random.split(jax.random.key(seed), 1)
    prior = fitted_dip(seed)
    plain, noise = (jax.random.normal(jax.random.key(seed), (1, side, side, 1)) for side in (28, 32))
    ways = {"plain": lambda: run(weights, plain, keys), "filtered": lambda: run(weights, _begin(prior, noise), keys),
            **(others(size, steps) if others else {})}
    seconds: dict[str, list[float]] = {**{name: [] for name in TORCH_COLUMNS}, **{name: [] for name in ways}}
    for repeat in range(size.repeats + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            jax.block_until_ready(way())
            seconds[name] += [time.perf_counter() - began] * (repeat > 0)
    return tables.Measured({name: np.median(values) if values else np.nan for name, values in seconds.items()})
