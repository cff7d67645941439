"""config.json: the JSON round trip of configurations, and the facts that a run takes from its data."""
import dataclasses
import json
import types
import typing
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dipddpm_jax.config.diffusion import NETWORKS, TrainConfig
from dipddpm_jax.errors import UserError
from dipddpm_jax.files import write_text

RESTORED, MEASURED = "restored", "measured"  # keys of the config.json of restorations that are no fits
RESTORATIONS = {"dip": "a restoration by a deep image prior (train.py dip)", "staged": "a staged fit (train.py staged)",
                RESTORED: "a restoration by a diffusion prior (sample.py --restore)",
                MEASURED: "a restoration by another method (train.py dip --method)"}


def newest_run(root: Path = Path("runs")) -> Path:
    """The training run whose configuration was written last. Raises UserError when there is none."""
    runs = sorted(root.glob("*/config.json"), key=lambda path: path.stat().st_mtime)
    runs = [path for path in runs if _restoration(path) is None]
    if not runs:
        raise UserError(f"no run in {root}/; train one with `python train.py`, or name its directory")
    return runs[-1].parent


def _restoration(path: Path) -> str | None:
    """What a config.json is of, if it is of no training run but of a restoration."""
    with suppress(OSError, ValueError, TypeError):
        return next((what for key, what in RESTORATIONS.items() if key in json.loads(path.read_text())), None)
    return None


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
    if raw is not None and len(options) == 1 and dataclasses.is_dataclass(options[0]):
        return from_json(options[0], raw)
    return tuple(raw) if isinstance(raw, list) else raw


EXPORTED = "dipddpm_jax"  # where an exported file says what its model is


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
    """Writes config.json. Raises UserError when the disk does not let it."""
    write_text(path, json.dumps(to_record(config, preset, facts), indent=2) + "\n")


def to_record(config: TrainConfig, preset: str, facts: Facts) -> dict[str, Any]:
    """What config.json holds, and an exported file of weights too."""
    return {"preset": preset, "config": to_json(config), "data": to_json(facts)}


def load(path: Path) -> tuple[str, TrainConfig, Facts]:
    """(preset, config, facts) of a run. Raises UserError when the file is not one that `save` wrote."""
    if what := _restoration(path):
        raise UserError(f"{path.parent} holds {what}: its pictures are in it, and there is no model to draw from")
    try:
        raw = json.loads(path.read_text())
        raw["config"]["schedule"].setdefault("beta_steps", None)  # older runs took their betas as they are
        return raw["preset"], from_json(TrainConfig, raw["config"]), from_json(Facts, raw["data"])
    except FileNotFoundError:
        raise UserError(f"{path.parent} is not the directory of a training run: it has no {path.name}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not the configuration of a run ({error})") from None


def exported(path: Path) -> tuple[TrainConfig, Facts] | None:
    """What a .safetensors file says of its model, if `dipddpm-jax export` wrote it; its weights are not read.

    Raises UserError for a damaged record.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) if path.suffix == ".safetensors" and size < 2**27 else {}
        record = header["__metadata__"][EXPORTED]
    except FileNotFoundError:
        raise UserError(f"no such file of weights: {path}") from None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    try:
        raw = json.loads(record)
        return from_json(TrainConfig, raw["config"]), from_json(Facts, raw["data"])
    except (ValueError, KeyError, TypeError, UserError) as error:
        raise UserError(f"{path}: what it says of its model is not a configuration ({error})") from None


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Names of the fields in which two configurations differ, as options of the command line."""
    if type(old) is not type(new) or not dataclasses.is_dataclass(old):
        return [] if old == new else [f"--{prefix.rstrip('.').replace('_', '-')} ({old} before, {new} now)"]
    return [d for f in dataclasses.fields(old) for d in differences(
        getattr(old, f.name), getattr(new, f.name), f"{prefix}{'from' if f.name == 'start' else f.name}.")]
