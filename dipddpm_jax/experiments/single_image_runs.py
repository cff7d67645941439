"""Measuring report 000: networks trained on one picture, those that differ in numbers in one program, and samples."""
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree, UInt8

from dipddpm_jax import data, dip, plots
from dipddpm_jax.commands import fits
from dipddpm_jax.diffusion import denoisers, forward, samplers, schedules, training
from dipddpm_jax.experiments.tables import Measured
from dipddpm_jax.judging import metrics
from dipddpm_jax.networks import AttentionUNet, SkipNet
from dipddpm_jax.types import Images

PIXELS = training.Pixels(0.1307, 0.3081)
BINS = 40  # of a loss curve
ADAM = optax.adam(2e-4)


@dataclass(frozen=True)
class Setting:
    """A run of the report: `table` is 1000 entries, 501 from the same first to the same last beta, or the first 501 of
    the 1000; times 1 .. `times` are trained, and sampling begins at the last of them. `run` is another seed."""

    target: Literal["clean", "DIP"] = "clean"
    steps: int = 5000
    times: int = 501
    table: Literal["1000", "501", "first 501"] = "1000"
    batch: int = 1
    run: int = 0


@dataclass(frozen=True)
class Size:
    """Widths of the network and of its time vector, what numbers of steps are divided by, samples a run."""

    widths: tuple[int, int, int, int]
    time_dim: int
    fewer: int
    samples: int


def report_schedule(table: str) -> schedules.NoiseSchedule:
    """The tables of the report; the first 501 entries of 1000 are the 1000 as far as times up to 501 go."""
    return schedules.linear(501 if table == "501" else 1000, last_beta=0.01)


def _tables(schedule: schedules.NoiseSchedule, times: int) -> dict[str, Array]:
    """What the loss takes from a schedule, as arrays of one shape."""
    padded = np.pad(schedule.alpha_bars, (0, 1000 - schedule.num_steps))
    return {"signal": jnp.asarray(np.sqrt(padded), jnp.float32),
            "noise": jnp.asarray(np.sqrt(1 - padded), jnp.float32), "times": jnp.int32(times)}


@functools.cache
def _chunks(batch: int, size: Size):
    """Training of several networks at once; the schedule is among the collections, so that one program serves all."""
    network = AttentionUNet(10, size.widths, size.time_dim)

    def loss(params, collections, images, labels, t, eps, key, train):
        table, rest = collections["tables"], {k: v for k, v in collections.items() if k != "tables"}
        t = jax.random.randint(jax.random.fold_in(key, 1), t.shape, 1, table["times"] + 1)
        signal, noise = (table[name][t][:, None, None, None] for name in ("signal", "noise"))
        output, new = network.apply({"params": params, **rest}, signal * images + noise * eps, t, labels, train=True,
                                    mutable=list(rest))
        return jnp.mean(jnp.square(output - eps)), {**new, "tables": table}

    step = training.make_train_step(loss, 1000, ADAM, ema_decay=0.0, drop_rate=0.0)
    return network, jax.jit(jax.vmap(training.make_chunk(step, batch, 50, PIXELS.encode), (0, 0, 0, None)))


@functools.cache
def _chain(table: str, times: int, size: Size):
    """x at time `times` -> x at time 0, without noise in the last two transitions, as the report's code has it."""
    schedule, network = report_schedule(table), AttentionUNet(10, size.widths, size.time_dim)

    @jax.jit
    def run(variables: PyTree, x: Images, labels: Array, keys: Array) -> Images:
        denoise = denoisers.from_network(functools.partial(network.apply, variables), schedule, "eps", labels)
        noise = samplers.gaussian_noise(keys, x.shape[1:])
        return samplers.ancestral(denoise, schedule, x, np.arange(times, -1, -1), noise, quiet_steps=2).x

    return run


