"""Orbax checkpoints of named trees of arrays: the latest two and the best, written while the computation goes on.

A checkpoint holds items, {name: tree}: a training has `weights` (averaged parameters and frozen tables: all that
sampling needs) and `train` (the rest), fits and judges have `train` alone. Each carries a checksum, because Orbax
restores damaged bytes without complaint.
"""
import contextlib
import io
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from dipddpm_jax.errors import UserError
from dipddpm_jax.files import writing

for name in ("absl", "asyncio"):  # what Orbax logs as an error, with pages of traceback, it raises too
    logging.getLogger(name).setLevel(logging.CRITICAL)

WORST = 1e30  # the loss of a checkpoint that has none
OLD = ".old"  # where checkpoints are moved to before they are deleted, so that none is ever half there
GLOBBED = frozenset("[]\\")  # Orbax looks for some files by patterns that begin with the folder's path


class Retention:
    """Keeps the latest two and the best, every one of a step that `keep_every` divides, and a spare one (saved where a
    run was interrupted) while it is the newest: a run that went on after it ends with the same checkpoints."""

    def __init__(self, keep_every: int | None):
        self.keep_every = keep_every

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Whether each, oldest first, is to stay (Orbax's PreservationPolicy)."""
        regular = [c for c in checkpoints if not (c.metrics or {}).get("spare")]
        judged = [c for c in regular if _loss(c) < WORST]
        kept = {c.step for c in [*regular[-2:], *checkpoints[-1:], *sorted(judged, key=_loss)[:1]]}
        return [c.step in kept or bool(self.keep_every and c.step % self.keep_every == 0) for c in checkpoints]


def _loss(checkpoint: Any) -> float:
    return (checkpoint.metrics or {}).get("loss", WORST)


@contextlib.contextmanager
def _plain(directory: Path) -> Iterator[Path]:
    """The absolute path of `directory`, or a link to it where that has characters that Orbax takes for a pattern."""
    directory = Path(directory).resolve()
    if not GLOBBED & set(str(directory)):
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="dipddpm-jax-") as folder:
        link = Path(folder) / "checkpoints"
        if GLOBBED & set(str(link)):
            raise UserError(f"checkpoints cannot lie in {directory}, nor temporary files in {folder}: neither path may "
                            "contain [ ] or a backslash")
        link.symlink_to(directory)
        yield link


def _manager(directory: Path, **options: Any) -> ocp.CheckpointManager:
    handlers = dict(train=ocp.StandardCheckpointHandler(), weights=ocp.StandardCheckpointHandler(),
                    checksums=ocp.JsonCheckpointHandler())
    return ocp.CheckpointManager(directory, item_handlers=handlers, options=ocp.CheckpointManagerOptions(**options))


class Checkpoints:
    """The checkpoints of one run, to be added to: `with Checkpoints(folder) as kept: kept.add(step, items, loss)`."""

    def __init__(self, directory: Path, keep_every: int | None = None):
        self.directory, self.proven = Path(directory), False
        with contextlib.ExitStack() as opened, writing(directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            plain = opened.enter_context(_plain(self.directory))
            self._sweep()
            self.manager = _manager(
                plain, cleanup_tmp_directories=True, todelete_subdir=OLD, preservation_policy=Retention(keep_every),
                best_fn=lambda metrics: metrics["loss"], best_mode="min")  # best_fn alone makes Orbax write the metrics
            self.opened = opened.pop_all()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        with self.opened, contextlib.suppress(UserError) if kind else contextlib.nullcontext():
            with self._writing():  # an error that is under way has said already what a full disk would say again
                self.manager.close()
            self._sweep()

    def add(self, step: int, items: dict[str, PyTree], loss: float | None = None, spare: bool = False) -> None:
        """Starts writing a checkpoint; the least `loss` is the best. `spare` ones go when the next one is complete.

        The first one is waited for and read back. Raises UserError, naming the last complete one, if that fails.
        """
        self.wait()
        sums = {name: _checksum(tree) for name, tree in items.items()}
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(items))
        free = shutil.disk_usage(self.directory).free
        if 1.5 * size > free:  # files take more than their arrays, and an older checkpoint goes only after this one
            raise UserError(f"no space left for a checkpoint in {self.directory}: it takes {size / 1e6:.1f} MB and "
                            f"{free / 1e6:.1f} MB are free; {self._complete()}")
        if step in self.manager.all_steps():
            return
        args = {name: ocp.args.StandardSave(jax.tree.map(_one_copy, tree)) for name, tree in items.items()}
        metrics = {"loss": loss if loss is not None and np.isfinite(loss) else WORST, **({"spare": 1} if spare else {})}
        with self._writing():
            self.manager.save(step, args=ocp.args.Composite(**args, checksums=ocp.args.JsonSave(sums)), metrics=metrics)
        if not self.proven:
            self.wait()
            self._prove(step, items, sums)

    def wait(self) -> None:
        """Until all that was added is on disk. Raises UserError if it cannot be."""
        with self._writing():
            self.manager.wait_until_finished()
        self._sweep()

    def _prove(self, step: int, items: dict[str, PyTree], sums: dict[str, int | None]) -> None:
        for name, tree in items.items():
            template = jax.tree.map(lambda a: a if _is_key(a) else np.empty(a.shape, a.dtype), tree)
            with self._writing(), _muted():
                args = ocp.args.Composite(**{name: ocp.args.StandardRestore(template)})
                found = self.manager.restore(step, args=args)[name]
            if sums[name] is not None and _checksum(found) != sums[name]:
                raise UserError(f"the checkpoint {self.directory / str(step)} cannot be read back as it was written: "
                                "the disk is at fault; give a --workdir on another one")
        self.proven = True

    def _sweep(self) -> None:
        if jax.process_index() == 0:
            shutil.rmtree(self.directory / OLD, ignore_errors=True)
            for step in _numbers(self.directory):  # half of a checkpoint, left by a deletion that was killed
                if not _is_complete(self.directory / str(step)):
                    (self.directory / str(step)).rename(self.directory / f"{step}.incomplete")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # Orbax wraps a full disk in several ways
            raise UserError(f"cannot save a checkpoint in {self.directory}: {_first_line(error)}; {self._complete()}"
                            ) from None

    def _complete(self) -> str:
        step = latest_step(self.directory)
        return "none is complete yet" if step is None else f"the last complete one is step {step}"


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _one_copy(leaf: Any) -> Any:
    """What several devices of one process hold alike, as one of them holds it: Orbax would have each copy write a part
    of the array, which a program compiled for each shape and device cuts."""
    alike = isinstance(leaf, jax.Array) and not _is_key(leaf) and leaf.is_fully_replicated
    return leaf.addressable_data(0) if alike and jax.process_count() == 1 else leaf


