"""Report 003: residual blocks that inject noise, trained to return their input, with and without a "DIP" in front.

A network that outputs nothing returns its input and the noise, and an evaluation adds 100 draws of noise to a clean
picture. Controls: the same draws without a network, and the closed form.
"""
import functools
import hashlib
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree, UInt8

from dipddpm_jax import data, hybrids, judges, metrics, plots, schedules, training
from dipddpm_jax.data.pictures import kept
from dipddpm_jax.networks import ResidualDenoiser, TwoConvs
from dipddpm_jax.networks.layers import initial_variables
from dipddpm_jax.tables import (
    Claim,
    Column,
    Measured,
    Plot,
    Report,
    Results,
    Row,
    Table,
    Verdict,
    interval,
    verdict_above,
    verdict_all,
)

PASSES, TIMES, RANGE, STUCK = 10, 1000, 2.0, 1e-3  # pixels are in [-1, 1]; STUCK is a loss
PIXELS = training.Pixels()


@dataclass(frozen=True)
class Setting:
    """A run of the report; `front_rate` 0 is no network in front."""

    front_rate: float = 1e-3
    rate: float = 1e-3
    sigmas: schedules.Sigmas = "linear"
    batch: int = 64
    epochs: int = 10


@dataclass(frozen=True)
class Size:
    """`epoch`: pictures in one epoch; `draws`: evaluations, each of another picture; `shrink` divides the batches;
    `tries`: random weights that the DIP is trained from."""

    epoch: int
    draws: int
    side: int = 32
    shrink: int = 1
    blocks: int = 10
    tries: int = 8
    data: str = "photo_crops"


@functools.cache
def pictures(size: Size) -> tuple[UInt8[Array, "n h w c"], UInt8[Array, "m h w c"]]:
    """Training and held-out pictures."""
    return tuple(jnp.asarray(data.load(size.data, split, image_size=size.side).images) for split in ("train", "test"))


def make_loss(network: Any):
    """loss(...) as make_train_step wants it: to return the clean picture from what the front makes of it (if there is
    one among the collections), at one random time for the whole batch."""
    def loss(params, collections, images, labels, t, eps, key, train):
        fixed = {name: tree for name, tree in collections.items() if name != "front"}
        given = TwoConvs().apply({"params": collections["front"]}, images) if "front" in collections else images
        output = network.apply({"params": params, **fixed}, given, jnp.full_like(t, t[0]), rngs=training.rngs(key))
        return jnp.mean(jnp.square(output - images)), collections

    return loss


ADAM = optax.inject_hyperparams(optax.adam)(learning_rate=0.0)  # the rate is a number of the state: one program


@functools.cache
def _chunk(network: Any, batch: int):
    step = training.make_train_step(make_loss(network), TIMES, ADAM, ema_decay=0.0, drop_rate=0.0)
    return training.make_chunk(step, batch, 50, PIXELS.encode)


def _begin(network: Any, fixed: PyTree, rate: float, size: Size, seed: int) -> training.TrainState:
    example = PIXELS.encode(pictures(size)[0][:1])
    state = training.init_state(network, ADAM, example, None, jax.random.key(seed))
    state.opt_state.hyperparams["learning_rate"] = jnp.float32(rate)
    return state._replace(collections=jax.tree.map(jnp.copy, fixed))  # copies, since the state is donated


