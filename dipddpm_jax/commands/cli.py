"""The command line of diffusion models (train, sample): parse first, import JAX after; a user's mistake is one line on
stderr and exit status 2. That of deep image priors is `cli_fits`."""
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from dipddpm_jax import pretrained
from dipddpm_jax.commands import cli_fits
from dipddpm_jax.commands.ends import Stopped, guarded
from dipddpm_jax.config import few_step, ranges, saved
from dipddpm_jax.config.diffusion import RunOptions, TrainConfig
from dipddpm_jax.config.label_accuracy import LabelAccuracy
from dipddpm_jax.config.presets import PRESETS
from dipddpm_jax.config.restore_by_prior import AUTO, RestoreOptions, checked_restoring, refuse_other_options
from dipddpm_jax.config.sampler import SamplerOptions, check_guidance
from dipddpm_jax.errors import UserError, closest


@dataclass(frozen=True)
class TrainCommand:
    """One training run: what, and where."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    run: Annotated[RunOptions, tyro.conf.arg(name="")] = RunOptions()


@dataclass(frozen=True)
class SampleCommand:
    """Draws pictures from a trained model: grid.png, samples.npz and the command that made them."""

    workdir: Annotated[Path | None, tyro.conf.Positional] = None
    """Directory of a training run; default: the newest in runs/."""
    count: int = 64
    """How many pictures."""
    how: Annotated[SamplerOptions, tyro.conf.arg(name="")] = SamplerOptions()
    labels: tuple[str, ...] = ()
    """Names (or numbers) of classes, repeated over the pictures; several on one picture: "red cube,blue sphere".
    Default: all in turn."""
    label_file: Path | None = None
    """A JSON list of lists of names, one list a picture, as iCLEVR's test.json; or validation, test, new_test: the
    lists that come with scenes. Replaces --labels and --count."""
    guidance_grid: tuple[float, ...] = ()
    """Also guidance.png: a row for each of these weights, a column for each of the labels, one noise a column."""
    strip: bool = False
    """Also strips/: for each picture its way from noise, ten frames in a row."""
    evaluator: Path | None = None
    """The iCLEVR course's checkpoint.pth, to score pictures with; those of a model of scenes need none."""
    seed: int = 0
    out: Path | None = None
    """Directory to write to; default: a new one in the run, drawn-001 and so on."""
    gif: bool = False
    """Also an animation of the chain, chain.gif."""
    step: int | None = None
    """Checkpoint to use; default: the newest."""
    batch_size: int = 64
    """Pictures drawn at once; does not change them."""
    data_dir: Path | None = None
    """Where data sets are kept, for the sampler that denoises held-out pictures."""
    torch_weights: Path | None = None
    """A PyTorch checkpoint (.safetensors, .pt, .pth) instead of a run; needs --preset unless `dipddpm-jax export` wrote
    it."""
    weights_key: str | None = None
    """Which weights of a checkpoint that holds several, such as model, ema or ema.online_model; default: the moving
    average."""
    preset: str | None = None
    """The preset whose network --torch-weights fits."""
    prior: str | None = None
    """A pretrained model that comes with the package, instead of a run: digits, digits-fast, photos,
    photos-grey or scenes."""
    restoring: Annotated[RestoreOptions, tyro.conf.arg(name="")] = RestoreOptions()


def _guard(command: Any, argv: Sequence[str]) -> None:
    with guarded():
        command(list(argv))


def train_main(argv: Sequence[str] | None = None) -> None:
    """`python train.py [PRESET] ...`."""
    _guard(_train, sys.argv[1:] if argv is None else argv)


def sample_main(argv: Sequence[str] | None = None) -> None:
    """`python sample.py [WORKDIR] ...`."""
    _guard(_sample, sys.argv[1:] if argv is None else argv)


def label_accuracy_main(argv: Sequence[str]) -> None:
    """`dipddpm-jax label-accuracy [WORKDIR] ...`."""
    with guarded("interrupted; the same command goes on"):
        command = tyro.cli(LabelAccuracy, args=list(argv), prog="dipddpm-jax label-accuracy")

        from dipddpm_jax import devices
        from dipddpm_jax.commands import label_accuracy

        devices.set_up()
        print(label_accuracy.score_checkpoints(command))


