"""What a deep image prior restores: pictures from disk, degraded first if clean, and what is known of them."""
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dipddpm_jax.commands.sources import LEAST_SIDE, Pictures, Source, checksum, cut, read_pictures
from dipddpm_jax.config.dip import AS_IT_IS, DipConfig
from dipddpm_jax.data.arrays import Origin
from dipddpm_jax.data.photographs import PHOTOGRAPHS
from dipddpm_jax.data.pictures import known_pixels, square
from dipddpm_jax.errors import UserError
from dipddpm_jax.inverse import impulses, noises, operators, whiteness
from dipddpm_jax.inverse.cut_off import estimate_sigma_cut_off, without_cut_off


class Measurements(NamedTuple):
    """Pictures of one size, black 0 and white 1, and what is known of them; `size` is that of the restored ones."""

    names: tuple[str, ...]
    measurements: Pictures
    clean: Pictures | None
    known: Pictures | None  # 1 where the measurement holds
    sigma: Float[np.ndarray, "n"]  # standard deviation of the noise, white being 1
    size: tuple[int, int]
    degraded: bool = False  # whether the measurement was made here, from the clean picture
    whites: tuple[float, ...] = ()  # the number in each file that is 1 here
    origins: tuple[Origin | None, ...] = ()  # of files of numbers, which are written back as such
    checksums: dict[str, int] = {}  # of the pixels that an option named
    notes: tuple[str, ...] = ()  # what the user should know
    correlated: bool = False  # whether neighbouring pixels of a picture to denoise share its noise


