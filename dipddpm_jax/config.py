"""What a run is: frozen dataclasses, what is wrong with them, and their JSON round trip.

Plain Python, so that the command line is parsed before JAX is imported. A network's options stand here under the
names of the Linen module's fields; what follows from the data (channels, classes) and the schedule is filled in later.
"""
import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dipddpm_jax.errors import UserError


@dataclass(frozen=True)
class UNet:
    """The recommended UNet: residual blocks, GroupNorm, self-attention."""

    width: int = 64
    multipliers: tuple[int, ...] = (1, 2)
    """Width of each resolution, in units of `width`."""
    blocks: int = 1
    """Residual blocks a resolution on the way down (one more on the way up)."""
    attention_size: int = 8
    """Self-attention where a feature map's side is at most this."""
    patch_size: int = 2
    """Pixels folded into channels at the start; 1 works on full resolution, about four times slower."""


@dataclass(frozen=True)
class SmallUNet:
    """System 001's UNet, for 28x28 pictures of one channel."""

    time_dim: int = 100
    widths: tuple[int, int, int] = (10, 20, 40)


@dataclass(frozen=True)
class AttentionUNet:
    """System 000's UNet: BatchNorm, linear attention, class labels if the data have them."""

    widths: tuple[int, int, int, int] = (64, 128, 128, 64)
    time_dim: int = 1024


@dataclass(frozen=True)
class ContextUnet:
    """System 004's and TeaPearce's UNet: the labels multiply the features."""

    width: int = 128
    act: Literal["gelu", "relu"] = "gelu"
    context_value: float = 1.0
    """What a present class is fed as: 1 in system 004, -1 in TeaPearce's script."""


@dataclass(frozen=True)
class ResidualDenoiser:
    """System 003's "DDPM": blocks that inject noise and subtract a small network."""

    num_blocks: int = 10
    sigmas: Literal["linear", "exponential", "cosine"] = "linear"


@dataclass(frozen=True)
class ScheduleConfig:
    name: Literal["linear", "cosine", "linear_at_zero", "waves_at_zero"] = "linear"
    """linear_at_zero and waves_at_zero are system 004's, with an entry for time 0."""
    num_steps: int = 1000
    first_beta: float = 1e-4
    last_beta: float = 0.02


@dataclass(frozen=True)
class OptimizerConfig:
    name: Literal["adam", "adamw"] = "adam"
    learning_rate: float = 1e-3
    warmup_steps: int = 0
    decay: Literal["constant", "cosine", "linear", "step"] = "constant"
    """How the learning rate falls after the warm-up, reaching 0 at the last step (step: by a factor, see below)."""
    decay_every: int = 10_000
    """Steps between falls, with decay=step."""
    decay_factor: float = 0.1
    weight_decay: float = 0.01
    """Of adamw."""
    clip_norm: float | None = None
    """Largest global norm of a gradient."""
    ema_decay: float = 0.999
    """Of the moving average of the parameters, which samples are drawn from; 0 is none."""


@dataclass(frozen=True)
class SamplerConfig:
    name: Literal["ancestral", "ddim", "heun", "dpmpp_2m", "random_passes"] = "dpmpp_2m"
    """random_passes is system 003's: it denoises held-out pictures at random times."""
    num_steps: int | None = None
    """Transitions, spread evenly over the times; default: all of the schedule (ancestral) or 25."""
    variance: Literal["beta", "posterior"] = "beta"
    """Of ancestral."""
    quiet_steps: int = 1
    """Last transitions of ancestral that add no noise; 2 in system 000."""
    eta: float = 0.0
    """Of ddim: 0 is deterministic, 1 as noisy as ancestral."""
    clip: bool = False
    """Keep the believed clean picture within the range of pixels at every step."""
    guidance: float = 0.0
    """Weight w of classifier-free guidance, (1 + w) conditional - w unconditional; needs a model with labels."""
    compose: bool = False
    """Let each of a picture's labels pull by itself, with weight 1 + w, instead of all of them as one condition."""


