"""What a run is: frozen dataclasses, what is wrong with them, and their JSON round trip.

Plain Python, so that the command line is parsed before JAX is imported. A network's options stand here under the
names of the Linen module's fields; what follows from the data (channels, classes) and the schedule is filled in later.
"""
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dipddpm_jax.config import datasets
from dipddpm_jax.config.sampler import SamplerConfig


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
    label_attention: bool = False
    """Pixels also attend to the labels of their picture: which object is the red one."""


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
class OwnNetwork:
    """A network of the user's own."""

    function: str = "MODULE:FUNCTION"
    """Yours, called with those of channels, num_classes (None: no labels) and num_steps that it names; returns a Linen
    module that is called as network(x, t, labels, train=False)."""


# The functions of the same names stand in diffusion/schedules; after num_steps they take these fields, in this order.
SCHEDULES = {
    "linear": ("first_beta", "last_beta", "beta_steps"),
    "cosine": (),
    "flow": (),
    "lognormal": (),
    "linear_at_zero": ("first_beta", "last_beta"),
    "waves_at_zero": ("first_beta", "last_beta"),
}


@dataclass(frozen=True)
class ScheduleConfig:
    name: str = "linear"
    """linear, cosine, flow (flow matching's straight path), lognormal (EDM's training noise), or MODULE:FUNCTION, your
    own function num_steps -> NoiseSchedule; linear_at_zero and waves_at_zero are system 004's, with an entry for time
    0."""
    num_steps: int = 1000
    first_beta: float = 1e-4
    last_beta: float = 0.02
    beta_steps: int | None = 1000
    """linear: the betas stand for so many steps and are spread over num_steps; None: as they are, which leaves signal
    at the end of a short schedule."""


@dataclass(frozen=True)
class OptimizerConfig:
    name: Literal["adam", "adamw", "muon"] = "adam"
    """muon moves each kernel by an orthogonal matrix as large as a step of Adam, and all else by Adam."""
    learning_rate: float = 1e-3
    warmup_steps: int = 0
    decay: Literal["constant", "cosine", "linear", "step"] = "constant"
    """How the learning rate falls after the warm-up, reaching 0 at the last step (step: by a factor, see below)."""
    decay_every: int = 10_000
    """Steps between falls, with decay=step."""
    decay_factor: float = 0.1
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    clip_norm: float | None = None
    """Largest global norm of a gradient."""
    ema_decay: float = 0.999
    """Decay of the moving average of the parameters (and of BatchNorm's statistics), which samples are drawn from; 0 is
    none."""


AUTOENCODE = "autoencode"  # system 003's target, whose pair and evaluation stand in hybrids/passes


@dataclass(frozen=True)
class FewStep:
    """How the network of a run by `train.py few-step` learns from the one that it began as."""

    calls: int = 2
    """Network calls from noise to a picture."""
    hops: int = 16
    """Steps of the teacher from noise to a picture."""
    guidance: float = 0.0
    """Weight with which the teacher is guided; the new network needs none."""


@dataclass(frozen=True)
class TrainConfig:
    network: UNet | SmallUNet | AttentionUNet | ContextUnet | ResidualDenoiser | OwnNetwork = UNet()
    schedule: ScheduleConfig = ScheduleConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    sampler: SamplerConfig = SamplerConfig()
    """For the pictures made while training, and the default of sample.py."""
    target: Literal["eps", "x0", "v", "autoencode"] = "v"
    """What the network predicts; autoencode (system 003): its own clean input, against noise that it injects itself."""
    weighting: Literal["uniform", "min-snr"] = "uniform"
    """How much a noise level counts in the loss. uniform: as the mean squared error of the target has it; min-snr: the
    squared error of the clean picture counts min(SNR, 5), whatever the target is."""
    data: Annotated[str, tyro.conf.arg(help=datasets.HELP)] = "mnist5k"
    image_size: int | None = None
    """Side in pixels that pictures are resized and cropped to; default: as they are, photo_crops 32x32."""
    pixel_mean: float = 0.5
    pixel_std: float = 0.5
    """[0, 1] pixels become (pixel - mean) / std."""
    mirror: bool = False
    """Show each training picture mirrored, left to right, half of the time."""
    shift: int = 0
    """Move training pictures by up to so many pixels along both sides, their edge repeated."""
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
    start: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Begin with these weights instead of random ones: a pretrained prior (digits), a run's directory, or a file that
    `dipddpm-jax export` wrote. Without a preset, all other options are as those weights were trained."""
    compute: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the network; parameters stay float32. bfloat16 pays on accelerators only."""
    few_step: tyro.conf.Suppress[FewStep | None] = None
    """None for a diffusion model; set by `train.py few-step`."""


NETWORKS = (UNet, SmallUNet, AttentionUNet, ContextUnet, ResidualDenoiser, OwnNetwork)


@dataclass(frozen=True)
class RunOptions:
    """Where and how a run is made; none of it changes the result."""

    workdir: Path | None = None
    """Directory of the run; default: runs/PRESET-NUMBER, a new one."""
    data_dir: Path | None = None
    """Where data sets are kept; default: $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    resume: bool = False
    """Go on with the run in --workdir (default: the newest), with its own configuration."""
    save_every: int = 100
    """Steps between checkpoints; the two newest and the best one stay."""
    sample_every: int = 500
    """Steps between pictures of samples; 0 for the end only."""
    chunk: int = 20
    """Steps in one device call."""
    tensorboard: bool = False
    """Also write the numbers of metrics.jsonl as TensorBoard's event files, beside it; needs the extra tensorboard."""
    budget: float | None = None
    """Minutes after which the run saves and stops, to be resumed."""
    devices: int | None = None
    """Devices that share a batch. A CPU is made into that many (default: one a core, at most 4); of accelerators that
    many are used (default: as many as divide the batch), and more than there are is refused."""
    shard_state: bool = False
    """Spread parameters and optimizer state over the devices, for models that do not fit on one."""
    distributed: bool = False
    """One of several processes, each with the same --workdir; without the next three, the cluster is asked."""
    coordinator: str | None = None
    """HOST:PORT of process 0."""
    num_processes: int | None = None
    process_id: int | None = None