def _train(chunk: Any, state: training.TrainState, size: Size, batch: int, epochs: int) -> tuple[PyTree, np.ndarray]:
    """(parameters, mean losses with epochs last)."""
    images, steps, losses = pictures(size)[0], epochs * max(1, size.epoch // batch), []
    for done in range(0, steps, 50):
        count = min(50, steps - done)
        state, seen = chunk(state, images, None, jnp.int32(count))
        losses.append(np.asarray(seen.loss)[..., :count])
    losses = np.concatenate(losses, -1)
    return state.params, losses.reshape(*losses.shape[:-1], epochs, -1).mean(-1)


@functools.cache
def _front_chunk(batch: int):
    return jax.jit(jax.vmap(_chunk(TwoConvs(), batch), (0, None, None, None)))


@functools.cache
def trained_front(rate: float, batch: int, epochs: int, size: Size) -> tuple[PyTree, np.ndarray, float]:
    """The report's "DIP", an auto-encoder of the whole data set: parameters of the best of several tries, its losses,
    and the share of tries that are stuck (three channels with ReLU: where one dies, a colour is lost).

    Kept in the user's cache folder, since a run may be completed in parts.
    """
    states = [_begin(TwoConvs(), {}, rate, size, i) for i in range(size.tries)]

    def make() -> dict[str, np.ndarray]:
        state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        params, losses = _train(_front_chunk(batch // size.shrink), state, size, batch // size.shrink, epochs)
        best = np.argmin(losses[:, -1])
        leaves = {f"{i}": np.asarray(leaf[best]) for i, leaf in enumerate(jax.tree.leaves(params))}
        return {**leaves, "losses": losses[best], "stuck": np.mean(losses[:, -1] > STUCK)}

    recipe = f"{rate} {batch} {epochs} {size!r}"
    name = f"report-003-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.npz"
    stored = kept(judges.cache().parent / "runs" / name, recipe, make)
    leaves, structure = jax.tree.flatten(states[0].params)
    params = jax.tree.unflatten(structure, [jnp.asarray(stored[f"{i}"]) for i in range(len(leaves))])
    return params, stored["losses"], float(stored["stuck"])


@functools.partial(jax.jit, static_argnums=0)
def evaluate(
    network: Any, variables: PyTree, x: Float[Array, "n h w c"], times: Int[Array, "n passes"], key: Any
) -> Float[Array, "n h w c"]:
    """The report's denoise_image for each picture: ten passes at random times, noise in every block."""
    def one(x, times, key):
        noise = jax.random.normal(key, (len(times), network.num_blocks, 1, *x.shape))
        return hybrids.repeated_passes(lambda x, t, n: network.apply(variables, x, t, noise=n), x[None], times, noise)

    keys = jax.random.split(key, x.shape[0])
    return jax.lax.map(lambda row: one(*row)[-1, 0], (x, times, keys), batch_size=8)


def measure(setting: Setting, size: Size, seed: int) -> Measured:
    """One run, judged as the report did (one draw, a training picture), and on many draws of held-out pictures."""
    network = ResidualDenoiser(num_blocks=size.blocks)
    table = initial_variables(ResidualDenoiser(num_blocks=size.blocks, sigmas=setting.sigmas), jax.random.key(0),
                              PIXELS.encode(pictures(size)[0][:1]), jnp.ones(1, jnp.int32))
    table.pop("params")
    front, front_losses, stuck = {}, np.full(1, np.nan), np.nan
    if setting.front_rate:
        params, front_losses, stuck = trained_front(setting.front_rate, setting.batch, setting.epochs, size)
        front = {"front": params}
    batch = setting.batch // size.shrink
    state = _begin(network, {**table, **front}, setting.rate, size, seed)
    params, losses = _train(_chunk(network, batch), state, size, batch, setting.epochs)
    variables, nothing = {"params": params, **table}, {"params": jax.tree.map(jnp.zeros_like, params), **table}
    train_images, held = pictures(size)
    rng, key = np.random.default_rng(seed), jax.random.key(seed)  # the same draws for every row
    clean = PIXELS.encode(held[rng.choice(len(held), size.draws, replace=size.draws > len(held))])
    times = jnp.asarray(rng.integers(1, TIMES + 1, (size.draws, PASSES)))
    noisy = clean + 0.2 * jax.random.normal(jax.random.fold_in(key, 1), clean.shape)
    first = PIXELS.encode(train_images[:1])
    once = evaluate(network, variables, first, times[:1], key)
    ours, identity = (evaluate(network, v, clean, times, key) for v in (variables, nothing))
    restored = evaluate(network, variables, noisy, times, key)
    given = TwoConvs().apply({"params": front["front"]}, clean) if front else clean
    single, single_control = (evaluate(network, v, x, times[:, :1], key) for v, x in ((variables, given),
                                                                                    (nothing, clean)))
    sigma = schedules.sigma_table(setting.sigmas, TIMES)
    many, control, before, after = (np.asarray(metrics.psnr(clean, x, RANGE), np.float64)
                                    for x in (ours, identity, noisy, restored))
    floor = -10 * np.log10(size.blocks * np.sum(sigma[np.asarray(times) - 1] ** 2, 1) / RANGE**2)
    numbers = {
        "psnr": float(metrics.psnr(first, once, RANGE)[0]), "ssim": float(metrics.ssim(first, once, RANGE)[0]),
        "loss": 1e4 * losses[-1], "loss_floor": 1e4 * size.blocks * np.mean(sigma**2),
        "front_loss": 1e4 * front_losses[-1], "stuck": stuck,
        "single": float(jnp.mean(metrics.psnr(clean, single, RANGE))),
        "single_identity": float(jnp.mean(metrics.psnr(clean, single_control, RANGE))),
        "many": np.median(many), "many_sd": many.std(ddof=1), "identity": np.median(control),
        "formula": np.median(floor),
        "ssim_many": float(jnp.mean(metrics.ssim(clean, ours, RANGE))),
        "ssim_identity": float(jnp.mean(metrics.ssim(clean, identity, RANGE))),
        "noisy": np.median(before), "denoised": np.median(after), "denoise_gain": np.median(after - before)}
    shown = np.concatenate([np.asarray(PIXELS.decode(x[:4])) for x in (clean, ours, identity, noisy, restored)])
    sheet = plots.tile(shown, min(4, size.draws))
    caption = "from top: held-out pictures; after ten passes; the same noise without a network; noisy ones; those after"
    return Measured(numbers, {"loss": losses.tolist(), "front loss": front_losses.tolist()}, {caption: sheet})


BASE, ALONE = "DIP+DDPM, 10+10 epochs", "DDPM alone, 10 epochs"
ROWS = (
    Row(ALONE, Setting(front_rate=0.0), {"psnr": 29.364598, "ssim": 0.8219605}),
    Row(BASE, Setting(), {"psnr": 29.704530, "ssim": 0.94257, "loss": 2.892, "front_loss": 0.3641}),
    Row("DDPM's lr 0.01", Setting(rate=0.01), note="003-1-1"),
    Row("both lr 0.01", Setting(rate=0.01, front_rate=0.01), note="003-1-2"),
    Row("exponential sigma", Setting(sigmas="exponential"), note="003-2-1"),
    Row("cosine sigma", Setting(sigmas="cosine"), note="003-2-2; 003-2-3, polynomial, is the same formula"),
    Row("batch 128", Setting(batch=128), note="003-3"),
    Row("20+20 epochs", Setting(epochs=20), {"psnr": 30.27112, "ssim": 0.933558}, note="003-4"),
)
COLUMNS = (
    Column("psnr", "PSNR of one training picture, dB", "as reported"),
    Column("ssim", "SSIM of it", "as reported", 3),
    Column("loss", "DDPM loss of the last epoch, 1e-4", "as reported"),
    Column("loss_floor", "loss of the injected noise alone, 1e-4", "control"),
    Column("front_loss", "DIP loss of the last epoch, 1e-4", "as reported"),
    Column("stuck", "share of DIPs with a loss above 1e-3", "sound"),
    Column("single", "PSNR of held-out pictures after one pass as trained, dB", "sound"),
    Column("single_identity", "the same draws without a network, dB", "control"),
    Column("many", "PSNR of held-out pictures after ten passes, dB", "sound"),
    Column("many_sd", "its standard deviation from draw to draw", "sound"),
    Column("identity", "the same draws without a network, dB", "control"),
    Column("formula", "the same in closed form, dB", "control"),
    Column("noisy", "PSNR of noisy held-out pictures, dB", "control"),
    Column("denoised", "after ten passes, dB", "sound"),
)


def _better(row: str, than: str):
    def judge(results: Results):
        answer, why = verdict_above("same draws, dB", results.difference(row, than, "many"), 0.1)
        forced = results.difference(row, than, "identity")
        why += f"; a single draw varies by ± {results.mean(than, 'many_sd'):.1f} dB"
        if abs(forced.mean) > 0.5:
            why += f"; without any network the difference would be {forced.mean:+.1f} dB, the injected noise alone"
        return Verdict(answer, why)

    return judge


RULE = "ten passes over held-out pictures, same times and noise for both: PSNR is higher, and may be by 0.1 dB"


def _in_front(results: Results) -> Verdict:
    single = results.difference(BASE, ALONE, "single")
    answer, why = verdict_all(_better(BASE, ALONE)(results), verdict_above("one pass, as trained, dB", single, 0.1))
    stuck = 100 * results.mean(BASE, "stuck")
    return Verdict(answer, f"{why}; of several tries {stuck:.0f} % of the DIPs are stuck at a loss above 1e-3")


CLAIMS = (
    Claim("A DIP in front of the DDPM gives better pictures (29.70 v 29.36 dB)", RULE + "; also after one pass, with "
          "the DIP in front as in training", _in_front),
    Claim("20 epochs are better than 10 (30.27 v 29.70 dB)", RULE, _better("20+20 epochs", BASE)),
    *(Claim(f"{text} gives worse pictures than the base run", RULE, _better(BASE, row)) for text, row in (
        ("A learning rate of 0.01 for the DDPM", "DDPM's lr 0.01"),
        ("A learning rate of 0.01 for both", "both lr 0.01"), ("The exponential sigma table", "exponential sigma"),
        ("The cosine (and \"polynomial\") sigma table", "cosine sigma"), ("A batch of 128", "batch 128"))),
    Claim("The trained network denoises pictures", "base run: noisy held-out pictures (sigma 0.1 of the range) have a "
          "higher PSNR after the ten passes than before",
          lambda results: verdict_above("gain in dB", interval(list(results.of(BASE, "denoise_gain").values())))),
)


def _losses(results: Results):
    curves = {"DDPM with DIP": results.curve(BASE, "loss"), "DDPM alone": results.curve(ALONE, "loss"),
              "DIP": results.curve(BASE, "front loss")}
    epochs = range(1, 1 + len(curves["DIP"]))
    return epochs, {**curves, "no network, DDPM": [1e-4 * results.mean(BASE, "loss_floor")] * len(epochs)}


QUICK = Size(epoch=6400, draws=48, side=16, shrink=8)
HAS_CIFAR = (data.default_data_dir() / "cifar10").is_dir()
REPORT = Report(
    "003", "an auto-encoder with injected noise, called DDPM, with and without a DIP",
    "The report builds a \"DDPM\" of ten blocks, each of which adds sigma_t times fresh noise to the picture and "
    "subtracts the output of two small convolutions (1,680 weights in all). It is trained to return its clean input, "
    "and judged by sending one training picture ten times through it. Its \"DIP\" is a second such auto-encoder that "
    "stands in front during training only. Seven variants of learning rate, noise table, batch and length are "
    "compared by one picture each. Loss and score of a network that does nothing at all are those of the injected "
    "noise, known in closed form; all that training can add is that a block removes noise of the blocks before it.",
    (Table("runs", "All runs of the report", "Each is trained, then judged by the report's protocol (first training "
           "picture, one draw) and on many held-out pictures, each with times and noise of its own that are the same "
           "for all rows (medians over them). PSNR and SSIM for pixels in [-1, 1], range 2, not clipped. "
           "The DIP is the best of several tries, since random weights may end in an auto-encoder that loses a colour; "
           "the report's loss shows one that did not. It is the same for all seeds.", ROWS, COLUMNS, measure, CLAIMS,
           (Plot("loss", "Mean loss of each epoch, seed 0, beside the loss of the injected noise alone.", _losses,
                 "epoch", "mean squared error", True),)),),
    {"smoke": Size(epoch=16, draws=2, side=8, shrink=8, blocks=2, tries=2), "quick": QUICK,
     "full": Size(epoch=50_000, draws=512, data="cifar10" if HAS_CIFAR else "photo_crops")},
    {"smoke": "two steps an epoch.",
     "quick": f"crops of {QUICK.side} x {QUICK.side} from scikit-image's photographs in place of CIFAR-10; batches of "
     f"8 (16 for 128) and {QUICK.epoch} pictures an epoch instead of 64 (128) and 50,000; networks, rates and numbers "
     "of epochs as in the report.",
     "full": "CIFAR-10 if it is prepared, else crops of photographs; all sizes as in the report."},
    {"smoke": 1, "quick": 3, "full": 5})
