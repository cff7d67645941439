"""What a deep image prior restores: pictures from disk, degraded when they are clean, cut into tiles when large."""
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from PIL import Image as Pillow

from dipddpm_jax.config.dip import DipConfig
from dipddpm_jax.data.folder import picture_files
from dipddpm_jax.data.photographs import PHOTOGRAPHS, photograph
from dipddpm_jax.data.pictures import drop_equal_channels, read_picture, square
from dipddpm_jax.errors import UserError
from dipddpm_jax.inverse import noise_level, noises, operators

LEAST_SIDE = 8
Pictures = Float[np.ndarray, "n h w c"]


class Measurements(NamedTuple):
    """Pictures of one size in [0, 1], and what is known of them; `size` is that of the restored ones."""

    names: tuple[str, ...]
    measurements: Pictures
    clean: Pictures | None
    known: Pictures | None  # 1 where the measurement holds
    sigma: Float[np.ndarray, "n"]
    size: tuple[int, int]
    degraded: bool  # whether the measurement was made here, from the clean picture


def load_measurements(config: DipConfig) -> Measurements:
    """Reads or makes the measurements that a configuration names. Raises UserError."""
    if config.image is None and config.clean is None:
        raise UserError("nothing to restore: give --image FILE, FOLDER or NAME (camera, coffee, ...), or --clean FILE")
    named = config.image in PHOTOGRAPHS and not Path(config.image).exists()
    if named and config.clean is not None:
        raise UserError(f"--image {config.image} is a clean photograph already; leave --clean out")
    if named or config.image is None:
        names, clean = read_pictures(config.image if named else str(config.clean), config.size)
        return degraded(config, names, clean)
    names, given = read_pictures(config.image, config.size)
    if config.clean is None:
        return measured(config, names, given, None)
    clean_names, clean = read_pictures(str(config.clean), None if config.task == "superres" else config.size)
    if len(clean) != len(given):
        raise UserError(f"--image has {len(given)} pictures and --clean {len(clean)}; there must be one for each")
    channels = max(given.shape[-1], clean.shape[-1])
    given, clean = (np.repeat(x, channels // x.shape[-1], -1) for x in (given, clean))
    if given.shape == clean.shape and np.array_equal(given, clean):  # the same picture twice: it is clean
        return degraded(config, clean_names, clean)
    return measured(config, names, given, clean)


def read_pictures(source: str, size: int | None) -> tuple[tuple[str, ...], Pictures]:
    """(names, pictures in [0, 1]) of a file, a folder, or a photograph of scikit-image."""
    path = Path(source).expanduser()
    if source in PHOTOGRAPHS and not path.exists():
        names, pictures = (source,), [np.broadcast_to(x := photograph(source), (*x.shape[:2], 3))]
    elif path.is_dir():
        files = picture_files(path)
        if not files:
            raise UserError(f"{path} holds no PNG or JPEG pictures")
        names, pictures = tuple(f.with_suffix("").as_posix().replace("/", "_") for f in files), [
            _read_file(path / f) for f in files]
    elif path.is_file():
        names, pictures = (path.stem,), [_read_file(path)]
    else:
        raise UserError(f"{source}: no such file, folder, or photograph; photographs are {', '.join(PHOTOGRAPHS)}")
    if len(set(names)) < len(names):
        raise UserError(f"two pictures in {path} are both called {max(names, key=names.count)}")
    pictures = [picture if size is None else square(picture, size) for picture in pictures]
    shapes = {picture.shape[:2] for picture in pictures}
    if len(shapes) > 1:
        sizes = ", ".join(f"{w}x{h}" for h, w in sorted(shapes)[:4])
        raise UserError(f"the pictures in {path} have different sizes ({sizes}); --size N makes them N x N")
    pictures = drop_equal_channels(np.stack(pictures))
    height, width = pictures.shape[1:3]
    if min(height, width) < LEAST_SIDE:
        raise UserError(f"{source} has {width}x{height} pixels; at least {LEAST_SIDE}x{LEAST_SIDE} are needed")
    return names, pictures.astype(np.float32) / 255


def _read_file(path: Path) -> np.ndarray:
    picture = read_picture(path)
    with Pillow.open(path) as image:
        if image.mode == "F":
            raise UserError(f"{path} holds floating-point pixels; save it with 8 or 16 bits a channel")
    return picture


def operator(config: DipConfig, size: tuple[int, int]) -> operators.Operator:
    """What the task observes of a restored picture of this size."""
    if config.task == "superres":
        return operators.downsample(*size, config.factor)
    return operators.blur(*size, config.blur) if config.task == "deblur" else operators.identity


def degraded(config: DipConfig, names: tuple[str, ...], clean: Pictures) -> Measurements:
    """Measurements made from clean pictures; the noise of a picture depends on the seed and its place alone."""
    if config.task == "superres":
        height, width = (side - side % config.factor for side in clean.shape[1:3])
        clean = clean[:, :height, :width]
        if min(height, width) < LEAST_SIDE * config.factor:
            raise UserError(f"a picture of {width}x{height} is too small to be made {config.factor} times smaller")
    size = clean.shape[1:3]
    sigma = (25.0 if config.task == "denoise" else 0.0) if config.sigma is None else config.sigma
    observe = operator(config, size)
    known = _mask(config, size, len(clean))

    def one(i: int) -> np.ndarray:
        key = jax.random.fold_in(jax.random.key(config.seed), i)
        y = observe(jnp.asarray(clean[i]))
        if config.peak is not None:
            return np.asarray(noises.add_poisson(key, y, config.peak))
        return np.asarray(noises.add_gaussian(key, y, sigma / 255) if sigma else y)

    measurements = np.stack([one(i) for i in range(len(clean))])
    if known is not None:
        measurements = measurements * known
    noise = np.sqrt(clean.mean((1, 2, 3)) / config.peak) if config.peak else np.full(len(clean), sigma / 255)
    return Measurements(names, measurements, clean, known, noise.astype(np.float32), size, True)


def measured(
    config: DipConfig, names: tuple[str, ...], given: Pictures, clean: Float[np.ndarray, "n H W c"] | None
) -> Measurements:
    """Measurements that were given; their noise is estimated where the configuration does not say."""
    if config.task == "inpaint" and config.mask is None:
        raise UserError("to inpaint a given picture, --mask FILE must say where it is known (white); "
                        "to punch random holes into a clean one, give it as --clean")
    scale = config.factor if config.task == "superres" else 1
    size = (given.shape[1] * scale, given.shape[2] * scale)
    if clean is not None and clean.shape[1:3] != size:
        raise UserError(f"--clean has {clean.shape[2]}x{clean.shape[1]} pixels and the restored picture will have "
                        f"{size[1]}x{size[0]}; they must be equal")
    known = _mask(config, size, len(given))
    if known is not None:
        given = given * known
    sigma = np.array([noise_level.estimate_sigma(y) if config.sigma is None else config.sigma / 255 for y in given])
    return Measurements(names, given, clean, known, sigma.astype(np.float32), size, False)


def _mask(config: DipConfig, size: tuple[int, int], count: int) -> Pictures | None:
    if config.task != "inpaint":
        return None
    if config.mask is None:
        key = jax.random.fold_in(jax.random.key(config.seed), 2**20)
        return np.stack([operators.random_mask(jax.random.fold_in(key, i), *size, config.keep) for i in range(count)])
    mask = _read_file(config.mask) if config.mask.is_file() else None
    if mask is None:
        raise UserError(f"--mask {config.mask}: no such file")
    mask = mask if config.size is None else square(mask, config.size)
    if mask.shape[:2] != tuple(size):
        raise UserError(f"--mask has {mask.shape[1]}x{mask.shape[0]} pixels and the picture {size[1]}x{size[0]}; "
                        "they must be equal")
    known = (mask.mean(-1, keepdims=True) >= 128).astype(np.float32)
    if not known.any():
        raise UserError(f"--mask {config.mask} is black everywhere: nothing of the picture is known")
    return np.repeat(known[None], count, 0)
