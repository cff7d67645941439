"""Report 000: a DDPM trained on one handwritten digit, or on a DIP's picture of it, at the lower half of the times.

Controls: an all-black picture, equal numbers of steps, chains that begin with as much noise as the network was
trained on, both readings of the shortened table, several digits, weights and samples.
"""
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree, UInt8

from dipddpm_jax import data, denoisers, dip, fits, metrics, plots, process, samplers, schedules, training
from dipddpm_jax.networks import AttentionUNet, SkipNet
from dipddpm_jax.tables import (
    Claim,
    Column,
    Measured,
    Plot,
    Report,
    Results,
    Row,
    Table,
    Together,
    Verdict,
    interval,
    verdict_above,
    verdict_all,
)
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


def make_schedule(table: str) -> schedules.NoiseSchedule:
    """The tables of the report; the first 501 entries of 1000 are the 1000 as far as times up to 501 go."""
    return schedules.linear(501 if table == "501" else 1000, last_beta=0.01)


def _tables(schedule: schedules.NoiseSchedule, times: int) -> dict[str, Array]:
    """What the loss takes from a schedule, as arrays of one shape."""
    padded = np.pad(schedule.alpha_bars, (0, 1000 - schedule.num_steps))
    return {"signal": jnp.asarray(np.sqrt(padded), jnp.float32),
            "noise": jnp.asarray(np.sqrt(1 - padded), jnp.float32), "times": jnp.int32(times)}


@functools.cache
def _chunks(batch: int, size: Size):
    """Training of many; the schedule is among the collections, so that one program serves all."""
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
    schedule, network = make_schedule(table), AttentionUNet(10, size.widths, size.time_dim)

    @jax.jit
    def run(variables: PyTree, x: Images, labels: Array, keys: Array) -> Images:
        denoise = denoisers.from_network(functools.partial(network.apply, variables), schedule, "eps", labels)
        noise = samplers.gaussian_noise(keys, x.shape[1:])
        return samplers.ancestral(denoise, schedule, x, np.arange(times, -1, -1), noise, quiet_steps=2).x

    return run


def digit_of(seed: int) -> tuple[UInt8[np.ndarray, "1 28 28 1"], int]:
    """A held-out digit: a 7 as in the report for seed 0, then others."""
    held, label = data.load("mnist5k", "test"), (7 + 3 * seed) % 10
    return held.images[np.flatnonzero(held.labels == label)[:1]], label


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


def train(settings: Sequence[Setting], size: Size, seeds: Sequence[int]):
    """(variables, loss of every step) of each, in one program."""
    batch = settings[0].batch
    network, chunk = _chunks(batch, size)

    def begin(setting: Setting, seed: int):
        picture = digit_of(seed)[0] if setting.target == "clean" else _estimate(seed, size)
        labels = jnp.full(batch, digit_of(seed)[1])
        state = training.init_state(network, ADAM, PIXELS.encode(jnp.asarray(picture)), labels[:1],
                                    jax.random.key(seed + 1000 * setting.run))
        table = _tables(make_schedule(setting.table), setting.times)
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
            for setting, seed, trained in zip(settings, seeds, train(settings, size, seeds))]