def digit_of(seed: int) -> tuple[UInt8[np.ndarray, "1 28 28 1"], int]:
    """A held-out digit: a 7 as in the report for seed 0, then others, the first of each class, then the second."""
    held, label = data.load("mnist5k", "test"), (7 + 3 * seed) % 10
    return held.images[np.flatnonzero(held.labels == label)[seed // 10 :][:1]], label


@functools.cache
def _dip_program(steps: int):
    fit = dip.Dip(SkipNet(), optax.adam(0.01))
    return fit, jax.jit(functools.partial(fit.advance, num_steps=steps))


@functools.cache
def dip_picture(seed: int, steps: int) -> UInt8[np.ndarray, "1 28 28 1"]:
    """What a DIP of 2000 iterations makes of the digit: the report's training picture."""
    clean, key = jnp.asarray(digit_of(seed)[0][0] / 255, jnp.float32), jax.random.key(seed)
    fit, advance = _dip_program(steps)
    problem = dip.DipProblem(dip.noise_code(key, 28, 28), clean)
    output = advance(problem, fit.init(problem, key))[0].kept.output
    return np.asarray(jnp.round(output * 255), np.uint8)[None]


def program(setting: Setting) -> tuple[int, int]:
    """What runs of one program have in common: the others differ in numbers only."""
    return setting.batch, setting.steps


def _estimate(seed: int, size: Size) -> UInt8[np.ndarray, "1 28 28 1"]:
    return dip_picture(seed, 2000 // size.fewer)


def train_all(settings: Sequence[Setting], size: Size, seeds: Sequence[int]):
    """(variables, loss of every step) of each, in one program."""
    batch = settings[0].batch
    network, chunk = _chunks(batch, size)

    def begin(setting: Setting, seed: int):
        picture = digit_of(seed)[0] if setting.target == "clean" else _estimate(seed, size)
        labels = jnp.full(batch, digit_of(seed)[1])
        state = training.init_state(network, ADAM, PIXELS.encode(jnp.asarray(picture)), labels[:1],
                                    jax.random.key(seed + 1000 * setting.run))
        table = _tables(report_schedule(setting.table), setting.times)
        return (state._replace(collections={**state.collections, "tables": table}), np.repeat(picture, batch, 0),
                labels)

    state, images, labels = fits.stack([begin(*cell) for cell in zip(settings, seeds, strict=True)])
    steps, losses = max(BINS, settings[0].steps // size.fewer), []
    for done in range(0, steps, 50):
        count = min(50, steps - done)
        state, seen = chunk(state, images, labels, jnp.int32(count))
        losses.append(np.asarray(seen.loss)[:, :count])
    variables = {"params": state.params, "batch_stats": state.collections["batch_stats"]}
    return [(fits.take(variables, i), row) for i, row in enumerate(np.concatenate(losses, 1))]


def measure(settings: Sequence[Setting], size: Size, seeds: Sequence[int]) -> list[Measured]:
    """Runs of one program, sampled from pure noise as in the report, and from the noised DIP picture."""
    return [_sampled(setting, size, seed, *trained)
            for setting, seed, trained in zip(settings, seeds, train_all(settings, size, seeds))]


def _sampled(setting: Setting, size: Size, seed: int, variables: PyTree, losses: Float[np.ndarray, "n"]) -> Measured:
    (clean, label), estimate = digit_of(seed), _estimate(seed, size)
    schedule, run = report_schedule(setting.table), seed + 1000 * setting.run
    keys = jax.random.split(jax.random.key(run), size.samples)
    eps = jax.random.normal(jax.random.key(run + 1), (size.samples, *clean.shape[1:]))
    x0 = PIXELS.encode(jnp.repeat(jnp.asarray(estimate), size.samples, 0))
    noised = forward.add_noise(schedule, x0, jnp.int32(setting.times), eps)
    labels = jnp.full(size.samples, label)
    chain = _chain("501" if setting.table == "501" else "1000", setting.times, size)
    drawn = [np.asarray(PIXELS.decode(chain(variables, x, labels, keys))) for x in (eps, noised)]

    def psnr(images: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n"]:
        same = np.broadcast_to(clean, images.shape)
        return np.asarray(metrics.psnr(jnp.asarray(images / 255), jnp.asarray(same / 255)), np.float64)

    late = losses[-len(losses) // 4 :]
    numbers = {
        "psnr": psnr(drawn[0])[0], "samples": psnr(drawn[0]).mean(), "samples_sd": psnr(drawn[0]).std(),
        "noised_start": psnr(drawn[1]).mean(), "noised_start_sd": psnr(drawn[1]).std(),
        "black": psnr(np.zeros_like(clean))[0],
        "dip": psnr(estimate)[0], "signal": schedule.signal_scale(jnp.int32(setting.times)),
        "loss": late.mean(), "loss_variation": late.std() / late.mean()}
    bins = [part.mean() for part in np.array_split(losses, BINS)]
    shown = min(5, size.samples)
    sheet = plots.tile(np.concatenate([clean, estimate, drawn[0][:shown], drawn[1][:shown]]), 2 + 2 * shown)
    caption = (f"from left: the digit, the DIP's picture of it, {shown} samples from pure noise, {shown} from the "
               "DIP's picture with noise")
    return Measured(numbers, {"loss": bins}, {caption: sheet})
