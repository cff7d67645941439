"""Measuring report 003: auto-encoders ("DIPs") and residual denoisers, those that differ in numbers in one program.

Evaluations are the report's, with draws of times and noise that are the same for all rows.
"""
import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree, UInt8

from dipddpm_jax import data, plots, records
from dipddpm_jax.commands import fits
from dipddpm_jax.data.pictures import kept
from dipddpm_jax.diffusion import training
from dipddpm_jax.experiments.tables import Measured
from dipddpm_jax.hybrids import passes
from dipddpm_jax.judging import metrics
from dipddpm_jax.networks import ResidualDenoiser, TwoConvs, residual_denoiser
from dipddpm_jax.networks.layers import initial_variables

PASSES, TIMES, RANGE, STUCK = 10, 1000, 2.0, 1e-3  # pixels are in [-1, 1]; STUCK is a loss
PIXELS = training.Pixels()


@dataclass(frozen=True)
class Setting:
    """A run of the report, whose front is trained anew for every seed; `front_rate` 0 is no network in front."""

    front_rate: float = 1e-3
    rate: float = 1e-3
    sigmas: residual_denoiser.Sigmas = "linear"
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


def autoencoder_loss(network: Any):
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
    step = training.make_train_step(autoencoder_loss(network), TIMES, ADAM, ema_decay=0.0, drop_rate=0.0)
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
def _chunks(network: Any, batch: int):
    """`_chunk` for several states at once."""
    return jax.jit(jax.vmap(_chunk(network, batch), (0, None, None, None)))


