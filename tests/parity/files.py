"""Reading a recording of a PyTorch original (the format is in golden/README.md) and keeping the account of errors."""
import json
from pathlib import Path
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.places import recording
from dipddpm_jax import torch_weights


def golden(name: str) -> np.lib.npyio.NpzFile:
    """A recording by its name; the test is skipped where it is absent."""
    path = recording(name)
    return np.load(path) if path else pytest.skip(f"{name}.npz is in neither tests/golden nor shared/golden")


class Account:
    """The worst error of each quantity of each family, over all files."""

    def __init__(self):
        self.rows: dict[tuple[str, str], list] = {}

    def add(self, family: str, quantity: str, error: float, tolerance: float, theirs: float | None = None) -> None:
        """Keeps the error nearest to (or farthest above) its tolerance, and what PyTorch's own error is there."""
        row = self.rows.setdefault((family, quantity), [error, tolerance, theirs, 0])
        row[3] += 1
        if not error * row[1] <= row[0] * tolerance:
            row[:3] = error, tolerance, theirs

    def table(self) -> str:
        """Markdown."""
        lines = ["| family | quantity | comparisons | worst error | PyTorch's there | tolerance |",
                 "|---|---|---|---|---|---|"]
        for (family, quantity), (error, tolerance, theirs, count) in sorted(self.rows.items()):
            limit, beside = f"{tolerance:.0e}" if tolerance else "exact", "" if theirs is None else f"{theirs:.1e}"
            lines.append(f"| {family} | {quantity} | {count} | {error:.1e} | {beside} | {limit} |")
        return "\n".join(lines)


class Golden:
    """One file. Whatever is never asked for is left over, and a file with leftovers fails."""

    def __init__(self, path: Path, account: Account):
        self.path, self.name, self.account = path, path.stem, account
        with np.load(path) as file:
            self.arrays = {key: file[key] for key in file.files}
        self.config = json.loads(str(self.arrays.pop("config")))
        self.unread, self.failures = set(self.arrays), []
        self.family = self.name.split("_")[0] if self.name[0] in "0t" else "rules"

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def __getitem__(self, key: str) -> np.ndarray:
        self.unread.discard(key)
        return self.arrays[key]

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """All arrays whose name begins with the prefix, without it."""
        return {key.removeprefix(prefix): self[key] for key in self.arrays if key.startswith(prefix)}

    def images(self, key: str) -> jax.Array:
        """NCHW as NHWC (any number of leading axes), in the float type of the moment."""
        return jnp.asarray(np.moveaxis(self[key], -3, -1), jnp.result_type(float))

    def ints(self, key: str) -> jax.Array:
        """A flat list of integers."""
        return jnp.asarray(self[key].reshape(-1).astype(np.int32))

    def beside(self, stem: str) -> "Golden":
        """Another file of the same folder, read for its weights."""
        return Golden(self.path.with_name(stem + ".npz"), self.account)

    def judge(
        self, quantity: str, error: float, tolerance: float, what: str = "", theirs: float | None = None
    ) -> None:
        """Enters an error in the account, and remembers it if it is too large (or not a number)."""
        error = float(error)
        self.account.add(self.family, quantity, error, tolerance, theirs)
        if not error <= tolerance:
            self.failures.append(f"{quantity} {what}: error {error:.2e}, tolerance {tolerance:.0e}")

    def close(self, quantity: str, ours, theirs, tolerance: float = 1e-5, what: str = "") -> None:
        """error = max |ours - theirs| / (1 + max |theirs|)."""
        ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        if ours.shape != theirs.shape:
            self.failures.append(f"{quantity} {what}: shape {ours.shape} instead of {theirs.shape}")
        elif theirs.size:
            self.judge(quantity, np.max(np.abs(ours - theirs)) / (1 + np.max(np.abs(theirs))), tolerance, what)

    def same_images(self, quantity: str, ours, key: str, tolerance: float = 1e-5) -> None:
        """Ours (NHWC) against a recorded NCHW array."""
        self.close(quantity, ours, np.moveaxis(self[key], -3, -1), tolerance, key)

    def equal(self, quantity: str, ours, theirs, what: str = "") -> None:
        """Rules: nothing may differ."""
        same = np.array_equal(np.asarray(ours), np.asarray(theirs))
        self.judge(quantity, 0.0 if same else np.inf, 0.0, f"{what} {ours} instead of {theirs}")


def torch_shapes(template) -> dict[str, tuple[int, ...]]:
    """Names and PyTorch shapes of a network's state, from the shapes of its variables."""
    state = torch_weights.export_torch(jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), template))
    return {name: value.shape for name, value in state.items()}


def recipe(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """The weights that a recording does not store, by the rule of its README."""
    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        z = np.random.RandomState(crc32(f"{seed}/{name}".encode())).standard_normal(shape)
        leaf = name.rsplit(".", 1)[-1]
        if leaf in ("bias", "running_mean"):
            return 0.1 * z
        if leaf == "running_var":
            return 1 + 0.5 * np.abs(z)
        if len(shape) == 1 or leaf == "g" or name.endswith("ln.weight"):
            return 1 + 0.1 * z
        return z / np.sqrt(np.prod(shape[1:]))

    return {name: np.zeros((), np.int64) if name.endswith("num_batches_tracked") else draw(name, s).astype(np.float32)
            for name, s in shapes.items()}
