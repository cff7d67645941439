"""THE resumable loop: training, fits and judges run through `run_to_end`, and it alone knows of checkpoints, the log,
signals, budgets and the progress bar.

How to run something of your own (training.py is the longest example):
    with claimed_workdir("name", workdir, resume) as workdir:              # one owner at a time
        items = newest_items(workdir, {"train": template})                 # None: begin at step 0
        job = MyJob(...)                                                   # see `Job`; takes up where items ended
        rows = run_to_end(job, workdir, Pace(chunk=20, save_every=500), again="python train.py --resume")
A run that was interrupted, whenever and however, and then went on ends with the same files as one that was not.
"""
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import PyTree
from tqdm import tqdm

from dipddpm_jax import devices, records
from dipddpm_jax.checkpoints import Checkpoints, latest_step, read_checkpoint
from dipddpm_jax.commands.ends import Stopped, deferred
from dipddpm_jax.errors import UserError
from dipddpm_jax.files import writing

Row = dict[str, int | float | None]


class ChunkReport(NamedTuple):
    """What a chunk of steps has to say once it was computed."""

    rows: list[Row]  # for the log, each with its "step"
    text: str  # for the progress bar
    problem: str | None = None  # why to stop at once, such as a loss that is not finite
    sound: int | None = None  # with a problem: the step that `items` still hold, if they hold a good one


@runtime_checkable
class Job(Protocol):
    """What the loop asks of whatever it runs."""

    step: int
    """Steps done, on the host."""
    total: int
    """The step to end at; it may fall to `step` when all that was to be done is done."""

    def advance(self, count: int) -> Any:
        """Does `count` steps and adds them to `step`; what comes back is handed to `report` one chunk later, so that
        the host need not wait for the device."""

    def report(self, chunk: Any, seconds: float) -> ChunkReport:
        """Reads what `advance` gave; `seconds` have passed since the report before."""

    def items(self) -> dict[str, PyTree]:
        """What a checkpoint holds, by name: "train", or "train" and "weights"."""

    def score(self) -> Row:
        """A row for the log at a checkpoint; its "held_out_loss", if it has one, says which checkpoint is the best."""

    def show(self) -> None:
        """Pictures, if they are due at this step. Called after every chunk, and once at the start."""


class Pace(NamedTuple):
    """How often things happen. A chunk ends where something is due, so that all fall on the same steps always."""

    chunk: int  # steps in one device call
    save_every: int
    keep_every: int | None = None  # checkpoints of these steps all stay
    show_every: int = 0
    budget: float | None = None  # minutes

    def next_count(self, job: Job) -> int:
        """Steps of the next chunk."""
        marks = [mark for mark in (self.save_every, self.keep_every, self.show_every) if mark]
        return min(self.chunk, job.total - job.step, *(mark - job.step % mark for mark in marks))

    def saves(self, job: Job) -> bool:
        """Whether a checkpoint is due."""
        marks = [mark for mark in (self.save_every, self.keep_every) if mark]
        return job.step >= job.total or any(job.step % mark == 0 for mark in marks)


def newest_items(workdir: Path, template: dict[str, PyTree], log: str = "metrics.jsonl") -> dict[str, PyTree] | None:
    """The newest checkpoint of a run, with structure and shardings of the (abstract) template; None at the start.

    Raises UserError when the run has got further than that, and its checkpoints are gone.
    """
    folder = workdir / "checkpoints"
    if latest_step(folder) is not None:
        return read_checkpoint(folder, template)
    rows = records.read_lines(workdir / log)
    if rows and (not folder.is_dir() or sum("held_out_loss" in row for row in rows) > 1):
        raise UserError(f"{workdir} has no checkpoint to go on from, though {log} tells of step "
                        f"{rows[-1].get('step')}: put its checkpoints/ back, or begin anew in another --workdir")
    return None


