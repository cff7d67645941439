"""Named runs: the recommended ones, and what the five reference systems trained."""
from dataclasses import replace

from dipddpm_jax.config.diffusion import (
    AttentionUNet,
    ContextUnet,
    OptimizerConfig,
    OwnNetwork,
    ResidualDenoiser,
    ScheduleConfig,
    SmallUNet,
    TrainConfig,
    UNet,
)
from dipddpm_jax.config.sampler import SamplerConfig

_NO_EMA = 0.0
_MUON = OptimizerConfig("muon", 1e-2, warmup_steps=100, decay="cosine", clip_norm=1.0)
_RECOMMENDED = TrainConfig(
    network=UNet(width=32), schedule=ScheduleConfig("cosine"), target="x0", batch_size=64, steps=600,
    optimizer=replace(_MUON, ema_decay=0.995), sampler=SamplerConfig(guidance=1.0))
_SEVERAL_LABELS = TrainConfig(  # one picture in 4x4 pixels: small enough for a CPU
    network=UNet(width=48, patch_size=4, label_attention=True), schedule=ScheduleConfig("cosine"), target="x0",
    data="scenes", batch_size=32, steps=5000, optimizer=_MUON, sampler=SamplerConfig(guidance=1.0, num_steps=50))
PRESETS: dict[str, tuple[str, TrainConfig]] = {
    "unet": (
        "the recommended model, class-conditional digits (the main job)",
        _RECOMMENDED,
    ),
    "attention-unet": (
        "system 000's base: MNIST with labels, 100 epochs, Adam 2e-4 falling every 80 (--no-labels: the plain UNet)",
        TrainConfig(
            network=AttentionUNet(), schedule=ScheduleConfig(last_beta=0.01), target="eps", data="mnist",
            pixel_mean=0.1307, pixel_std=0.3081, label_drop=0.0, batch_size=256, steps=23_400,
            optimizer=OptimizerConfig(learning_rate=2e-4, decay="step", decay_every=80 * 234, ema_decay=_NO_EMA),
            sampler=SamplerConfig("ancestral", quiet_steps=2)),
    ),
    "small-unet": (
        "system 001: MNIST, 20 epochs, Adam 1e-3",
        TrainConfig(
            network=SmallUNet(), target="eps", data="mnist", labels=False, steps=9360,
            # The original does not clip: it lets the background drift, and stretches each picture when it shows it.
            optimizer=OptimizerConfig(ema_decay=_NO_EMA), sampler=SamplerConfig("ancestral", clip=True)),
    ),
    "residual-denoiser": (
        "system 003: CIFAR-10, 10 epochs, Adam 1e-3; denoises, cannot draw pictures from nothing",
        TrainConfig(
            network=ResidualDenoiser(), target="autoencode", data="cifar10", labels=False, batch_size=64, steps=7810,
            optimizer=OptimizerConfig(ema_decay=_NO_EMA), sampler=SamplerConfig("random_passes", num_steps=10)),
    ),
    "context-unet": (
        "system 004: several labels a picture, 600 epochs, Adam 1e-4, with the label dropout that it lacked",
        TrainConfig(
            network=ContextUnet(), schedule=ScheduleConfig("linear_at_zero", 400), target="eps", data="scenes",
            steps=84_000, optimizer=OptimizerConfig(learning_rate=1e-4, ema_decay=_NO_EMA),
            sampler=SamplerConfig("ancestral")),
    ),
    "own": (
        "the recommended model's training for a network of your own: --network.function MODULE:FUNCTION",
        replace(_RECOMMENDED, network=OwnNetwork()),
    ),
    "scenes": (
        "the recommended model for several labels a picture, on rendered scenes: an hour and a half on one core",
        replace(_SEVERAL_LABELS, network=UNet(width=48, label_attention=True), image_size=32, steps=12_000,
                pixel_mean=0.47, pixel_std=0.1),  # pale pictures, whose contrast is a tenth of black to white
    ),
    "iclevr": (
        "a model like it for iCLEVR at 64x64, whose folder --data-dir names",
        replace(_SEVERAL_LABELS, data="iclevr"),
    ),
    "teapearce": (
        "the script that system 004 grew from: MNIST with labels, 20 epochs, Adam 1e-4 falling to 0",
        TrainConfig(
            network=ContextUnet(context_value=-1.0), schedule=ScheduleConfig("linear_at_zero", 400), target="eps",
            data="mnist", pixel_mean=0.0, pixel_std=1.0, batch_size=256, steps=4680,
            optimizer=OptimizerConfig(learning_rate=1e-4, decay="linear", ema_decay=_NO_EMA),
            sampler=SamplerConfig("ancestral", guidance=2.0)),
    ),
}
