"""The resumable loop, with a job of one number: disturbed runs end as others do, and what is wrong is one line."""
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from dipddpm_jax import checkpoints, records
from dipddpm_jax.commands import loop
from dipddpm_jax.commands.ends import Stopped
from dipddpm_jax.commands.loop import ChunkReport, Pace, newest_items, run_to_end
from dipddpm_jax.errors import UserError
from dipddpm_jax.files import complete_file

PACE = Pace(chunk=4, save_every=10, show_every=6)
TOTAL = 30


class Kill(BaseException):
    """What nothing catches, as SIGKILL."""


class Sum:
    """Adds up the steps; `worst` is the first whose loss is not finite."""

    def __init__(self, workdir, total=TOTAL, worst=None):
        self.workdir, self.total, self.worst = workdir, total, worst
        found = newest_items(workdir, self.template())
        self.state = jnp.zeros(2, jnp.int32) if found is None else jnp.asarray(found["train"]["state"])
        self.step = int(self.state[0])

    def template(self):
        return {"train": {"state": jnp.zeros(2, jnp.int32)}}

    def advance(self, count):
        for _ in range(count):
            self.state = self.state + jnp.array([1, self.step])
            self.step += 1
        return self.step, int(self.state[1])

    def report(self, chunk, seconds):
        step, value = chunk
        bad = self.worst is not None and step >= self.worst
        return ChunkReport([{"step": step, "loss": value}], "", "the loss is not finite" if bad else None)

    def items(self):
        return {"train": {"state": self.state}}

    def score(self):
        return {"held_out_loss": abs(self.step - 10.0)}  # the best is that of step 10

    def show(self):
        if self.step % 6 == 0 and self.step:
            with complete_file(self.workdir / f"{self.step}.txt") as part:
                part.write_text(str(self.state.tolist()))


def run(workdir, pace=PACE, **options):
    workdir.mkdir(exist_ok=True)
    return run_to_end(Sum(workdir, **options), workdir, pace, "again")


def left(workdir):
    """All that a run leaves: files by their bytes, checkpoints by their arrays, the log by its rows."""
    found = {path.name: path.read_text() for path in workdir.iterdir() if path.is_file()}
    found["steps"] = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    for step in checkpoints.steps(workdir / "checkpoints"):
        items = checkpoints.read_checkpoint(workdir / "checkpoints", Sum.template(None), step)
        found[f"state {step}"] = np.asarray(items["train"]["state"]).tolist()
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run that nothing disturbs leaves."""
    workdir = tmp_path_factory.mktemp("loop") / "whole"
    rows = run(workdir)
    assert [row["step"] for row in rows if "loss" in row] == [4, 6, 10, 12, 16, 18, 20, 24, 28, 30]
    assert checkpoints.steps(workdir / "checkpoints") == [10, 20, 30]
    return left(workdir)


def killed_at(monkeypatch, owner, name, when):
    """The run dies as `when`-th call of a function begins, or ends (when < 0)."""
    real, calls = getattr(owner, name), []

    def call(*args, **options):
        calls.append(1)
        if len(calls) == when:
            raise Kill
        result = real(*args, **options)
        if len(calls) == -when:
            raise Kill
        return result

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize("owner, name, when", [
    (Sum, "advance", 5),  # between checkpoints
    (Sum, "show", 7),  # after the checkpoint of step 20 ... and before the picture of step 18
    (checkpoints.Checkpoints, "add", 2),  # its row was written, it was not
    (checkpoints.Checkpoints, "add", -2),  # it is being written
    (records, "append_lines", 6),
    (Sum, "score", -3),
])
def test_a_killed_run_goes_on_and_leaves_what_others_do(whole, tmp_path, monkeypatch, owner, name, when):
    with monkeypatch.context() as patch:
        killed_at(patch, owner, name, when)
        with pytest.raises(Kill):
            run(tmp_path / "run")
    run(tmp_path / "run")
    assert left(tmp_path / "run") == whole


def test_a_picture_that_a_kill_took_is_drawn_on_resuming(tmp_path, monkeypatch):
    pace = Pace(chunk=4, save_every=6)
    run(tmp_path / "whole", pace)
    with monkeypatch.context() as patch:
        killed_at(patch, Sum, "show", 5)  # at the start and at 4, 6, 10; dies at 12, whose checkpoint is complete
        with pytest.raises(Kill):
            run(tmp_path / "run", pace)
    assert checkpoints.latest_step(tmp_path / "run" / "checkpoints") == 12
    assert not (tmp_path / "run" / "12.txt").exists()
    run(tmp_path / "run", pace)
    assert left(tmp_path / "run") == left(tmp_path / "whole")


@pytest.mark.parametrize("calls", [1, 4, 9])
def test_a_run_that_signals_stopped_leaves_what_others_do(whole, tmp_path, monkeypatch, calls):
    """No row and no checkpoint more, wherever it was stopped."""
    import signal

    real, done = Sum.advance, []

    def advance(job, count):
        done.append(1)
        if len(done) == calls:
            signal.raise_signal(signal.SIGTERM)
        return real(job, count)

    with monkeypatch.context() as patch:
        patch.setattr(Sum, "advance", advance)
        with pytest.raises(Stopped, match="stopped by a signal; saved step .*again") as stopped:
            run(tmp_path / "run")
    assert stopped.value.code == 143
    run(tmp_path / "run")
    assert left(tmp_path / "run") == whole


def test_a_budget_that_is_used_up_at_every_chunk(whole, tmp_path):
    for _ in range(20):
        try:
            run(tmp_path / "run", PACE._replace(budget=0.0))
            break
        except Stopped as stopped:
            assert stopped.code == 0
    assert left(tmp_path / "run") == whole


def test_a_loss_that_is_not_finite_ends_the_run_within_a_chunk_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(UserError, match="not finite; the checkpoint of step 10 is sound"):
        run(tmp_path / "run", worst=14)
    assert checkpoints.steps(tmp_path / "run" / "checkpoints") == [10]
    assert max(row["step"] for row in records.read_lines(tmp_path / "run" / "metrics.jsonl")) <= 16
    with pytest.raises(UserError, match="no checkpoint was saved before"):
        run(tmp_path / "early", worst=3)


def test_a_run_without_its_checkpoints_does_not_begin_anew(tmp_path):
    run(tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint to go on from, though metrics.jsonl tells of step 30"):
        run(tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_log_that_was_cut_anywhere_is_read(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        killed_at(patch, Sum, "advance", 8)
        with pytest.raises(Kill):
            run(tmp_path / "run")
    log = tmp_path / "run" / "metrics.jsonl"
    text = log.read_text()
    for cut in range(len(text) - 30, len(text)):
        log.write_text(text[:cut])
        book = loop.Log(log, 20)
        book.write({"step": 21, "loss": float("inf")})
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        assert rows == book.rows and rows[-1] == {"step": 21, "loss": None}


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path, monkeypatch):
    def full(path, rows):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records, "append_lines", full)
    with pytest.raises(UserError, match="cannot write .*run/metrics.jsonl: No space left on device"):
        run(tmp_path / "run")
