"""Training from Python: a diffusion model of an array of pictures, in a run's directory that `load_run` reads."""
from dataclasses import replace
from pathlib import Path

from jaxtyping import Float, Integer, Shaped
from numpy import ndarray

from dipddpm_jax import devices
from dipddpm_jax.commands.train import train_on
from dipddpm_jax.commands.training_data import ARRAY, array_training_data
from dipddpm_jax.config import ranges, saved
from dipddpm_jax.config.diffusion import RunOptions, TrainConfig
from dipddpm_jax.config.presets import PRESETS
from dipddpm_jax.errors import UserError

DEFAULT = RunOptions()


def train(
    images: Shaped[ndarray, "..."], labels: Integer[ndarray, "..."] | Float[ndarray, "..."] | None = None,
    preset: str | TrainConfig = "unet", steps: int | None = None, workdir: str | Path | None = None,
    resume: bool = False, label_names: tuple[str, ...] = (), run: RunOptions = DEFAULT,
) -> Path:
    """Trains a diffusion model on pictures; returns the run's directory, by default a new one in runs/.

    Pictures (n, h, w) or (n, h, w, channels) are bytes, whole numbers 0..255, or floats in [0, 1]; labels are classes
    0, 1, ... (n,), or rows of 0 and 1 (n, k) where a picture has several. The preset, a name or a configuration, says
    all else; its batch is made smaller for fewer pictures. With `resume` the run in `workdir` goes on, with the same
    pictures and its own configuration, up to `steps`. `run` says how often to save, which devices, and so on.

    Raises UserError for what does not fit, and Stopped when a signal or the budget ended it early, after saving.
    """
    workdir = None if workdir is None else Path(workdir)
    if resume:
        if workdir is None:
            raise UserError("resume=True needs workdir, the directory of the run to go on with")
        preset, config, facts = saved.load(workdir / "config.json")
        if config.data != ARRAY:
            raise UserError(f"the run in {workdir} was trained on {config.data}: python train.py --resume goes on")
        label_names = facts.label_names
        config = replace(config, steps=steps or config.steps)
    else:
        if isinstance(preset, str) and preset not in PRESETS:
            raise UserError(f"unknown preset {preset!r}; known are {', '.join(PRESETS)}")
        config = PRESETS[preset][1] if isinstance(preset, str) else preset
        config = replace(config, data=ARRAY, image_size=None, steps=steps or config.steps,
                         batch_size=min(config.batch_size, max(len(images), 1)))
    run = replace(run, workdir=workdir, resume=resume)
    ranges.check(config, run)
    devices.set_up(run)
    given = array_training_data(config, images, labels, label_names)
    name = preset if isinstance(preset, str) else "model"
    return train_on(given, config, run, name, "train(the same pictures, workdir=..., resume=True)")[0]
