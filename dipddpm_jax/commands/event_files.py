"""TensorBoard's event files: the rows of a run's log as scalars, for those who look there (train.py --tensorboard).

They lie beside metrics.jsonl, whose rows they repeat: `tensorboard --logdir runs` shows all runs.
"""
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dipddpm_jax.errors import UserError
from dipddpm_jax.files import writing

WriteRows = Callable[[Sequence[Mapping[str, Any]]], None]


def check_installed() -> None:
    """Raises UserError where the package tensorboard is missing."""
    if find_spec("tensorboard") is None:
        raise UserError("--tensorboard needs the package tensorboard: pip install tensorboard (or this package's extra "
                        "of that name); metrics.jsonl holds the same numbers without it")


@contextmanager
def event_file(folder: Path, step: int) -> Iterator[WriteRows]:
    """A new event file of a run that is at `step`: the block's value writes rows, each with its "step", at once.

    Of a run that is resumed, TensorBoard is told to forget what earlier files hold of later steps, which are done
    again. Raises UserError when the disk does not let it.
    """
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
    with writing(folder / name):
        file = open(folder / name, "xb")
    with file:
        records = RecordWriter(file)

        def add(event: Event) -> None:
            event.wall_time = time.time()
            records.write(event.SerializeToString())

        def write(rows: Sequence[Mapping[str, Any]]) -> None:
            with writing(folder / name):
                for row in rows:
                    values = [Summary.Value(tag=key, simple_value=value) for key, value in row.items()
                              if key != "step" and value is not None]
                    add(Event(step=row["step"], summary=Summary(value=values)))
                records.flush()

        add(Event(file_version="brain.Event:2"))
        if step:
            add(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))
        yield write
