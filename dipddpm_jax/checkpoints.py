"""Orbax checkpoints of a training state: the latest two and the best, written while training goes on.

Two items: `weights` (averaged parameters and frozen tables: all that sampling needs) and `train` (the rest). Each
carries a checksum, because Orbax restores damaged bytes without complaint.
"""
import contextlib
import io
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from dipddpm_jax.diffusion.training import TrainState
from dipddpm_jax.errors import UserError

for name in ("absl", "asyncio"):  # what Orbax logs as an error, with pages of traceback, it raises too
    logging.getLogger(name).setLevel(logging.CRITICAL)


def open_manager(directory: Path, read_only: bool = False, keep_every: int | None = None) -> ocp.CheckpointManager:
    """Opens `directory`, creating it unless `read_only`; checkpoints of steps that `keep_every` divides all stay.

    Raises UserError when there is nothing to read.
    """
    directory = Path(directory).resolve()  # Orbax wants absolute paths
    if read_only and not directory.is_dir():
        raise UserError(f"{directory.parent} holds no checkpoints: it is not the directory of a training run")
    policies = ocp.checkpoint_managers
    kept = [policies.EveryNSteps(keep_every)] if keep_every else []
    options = dict(read_only=True, create=False) if read_only else dict(
        cleanup_tmp_directories=True, best_fn=lambda m: m["loss"], best_mode="min",
        # best_fn alone would drop the latest, the policy alone would forget the metrics: both are needed
        preservation_policy=policies.AnyPreservationPolicy([*kept, policies.LatestN(2), policies.BestN(
            get_metric_fn=lambda m: m["loss"], reverse=True, n=1)]))
    handlers = dict(train=ocp.StandardCheckpointHandler(), weights=ocp.StandardCheckpointHandler(),
                    checksums=ocp.JsonCheckpointHandler())
    return ocp.CheckpointManager(directory, item_handlers=handlers, options=ocp.CheckpointManagerOptions(**options))


def _items(state: TrainState) -> dict[str, PyTree]:
    weights = {"params": state.ema_params, "collections": state.collections}
    return {"weights": weights, "train": state._replace(ema_params={}, collections={})._asdict()}