def _sampled(setting: Setting, size: Size, seed: int, variables: PyTree, losses: Float[np.ndarray, "n"]) -> Measured:
    (clean, label), estimate = digit_of(seed), _estimate(seed, size)
    schedule, run = make_schedule(setting.table), seed + 1000 * setting.run
    keys = jax.random.split(jax.random.key(run), size.samples)
    eps = jax.random.normal(jax.random.key(run + 1), (size.samples, *clean.shape[1:]))
    x0 = PIXELS.encode(jnp.repeat(jnp.asarray(estimate), size.samples, 0))
    right = process.add_noise(schedule, x0, jnp.int32(setting.times), eps)
    labels = jnp.full(size.samples, label)
    chain = _chain("501" if setting.table == "501" else "1000", setting.times, size)
    drawn = [np.asarray(PIXELS.decode(chain(variables, x, labels, keys))) for x in (eps, right)]

    def psnr(images: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n"]:
        same = np.broadcast_to(clean, images.shape)
        return np.asarray(metrics.psnr(jnp.asarray(images / 255), jnp.asarray(same / 255)), np.float64)

    late = losses[-len(losses) // 4 :]
    numbers = {
        "psnr": psnr(drawn[0])[0], "many": psnr(drawn[0]).mean(), "many_sd": psnr(drawn[0]).std(),
        "right": psnr(drawn[1]).mean(), "right_sd": psnr(drawn[1]).std(), "black": psnr(np.zeros_like(clean))[0],
        "dip": psnr(estimate)[0], "signal": schedule.signal_scale(jnp.int32(setting.times)),
        "loss": late.mean(), "unrest": late.std() / late.mean()}
    bins = [part.mean() for part in np.array_split(losses, BINS)]
    shown = min(5, size.samples)
    sheet = plots.tile(np.concatenate([clean, estimate, drawn[0][:shown], drawn[1][:shown]]), 2 + 2 * shown)
    caption = (f"from left: the digit, the DIP's picture of it, {shown} samples from pure noise, {shown} from the "
               "DIP's picture with noise")
    return Measured(numbers, {"loss": bins}, {caption: sheet})


A, B, C, D = ("A: DIP's picture, 3000 steps", "B: the digit, 5000 steps", "C: as A, table of 501",
              "D: C once more, another seed")
B3, A5, FIRST, N1 = ("B with 3000 steps", "A with 5000 steps", "as A, the first 501 entries of 1000",
                     "N1: the digit, all 1000 times, 5000 steps")
ROWS = (
    Row(N1, Setting(times=1000)), Row(A, Setting("DIP", 3000), {"psnr": 8.108132618880658}),
    Row(B, Setting(), {"psnr": 1.3431491336455483}),
    Row(C, Setting("DIP", 3000, table="501"), {"psnr": 7.7997909067912}),
    Row(D, Setting("DIP", 3000, table="501", run=1), {"psnr": 6.070183400575599}),
    Row(B3, Setting(steps=3000), note="control"), Row(A5, Setting("DIP"), note="control"),
    Row(FIRST, Setting("DIP", 3000, table="first 501"), note="control; equals A by construction"),
    Row("B with 3000 steps, batches of 4", Setting(steps=3000, batch=4), note="control"),
)
COLUMNS = (
    Column("psnr", "PSNR of one sample, dB", "as reported"),
    Column("many", "PSNR of samples, dB", "sound"), Column("many_sd", "its deviation from sample to sample", "sound"),
    Column("right", "PSNR from the DIP's picture with noise, dB", "sound"),
    Column("black", "PSNR of a black picture, dB", "control"),
    Column("dip", "PSNR of the DIP's picture, dB", "control"),
    Column("signal", "weight of the picture where chains begin", "as reported", 3),
    Column("loss", "loss, last quarter", "as reported", 4),
    Column("unrest", "its deviation over its mean", "as reported"),
)


def _beats_black(row: str, results: Results, key: str = "many") -> Verdict:
    return verdict_above("samples less a black picture, dB", results.difference(row, row, key, "black"), 1.0)


def _in_front(results: Results) -> Verdict:
    answer, why = verdict_above("A less B, dB, both with 3000 steps", results.difference(A, B3, "many"), 0.5)
    black = results.difference(A, A, "many", "black")
    return Verdict(answer, f"{why}; as reported {results.difference(A, B, 'many')}; A less a black picture: {black}")


def _alike(results: Results) -> Verdict:
    ratio = interval(np.log(list(results.of(A, "loss").values())) - np.log(list(results.of(B3, "loss").values())))
    low, high = (np.exp(ratio.mean + sign * ratio.margin) for sign in (-1, 1))
    why = f"ratio of the losses after 3000 steps {np.exp(ratio.mean):.2f}, 95 % interval {low:.2f} to {high:.2f}"
    if 0.8 < low and high < 1.25:
        return Verdict("holds", why)
    return Verdict("does not hold" if high < 0.8 or low > 1.25 else "cannot be told", why)


def _unstable(results: Results) -> Verdict:
    answer, why = verdict_all(verdict_above("A less C, dB", results.difference(A, C, "many"), 0.5),
                              verdict_above("unrest of the loss, C less A", results.difference(C, A, "unrest"), 0.1))
    weights = results.mean(A, "signal"), results.mean(C, "signal"), results.mean(FIRST, "signal")
    return Verdict(answer, f"{why}; the picture's weight where chains begin: {weights[0]:.3f} with 1000 entries, "
                   f"{weights[1]:.3f} with 501, {weights[2]:.3f} with the first 501")


CLAIMS = (
    Claim("A DIP in front gives a better picture with fewer steps (8.1 v 1.3 dB)", "samples from pure noise, equal "
          "steps: A's PSNR is above B's, and may be by 0.5 dB", _in_front),
    Claim("With a DIP in front the outline of the digit is found (8.1 dB)", "samples of A have a higher PSNR than a "
          "black picture, maybe by 1 dB", functools.partial(_beats_black, A)),
    Claim("Both loss curves look alike", "ratio of A's loss to B's after 3000 steps within 0.8 to 1.25", _alike),
    Claim("PSNR is low because digits are black and white", "beginning from the right noise gains less than 3 dB with "
          "the same network and digits", lambda results: verdict_above("3 dB less the gain", _gap(results))),
    Claim("A table of 501 entries makes training unstable, since the picture's weight grows by 2^(t/2)", "C is worse "
          "than A, maybe by 0.5 dB, and its loss more restless, maybe by 0.1", _unstable),
    Claim("A DDPM cannot remove all noise from one picture (all 1000 times)", "N1's samples do not have a higher PSNR "
          "than a black picture by what may be 1 dB", lambda results: _negated(_beats_black(N1, results))),
)


def _gap(results: Results):
    found = results.difference(A, A, "right", "many")
    return found._replace(mean=3 - found.mean)


def _negated(found: Verdict) -> Verdict:
    other = {"holds": "does not hold", "does not hold": "holds", "cannot be told": "cannot be told"}
    return Verdict(other[found.answer], found.why)


def _losses(results: Results):
    return ([100 * (i + 1) / BINS for i in range(BINS)],
            {name: results.curve(name, "loss") for name in (A, B3, C)})


QUICK = Size((16, 32, 32, 16), 128, 2, 8)
REPORT = Report(
    "000", "a DDPM of one picture, with a DIP in front",
    "The report trains a DDPM (a UNet with BatchNorm that knows the digit's class) on a single handwritten 7. It finds "
    "that the samples stay noisy, and changes two things: only the first 501 of 1000 times are trained, and the "
    "training picture is what a deep image prior made of the digit. Samples then begin at time 501 with pure noise. It "
    "compares one sample of each kind with the digit by PSNR. At time 501 the picture's weight is still 0.52, so pure "
    "noise is not what the network was trained on: we also begin with the DIP's picture, noised as in training. A "
    "network that knows one picture only should return it.",
    (Table("runs", "All runs of the report, and controls", "Seed 0 is a 7, the other seeds are other held-out digits. "
           "PSNR of pixels in [0, 1], clipped; the report does not say what range it took.", ROWS, COLUMNS,
           Together(measure, program), CLAIMS,
           (Plot("loss", "Loss while training, seed 0.", _losses, "% of the steps", "mean squared error", True),)),),
    {"smoke": Size((4, 4, 4, 4), 8, 100, 2), "quick": QUICK, "full": Size((64, 128, 128, 64), 1024, 1, 32)},
    {"smoke": "a tiny network and 40 steps.", "quick": f"a network of {QUICK.widths} channels instead of (64, 128, "
     f"128, 64), half of all steps, {QUICK.samples} samples a run.",
     "full": "all sizes as in the report, 32 samples a run."},
    {"smoke": 1, "quick": 3, "full": 5})