class Log:
    """A .jsonl file of rows with their step; on resuming, rows of steps that will be done again are dropped."""

    def __init__(self, path: Path, step: int, first: bool = True, also: Callable[[list[Row]], None] | None = None):
        self.path, self.first, self.also = path, first, also
        found = records.read_lines(path)
        self.rows: list[Row] = [row for row in found if row.get("step", 0) <= step]
        if first and len(self.rows) < len(found):
            records.write_lines(path, self.rows)

    def write(self, *rows: Row) -> None:
        """Adds rows. Raises UserError when the disk does not let it."""
        rows = [records.json_ready(row) for row in rows]  # nan is not JSON
        self.rows.extend(rows)
        if self.first and rows:
            with writing(self.path):
                records.append_lines(self.path, rows)
            if self.also:
                self.also(rows)


def run_to_end(
    job: Job, workdir: Path, pace: Pace, again: str, log: str = "metrics.jsonl", unit: str = "step",
    also: Callable[[list[Row]], None] | None = None,
) -> list[Row]:
    """Advances a job to its end, with checkpoints in workdir/checkpoints; returns all rows of its log. `also` is handed
    the rows that are new.

    Raises Stopped on a signal or at the end of the budget, after saving: the command `again` goes on. Raises UserError
    when a report tells of a problem (the last good checkpoint stays), or the disk is full.
    """
    first, began = jax.process_index() == 0, time.monotonic()
    book = Log(workdir / log, job.step, first, also)
    with Checkpoints(workdir / "checkpoints", pace.keep_every) as kept, deferred() as signals, tqdm(
            total=job.total, initial=job.step, unit=unit, disable=not first, dynamic_ncols=True) as bar:
        told, waiting = _Told(job, book, bar, kept), []
        job.show()  # a kill may have come between a checkpoint and its pictures
        while job.step < job.total:
            count = pace.next_count(job)
            chunk = job.advance(count)
            late = pace.budget is not None and time.monotonic() - began > 60 * pace.budget
            stop = devices.any_process(bool(signals) or late)
            due = pace.saves(job)
            waiting.append((chunk, count))
            # The newest is left for the next turn: reading it would make the device wait.
            told.report(waiting if due or stop else waiting[:-1])
            waiting = [] if due or stop else waiting[-1:]
            if due or stop:
                told.save(spare=not due)
            job.show()
            if stop and job.step < job.total:
                kept.wait()
                raise Stopped(f"{_reason(signals, late, pace)}; saved {unit} {job.step}. Go on with: {again}",
                              128 + signals[0] if signals else 0)
        kept.wait()
    return book.rows


def _reason(signals: list[int], late: bool, pace: Pace) -> str:
    if signals:
        return "stopped by a signal"
    return f"the budget of {pace.budget:g} minutes is used up" if late else "another process of this run was stopped"


class _Told:
    """Where a job's reports go: the log, the progress bar, the checkpoints."""

    def __init__(self, job: Job, book: Log, bar: tqdm, kept: Checkpoints):
        self.job, self.book, self.bar, self.kept = job, book, bar, kept
        self.reported = time.monotonic()

    def report(self, chunks: list[tuple[Any, int]]) -> None:
        """Chunks that are read together share the time since the last report by their steps."""
        jax.block_until_ready([chunk for chunk, _ in chunks])
        now = time.monotonic()
        steps = sum(count for _, count in chunks)
        for chunk, count in chunks:
            self._report(chunk, count, (now - self.reported) * count / steps)
        self.reported = now if chunks else self.reported

    def _report(self, chunk: Any, count: int, seconds: float) -> None:
        report = self.job.report(chunk, seconds)
        self.book.write(*report.rows)
        self.bar.update(count)
        self.bar.set_postfix_str(report.text)
        if report.problem:
            if report.sound:
                self.kept.add(report.sound, self.job.items(), spare=True)
            self.kept.wait()
            step = latest_step(self.kept.directory)
            raise UserError(report.problem + ("; no checkpoint was saved before" if step is None else
                                              f"; the checkpoint of step {step} is sound"))

    def save(self, spare: bool) -> None:
        score = {} if spare else self.job.score()
        if score:
            self.book.write({"step": self.job.step, **score})
        self.kept.add(self.job.step, self.job.items(), score.get("held_out_loss"), spare)
