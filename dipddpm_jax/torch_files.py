"""Files of PyTorch weights: .safetensors with and without PyTorch, .pt, .pth, .ckpt with it; nothing is unpickled but
tensors. A training checkpoint may hold several sets of weights (raw ones, a moving average): they are told apart here.
"""
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from dipddpm_jax.errors import UserError
from dipddpm_jax.files import complete_file
from dipddpm_jax.torch_weights import is_average

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn,
          "F8_E5M2": ml_dtypes.float8_e5m2, "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8",
          "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?"}


class StateDict(NamedTuple):
    """One set of weights of a file: floats of 16 bits and fewer as float32, other numbers as they are."""

    tensors: dict[str, np.ndarray]
    key: str
    """Where in the file it stands: "ema", "model.state_dict", ...; empty for a file that holds nothing else."""


def read_state(path: Path) -> dict[str, np.ndarray]:
    """The weights in a file, of several the moving average. Raises UserError."""
    return read_states(path)[0].tensors


def read_states(path: Path, key: str | None = None) -> list[StateDict]:
    """All sets of weights in a file, averaged ones first, then by the number of entries; or that under `key` alone.

    Raises UserError for files that hold no weights, cannot be read safely, or have none under `key`.
    """
    if not path.is_file():
        raise UserError(f"no such file of weights: {path}")
    if not path.stat().st_size:
        raise UserError(f"{path} is empty (0 bytes): it was not written to its end; copy or save it again")
    if path.suffix == ".safetensors":
        found, keys = [StateDict(_read_safetensors(path), "")], ""
    else:
        found, keys = _read_pickle(path)
    found = sorted(found, key=lambda s: (not is_average(s.key), -len(s.tensors)))
    if key is not None:
        below = [StateDict({name: v for name, v in s.tensors.items() if f"{s.key}.{name}".strip(".").startswith(
            f"{key}.")}, key) for s in found]
        chosen = [s for s in found if s.key == key] or [s for s in below if s.tensors]
        if not chosen:
            tops = sorted({name.split(".")[0] for s in found for name in s.tensors})
            known = ", ".join([s.key for s in found if s.key] or tops[:8])
            raise UserError(f"{path} has no weights under {key!r}; there are {known}")
        return chosen
    if not found:
        raise UserError(f"{path} holds no state_dict (a dictionary of named tensors); it holds {keys}")
    return found


def _read_pickle(path: Path) -> tuple[list[StateDict], str]:
    """(sets of weights, what the file holds in words)."""
    try:
        import torch
    except ImportError:
        raise UserError(f"reading {path} needs PyTorch: pip install torch, or convert the file to .safetensors where "
                        "PyTorch is (safetensors.torch.save_file)") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what the pickle machinery happens to raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{path} holds no weights that can be loaded safely ({reason[0]})") from None
    if not isinstance(content, Mapping):
        return [], f"a {type(content).__name__}"
    found = [StateDict({name: _array(v, torch) for name, v in tensors.items()}, key)
             for key, tensors in _named_tensors(content, torch, "")]
    held = [f"{name} ({type(v).__name__}{f' of {len(v)}' if isinstance(v, Mapping | list) else ''})"
            for name, v in content.items()]
    return found, ", ".join(held[:20]) + ", ..." * (len(held) > 20) if held else "nothing"


def _named_tensors(content: Mapping, torch: Any, key: str) -> Iterator[tuple[str, dict]]:
    """Every dictionary of tensors, at any depth, but those of optimisers and the few numbers beside one.

    A state_dict holds no dictionaries of tensors: what does has only further tensors beside it ("loss", "betas").
    """
    if "param_groups" in content or not all(isinstance(name, str) for name in content):
        return  # an optimiser
    inside = [pair for name, value in content.items() if isinstance(value, Mapping)
              for pair in _named_tensors(value, torch, f"{key}.{name}".strip("."))]
    own = {name: value.detach() for name, value in content.items() if isinstance(value, torch.Tensor)}
    if len(own) > max((len(tensors) for _, tensors in inside), default=0):
        yield key, own
    yield from inside


def _array(tensor: Any, torch: Any) -> np.ndarray:
    small = tensor.is_floating_point() and tensor.element_size() < 4
    return (tensor.float() if small else tensor.contiguous()).numpy()


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        raw = np.memmap(path, np.uint8, "r")
        size = int.from_bytes(raw[:8].tobytes(), "little")
        if not 2 <= size <= len(raw) - 8:
            raise ValueError("its header is cut short")
        header, body = json.loads(raw[8 : 8 + size].tobytes()), raw[8 + size :]
        return {name: _tensor(body, **entry) for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not a readable safetensors file ({error})") from None


def _tensor(body: np.ndarray, dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
    kind, (start, end) = np.dtype(DTYPES[dtype]), data_offsets
    if not 0 <= start <= end <= len(body) or end - start != kind.itemsize * math.prod(shape):
        raise ValueError("its tensors are cut short")
    array = np.frombuffer(body[start:end].tobytes(), kind).reshape(shape)
    return array.astype(np.float32) if kind.itemsize < 4 and dtype[0] in "FB" and dtype != "BOOL" else array.copy()


def write_state(state: Mapping[str, np.ndarray], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a .safetensors file, which safetensors.torch.load_file reads. Raises UserError if it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        with complete_file(path) as part:
            save_file(dict(state), part, {"format": "pt", **(metadata or {})})
    except SafetensorError as error:
        raise UserError(f"cannot write {path} ({error})") from None
