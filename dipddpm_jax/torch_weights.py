"""Weights from and to PyTorch, by name: one rule for all networks, no table for any.

Take the path of a parameter in the Linen tree, join it with dots, turn every "_" before a whole number into a dot, and
rename its last part (kernel, scale, embedding: weight; mean, var: running_mean, running_var). So b_mid_0/conv1/kernel
is b_mid.0.conv1.weight. Layouts follow from rank: kernels (height, width, in, out) and (in, out) become (out, in,
height, width) and (out, in), whatever else has three or four axes moves its channels to the front.
"""
import re
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import PyTree

from dipddpm_jax.errors import UserError

LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "mean": "running_mean", "var": "running_var"}
COUNTER = "num_batches_tracked"  # PyTorch keeps one beside every running_mean; no value depends on it
KERNEL_AXES = {2: (1, 0), 4: (3, 2, 0, 1)}
PICTURE_AXES = {3: (2, 0, 1), 4: (0, 3, 1, 2)}


def torch_name(path: tuple[str, ...]) -> str:
    """The state_dict name of a leaf; `path` begins with the name of its collection."""
    *modules, leaf = path[1:]
    return ".".join([re.sub(r"_(?=\d+(_|$))", ".", module) for module in modules] + [LEAVES.get(leaf, leaf)])


def _axes(path: tuple[str, ...], rank: int) -> tuple[int, ...]:
    same = tuple(range(rank))
    if path[-1] == "embedding":
        return same
    return (KERNEL_AXES if path[-1] == "kernel" else PICTURE_AXES).get(rank, same)


def export_torch(variables: PyTree) -> dict[str, np.ndarray]:
    """A state_dict of NumPy arrays, complete for load_state_dict(strict=True).

    Raises ValueError when two leaves would get one name.
    """
    state: dict[str, np.ndarray] = {}
    for path, leaf in traverse_util.flatten_dict(variables).items():
        name = torch_name(path)
        if name in state:
            raise ValueError(f"two leaves are called {name}")
        leaf = np.asarray(leaf)
        state[name] = np.array(leaf.transpose(_axes(path, leaf.ndim)), order="C")  # a copy: torch wants to write
        if path[-1] == "mean":
            state[name.removesuffix("running_mean") + COUNTER] = np.zeros((), np.int64)
    return state


def import_torch(state: Mapping[str, np.ndarray], template: PyTree) -> PyTree:
    """The state_dict as variables shaped like `template` (arrays, or what jax.eval_shape gives).

    Numbers keep the state's type. Names may share one prefix ("module.", "network."), and entries outside the prefix
    that the network's names have are ignored. Raises UserError that lists everything missing, extra or misshapen.
    """
    leaves = traverse_util.flatten_dict(template)
    names = {path: torch_name(path) for path in leaves}
    state = _without_prefix(state, set(names.values()))
    found, problems = {}, []
    for path, name in names.items():
        axes, shape = _axes(path, leaves[path].ndim), leaves[path].shape
        wanted = tuple(shape[a] for a in axes)
        if name not in state:
            problems.append(f"missing {name} {wanted}")
        elif state[name].shape != wanted:
            problems.append(f"{name} has shape {state[name].shape} instead of {wanted}")
        else:
            found[path] = jnp.asarray(np.asarray(state[name]).transpose(np.argsort(axes)))
    extra = sorted(set(state) - set(names.values()))
    problems += [f"extra {name} {state[name].shape}" for name in extra if not name.endswith(COUNTER)]
    if problems:
        raise UserError(f"these weights do not fit the network, in {len(problems)} entries: " + "; ".join(problems))
    return traverse_util.unflatten_dict(found)


def _without_prefix(state: Mapping[str, np.ndarray], wanted: set[str]) -> Mapping[str, np.ndarray]:
    """The entries below the one prefix (often none) under which most of the wanted names stand."""
    candidates = {""} | {name.removesuffix(w) for w in wanted for name in state if name.endswith("." + w)}
    prefix = max(sorted(candidates), key=lambda prefix: sum(prefix + w in state for w in wanted))
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def read(path: Path) -> dict[str, np.ndarray]:
    """The state_dict in a .safetensors file, or in a .pt/.pth file where PyTorch is installed (nothing is unpickled
    but tensors). A state_dict inside a training checkpoint ("state_dict", "model", ...) is found.

    Raises UserError for files that hold no weights or cannot be read safely.
    """
    if not path.is_file():
        raise UserError(f"no such file of weights: {path}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{path} is not a readable safetensors file ({error})") from None
    return _read_pickle(path)


def _read_pickle(path: Path) -> dict[str, np.ndarray]:
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
    state = _tensors(content, torch)
    for key in ("state_dict", "model_state_dict", "model", "net", "ema"):
        if not state and isinstance(content, Mapping):
            state = _tensors(content.get(key), torch)
    if not state:
        raise UserError(f"{path} holds no state_dict")
    return {name: (v.float() if v.dtype == torch.bfloat16 else v).numpy() for name, v in state.items()}


def _tensors(content, torch) -> dict:
    if not isinstance(content, Mapping):
        return {}
    return {str(k): v.detach() for k, v in content.items() if isinstance(v, torch.Tensor)}


def write(state: Mapping[str, np.ndarray], path: Path) -> None:
    """Writes a .safetensors file, which safetensors.torch.load_file reads. Raises UserError if it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file(dict(state), path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path} ({error})") from None
