"""Deep image priors (DIP) and denoising diffusion (DDPM) in JAX, and what becomes of the two together.

Three doors for a researcher, all with NumPy arrays in and out:
    run = dipddpm_jax.train(images, steps=1000)       a diffusion model of an array of pictures, in a run's directory
    model = dipddpm_jax.load_run(run)                 its network with weights; model.denoiser() goes into any sampler
    picture = dipddpm_jax.restore(noisy)              one picture, restored without training data
load_prior("digits") gives a pretrained model that comes with the package, as load_run gives one of a run.

The rooms, each importing only those before it:
    convolution   how a convolution is computed: cpu (its forms), winograd, bands (rows shared by devices)
    networks      one network a file, with the attribute names of the PyTorch original; layers
    diffusion     from noise to pictures: schedules, forward (adding noise), denoisers, spacings, samplers, training,
                  few_steps (consistency distillation)
    inverse       what was measured, and what can be known exactly: operators, noises, noise_level, exact (posteriors)
                  what a restorer is (measurement), how one is judged without the clean picture (referee, unbiased_risk)
    dip           one picture, one untrained network: fit, variants, stopping, study (oracles), staged (system 002)
    hybrids       where the two meet: filtered_start (system 001), passes (system 003); restorers by a diffusion prior
                  (prior has what they share): truncated_reverse, pigdm, ddnm, ...; what learns from the picture:
                  guided_fit, adaptation, learned_start, educated_start, trained_self_diffusion
  from here on there are side effects (disk, network, other libraries)
    config        what can be asked for: frozen dataclasses and presets, parsed before JAX is imported
    data          load(name, split): embedded digits, photographs, rendered scenes, TFDS builders, folders
    classical     restorers without a network, by scikit-image
    checkpoints, torch_weights, devices, plots, records
    pretrained    models that come with the package, by name; weights/ holds them and the judges
    judging       metrics, the classifiers that judge samples, and how those are trained
    commands      what happens when a command is typed, one a file; loop is the resumable loop
    experiments   the five reports, measured again

Importing the package imports no JAX; the names below are looked up when they are first used.
"""
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {  # name: the module that defines it, or is it
    "denoisers": "diffusion.denoisers",
    "load_prior": "commands.starts",
    "load_run": "commands.model",
    "restore": "commands.restore",
    "samplers": "diffusion.samplers",
    "schedules": "diffusion.schedules",
    "spacings": "diffusion.spacings",
    "train": "commands.trainer",
    "UserError": "errors",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dipddpm_jax' has no attribute {name!r}")
    module = import_module(f"dipddpm_jax.{_PUBLIC[name]}")
    value = getattr(module, name, module)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
