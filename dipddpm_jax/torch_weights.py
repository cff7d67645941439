"""Weights from and to PyTorch, by name: one rule for all networks, no table for any.

Take the path of a parameter in the Linen tree, join it with dots, turn every "_" before a whole number into a dot, and
rename its last part (kernel, scale, embedding: weight; mean, var: running_mean, running_var). So b_mid_0/conv1/kernel
is b_mid.0.conv1.weight. Layouts follow from rank: kernels (height, width, in, out) and (in, out) become (out, in,
height, width) and (out, in), whatever else has three or four axes moves its channels to the front.
"""
import re
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import PyTree

from dipddpm_jax.errors import UserError

LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "mean": "running_mean", "var": "running_var"}
COUNTER = "num_batches_tracked"  # PyTorch keeps one beside every running_mean; no value depends on it
KERNEL_AXES = {2: (1, 0), 4: (3, 2, 0, 1)}
LISTED = 6  # misfitting entries; more are counted
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

    Numbers keep the state's type. Names may share one prefix ("module.", "network."), of two that fit equally that of a
    moving average ("ema_model."); entries outside it are ignored. Raises Misfit, a UserError, that says what is
    missing, extra or misshapen.
    """
    leaves = traverse_util.flatten_dict(template)
    names = {path: torch_name(path) for path in leaves}
    state = _below(state, fitting_prefixes(state, template)[0])
    found, missing, misshapen = {}, [], []
    for path, name in names.items():
        axes, shape = _axes(path, leaves[path].ndim), leaves[path].shape
        wanted = tuple(shape[a] for a in axes)
        if name not in state:
            missing.append(f"{name} {wanted}")
        elif state[name].shape != wanted:
            misshapen.append(f"{name} has shape {state[name].shape} instead of {wanted}")
        else:
            found[path] = jnp.asarray(np.asarray(state[name]).transpose(np.argsort(axes)))
    extra = [f"{name} {state[name].shape}" for name in sorted(set(state) - set(names.values()))
             if not name.endswith(COUNTER)]
    if missing or misshapen or extra:
        raise Misfit(len(names), missing, misshapen, extra)
    return traverse_util.unflatten_dict(found)


class Misfit(UserError):
    """A state_dict that is not the network's; `entries` counts those that are missing, misshapen or extra."""

    def __init__(self, wanted: int, missing: Sequence[str], misshapen: Sequence[str], extra: Sequence[str]):
        self.entries = len(missing) + len(misshapen) + len(extra)
        if self.entries <= LISTED:
            parts = [f"missing {name}" for name in missing] + list(misshapen) + [f"extra {name}" for name in extra]
            what = f"in {self.entries} entries: {'; '.join(parts)}"
        else:
            groups = (("missing", missing), ("of another shape", misshapen), ("extra", extra))
            what = f"the network has {wanted} entries; " + "; ".join(
                f"{len(group)} {word} ({group[0]}, ...)" for word, group in groups if group)
        super().__init__(f"these weights do not fit the network: {what}")


def fitting_prefixes(state: Mapping[str, np.ndarray], template: PyTree) -> list[str]:
    """The prefixes (often only "") under which most of the network's names stand, a moving average's first."""
    wanted = {torch_name(path) for path in traverse_util.flatten_dict(template)}
    counts = {"": sum(w in state for w in wanted)}
    for name in state:  # each ending of a name may be what the network calls it
        parts = name.split(".")
        for i in range(1, len(parts)):
            if ".".join(parts[i:]) in wanted:
                prefix = ".".join(parts[:i]) + "."
                counts[prefix] = counts.get(prefix, 0) + 1
    most = max(counts.values())
    return sorted((prefix for prefix, count in counts.items() if count == most), key=lambda p: (not is_average(p), p))


def is_average(key: str) -> bool:
    """True for what checkpoints call a moving average of the weights: ema, model_ema, ema_model, average, shadow."""
    return bool(re.search(r"(^|[._])(ema|average|averaged|shadow)([._]|$)", key.lower()))


def _below(state: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
