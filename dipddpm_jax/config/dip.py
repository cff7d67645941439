"""What a restoration by a deep image prior is: its frozen dataclass and its JSON round trip.

Plain Python, so that the command line is parsed before JAX is imported.
"""
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dipddpm_jax.config.saved import from_json, to_json
from dipddpm_jax.errors import UserError


@dataclass(frozen=True)
class DipConfig:
    """A deep image prior: what is restored, and how."""

    image: str | None = None
    """What to restore: a picture, a folder of pictures of one size, or the name of a photograph inside scikit-image
    (astronaut, camera, coffee, ...), which is clean and is degraded first."""
    clean: Path | None = None
    """The clean picture: with --image, to compare with afterwards; without, it is degraded and restored."""
    task: Literal["denoise", "inpaint", "superres", "deblur"] = "denoise"
    sigma: float | None = None
    """Standard deviation of Gaussian noise, of 255: what a clean picture gets (default: 25 to denoise, else 0), or what
    is known of the noise of --image (default: estimated)."""
    peak: float | None = None
    """Photons at white: Poisson instead of Gaussian noise, for what a clean picture gets and for the likelihood."""
    mask: Path | None = None
    """To inpaint: a picture of the same size, white where --image is known."""
    keep: float = 0.5
    """To inpaint without --mask: the share of a clean picture's pixels that is kept."""
    factor: int = 4
    """Of superres: how many times larger each side becomes."""
    blur: float = 1.6
    """Of deblur: standard deviation of the blur in pixels."""
    size: int | None = None
    """Cut and resize pictures to squares of this side first."""
    network: Literal["skip", "skip-light", "skip-001", "conv", "decoder"] = "skip-light"
    """skip: the DIP paper's, 128 channels on 5 levels; skip-light: 32 channels; skip-001: system 001's 8, 16, 32; conv:
    three plain convolutions; decoder: the deep decoder."""
    variant: Literal["plain", "tv", "self-guided", "aseqdip"] = "plain"
    weight: float | None = None
    """Of the variant's penalty; default: tv 0.02, self-guided 0.1, aseqdip 1."""
    code: Literal["noise", "meshgrid", "image"] = "noise"
    """The network's input; self-guided and aseqdip start from the measurement. The noise of conv has several scales,
    since to 7x7 pixels white noise looks alike everywhere."""
    jitter: float = 1 / 30
    """Standard deviation of the noise that is added to the code at every step."""
    num_steps: int = 3000
    """Most steps of a fit."""
    learning_rate: float | None = None
    """Of Adam; default: 0.01, conv 0.002, aseqdip 0.001 (its loop through the code shakes at more)."""
    decay: Literal["constant", "cosine"] = "constant"
    """Of the learning rate, to 0 at the last step."""
    fall_back: float = 5.0
    """Backtrack when the PSNR to the measurement falls by this many dB; 0 is never."""
    stop: Literal["held-out", "wmv", "emv", "discrepancy", "patience", "never", "oracle"] = "held-out"
    """When to stop, and what is restored. held-out: the average of outputs with the lowest error on pixels that the fit
    does not see. The others, one output: lowest moving variance (wmv; exponential: emv); misfit down to the noise;
    plateau of the loss; the last. oracle sees the clean picture: for study only."""
    window: int = 100
    """Outputs in the window of wmv."""
    patience: int = 1000
    """Steps without a new best after which a fit stops."""
    seeds: int = 1
    """Fits of each picture; several give their mean and an uncertainty."""
    seed: int = 0
    tile: int = 768
    """Pictures with a longer side are fitted in overlapping tiles of this side."""


@dataclass(frozen=True)
class DipRun:
    """Where and how a restoration is made; none of it changes the result."""

    workdir: Path | None = None
    """Directory to write to; default: runs/dip-NUMBER, a new one."""
    resume: bool = False
    """Go on with the restoration in --workdir, with its own configuration."""
    save_every: int = 500
    """Steps between checkpoints."""
    chunk: int = 50
    """Steps in one device call."""
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
    """Cut and resize the picture to a square of this side first."""
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


def check_staged(config: StagedConfig) -> None:
    """Raises UserError for numbers that no staged fit can have."""
    if not config.levels or not all(0 <= level <= 10 for level in config.levels):
        raise UserError(f"--levels must be one or more numbers from 0 to 10; got {config.levels}")
    if len(config.steps) not in (1, len(config.levels)) or not all(1 <= n <= 10**7 for n in config.steps):
        raise UserError(f"--steps must be one number, or one for each of the {len(config.levels)} levels, from 1 up")
    if not 1 <= config.patience <= 10**6 or not 0 <= config.seed < 2**31 or not 0 < config.learning_rate < 1e3:
        raise UserError("--patience and --learning-rate must be above 0, --seed between 0 and 2^31 - 1")
    check_dip(DipConfig(sigma=config.sigma, size=config.size))


def check_dip(config: DipConfig, run: DipRun = DipRun()) -> None:
    """Raises UserError for numbers that no restoration can have, and for combinations that make no sense."""
    bounds = {"--sigma": (config.sigma, 0, 1000), "--peak": (config.peak, 1e-3, 1e9), "--keep": (config.keep, 1e-3, 1),
              "--factor": (config.factor, 2, 32), "--blur": (config.blur, 1e-2, 100), "--size": (config.size, 8, 2**14),
              "--weight": (config.weight, 0, 1e9), "--jitter": (config.jitter, 0, 9), "--seeds": (config.seeds, 1, 99),
              "--num-steps": (config.num_steps, 1, 10**7), "--learning-rate": (config.learning_rate, 1e-12, 1e3),
              "--fall-back": (config.fall_back, 0, 1e3), "--window": (config.window, 2, 10**5),
              "--patience": (config.patience, 1, 10**7), "--seed": (config.seed, 0, 2**31 - 1),
              "--tile": (config.tile, 128, 2**14), "--save-every": (run.save_every, 1, 10**7),
              "--chunk": (run.chunk, 1, 10**5)}
    for name, (value, low, high) in bounds.items():
        if value is not None and not low <= value <= high:  # false for nan too
            raise UserError(f"{name} must lie between {low:g} and {high:g}; got {value:g}")
    if config.variant in ("self-guided", "aseqdip") and (config.network == "decoder" or config.code == "meshgrid"):
        raise UserError(f"--variant {config.variant} feeds pictures to the network: it fits neither --network decoder "
                        "nor --code meshgrid")
    if config.network == "decoder" and config.code != "noise":
        raise UserError("--network decoder needs --code noise")
    if config.peak is not None and config.stop == "discrepancy":
        raise UserError("--stop discrepancy compares squared errors with Gaussian noise; with --peak use another rule")
    if config.mask is not None and config.task != "inpaint":
        raise UserError("--mask is for --task inpaint")


def save_dip_config(config: DipConfig, path: Path) -> None:
    """Writes config.json."""
    path.write_text(json.dumps({"dip": to_json(config)}, indent=2) + "\n")


def load_dip_config(path: Path) -> DipConfig:
    """The configuration of a restoration. Raises UserError when the file is not one."""
    try:
        raw = json.loads(path.read_text())["dip"]
        return from_json(DipConfig, {**raw, **{name: raw[name] and Path(raw[name]) for name in ("clean", "mask")}})
    except FileNotFoundError:
        raise UserError(f"{path.parent} is not the directory of a restoration: it has no {path.name}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not the configuration of a restoration ({error})") from None
