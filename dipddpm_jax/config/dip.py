"""What a restoration by a deep image prior is: frozen dataclasses, and their JSON round trip.

Plain Python, so that the command line is parsed before JAX is imported.
"""
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from dipddpm_jax.config.saved import from_json, to_json
from dipddpm_jax.errors import UserError
from dipddpm_jax.files import write_text


@dataclass(frozen=True)
class DipConfig:
    """A deep image prior: what is restored, and how."""

    image: str | None = None
    """What to restore: a picture; a .npy, FITS or TIFF file of numbers, which is written back as such, too; a folder of
    pictures of one size; or the name of a photograph inside scikit-image (astronaut, camera, coffee, ...), which is
    clean and is degraded first."""
    clean: Path | None = None
    """The clean picture: with --image, to compare with afterwards; without, it is degraded and restored."""
    task: Literal["denoise", "inpaint", "superres", "deblur"] = "denoise"
    sigma: float | None = None
    """Standard deviation of Gaussian noise, of 255: what a clean picture gets (default: 25 to denoise, with --peak or
    --impulse 0, else 0), or what is known of the noise of --image (default: estimated; with --peak 0)."""
    peak: float | None = None
    """Photons at white: Poisson noise, for what a clean picture gets and for the likelihood. With --sigma, Gaussian
    noise of that level comes on top: what reading the photons out adds."""
    impulse: float | None = None
    """Salt-and-pepper noise: the share of a clean picture's pixels that become black or white; of a given one any share
    above 0. Pixels that are black or white against what is about them count as missing then."""
    mask: Path | None = None
    """To inpaint: a picture of the same size, white where --image is known."""
    keep: float = 0.5
    """To inpaint without --mask: the share of a clean picture's pixels that is kept."""
    factor: int = 4
    """How many times larger superres makes each side."""
    blur: float = 1.6
    """Standard deviation of the blur that deblur undoes, in pixels."""
    size: int | None = None
    """Cut and resize pictures to squares of this side first. That changes their noise: --crop does not."""
    crop: int | None = None
    """Cut squares of this side out of the middle of pictures first, their pixels as they are."""
    blend: float = 0.0
    """Share of the measurement that is mixed back into what is restored, where it was measured, from 0 to 1: some grain
    instead of smoothness. To denoise or inpaint; the error of a mixture is not estimated."""
    network: Literal["skip", "skip-light", "skip-tapered", "skip-small", "skip-001", "conv", "decoder"] = "skip-light"
    """skip: the DIP paper's, 128 channels on 5 levels; skip-light: 32 channels; skip-tapered: 16, above, to 64;
    skip-small: 16 on 3 levels; skip-001: system 001's 8, 16, 32; conv: three plain convolutions; decoder: the deep
    decoder."""
    variant: Literal["plain", "tv", "self-guided", "aseqdip"] = "plain"
    weight: float | None = None
    """Weight of the variant's penalty; default: tv by the noise, self-guided 0.1, aseqdip 1."""
    code: Literal["noise", "meshgrid", "image"] = "noise"
    """The network's input; self-guided and aseqdip start from the measurement. The noise of conv has several scales,
    since to 7x7 pixels white noise looks alike everywhere."""
    jitter: float = 1 / 30
    """Standard deviation of the noise that is added to the code at every step."""
    num_steps: int = 3000
    """Most steps of a fit."""
    optimizer: Literal["adam", "muon"] = "adam"
    """muon moves each kernel by an orthogonal matrix, and takes fewer steps than Adam, on large pictures above all."""
    learning_rate: float | None = None
    """Learning rate; default: 0.01, conv 0.002, aseqdip 0.001 (its loop through the code shakes at more), with muon
    0.03."""
    decay: Literal["constant", "cosine"] = "constant"
    """Decay of the learning rate, cosine: to 0 at the last step."""
    fall_back: float = 5.0
    """Backtrack when the PSNR to the measurement falls by this many dB; 0 is never."""
    stop: Literal["held-out", "wmv", "emv", "discrepancy", "patience", "never", "oracle"] = "held-out"
    """When to stop, and what is restored. held-out: the average of outputs with the lowest error on pixels that the fit
    does not see. The others, one output: lowest moving variance (wmv; exponential: emv); misfit down to the noise;
    plateau of the loss; the last. oracle sees the clean picture: for study only."""
    hold_out: Literal["auto", "pixels", "blocks"] = "auto"
    """What the rule held-out keeps back: single pixels, or blocks of 5x5, judged by their inner 3x3, for noise that
    neighbouring pixels share, as in pictures of cameras that were interpolated or resized. auto: blocks where the
    noise of a picture to denoise looks like that."""
    window: int = 100
    """Outputs in the window of wmv."""
    patience: int = 1000
    """Steps without a new best after which a fit stops."""
    folds: int = 1
    """Cross-fitting: so many fits of each picture, each blind to another part of its pixels and stopped by it. Their
    mean is restored, and its error estimated, without the clean picture. Costs as many times one fit. To denoise up to
    64x64 pixels in all, it is the default: --folds 10 --network skip-small --variant tv --num-steps 1500 --patience
    300 --nonlocal-bayes, but for those of them that are given. For larger pictures, and where there is hardly any noise
    (to inpaint or deblur, or with --impulse), it is one fit: --network skip-tapered --optimizer muon --variant tv
    --patience 300 and, to denoise or inpaint, --nonlocal-bayes, unless another network or optimizer is given."""
    nonlocal_bayes: bool = False
    """To denoise or inpaint: passes of nonlocal Bayes after the fits. Patches of what they restored that look alike say
    which patches are likely, and by that those that were measured are restored once more: some ten core seconds for
    256x256 pixels, a minute and a half where pixels are missing. Left out where neighbouring pixels share noise."""
    seeds: int = 1
    """Repetitions of it all; several give their mean and an uncertainty."""
    seed: int = 0
    tile: int = 768
    """Pictures with a longer side are fitted in overlapping tiles of this side."""