@dataclass(frozen=True)
class TrainConfig:
    network: UNet | SmallUNet | AttentionUNet | ContextUnet | ResidualDenoiser = field(default_factory=UNet)
    schedule: ScheduleConfig = ScheduleConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    sampler: SamplerConfig = SamplerConfig()
    """For the pictures made while training, and the default of sample.py."""
    target: Literal["eps", "x0", "v", "autoencode"] = "v"
    """What the network predicts; autoencode (system 003): its own clean input, against noise that it injects itself."""
    data: str = "mnist5k"
    """mnist5k, photo_crops, scenes (need no network), mnist, fashion_mnist, cifar10, iclevr, or folder:PATH."""
    image_size: int | None = None
    """Side in pixels that pictures are resized and cropped to; default: as they are."""
    pixel_mean: float = 0.5
    pixel_std: float = 0.5
    """[0, 1] pixels become (pixel - mean) / std."""
    labels: bool = True
    """Train on the labels, if the data have any."""
    label_drop: float = 0.1
    """Share of pictures shown without their label, for guidance."""
    without: tuple[str, ...] = ()
    """Combinations of labels that no training picture may show, such as "red cube,blue sphere": all others are kept."""
    batch_size: int = 128
    steps: int = 2000
    keep_every: int | None = None
    """Steps between checkpoints that all stay, for label-accuracy; default: none."""
    seed: int = 0
    compute: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the network; parameters stay float32. bfloat16 pays on accelerators only."""


NETWORKS = (UNet, SmallUNet, AttentionUNet, ContextUnet, ResidualDenoiser)

@dataclass(frozen=True)
class RunOptions:
    """Where and how a run is made; none of it changes the result."""

    workdir: Path | None = None
    """Directory of the run; default: runs/PRESET-NUMBER, a new one."""
    data_dir: Path | None = None
    """Where data sets are kept; default: $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    resume: bool = False
    """Go on with the run in --workdir (default: the newest), with its own configuration."""
    save_every: int = 500
    """Steps between checkpoints; the two newest and the best one stay."""
    sample_every: int = 500
    """Steps between pictures of samples; 0 for the end only."""
    chunk: int = 20
    """Steps in one device call."""
    budget: float | None = None
    """Minutes after which the run saves and stops, to be resumed."""
    devices: int | None = None
    """Devices that share a batch; default: all (on a CPU, one a core, at most 4)."""
    shard_state: bool = False
    """Spread parameters and optimizer state over the devices, for models that do not fit on one."""
    distributed: bool = False
    """One process of several machines (jax.distributed); without the next three, the cluster is asked."""
    coordinator: str | None = None
    """HOST:PORT of process 0."""
    num_processes: int | None = None
    process_id: int | None = None


def check(config: TrainConfig, run: RunOptions = RunOptions()) -> None:
    """Raises UserError for numbers that no run can have."""
    positive = {"--steps": config.steps, "--batch-size": config.batch_size, "--chunk": run.chunk,
                "--save-every": run.save_every, "--keep-every": config.keep_every,
                "--schedule.num-steps": config.schedule.num_steps,
                "--image-size": config.image_size, "--budget": run.budget, "--devices": run.devices,
                "--optimizer.decay-every": config.optimizer.decay_every, "--pixel-std": config.pixel_std}
    for name, value in positive.items():
        if value is not None and not 0 < value <= 2**31 - 2:
            raise UserError(f"{name} must be at least 1 and below 2^31; got {value}")
    for name, value in {"--label-drop": config.label_drop, "--optimizer.ema-decay": config.optimizer.ema_decay}.items():
        if not 0 <= value <= 1:
            raise UserError(f"{name} must lie between 0 and 1; got {value}")
    for name, value in {"--sample-every": run.sample_every, "--seed": config.seed,
                        "--optimizer.warmup-steps": config.optimizer.warmup_steps}.items():
        if not 0 <= value < 2**31:
            raise UserError(f"{name} must be between 0 and 2^31 - 1; got {value}")
    if not config.optimizer.learning_rate > 0:
        raise UserError(f"--optimizer.learning-rate must be above 0; got {config.optimizer.learning_rate}")
    if not 0 < config.schedule.first_beta <= config.schedule.last_beta < 1:
        raise UserError("--schedule.first-beta and --schedule.last-beta must satisfy 0 < first <= last < 1")
    check_sampler(config.sampler, config.schedule)