def _unknown(preset: str) -> UserError:
    return UserError(f"unknown preset {preset!r}: {closest(preset, PRESETS)}Known are {', '.join(PRESETS)}")


def _parse_train(preset: str, args: list[str], default: TrainCommand) -> TrainCommand:
    listing = "\n".join(f"  {name:22} {text}" for name, (text, _) in PRESETS.items())
    description = (f"Trains a diffusion model and draws samples from it. Usage: train.py [PRESET] [options]; "
                   f"the defaults below are those of preset {preset}.\n\nPresets:\n{listing}\n\nDeep image priors: "
                   "train.py dip --help, train.py staged --help. Models that draw in one or two network calls: "
                   "train.py few-step --help")
    return tyro.cli(tyro.conf.AvoidSubcommands[TrainCommand], args=args, default=default,
                    prog=f"train.py {preset}", description=description)


def _train(argv: list[str]) -> None:
    if argv and argv[0] in cli_fits.FITS:
        return cli_fits.FITS[argv[0]](argv[1:])
    if argv and argv[0] == few_step.NAME:
        return _few_step(argv[1:])
    named = bool(argv) and not argv[0].startswith("-")
    preset, args = (argv[0], argv[1:]) if named else ("unet", argv)
    if preset not in PRESETS:
        raise _unknown(preset)
    base = PRESETS[preset][1]
    command = _parse_train(preset, args, TrainCommand(base))
    if command.config.start is not None and not named and not command.run.resume:
        preset, base = pretrained.configuration_of_start(command.config.start)
        command = _parse_train(preset, args, TrainCommand(base))
    ranges.check(command.config, command.run)
    if not command.run.resume:
        ranges.check_typed(command.config, base)
    else:
        preset, command = _resumed(preset if named else None, args, command.run)
    _make_run(command.config, command.run, preset)


def _few_step(argv: list[str]) -> None:
    if "--resume" in argv:  # the run's own configuration says all that follows
        return _train(argv)
    command = tyro.cli(few_step.FewStepCommand, args=argv, prog=f"train.py {few_step.NAME}")
    if command.start is None:
        raise UserError(f"{few_step.NAME} needs --from: a prior ({', '.join(pretrained.PRIORS)}), a run's directory, "
                        "or a file by `dipddpm-jax export`")
    _, teacher = pretrained.configuration_of_start(command.start)
    prior = pretrained.PRIORS.get(command.start)
    config = few_step.few_step_run(command, teacher, prior and prior.data)
    ranges.check(config, command.run)
    _make_run(config, command.run, few_step.NAME)


def _make_run(config: TrainConfig, run: RunOptions, name: str) -> None:
    from dipddpm_jax import cluster
    from dipddpm_jax.commands.train import train_model

    with cluster.together(Stopped):
        workdir, picture = train_model(config, run, name)
    if run.process_id in (None, 0):
        print(f"Samples: {picture}\nNext: python sample.py {workdir}")


def _resumed(preset: str | None, args: list[str], run: RunOptions) -> tuple[str, TrainCommand]:
    """The run's own configuration, in which the command line may change nothing but its length and sampler."""
    workdir = run.workdir or saved.newest_run()
    old_preset, old, _ = saved.load(workdir / "config.json")
    if preset not in (None, old_preset):
        raise UserError(f"--resume: {workdir} is a run of preset {old_preset}, not {preset}")
    command = _parse_train(old_preset, args, TrainCommand(old, run))
    new = dataclasses.replace(command.config, steps=old.steps, sampler=old.sampler)
    if changed := saved.differences(old, new):
        raise UserError(f"--resume cannot change the run in {workdir}: {'; '.join(changed)}")
    ranges.check(command.config, command.run)
    ranges.check_typed(command.config, old)
    return old_preset, dataclasses.replace(command, run=dataclasses.replace(command.run, workdir=workdir))