def _checksum(tree: PyTree) -> int | None:
    """None when other machines hold a part."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        leaf = jax.random.key_data(leaf) if _is_key(leaf) else leaf
        if isinstance(leaf, jax.Array):
            if not leaf.is_fully_addressable and not leaf.is_fully_replicated:
                return None
            leaf = leaf.addressable_data(0) if leaf.is_fully_replicated else leaf
        total = crc32(np.ascontiguousarray(leaf), total)
    return total


def numbered(tree: PyTree) -> dict[str, PyTree]:
    """The leaves of any tree under numbers, as an item: Orbax forgets the classes of some trees' nodes."""
    return {f"{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(tree))}


def unnumbered(item: dict[str, PyTree], template: PyTree) -> PyTree:
    """The inverse of `numbered`, with the structure of `template`."""
    return jax.tree.unflatten(jax.tree.structure(template), [item[name] for name in sorted(item)])


def _first_line(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return "No space left on device" if "No space left" in text else text[:200]


def _numbers(directory: Path) -> list[int]:
    return sorted(int(path.name) for path in Path(directory).glob("*") if path.name.isdigit() and path.is_dir())


def _is_complete(folder: Path) -> bool:
    """Whether everything that Orbax wrote to a checkpoint's folder is still there (its bytes are not looked at)."""
    try:
        names = json.loads((folder / "_CHECKPOINT_METADATA").read_text())["item_handlers"]
        for name in names:
            files = {path.name for path in (folder / name).iterdir()}
            arrays = name in ("train", "weights")
            if not ({"_METADATA", "manifest.ocdbt"} <= files if arrays else files & {"metadata", "metrics"}):
                return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


def steps(directory: Path) -> list[int]:
    """The complete checkpoints, oldest first."""
    return [step for step in _numbers(directory) if _is_complete(Path(directory) / str(step))]


def latest_step(directory: Path) -> int | None:
    """The newest complete checkpoint, or None."""
    return max(steps(directory), default=None)


def restore_weights(directory: Path, params: PyTree, collections: PyTree, step: int | None = None) -> PyTree:
    """{"params": averaged parameters, **collections}, with the structure of the abstract arguments."""
    items = {"weights": {"params": params, "collections": collections}}
    part = read_checkpoint(directory, items, step)["weights"]
    return {"params": part["params"], **part["collections"]}


def read_checkpoint(directory: Path, items: dict[str, PyTree], step: int | None = None) -> dict[str, PyTree]:
    """Items of the newest (or the given) checkpoint, with the structure, dtypes and shardings of the (abstract)
    `items`. Raises UserError when there is none, or a damaged one, or one of another network."""
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory.parent} holds no checkpoints: it is not the directory of a training run")
    known = steps(directory)
    step = max(known, default=None) if step is None else step
    if step is None or step not in known:
        found = f"steps {', '.join(map(str, known))}" if known else "no complete one"
        raise UserError(f"no checkpoint {'' if step is None else f'of step {step} '}in {directory}: it has {found}")
    path, others = directory / str(step), ", ".join(str(other) for other in known if other != step)
    hint = f"checkpoint {path} is damaged ({{}}); " + (
        f"there are others: step {others}; to go on from one of those, move this folder elsewhere" if others else
        "it is the only one: copy it before anything else is tried")
    try:
        with _plain(directory) as plain, _muted(), _manager(plain, read_only=True, create=False) as manager:
            _preflight(manager.item_metadata(step), items, path, hint)
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


def _preflight(metadata: PyTree, items: dict[str, PyTree], path: Path, hint: str) -> None:
    def shape(leaf: PyTree) -> tuple[int, ...]:  # an abstract array, or what Orbax tells of a stored one
        return tuple(jax.eval_shape(jax.random.key_data, leaf).shape if _is_key(leaf) else leaf.shape)

    def shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        names = ("/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in p)
                 for p, _ in leaves)
        return {name: shape(leaf) for name, (_, leaf) in zip(names, leaves)}

    for name, tree in items.items():
        stored = metadata[name]
        if stored is None:
            raise UserError(hint.format(f"it has no {name}"))
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