def check_sampler(sampler: SamplerConfig, schedule: ScheduleConfig) -> None:
    """Raises UserError when the sampler does not fit the schedule."""
    if sampler.num_steps is not None and not 1 <= sampler.num_steps <= schedule.num_steps:
        raise UserError(f"--num-steps must be 1 to {schedule.num_steps}, the steps of the schedule that the model was "
                        f"trained on; got {sampler.num_steps}")
    if not 0 <= sampler.quiet_steps <= schedule.num_steps:
        raise UserError(f"--sampler.quiet-steps must be 0 to {schedule.num_steps}; got {sampler.quiet_steps}")
    if not 0 <= sampler.eta <= 1:
        raise UserError(f"eta must lie between 0 and 1; got {sampler.eta}")


def changed_sampler(default: SamplerConfig, given: dict[str, Any]) -> SamplerConfig:
    """`default` with what is given (not None). Another sampler has its own number of steps. Raises UserError."""
    for name in ("name", "variance"):
        check_choice(SamplerConfig, name, given.get(name))
    if given["name"] is not None:
        default = dataclasses.replace(default, num_steps=None)
    return dataclasses.replace(default, **{k: v for k, v in given.items() if v is not None})


def check_choice(kind: type, name: str, value: str | None) -> None:
    """Raises UserError when `value` is not among the choices of a field of the dataclass `kind`."""
    choices = typing.get_args(typing.get_type_hints(kind)[name])
    if value is not None and value not in choices:
        raise UserError(f"unknown {'sampler' if name == 'name' else name} {value!r}: known are {', '.join(choices)}")


def newest_run(root: Path = Path("runs")) -> Path:
    """The run whose configuration was written last. Raises UserError when there is none."""
    runs = sorted(root.glob("*/config.json"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise UserError(f"no run in {root}/; train one with `python train.py`, or name its directory")
    return runs[-1].parent


def to_json(config: Any) -> Any:
    """Nested dictionaries; a member of a union of dataclasses carries its class's name."""
    if not dataclasses.is_dataclass(config):
        return str(config) if isinstance(config, Path) else list(config) if isinstance(config, tuple) else config
    fields = {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
    return {"class": type(config).__name__, **fields} if isinstance(config, NETWORKS) else fields


def from_json(kind: Any, raw: Any) -> Any:
    """The inverse of `to_json`. Raises UserError for unknown fields or classes."""
    options = [a for a in typing.get_args(kind) if a is not types.NoneType]
    if isinstance(raw, dict) and "class" in raw:
        classes = {c.__name__: c for c in options}
        if raw["class"] not in classes:
            raise UserError(f"unknown network {raw['class']!r} in a configuration; known: {', '.join(classes)}")
        return from_json(classes[raw["class"]], {k: v for k, v in raw.items() if k != "class"})
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        if unknown := sorted(set(raw) - set(hints)):
            raise UserError(f"unknown field {unknown[0]!r} of {kind.__name__} in a configuration")
        return kind(**{name: from_json(hints[name], value) for name, value in raw.items()})
    return tuple(raw) if isinstance(raw, list) else raw


@dataclass(frozen=True)
class Facts:
    """What a run takes from its data set, kept in config.json so that sampling does not need the data."""

    image_shape: tuple[int, int, int]
    """Height, width, channels."""
    label_names: tuple[str, ...] = ()
    """Empty for a model without labels."""
    multi_hot: bool = False
    """Several labels an image."""
    count: int = 0
    """Pictures trained on."""
    checksum: int = 0
    """CRC-32 of their bytes."""


def save(config: TrainConfig, preset: str, facts: Facts, path: Path) -> None:
    """Writes config.json."""
    record = {"preset": preset, "config": to_json(config), "data": to_json(facts)}
    path.write_text(json.dumps(record, indent=2) + "\n")


def load(path: Path) -> tuple[str, TrainConfig, Facts]:
    """(preset, config, facts) of a run. Raises UserError when the file is not one that `save` wrote."""
    try:
        raw = json.loads(path.read_text())
        return raw["preset"], from_json(TrainConfig, raw["config"]), from_json(Facts, raw["data"])
    except FileNotFoundError:
        raise UserError(f"{path.parent} is not the directory of a training run: it has no {path.name}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not the configuration of a run ({error})") from None


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Names of the fields in which two configurations differ, as options of the command line."""
    if type(old) is not type(new) or not dataclasses.is_dataclass(old):
        return [] if old == new else [f"--{prefix.rstrip('.').replace('_', '-')} ({old} before, {new} now)"]
    return [d for f in dataclasses.fields(old)
            for d in differences(getattr(old, f.name), getattr(new, f.name), f"{prefix}{f.name}.")]
