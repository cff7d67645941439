"""What a restoration may be asked for: numbers out of range, options that do nothing, and changes to a run that is
resumed are refused before JAX is imported."""
from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from dipddpm_jax.config.dip import AS_IT_IS, MEASURING, Config, DipConfig, DipRun, StagedConfig, load_dip_config
from dipddpm_jax.config.saved import differences
from dipddpm_jax.errors import UserError, closest

FED_PICTURES = ("self-guided", "aseqdip")  # variants whose network sees pictures instead of noise
MINIMUM_RULES = ("held-out", "wmv", "emv", "patience")  # rules that wait --patience steps for a lower number
NO_OPTIONS = DipRun()
NO_PENALTY = "--variant plain has no penalty to weigh"


def check_dip(config: DipConfig, run: DipRun = NO_OPTIONS) -> None:
    """Raises UserError for numbers and names that no restoration can have, and for combinations that make no sense."""
    _check_names(config)
    _check_integers(config, run)
    _check_bounds({
        "--sigma": (config.sigma, 0, 1000), "--peak": (config.peak, 1e-3, 1e9),
        "--impulse": (config.impulse, 1e-3, 0.95), "--keep": (config.keep, 1e-3, 1),
        "--factor": (config.factor, 2, 32), "--blur": (config.blur, 1e-2, 100), "--size": (config.size, 8, 2**14),
        "--crop": (config.crop, 8, 2**14), "--blend": (config.blend, 0, 1),
        "--weight": (config.weight, 0, 1e9), "--jitter": (config.jitter, 0, 9),
        "--seeds": (config.seeds, 1, 99), "--folds": (config.folds, 1, 50), "--num-steps": (config.num_steps, 1, 10**7),
        "--learning-rate": (config.learning_rate, 1e-12, 1e3), "--fall-back": (config.fall_back, 0, 1e3),
        "--window": (config.window, 2, 10**5), "--patience": (config.patience, 1, 10**7),
        "--seed": (config.seed, 0, 2**31 - 1), "--tile": (config.tile, 128, 2**14),
        "--save-every": (run.save_every, 1, 10**7), "--chunk": (run.chunk, 1, 10**5),
        "--minutes": (run.minutes, 1e-3, 1e6)})
    if config.folds == 2:
        raise UserError("--folds 2: with two parts only one fit sees a pixel; give 1, or 3 or more")
    if config.folds > 1 and config.stop != "held-out":
        raise UserError(f"--folds {config.folds} holds out pixels for --stop held-out; with --stop {config.stop} it "
                        "must be 1")
    if config.size is not None and config.crop is not None:
        raise UserError("--size resizes pictures and --crop cuts them: give one of the two")
    if config.variant in FED_PICTURES and (config.network == "decoder" or config.code == "meshgrid"):
        raise UserError(f"--variant {config.variant} feeds pictures to the network: it fits neither --network decoder "
                        "nor --code meshgrid")
    if config.network == "decoder" and config.code != "noise":
        raise UserError("--network decoder needs --code noise")
    if config.peak is not None and config.stop == "discrepancy":
        raise UserError("--stop discrepancy compares squared errors with Gaussian noise; with --peak use another rule")
    if config.blend and config.task not in ("denoise", "inpaint"):
        raise UserError(f"--blend mixes measured pixels back in; --task {config.task} has none of the picture's own")
    if config.impulse is not None and config.task != "denoise":
        raise UserError(f"--impulse is for --task denoise; got --task {config.task}")
    if config.nonlocal_bayes and config.task not in AS_IT_IS:
        raise UserError("--nonlocal-bayes goes on from fits to denoise or inpaint; for --task "
                        f"{config.task} there is --method nonlocal-bayes, without them")
    if config.mask is not None and config.task != "inpaint":
        raise UserError("--mask is for --task inpaint")


def check_staged(config: StagedConfig) -> None:
    """Raises UserError for numbers and names that no staged fit can have."""
    _check_names(config)
    if not config.levels or not all(0 <= level <= 10 for level in config.levels):
        raise UserError(f"--levels must be one or more numbers from 0 to 10; got {config.levels}")
    if len(config.steps) not in (1, len(config.levels)) or not all(1 <= n <= 10**7 for n in config.steps):
        raise UserError(f"--steps must be one number, or one for each of the {len(config.levels)} levels, from 1 up")
    _check_bounds({"--learning-rate": (config.learning_rate, 1e-12, 1e3), "--patience": (config.patience, 1, 10**6)})
    check_dip(DipConfig(sigma=config.sigma, size=config.size, crop=config.crop, seed=config.seed))