@functools.cache
def trained_front(rate: float, batch: int, epochs: int, size: Size, seed: int) -> tuple[PyTree, np.ndarray, float]:
    """The report's "DIP", an auto-encoder of the whole data set: parameters of the best of several tries, its losses,
    and the share of tries that are stuck (three channels with ReLU: where one dies, a colour is lost).

    Kept in the user's cache folder, since a run may be completed in parts.
    """
    states = [_begin(TwoConvs(), {}, rate, size, 1000 * seed + i) for i in range(size.tries)]

    def make() -> dict[str, np.ndarray]:
        state = fits.stack(states)
        params, losses = _train(_chunks(TwoConvs(), batch // size.shrink), state, size, batch // size.shrink, epochs)
        last = np.nan_to_num(losses[:, -1], nan=np.inf)  # a try that diverged is no best one, and stuck
        best = np.argmin(last)
        leaves = {f"{i}": np.asarray(leaf[best]) for i, leaf in enumerate(jax.tree.leaves(params))}
        return {**leaves, "losses": losses[best], "stuck": np.mean(last > STUCK)}

    recipe = f"{rate} {batch} {epochs} {size!r}" + (f" {seed}" if seed else "")
    name = f"report-003-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.npz"
    stored = kept(records.cache_folder() / "runs" / name, recipe, make)
    leaves, structure = jax.tree.flatten(states[0].params)
    params = jax.tree.unflatten(structure, [jnp.asarray(stored[f"{i}"]) for i in range(len(leaves))])
    return params, stored["losses"], float(stored["stuck"])


def front_of(setting: Setting, size: Size, seed: int) -> tuple[PyTree, np.ndarray, float]:
    """The front of a run."""
    return trained_front(setting.front_rate, setting.batch, setting.epochs, size, seed)


@functools.partial(jax.jit, static_argnums=0)
def noisy_passes(
    network: Any, variables: PyTree, x: Float[Array, "n h w c"], times: Int[Array, "n passes"], key: Any
) -> Float[Array, "n h w c"]:
    """The report's denoise_image for each picture: ten passes at random times, noise in every block."""
    def one(x, times, key):
        noise = jax.random.normal(key, (len(times), network.num_blocks, 1, *x.shape))
        return passes.repeated_passes(lambda x, t, n: network.apply(variables, x, t, noise=n), x[None], times, noise)

    keys = jax.random.split(key, x.shape[0])
    return jax.lax.map(lambda row: one(*row)[-1, 0], (x, times, keys), batch_size=8)


def program(setting: Setting) -> tuple:
    """What runs of one program have in common: the others differ in numbers only."""
    return bool(setting.front_rate), setting.batch, setting.epochs


def measure(settings: Sequence[Setting], size: Size, seeds: Sequence[int]) -> list[Measured]:
    """Runs of one program, judged as the report did (one draw, a training picture), and on many held-out pictures."""
    network, example = ResidualDenoiser(num_blocks=size.blocks), PIXELS.encode(pictures(size)[0][:1])
    fixed, states = [], []
    for setting, seed in zip(settings, seeds, strict=True):
        table = initial_variables(network.clone(sigmas=setting.sigmas), jax.random.key(0), example,
                                  jnp.ones(1, jnp.int32))
        table.pop("params")
        if setting.front_rate:
            table["front"] = front_of(setting, size, seed)[0]
        fixed.append(table)
        states.append(_begin(network, table, setting.rate, size, seed))
    batch = settings[0].batch // size.shrink
    params, losses = _train(_chunks(network, batch), fits.stack(states), size, batch, settings[0].epochs)
    return [_judged(setting, size, seed, network, fits.take(params, i), losses[i], fixed[i])
            for i, (setting, seed) in enumerate(zip(settings, seeds))]


def _judged(setting: Setting, size: Size, seed: int, network: Any, params: PyTree, losses: np.ndarray, fixed: PyTree):
    """The numbers of one run."""
    front_losses, stuck = np.full(1, np.nan), np.nan
    if setting.front_rate:
        _, front_losses, stuck = front_of(setting, size, seed)
    table = {name: tree for name, tree in fixed.items() if name != "front"}
    variables, nothing = {"params": params, **table}, {"params": jax.tree.map(jnp.zeros_like, params), **table}
    train_images, held = pictures(size)
    rng, key = np.random.default_rng(seed), jax.random.key(seed)  # the same draws for every row
    clean = PIXELS.encode(held[rng.choice(len(held), size.draws, replace=size.draws > len(held))])
    times = jnp.asarray(rng.integers(1, TIMES + 1, (size.draws, PASSES)))
    noisy = clean + 0.2 * jax.random.normal(jax.random.fold_in(key, 1), clean.shape)
    first = PIXELS.encode(train_images[:1])
    once = noisy_passes(network, variables, first, times[:1], key)
    ours, identity = (noisy_passes(network, v, clean, times, key) for v in (variables, nothing))
    restored = noisy_passes(network, variables, noisy, times, key)
    given = TwoConvs().apply({"params": fixed["front"]}, clean) if "front" in fixed else clean
    single, single_control = (noisy_passes(network, v, x, times[:, :1], key) for v, x in ((variables, given),
                                                                                    (nothing, clean)))
    sigma = residual_denoiser.sigma_table(setting.sigmas, TIMES)
    passed, control, before, after = (np.asarray(metrics.psnr(clean, x, RANGE), np.float64)
                                    for x in (ours, identity, noisy, restored))
    floor = -10 * np.log10(size.blocks * np.sum(sigma[np.asarray(times) - 1] ** 2, 1) / RANGE**2)
    numbers = {
        "psnr": float(metrics.psnr(first, once, RANGE)[0]), "ssim": float(metrics.ssim(first, once, RANGE)[0]),
        "loss": 1e4 * losses[-1], "loss_floor": 1e4 * size.blocks * np.mean(sigma**2),
        "front_loss": 1e4 * front_losses[-1], "stuck": stuck,
        "single": float(jnp.mean(metrics.psnr(clean, single, RANGE))),
        "single_identity": float(jnp.mean(metrics.psnr(clean, single_control, RANGE))),
        "ten_passes": np.median(passed), "ten_passes_sd": passed.std(ddof=1), "identity": np.median(control),
        "formula": np.median(floor),
        "ssim_ten_passes": float(jnp.mean(metrics.ssim(clean, ours, RANGE))),
        "ssim_identity": float(jnp.mean(metrics.ssim(clean, identity, RANGE))),
        "noisy": np.median(before), "denoised": np.median(after), "denoise_gain": np.median(after - before)}
    shown = np.concatenate([np.asarray(PIXELS.decode(x[:4])) for x in (clean, ours, identity, noisy, restored)])
    sheet = plots.tile(shown, min(4, size.draws))
    caption = "from top: held-out pictures; after ten passes; the same noise without a network; noisy ones; those after"
    return Measured(numbers, {"loss": losses.tolist(), "front loss": front_losses.tolist()}, {caption: sheet})
