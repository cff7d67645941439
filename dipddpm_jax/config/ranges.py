"""The numbers that a run can have: everything else is refused before JAX is imported."""
from dipddpm_jax.config.diffusion import RunOptions, ScheduleConfig, TrainConfig
from dipddpm_jax.config.sampler import SamplerConfig
from dipddpm_jax.errors import UserError

NO_OPTIONS = RunOptions()


def check(config: TrainConfig, run: RunOptions = NO_OPTIONS) -> None:
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
