"""From the configuration of a restoration to a batch of fits: the one place where its names become functions."""
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Float, PyTree

from dipddpm_jax import dip, networks
from dipddpm_jax.commands import measurements, tiles
from dipddpm_jax.commands.measurements import Measurements
from dipddpm_jax.config.dip import DipConfig
from dipddpm_jax.dip import Dip, DipProblem, DipState, stopping, study
from dipddpm_jax.dip.crossfit import MUON_RATE, counts_misfit, small_skip_net, tapered_skip_net
from dipddpm_jax.dip.folds import block_masks, fold_masks
from dipddpm_jax.dip.variants import VARIANTS
from dipddpm_jax.errors import UserError
from dipddpm_jax.inverse import noises, operators
from dipddpm_jax.inverse.cut_off import sigma_left
from dipddpm_jax.networks.muon import muon

BLOCK_PARTS = 10  # of which one is held out, where blocks are and there is one fit
OVERLAP = 64  # pixels that tiles share
LEARNING_RATES = {"conv": 0.002}  # at most, by default: at 0.01 all ReLUs of a stack without norms often die


class Fits(NamedTuple):
    """All fits of a run as one batch: rows are pictures x repeats x tiles, tiles the fastest; the repeats of a picture
    are seeds x folds, folds the faster."""

    problems: DipProblem
    boxes: list[tiles.Box]
    pictures: int
    repeats: int

    def whole(self, rows: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Rows of fitted tiles as (picture, repeat, height, width, channel)."""
        count = len(self.boxes)
        joined = [tiles.join_tiles(rows[i : i + count], self.boxes, size) for i in range(0, len(rows), count)]
        return np.stack(joined).reshape(self.pictures, self.repeats, *joined[0].shape)


def dip_network(name: str, channels: int) -> nn.Module:
    """The network of a name of DipConfig."""
    match name:
        case "skip":
            return networks.SkipNet(channels, (128,) * 5, (128,) * 5, (4,) * 5)
        case "skip-light":
            return networks.SkipNet(channels, (32,) * 5, (32,) * 5, (4,) * 5)
        case "skip-tapered":
            return tapered_skip_net(channels)
        case "skip-small":
            return small_skip_net(channels)
        case "skip-001":
            return networks.SkipNet(channels)
        case "conv":
            return networks.ConvStack((64, 64), channels)
        case "decoder":
            return networks.DeepDecoder(channels=channels)
    raise ValueError(name)


def make_rule(config: DipConfig) -> stopping.Stopper:
    """The stop rule of a name of DipConfig; that of "oracle", which sees the clean picture, is `study.oracle`."""
    return stopping.RULES["never" if config.stop == "oracle" else config.stop](config.window, config.patience)


def make_fit(config: DipConfig, channels: int, size: tuple[int, int]) -> Dip:
    """The fit that a configuration describes, for pictures (or tiles) of this size."""
    variant = VARIANTS[config.variant]
    rate = config.learning_rate or min(variant.learning_rate, LEARNING_RATES.get(config.network, 1.0))

    def scheduled(rate: float) -> optax.ScalarOrSchedule:
        return rate if config.decay == "constant" else optax.cosine_decay_schedule(rate, config.num_steps)

    adam = optax.adam(scheduled(rate))  # also of a code that is learned
    optimizer = muon(scheduled(config.learning_rate or MUON_RATE)) if config.optimizer == "muon" else adam
    return Dip(
        dip_network(config.network, channels),
        dip.backtracking(optimizer, config.fall_back) if config.fall_back else optimizer,
        measurements.operator(config, size), make_rule(config), study.oracle if config.stop == "oracle" else None,
        variant.code_rule(adam, config.jitter),
        misfit=counts_misfit(measurements.counts(config)) if config.peak else noises.squared_error,
        penalty=variant.penalty(variant.weight if config.weight is None else config.weight), size=size)


def make_code(
    config: DipConfig, key: Any, measurement: np.ndarray, seen: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """The network's input for one fit. One that is made from the measurement holds nothing of the pixels that are not
    `seen` (1 where known and not held out): a rule that judges by them must not find them in the input."""
    if config.code == "image" or VARIANTS[config.variant].starts_from_measurement:
        image = jnp.asarray(operators.filled(measurement, seen))
        return np.asarray(jax.image.resize(image, (*size, measurement.shape[-1]), "bilinear"))
    if config.code == "meshgrid":
        return np.asarray(dip.meshgrid_code(*size))
    if config.network == "decoder":
        return np.asarray(dip.noise_code(key, -(-size[0] // 32), -(-size[1] // 32), 128))
    return np.asarray(dip.multiscale_code(key, *size) if config.network == "conv" else dip.noise_code(key, *size))


def held_out_share(pixels: int) -> float:
    """Share of a measurement that the rule "held-out" keeps back: about 1000 pixels, but 5 to 10 %."""
    return float(np.clip(1000 / pixels, 0.05, 0.1))


def make_fits(config: DipConfig, given: Measurements) -> Fits:
    """One problem for every picture, seed, fold and tile, stacked."""
    scale = given.size[0] // given.measurements.shape[1]
    boxes = tiles.tile_boxes(given.size, config.tile, OVERLAP, scale)
    rows, levels = [], [_level(config, given, i) for i in range(len(given.names))]
    for i, seed, fold, place in _places(config, len(given.names), len(boxes)):
        top, left, height, width = boxes[place]
        inner = (slice(top // scale, (top + height) // scale), slice(left // scale, (left + width) // scale))
        y = given.measurements[i][inner]
        code_key, held_key = jax.random.split(_key(config, i, seed, place, 1))
        known = None if given.known is None else given.known[i][inner]
        seen = np.ones((*y.shape[:2], 1), np.float32) if known is None else known
        if not seen.any():
            where = "" if len(boxes) == 1 else f" in the tile of {width}x{height} at column {left}, row {top}"
            raise UserError(f"{given.names[i]}: nothing is known{where}" + (
                "" if len(boxes) == 1 else "; a larger --tile would see more"))
        held = None
        if config.stop == "held-out":
            hidden, held = held_out_parts(config, held_key, seen, fold, holds_out_blocks(config, given))
            seen = seen * (1 - hidden)
            if hidden is not held:  # what lies between is neither fitted nor judged
                known = (1 if known is None else known) * (1 - hidden + held)
        rows.append(DipProblem(
            make_code(config, _of_fold(code_key, fold), y, seen, (height, width)), y,
            None if given.clean is None else given.clean[i, top : top + height, left : left + width],
            known, held, levels[i]))
    return Fits(stack(rows), boxes, len(given.names), repeats(config))


def _level(config: DipConfig, given: Measurements, i: int) -> np.float32:
    """Standard deviation of the noise that is left in the i-th measurement where some was cut off."""
    if config.peak:
        return given.sigma[i]
    known = None if given.known is None else given.known[i]
    return np.float32(sigma_left(given.measurements[i], measurements.noise_of(config, given, i), known))


def repeats(config: DipConfig) -> int:
    """Fits of each picture or tile."""
    return config.seeds * config.folds


def holds_out_blocks(config: DipConfig, given: Measurements) -> bool:
    """Whether blocks are held out instead of single pixels. UserError if they are asked of too small a picture."""
    height, width = given.measurements.shape[1:3]
    enough = (height // 5) * (width // 5) >= max(config.folds, BLOCK_PARTS)
    if config.hold_out == "blocks" and not enough:
        raise UserError(f"--hold-out blocks needs {max(config.folds, BLOCK_PARTS)} blocks of 5x5; the picture has "
                        f"{width}x{height} pixels")
    return config.hold_out == "blocks" or (config.hold_out == "auto" and given.correlated and enough)


def held_out_parts(
    config: DipConfig, key: Any, known: Float[np.ndarray, "h w _"], fold: int, blocks: bool
) -> tuple[Float[np.ndarray, "h w 1"], Float[np.ndarray, "h w 1"]]:
    """What a fit does not see, and the part of it that is judged: its fold, of several, or else a share of what is
    known."""
    if blocks:
        hidden, judged = block_masks(key, *known.shape[:2], config.folds if config.folds > 1 else BLOCK_PARTS)
        return np.asarray(hidden[fold]), np.asarray(judged[fold])
    if config.folds > 1:
        part = np.asarray(fold_masks(key, jnp.asarray(known), config.folds)[fold])
    else:
        part = np.asarray(operators.held_out_mask(key, jnp.asarray(known), held_out_share(int(known.sum()))))
    return part, part


def _places(config: DipConfig, pictures: int, count: int) -> Iterator[tuple[int, int, int, int]]:
    """(picture, seed, fold, tile) of every row, the last the fastest."""
    return product(range(pictures), range(config.seeds), range(config.folds), range(count))


def _of_fold(key: Any, fold: int) -> Any:
    return jax.random.fold_in(key, fold) if fold else key


def _key(config: DipConfig, *places: int) -> Any:
    key = jax.random.key(config.seed)
    for place in places:
        key = jax.random.fold_in(key, place)
    return key


def stack(trees: list[PyTree]) -> PyTree:
    """Trees of equal structure as one, with a new first axis."""
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *trees)


def take(tree: PyTree, rows: np.ndarray | int) -> PyTree:
    """Some rows of a batch: the leaves of a tree along their first axis.

    What lies on several devices is fetched first. A device that took rows of another's would wait for it in an
    all-reduce, one for each leaf, while that one still computes.
    """
    def rows_of(leaf):
        if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer) or len(leaf.devices()) == 1:
            return leaf[rows]
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(np.asarray(jax.random.key_data(leaf))[rows], impl=jax.random.key_impl(leaf))
        return np.asarray(leaf)[rows]

    return jax.tree.map(rows_of, tree)


def start_fits(config: DipConfig, fit: Dip, fits: Fits) -> DipState:
    """Random weights for every row, each from a key of its own."""
    keys = [_of_fold(_key(config, i, seed, place, 2), fold)
            for i, seed, fold, place in _places(config, fits.pictures, len(fits.boxes))]
    return stack([fit.init(take(fits.problems, row), key) for row, key in enumerate(keys)])