def _check_bounds(bounds: dict[str, tuple[Any, int | float, int | float]]) -> None:
    for name, (value, low, high) in bounds.items():
        if value is not None and not (isinstance(value, Real) and low <= value <= high):  # false for nan too
            raise UserError(f"{name} must lie between {low:g} and {high:g}; got {value}")


def _check_integers(*records: DipConfig | DipRun) -> None:
    """Raises UserError for numbers that must be whole and are not: from Python, or a config.json that was edited."""
    for record in records:
        for name, kind in get_type_hints(type(record)).items():
            value = getattr(record, name)
            if int in (kind, *get_args(kind)) and float not in get_args(kind) and value is not None:
                if not isinstance(value, Integral) or isinstance(value, bool):
                    raise UserError(f"--{name.replace('_', '-')} must be a whole number; got {value}")


def check_name(kind: type, name: str, value: Any) -> None:
    """Raises UserError for a value that is not among those of a field of a dataclass: from Python or a config.json."""
    known = get_args(get_type_hints(kind)[name])
    if value not in known:
        raise UserError(f"unknown {name} {value!r}: {closest(str(value), [str(k) for k in known])}known are "
                        f"{', '.join(map(str, known))}")


def _check_names(config: DipConfig | StagedConfig) -> None:
    for name, kind in get_type_hints(type(config)).items():
        if get_origin(kind) is Literal:
            check_name(type(config), name, getattr(config, name))


def idle_options(config: DipConfig | StagedConfig) -> dict[str, str]:
    """Options that change nothing in this configuration, and why."""
    idle = {}
    if config.stop not in MINIMUM_RULES and (isinstance(config, DipConfig) or config.stop != "oracle"):
        idle["--patience"] = f"--stop {config.stop} does not wait"
    if isinstance(config, StagedConfig):
        return idle
    if config.task != "superres":
        idle["--factor"] = "it is for --task superres"
    if config.task != "deblur":
        idle["--blur"] = "it is for --task deblur"
    if config.task != "inpaint" or config.mask is not None:
        idle["--keep"] = "it is for --task inpaint without --mask"
    if config.variant == "plain":
        idle["--weight"] = NO_PENALTY
    if config.variant in FED_PICTURES and config.code != "image":
        idle["--code"] = f"--variant {config.variant} starts from the measurement (--code image)"
    if config.variant == "aseqdip":
        idle["--jitter"] = "--variant aseqdip adds no noise to its code"
    if config.stop != "held-out":
        idle["--hold-out"] = "it is for --stop held-out"
    if config.stop != "wmv":
        idle["--window"] = "it is for --stop wmv"
    return idle


def typed_options(argv: Sequence[str]) -> set[str]:
    """Options that were typed, as --num-steps."""
    return {word.partition("=")[0].replace("_", "-") for word in argv if word.startswith("--")}


def refuse_idle(config: DipConfig | StagedConfig, argv: Sequence[str]) -> None:
    """Raises UserError for an option that was typed although it does nothing: it would not do what was meant."""
    typed, later = typed_options(argv), set()
    if (isinstance(config, DipConfig) and "--variant" not in typed
            and config.task in ("denoise", "inpaint") and config.stop == "held-out"):
        later = {"--weight"}  # the size of the pictures says whether their fits have a penalty
    for option, why in idle_options(config).items():
        if option in typed - later:
            raise UserError(f"{option} does nothing here: {why}; leave it out")


def refuse_fitting(method: str, argv: Sequence[str]) -> None:
    """Raises UserError for an option of fitting that was typed beside a method that fits no deep image prior."""
    taken = {f"--{name}" for name in (*MEASURING, "workdir", "method")}
    if others := sorted(typed_options(argv) - taken):
        raise UserError(f"--method {method} does not take {', '.join(others)}: those are for --method dip")


def check_resumed(old: DipConfig | StagedConfig, asked: DipConfig | StagedConfig, workdir: Path) -> None:
    """Raises UserError that names every option by which `asked` is not the run that is resumed: of a restoration, all
    but the number of steps; of a staged fit, all."""
    same = replace(asked, num_steps=old.num_steps) if isinstance(asked, DipConfig) else asked
    changed = differences(old, same)
    if same != asked and old.decay != "constant":
        changed += [f"--num-steps ({old.num_steps} before, {asked.num_steps} now), over which its learning rate falls"]
    if changed:
        raise UserError(f"--resume cannot change the run in {workdir}: {'; '.join(changed)}")


def checked_dip_config(path: Path, kind: type[Config] = DipConfig) -> Config:
    """The configuration in a file, with values that a run can have. Raises UserError that names the file."""
    config, _ = load_dip_config(path, kind)
    try:
        check_dip(config) if isinstance(config, DipConfig) else check_staged(config)
    except (UserError, TypeError) as error:
        raise UserError(f"{path}: {error}") from None
    return config
