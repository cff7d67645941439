"""The numbers that a run can have: everything else is refused before JAX is imported."""
import dataclasses
import math
from typing import Any

from dipddpm_jax.config.diffusion import AUTOENCODE, SCHEDULES, RunOptions, TrainConfig
from dipddpm_jax.config.few_step import check_few_step
from dipddpm_jax.config.sampler import check_sampler, check_used, is_own
from dipddpm_jax.errors import UserError, closest

NO_OPTIONS = RunOptions()


def check(config: TrainConfig, run: RunOptions = NO_OPTIONS) -> None:
    """Raises UserError for numbers that no run can have."""
    for options in (config, run):
        check_finite(options)
    positive = {"--steps": config.steps, "--batch-size": config.batch_size, "--chunk": run.chunk,
                "--save-every": run.save_every, "--keep-every": config.keep_every,
                "--schedule.num-steps": config.schedule.num_steps,
                "--image-size": config.image_size, "--budget": run.budget, "--devices": run.devices,
                "--schedule.beta-steps": config.schedule.beta_steps,
                "--optimizer.decay-every": config.optimizer.decay_every}
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
    for name, value, most in (("--optimizer.learning-rate", config.optimizer.learning_rate, 1000),
                              ("--optimizer.clip-norm", config.optimizer.clip_norm, math.inf),
                              ("--optimizer.decay-factor", config.optimizer.decay_factor, 1)):
        if value is not None and not 0 < value <= most:
            raise UserError(f"{name} must be above 0{f' and at most {most}' * (most < math.inf)}; got {value}")
    if not 0 <= config.optimizer.weight_decay <= 1000:
        raise UserError(f"--optimizer.weight-decay must be 0 to 1000; got {config.optimizer.weight_decay}")
    if not 0.001 <= config.pixel_std <= 1000:
        raise UserError(f"--pixel-std must be 0.001 to 1000 (0.5 suits pixels of 0 to 1); got {config.pixel_std}")
    if not abs(config.pixel_mean) <= 1000:
        raise UserError(f"--pixel-mean must be -1000 to 1000 (default: 0.5); got {config.pixel_mean}")
    if config.schedule.name not in SCHEDULES and not is_own(config.schedule.name):
        raise UserError(f"unknown schedule {config.schedule.name!r}: {closest(config.schedule.name, list(SCHEDULES))}"
                        f"known are {', '.join(SCHEDULES)}, or MODULE:FUNCTION")
    if not 0 <= config.shift <= 64:
        raise UserError(f"--shift must be 0 to 64 pixels; got {config.shift}")
    if config.weighting != "uniform" and config.target == AUTOENCODE:
        raise UserError(f"--weighting {config.weighting} weighs noise levels, which --target {AUTOENCODE} has none of")
    if not 0 < config.schedule.first_beta <= config.schedule.last_beta < 1:
        raise UserError("--schedule.first-beta and --schedule.last-beta must satisfy 0 < first <= last < 1")
    check_processes(run)
    check_few_step(config)
    check_sampler(config.sampler, config.schedule.num_steps)


def check_finite(options: Any, prefix: str = "--") -> None:
    """Raises UserError for a field of a dataclass, or of one inside it, that is NaN or infinite."""
    for field in dataclasses.fields(options):
        value, name = getattr(options, field.name), f"{prefix}{field.name.replace('_', '-')}"
        if dataclasses.is_dataclass(value):
            check_finite(value, f"{name}.")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{name} must be a finite number; got {number}")


def check_typed(config: TrainConfig, default: TrainConfig) -> None:
    """Raises UserError for an option that was typed (differs from `default`) and does nothing in this run."""
    def changed(part: str) -> list[str]:
        old, new = getattr(default, part), getattr(config, part)
        return [f.name for f in dataclasses.fields(new) if getattr(new, f.name) != getattr(old, f.name)]

    check_used(changed("sampler"), config.sampler.name, "--sampler.")
    schedule = config.schedule.name
    for name in changed("schedule"):
        if name not in ("name", "num_steps", *SCHEDULES.get(schedule, ())):
            raise UserError(f"--schedule.{name.replace('_', '-')} does nothing with the schedule {schedule}")
    optimizer = config.optimizer
    needs = {"weight_decay": ("name", "adamw"), "decay_every": ("decay", "step"), "decay_factor": ("decay", "step")}
    for name in changed("optimizer"):
        option, value = needs.get(name, ("name", optimizer.name))
        if getattr(optimizer, option) != value:
            raise UserError(f"--optimizer.{name.replace('_', '-')} does nothing without --optimizer.{option} {value}")


def check_processes(run: RunOptions) -> None:
    """Raises UserError for options of several processes that say nothing, or not enough."""
    given = {"--coordinator": run.coordinator, "--num-processes": run.num_processes, "--process-id": run.process_id}
    for name, value in given.items():
        if value is not None and not run.distributed:
            raise UserError(f"{name} belongs to --distributed; give both or none")
    if run.distributed and run.workdir is None:
        raise UserError("--distributed needs --workdir, the same directory for every process of the run")
    if run.num_processes is not None and run.num_processes < 1:
        raise UserError(f"--num-processes must be at least 1; got {run.num_processes}")
    if run.process_id is not None and not 0 <= run.process_id < (run.num_processes or 2**31):
        raise UserError(f"--process-id must be 0 to N - 1, where --num-processes is N; got {run.process_id}")
    if run.coordinator is not None and not run.coordinator.rpartition(":")[2].isdigit():
        raise UserError(f"--coordinator must be HOST:PORT of process 0; got {run.coordinator}")