def _checksum(tree: PyTree) -> int | None:
    """None when other machines hold a part."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if not leaf.is_fully_addressable and not leaf.is_fully_replicated:
            return None
        total = crc32(np.ascontiguousarray(leaf.addressable_data(0) if leaf.is_fully_replicated else leaf), total)
    return total


def save(manager: ocp.CheckpointManager, state: TrainState, loss: float) -> None:
    """Starts writing step `state.step`; `loss` decides which one is the best. Raises UserError if it cannot."""
    _save(manager, int(state.step), _items(state), loss)


def save_tree(manager: ocp.CheckpointManager, step: int, tree: PyTree, loss: float) -> None:
    """The same for any tree of arrays."""
    _save(manager, step, {"train": _numbered(tree)}, loss)


def restore_tree(directory: Path, template: PyTree) -> PyTree:
    """The newest tree that `save_tree` wrote, with the structure of `template`."""
    leaves = _restore(directory, {"train": _numbered(template)}, None)["train"]
    return jax.tree.unflatten(jax.tree.structure(template), [leaves[name] for name in sorted(leaves)])


def _numbered(tree: PyTree) -> dict[str, PyTree]:
    return {f"{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(tree))}


def _save(manager: ocp.CheckpointManager, step: int, items: dict[str, PyTree], loss: float) -> None:
    args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
    args["checksums"] = ocp.args.JsonSave({name: _checksum(tree) for name, tree in items.items()})
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(items))
    free = shutil.disk_usage(manager.directory).free
    if 1.5 * size > free:  # files take more than their arrays, and an older checkpoint goes only after this one
        raise UserError(f"no space left for a checkpoint in {manager.directory}: it takes {size / 1e6:.1f} MB and "
                        f"{free / 1e6:.1f} MB are free; the last complete one is step {manager.latest_step()}")
    with _writing(manager):
        if step not in manager.all_steps():
            manager.save(step, args=ocp.args.Composite(**args), metrics={"loss": loss if np.isfinite(loss) else 1e30})


def wait(manager: ocp.CheckpointManager) -> None:
    """Until everything that was saved is on disk. Raises UserError if it cannot be."""
    with _writing(manager):
        manager.wait_until_finished()


@contextlib.contextmanager
def _writing(manager: ocp.CheckpointManager) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Orbax wraps a full disk in several ways
        raise UserError(f"cannot save a checkpoint in {manager.directory}: {_first_line(error)}; "
                        f"the last complete one is step {manager.latest_step()}") from None


def _first_line(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return "No space left on device" if "No space left" in text else text[:200]


def steps(directory: Path) -> list[int]:
    """The complete checkpoints, oldest first."""
    return sorted(ocp.utils.checkpoint_steps(Path(directory).resolve())) if Path(directory).is_dir() else []


def latest_step(directory: Path) -> int | None:
    """The newest complete checkpoint, or None."""
    return max(steps(directory), default=None)


def restore(directory: Path, template: TrainState, step: int | None = None) -> TrainState:
    """The newest (or the given) state, with the structure, dtypes and shardings of the abstract `template`."""
    parts = _restore(directory, _items(template), step)
    return TrainState(**{**parts["train"], "ema_params": parts["weights"]["params"],
                         "collections": parts["weights"]["collections"]})


def restore_weights(directory: Path, params: PyTree, collections: PyTree, step: int | None = None) -> PyTree:
    """{"params": averaged parameters, **collections}, with the structure of the abstract arguments."""
    part = _restore(directory, {"weights": {"params": params, "collections": collections}}, step)["weights"]
    return {"params": part["params"], **part["collections"]}


def _restore(directory: Path, items: dict[str, PyTree], step: int | None) -> dict[str, PyTree]:
    directory = Path(directory).resolve()
    with open_manager(directory, read_only=True) as manager:
        step = manager.latest_step() if step is None else step
        if step is None or step not in manager.all_steps():
            steps = f"steps {', '.join(map(str, manager.all_steps()))}" if manager.all_steps() else "no complete one"
            raise UserError(f"no checkpoint {'' if step is None else f'of step {step} '}in {directory}: it has {steps}")
        hint = f"checkpoint {directory / str(step)} is damaged ({{}}); delete that folder to use an older one"
        try:
            with _muted():
                _preflight(manager.item_metadata(step), items, directory / str(step))
                args = {name: ocp.args.StandardRestore(tree) for name, tree in items.items()}
                restored = manager.restore(step, args=ocp.args.Composite(**args, checksums=ocp.args.JsonRestore()))
        except UserError:
            raise
        except Exception as error:  # whatever Orbax and TensorStore say about broken files
            raise UserError(hint.format(_first_line(error))) from None
    for name in items:
        wanted, found = (restored["checksums"] or {}).get(name), _checksum(restored[name])
        if wanted is not None and found is not None and wanted != found:
            raise UserError(hint.format(f"its {name} do not match their checksum"))
    return {name: restored[name] for name in items}


def _preflight(metadata: PyTree, items: dict[str, PyTree], path: Path) -> None:
    def shape(leaf: PyTree) -> tuple[int, ...]:  # an abstract array, or what Orbax tells of a stored one
        key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # stored as the numbers it is made of
        return tuple(jax.eval_shape(jax.random.key_data, leaf).shape if key else leaf.shape)

    def shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        names = ("/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in p)
                 for p, _ in leaves)
        return {name: shape(leaf) for name, (_, leaf) in zip(names, leaves)}

    for name, tree in items.items():
        stored = metadata[name]
        if stored is None:
            raise UserError(f"checkpoint {path} is damaged (it has no {name}); delete that folder to use an older one")
        have, want = shapes(getattr(stored, "tree", stored)), shapes(tree)
        wrong = [f"{k}: {have.get(k, 'missing')} stored, {want.get(k, 'none')} wanted"
                 for k in {**want, **have} if have.get(k) != want.get(k)]
        if wrong and set(have) & set(want):
            raise UserError(f"checkpoint {path} is of another network: {'; '.join(wrong[:3])}"
                            + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""))


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Keeps the hundreds of lines that a failing restore writes to stderr from the user."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