def _sample(argv: list[str]) -> None:
    command = tyro.cli(SampleCommand, args=argv, prog="sample.py")
    refuse_other_options(command.restoring, _not_for_restoring(command))
    if not 1 <= command.count <= 1_000_000:
        raise UserError(f"--count must be 1 to 1000000; got {command.count}")
    if not 1 <= command.batch_size <= 65_536:
        raise UserError(f"--batch-size must be 1 to 65536; got {command.batch_size}")
    if not 0 <= command.seed < 2**31:
        raise UserError(f"--seed must be between 0 and 2^31 - 1; got {command.seed}")
    if command.torch_weights is None and (command.preset or command.weights_key):
        raise UserError("--preset and --weights-key belong to --torch-weights FILE")
    if command.prior is not None and (command.workdir or command.torch_weights or command.step is not None):
        raise UserError("--prior stands in place of a run, its --step, or --torch-weights: give one of them")
    if command.prior is not None:
        workdir, (config, facts) = Path("."), pretrained.configuration_of_prior(command.prior)
    elif command.torch_weights and not command.preset:
        if (found := saved.exported(command.torch_weights)) is None:
            raise UserError(f"--torch-weights {command.torch_weights} needs --preset NAME: the file does not say which "
                            "network it fits, as one by `dipddpm-jax export` does")
        workdir, (config, facts) = Path("."), found
    elif command.preset is None:
        workdir = command.workdir or saved.newest_run()
        _, config, facts = saved.load(workdir / "config.json")
    else:
        if command.preset not in PRESETS:
            raise _unknown(command.preset)
        workdir, config, facts = Path("."), PRESETS[command.preset][1], None
    if command.restoring.restore is not None:
        return _restore(command, workdir, config, facts, argv)
    sampler = few_step.sampler_of(config, command.how)
    for weight in command.guidance_grid:
        check_guidance(weight)
    if command.guidance_grid and config.few_step is not None:
        raise UserError("--guidance-grid: the guidance of a few-step model is in its weights")
    taken = [int(number) for path in workdir.glob("drawn-*") if (number := path.name[len("drawn-"):]).isdigit()]
    out = command.out or workdir / f"drawn-{1 + max(taken, default=0):03d}"
    if command.labels and command.label_file:
        raise UserError("give --labels or --label-file, not both")
    if command.strip and (sampler.num_steps or 25) < 7:
        raise UserError("--strip shows at least 8 frames: --num-steps must be at least 7")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a directory")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out {out} is not empty; name a new directory")

    from dipddpm_jax.commands import sample

    print(sample.draw_to_disk(command, workdir, config, facts, sampler, out, argv))


def _not_for_restoring(command: SampleCommand) -> dict[str, bool]:
    """Options of drawing, and whether they were given."""
    names = ("count", "labels", "label_file", "guidance_grid", "strip", "evaluator", "gif", "batch_size", "data_dir")
    given = {name: getattr(command, name) != getattr(SampleCommand, name) for name in names}
    return given | {f.name: getattr(command.how, f.name) != f.default for f in dataclasses.fields(command.how)}


def _restore(
    command: SampleCommand, workdir: Path, config: TrainConfig, facts: saved.Facts | None, argv: list[str]
) -> None:
    if config.few_step is not None:
        raise UserError(f"--restore {few_step.NO_DENOISER}{f', {config.start}' if config.start else ''}")
    options = command.restoring
    if command.prior is not None and options.method == AUTO:
        row = pretrained.PRIORS[command.prior]
        # Chains that were asked for are drawn: "fills_by" is a method that has some.
        chains = any(getattr(options, name) != getattr(RestoreOptions, name) for name in ("calls", "samples"))
        method = {"denoise": row.denoises_by, "inpaint": row.fills_by}.get(
            options.task, row.fills_by if chains else row.explains_by)
        options = dataclasses.replace(options, method=method)
    measured = checked_restoring(options, command.seed)

    from dipddpm_jax.commands import restore_by_prior, sample

    model, source = sample.chosen_model(command, workdir, config, facts)
    print(restore_by_prior.restore_with_model(model, source, options, measured, command.out, argv))