@dataclass(frozen=True)
class DipRun:
    """Where and how a restoration is made; none of it but `minutes` changes the result."""

    workdir: Path | None = None
    """Directory to write to; default: runs/dip-NUMBER, a new one."""
    resume: bool = False
    """Go on with the restoration in --workdir, as it was configured; a larger --num-steps makes it longer."""
    save_every: int = 500
    """Steps between checkpoints."""
    chunk: int | None = None
    """Steps in one device call; default: about two seconds' worth, at most 50."""
    minutes: float | None = None
    """Minutes after which fits that still run end with the best that they have found; --resume goes on from there."""
    gif: bool = False
    """Also an animation of the first picture's fit, fit.gif."""


@dataclass(frozen=True)
class StagedConfig:
    """System 002: a plain stack of convolutions, fitted in stages of falling noise."""

    image: str | None = None
    """A noisy picture, or the name of a photograph inside scikit-image."""
    clean: Path | None = None
    """The clean picture; without --image, noise is added to it."""
    sigma: float | None = None
    """Standard deviation of the picture's noise, of 255 (default: 25)."""
    size: int | None = None
    """Cut and resize the picture to a square of this side first. That changes its noise: --crop does not."""
    crop: int | None = None
    """Cut a square of this side out of the middle of the picture first, its pixels as they are."""
    levels: tuple[float, ...] = (0.1, 0.05, 0.025)
    """Standard deviation of the noise in the input of each stage, of 1."""
    steps: tuple[int, ...] = (1000,)
    """Most steps of each stage (one number: of all)."""
    layers: Literal[3, 4, 5] = 3
    learning_rate: float = 0.005
    stop: Literal["wmv", "emv", "discrepancy", "never", "oracle"] = "discrepancy"
    """When a stage ends. oracle is the original: trained towards, and stopped by, the clean picture."""
    patience: int = 50
    """Evaluations (every ten steps) without a gain after which a stage ends."""
    seed: int = 0


@dataclass(frozen=True)
class StagedRun:
    """Where a staged fit is made."""

    workdir: Path | None = None
    """Directory to write to; default: runs/staged-NUMBER, a new one."""
    resume: bool = False
    """Go on with the staged fit in --workdir, as it was configured."""


