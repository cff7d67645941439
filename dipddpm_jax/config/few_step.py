"""What train.py few-step can be asked for, the run that it is, and the samplers that such a run has. Plain Python."""
from dataclasses import dataclass, replace
from typing import Annotated

import tyro

from dipddpm_jax.config import datasets
from dipddpm_jax.config.diffusion import AUTOENCODE, FewStep, OptimizerConfig, RunOptions, TrainConfig
from dipddpm_jax.config.sampler import SamplerConfig, SamplerOptions, check_guidance, chosen_sampler, is_own
from dipddpm_jax.errors import UserError

_DATA = ("Pictures; default: what the teacher was trained on, or for a prior like ones, which come with the "
         f"installation: mnist5k. {datasets.HELP}")
NO_DENOISER = "needs a denoiser at every noise, which a few-step model is not: take the model that it was made from"
NAME = "few-step"  # the word after train.py, and the beginning of the run's directory


@dataclass(frozen=True)
class FewStepCommand:
    """Makes a model whose pictures take one or two network calls from a trained one, its teacher."""

    start: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """The teacher: a pretrained prior (digits), a run's directory, or a file by `dipddpm-jax export`. Network, schedule
    and labels are its own."""
    calls: int = FewStep.calls
    """Network calls from noise to a picture. A model of 1 call also draws with more, by consistency sampling."""
    hops: int = FewStep.hops
    """Steps of the teacher, by DDIM, from noise to a picture: more are more exact and learned more slowly."""
    guidance: float | None = None
    """Weight with which the teacher is guided; default: as it draws. The new model then draws so without guidance."""
    data: Annotated[str | None, tyro.conf.arg(help=_DATA)] = None
    steps: int = 1500
    batch_size: int = 32
    learning_rate: float = 1e-3
    """At the end of the warm-up of 50 steps; it falls to 0 as a cosine."""
    ema_decay: float = 0.99
    """Decay of the moving average of the parameters, which samples are drawn from."""
    seed: int = 0
    run: Annotated[RunOptions, tyro.conf.arg(name="")] = RunOptions()


def few_step_run(command: FewStepCommand, teacher: TrainConfig, own_data: str | None) -> TrainConfig:
    """The run's configuration; `own_data` are the pictures that come with a prior. Raises UserError."""
    if teacher.target == AUTOENCODE:
        raise UserError(f"--from {command.start} was trained to autoencode (system 003): it draws no pictures from "
                        "noise, and there are no steps to make fewer")
    guidance = teacher.sampler.guidance if command.guidance is None else command.guidance
    if command.guidance and not teacher.labels:
        raise UserError(f"--guidance needs a teacher with labels, and {command.start} was trained without")
    few = FewStep(command.calls, command.hops, guidance)
    sampler = SamplerConfig("consistency" if few.calls == 1 else "ddim", num_steps=max(few.calls, 2),
                            clip=teacher.sampler.clip)
    optimizer = OptimizerConfig(learning_rate=command.learning_rate, warmup_steps=50, decay="cosine", clip_norm=1.0,
                                ema_decay=command.ema_decay)
    return replace(
        teacher, start=command.start, data=command.data or own_data or teacher.data, steps=command.steps,
        batch_size=command.batch_size, optimizer=optimizer, sampler=sampler, label_drop=0.0, keep_every=None,
        weighting="uniform", seed=command.seed, few_step=few)


def check_few_step(config: TrainConfig) -> None:
    """Raises UserError for numbers that no run by few-step can have."""
    few, times = config.few_step, config.schedule.num_steps
    if few is None:
        return
    check_guidance(few.guidance)
    if not 1 <= few.calls <= few.hops <= times:
        raise UserError(f"--calls {few.calls} must be at least 1 and at most --hops, and --hops {few.hops} at most "
                        f"{times}, the steps of the teacher's schedule")


def sampler_of(config: TrainConfig, given: SamplerOptions) -> SamplerConfig:
    """`chosen_sampler` of a run. Raises UserError for one that asks a few-step model what it has not learned."""
    sampler, few = chosen_sampler(config.sampler, given, config.schedule.num_steps), config.few_step
    if few is None or is_own(sampler.name):
        return sampler
    if given.guidance or given.compose:
        raise UserError("this few-step model needs no --guidance and no --compose: "
                        f"guidance {few.guidance:g} of its teacher is in its weights")
    jumps = sampler.name == "ddim" and sampler.num_steps == few.calls
    if (few.calls == 1 and sampler.name == "consistency") or (
            jumps and not sampler.eta and sampler.spacing in (None, "even_time")):
        return sampler
    ways = "--sampler consistency with any --num-steps" if few.calls == 1 else (
        f"--sampler ddim --num-steps {few.calls}, its default")
    raise UserError(f"this few-step model of {few.calls} call{'s' * (few.calls > 1)} draws by {ways}: it knows no "
                    "steps between; the model that it was made from does")