def load_measurements(config: DipConfig) -> Measurements:
    """Reads or makes the measurements that a configuration names. Raises UserError."""
    if config.image is None and config.clean is None:
        raise UserError("nothing to restore: give --image FILE, FOLDER or NAME (camera, coffee, ...), or --clean FILE")
    named = config.image in PHOTOGRAPHS and not Path(config.image).exists()
    if named and config.clean is not None:
        raise UserError(f"--image {config.image} is a clean photograph already; leave --clean out")
    if named or config.image is None:
        option = "--image" if named else "--clean"
        clean = read_pictures(config.image if named else str(config.clean), config.size, config.crop)
        return degraded(config, clean, {option: clean.checksum})
    given = read_pictures(config.image, config.size, config.crop)
    checksums = {"--image": given.checksum}
    if config.clean is None:
        return measured(config, given, None, checksums)
    size, scale = (None, config.factor) if config.task == "superres" else (config.size, 1)
    clean = read_pictures(str(config.clean), size, config.crop and config.crop * scale, scale)
    checksums["--clean"] = clean.checksum
    if len(clean.pictures) != len(given.pictures):
        raise UserError(f"--image has {len(given.pictures)} pictures and --clean {len(clean.pictures)}; there must be "
                        "one for each")
    channels = max(given.pictures.shape[-1], clean.pictures.shape[-1])
    given, clean = (source._replace(pictures=np.repeat(source.pictures, channels // source.pictures.shape[-1], -1))
                    for source in (given, clean))
    if given.pictures.shape == clean.pictures.shape and np.array_equal(given.pictures, clean.pictures):
        return degraded(config, clean, checksums)  # the same picture twice: it is clean
    return measured(config, given, clean.pictures, checksums)


def blended(
    share: float, restored: Float[np.ndarray, "*n h w c"], y: Float[np.ndarray, "h w c"] | float,
    known: Float[np.ndarray, "h w 1"] | None,
) -> Float[np.ndarray, "*n h w c"]:
    """What is restored, with a share of the measurement mixed back in where it was measured."""
    return restored + share * (1 if known is None else known) * (y - restored) if share else restored


def counts(config: DipConfig) -> noises.Poisson:
    """The noise of photons, `--peak` of them at white, and of reading them out."""
    return noises.Poisson(config.peak, (config.sigma or 0) / 255)


def noise_of(config: DipConfig, given: Measurements, i: int) -> noises.Noise:
    """The noise of the i-th measurement."""
    return counts(config) if config.peak else noises.Gaussian(float(given.sigma[i]))


def made_black_again(
    config: DipConfig, given: Measurements, i: int, restored: Float[np.ndarray, "h w c"]
) -> Float[np.ndarray, "h w c"]:
    """What was restored of the i-th measurement, without the bias that noise cut off at black and white gives it; the
    same picture where none was, or an operator stands before it."""
    if config.task not in AS_IT_IS:
        return restored
    known = 1.0 if given.known is None else jnp.asarray(given.known[i])
    return np.asarray(without_cut_off(
        jnp.asarray(restored), jnp.asarray(given.measurements[i]), noise_of(config, given, i), known))


def operator(config: DipConfig, size: tuple[int, int]) -> operators.Operator:
    """What the task observes of a restored picture of this size."""
    if config.task == "superres":
        return operators.downsample(*size, config.factor)
    return operators.blur(*size, config.blur) if config.task == "deblur" else operators.identity


def degraded(config: DipConfig, source: Source, checksums: dict[str, int]) -> Measurements:
    """Measurements made from clean pictures; the noise of a picture depends on the seed and its place alone."""
    clean, notes = source.pictures, source.notes
    if config.task == "superres":
        before = clean.shape[1:3]
        size = tuple(side - side % config.factor for side in before)
        clean = clean[:, : size[0], : size[1]]
        if min(size) < LEAST_SIDE * config.factor:
            raise UserError(f"a picture of {size[1]}x{size[0]} is too small to be made {config.factor} times smaller")
        if size != before:
            notes += (f"cut from {before[1]}x{before[0]} to {size[1]}x{size[0]} pixels, which --factor {config.factor} "
                      "divides",)
    size = clean.shape[1:3]
    alone = config.task == "denoise" and config.impulse is None
    sigma = (25.0 if alone else 0.0) if config.sigma is None else config.sigma
    observe = operator(config, size)
    known = _mask(config, size, len(clean), checksums)

    def one(i: int) -> np.ndarray:
        key = jax.random.fold_in(jax.random.key(config.seed), i)
        y = observe(jnp.asarray(clean[i]))
        if config.peak is not None:
            y = noises.add_poisson(key, y, config.peak, counts(config).sigma)
        elif sigma:
            y = noises.add_gaussian(key, y, sigma / 255)
        return np.asarray(y if config.impulse is None else impulses.add_impulses(
            jax.random.fold_in(key, 200), y, config.impulse))

    measurements = np.stack([one(i) for i in range(len(clean))])
    if config.impulse is not None:
        known = _without_impulses(source.names, measurements)
        notes += _impulse_note(source.names, known)
    if known is not None:
        measurements = measurements * known
    noise = np.full(len(clean), sigma / 255)
    if config.peak is not None:
        noise = np.sqrt(clean.mean((1, 2, 3)) / config.peak + counts(config).sigma ** 2)
    return Measurements(source.names, measurements, clean, known, noise.astype(np.float32), size, True, source.whites,
                        source.origins, checksums, notes)


def measured(config: DipConfig, source: Source, clean: Pictures | None, checksums: dict[str, int]) -> Measurements:
    """Measurements that were given; their noise is estimated where the configuration does not say, from what is known
    of them and before the rest is set to 0."""
    if config.task == "inpaint" and config.mask is None:
        raise UserError("to inpaint a given picture, --mask FILE must say where it is known (white); "
                        "to punch random holes into a clean one, give it as --clean")
    given, scale = source.pictures, config.factor if config.task == "superres" else 1
    size = (given.shape[1] * scale, given.shape[2] * scale)
    if clean is not None and clean.shape[1:3] != size:
        raise UserError(f"--clean has {clean.shape[2]}x{clean.shape[1]} pixels and the restored picture will have "
                        f"{size[1]}x{size[0]}; they must be equal")
    known = _mask(config, size, len(given), checksums)
    if config.impulse is not None:
        known = _without_impulses(source.names, given)
    struck = () if config.impulse is None else _impulse_note(source.names, known)
    shared = [config.task == "denoise" and known is None and whiteness.is_correlated(y) for y in given]
    sigma = np.array([config.sigma / 255 if config.sigma is not None and config.peak is None else
                      estimate_sigma_cut_off(y, None if known is None else known[i]) if not shared[i] else
                      whiteness.level_at(y, whiteness.FAR) for i, y in enumerate(given)])
    if known is not None:
        given = given * known
    return Measurements(source.names, given, clean, known, sigma.astype(np.float32), size, False, source.whites,
                        source.origins, checksums,
                        source.notes + _noise_note(config, source) + _correlation_note(source.names, shared)
                        + _range_note(config, source) + struck,
                        any(shared))


def _noise_note(config: DipConfig, source: Source) -> tuple[str, ...]:
    """That resizing averages noise away (or spreads it), where it does."""
    before, after = source.noise_change or (0.0, 0.0)
    if before < 0.5 / 255 or abs(after - before) < 0.1 * before:
        return ()
    return (f"--size {config.size} resizes the noise too: estimated standard deviation {255 * before:.1f} before, "
            f"{255 * after:.1f} after (of 255); --crop {config.size} cuts instead, and leaves it as it is",)


def _range_note(config: DipConfig, source: Source) -> tuple[str, ...]:
    """That what is sharper than its measurement cannot be brighter, in files whose range is that of their numbers."""
    if config.task not in ("deblur", "superres") or not any(source.origins):
        return ()
    return ("nothing that is restored lies above the highest or below the lowest number of its file: a star whose peak "
            "was blurred away does not get it back",)


def _correlation_note(names: tuple[str, ...], shared: list[bool]) -> tuple[str, ...]:
    """Names the pictures whose neighbouring pixels share noise."""
    found = [name for name, is_shared in zip(names, shared) if is_shared]
    if not found:
        return ()
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return (f"the noise of {', '.join(found[:3])}{more} is correlated between neighbouring pixels; rules and methods "
            "that take it for white go wrong",)


def _without_impulses(
    names: tuple[str, ...], given: Pictures
) -> Float[np.ndarray, "n h w 1"]:
    """1 where no impulse struck. Raises UserError for a picture of which nothing is left."""
    known = np.stack([impulses.not_impulses(y) for y in given])
    for name, left in zip(names, known.mean((1, 2, 3))):
        if left == 0:
            raise UserError(f"{name}: all pixels are black or white against what is about them; without --impulse they "
                            "are taken as they are")
    return known


def _impulse_note(names: tuple[str, ...], known: Float[np.ndarray, "n h w 1"]) -> tuple[str, ...]:
    """How many pixels count as missing, picture by picture."""
    shares = ", ".join(f"{name} {100 * (1 - left):.1f} %" for name, left in zip(names, known.mean((1, 2, 3))))
    return (f"pixels that are black or white against what is about them count as missing: {shares}",)


def _mask(config: DipConfig, size: tuple[int, int], count: int, checksums: dict[str, int]) -> Pictures | None:
    if config.task != "inpaint":
        return None
    if config.mask is None:
        key = jax.random.fold_in(jax.random.key(config.seed), 2**20)
        return np.stack([operators.random_mask(jax.random.fold_in(key, i), *size, config.keep) for i in range(count)])
    if not config.mask.is_file():
        raise UserError(f"--mask {config.mask}: no such file")
    known = known_pixels(config.mask)
    if config.crop is not None:
        known = cut(known, config.crop)
    if config.size is not None:
        known = (square(known, config.size) >= 0.5).astype(np.float32)
    if known.shape[:2] != tuple(size):
        raise UserError(f"--mask has {known.shape[1]}x{known.shape[0]} pixels and the picture {size[1]}x{size[0]}; "
                        "they must be equal")
    if not known.any():
        raise UserError(f"--mask {config.mask}: nothing of the cut picture is known")
    checksums["--mask"] = checksum(known)
    return np.repeat(known[None], count, 0)