AS_IT_IS = ("denoise", "inpaint")  # tasks whose measurement has the picture's own values
MEASURING = ("image", "clean", "task", "sigma", "peak", "impulse", "mask", "keep", "factor", "blur", "size", "crop",
             "blend", "seed")
"""Fields of DipConfig that say what is measured, and how much of it stays; the others say how a deep image prior is
fitted to it."""
CROSS_FITTED = 64 * 64  # most pixels, of all pictures of a run, that are cross-fitted by default: what was measured
CROSS_FIT = {"folds": 10, "network": "skip-small", "variant": "tv", "num_steps": 1500, "patience": 300,
             "nonlocal_bayes": True}
MUON_FIT = {"network": "skip-tapered", "optimizer": "muon", "variant": "tv", "patience": 300}
QUIET = 6.0  # standard deviation of noise, of 255, below which details are fitted to the end
_LEARNING = {"network", "optimizer", "learning_rate", "decay"}  # what MUON_FIT is one whole of


def recommended(config: DipConfig, given: Collection[str], pixels: int, pictures: int = 1) -> DipConfig:
    """The configuration for pictures of so many pixels each: fields that the user did not give are, for a large picture
    and where there is hardly any noise, those of MUON_FIT, unless how it learns is given, with nonlocal Bayes to
    denoise or inpaint; to denoise few pixels in all, or if folds are asked for, those of CROSS_FIT."""
    if config.stop != "held-out" or config.task == "superres":
        return config
    if (pixels > CROSS_FITTED or expects_no_noise(config)) and not _LEARNING & set(given):
        after = {"nonlocal_bayes": config.task in AS_IT_IS}
        return replace(config, **{name: value for name, value in (MUON_FIT | after).items() if name not in given})
    few = config.folds > 1 if "folds" in given else pixels * pictures <= CROSS_FITTED
    if config.task != "denoise" or config.impulse is not None or not few:
        return config
    return replace(config, **{name: value for name, value in CROSS_FIT.items() if name not in given})


def expects_no_noise(config: DipConfig) -> bool:
    """Whether hardly any noise is to be expected: another task than to denoise, or impulses, and no noise besides."""
    if config.task == "denoise" and config.impulse is None or config.peak is not None:
        return False
    return config.sigma is None or config.sigma < QUIET


Config = TypeVar("Config", DipConfig, StagedConfig)
KEYS = {DipConfig: "dip", StagedConfig: "staged"}  # under which a configuration stands in config.json


def save_dip_config(config: DipConfig | StagedConfig, path: Path, checksums: Mapping[str, int] | None = None) -> None:
    """Writes config.json, with the checksums of the pictures that were read: {option: CRC-32 of the pixels}.
    Raises UserError when the disk does not let it."""
    record = {KEYS[type(config)]: to_json(config), "read": dict(checksums or {})}
    write_text(path, json.dumps(record, indent=2, allow_nan=False) + "\n")


def load_dip_config(path: Path, kind: type[Config] = DipConfig) -> tuple[Config, dict[str, int]]:
    """(configuration, checksums of what was read; none in old files) of a restoration.

    Raises UserError when the file is missing or not one that `save_dip_config` wrote for this kind.
    """
    what = {DipConfig: "a restoration", StagedConfig: "a staged fit"}[kind]
    try:
        record = json.loads(path.read_text())
        raw = record[KEYS[kind]]
        if kind is DipConfig:
            raw = {"hold_out": "pixels", **raw}  # what there was when a restoration did not say it
        paths = {name: Path(raw[name]) for name in ("clean", "mask") if raw.get(name) is not None}
        return from_json(kind, {**raw, **paths}), dict(record.get("read", {}))
    except FileNotFoundError:
        raise UserError(f"{path.parent} is not the directory of {what}: it has no {path.name}") from None
    except (OSError, ValueError, KeyError, TypeError, UserError) as error:
        raise UserError(f"{path} is not the configuration of {what} ({error})") from None
