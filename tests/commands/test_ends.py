"""Ctrl-C and SIGTERM at every moment of a command, in processes that import no JAX."""
import errno
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from benchmarks.places import REPO
from dipddpm_jax.commands.ends import deferred, guarded
from dipddpm_jax.errors import UserError

HEAD = "import gc, sys, threading, time\nfrom dipddpm_jax.commands.ends import deferred, guarded\n"


def interrupted(body, *signals, pause=0.2):
    """(exit status, standard error) of a command that gets these signals once it has said that it is ready."""
    code = HEAD + "with guarded():\n" + "".join(f"    {line}\n" for line in body.strip().splitlines())
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONPATH": str(REPO)})
    assert process.stdout.readline() == "ready\n"
    for number in signals:
        process.send_signal(number)
        time.sleep(pause)
    try:
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    return process.returncode, errors.strip()


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_where_nothing_is_to_be_saved_is_one_line(number, status):
    """As while JAX is imported."""
    assert interrupted("print('ready', flush=True)\ntime.sleep(20)", number) == (status, "interrupted")


def test_an_interruption_that_a_callback_swallows_is_not_lost():
    """An exception in a callback of the garbage collector goes nowhere; XLA has one that collects its own garbage."""
    body = """
def callback(phase, info):
    if phase == "start" and not told:
        told.append(1)
        print("ready", flush=True)
        time.sleep(2)
told = []
gc.callbacks.append(callback)
gc.collect()
time.sleep(20)
print("ran to its end", file=sys.stderr)
"""
    assert interrupted(body, signal.SIGINT) == (130, "interrupted")


def test_an_interruption_ends_a_main_thread_that_runs_no_python():
    """As while XLA compiles: the handler would wait until it is done."""
    lock = "lock = threading.Lock()\nlock.acquire()\nprint('ready', flush=True)\n"
    assert interrupted(lock + "while True:\n    try:\n        lock.acquire(timeout=30)\n"
                       "    except KeyboardInterrupt:\n        pass", signal.SIGINT) == (130, "interrupted")


def test_a_loop_that_saves_sees_the_first_signal_and_ends_in_good_order():
    body = """
with deferred() as signals:
    print("ready", flush=True)
    while not signals:
        time.sleep(0.01)
print("saved", signals, file=sys.stderr)
"""
    assert interrupted(body, signal.SIGTERM) == (0, "saved [15]")


def test_a_second_ctrl_c_ends_whatever_threads_wait_for():
    """Orbax's save thread waits for minutes, and the interpreter would wait for the thread."""
    body = """
threading.Thread(target=threading.Event().wait).start()
with deferred() as signals:
    print("ready", flush=True)
    threading.Event().wait()
"""
    status, errors = interrupted(body, signal.SIGINT, signal.SIGINT)
    assert status == 130 and errors == "interrupted twice: ended at once, without saving"


@pytest.fixture
def python_s_own_handler():
    """A process that was started in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_in_a_library_the_second_ctrl_c_is_an_exception(python_s_own_handler):
    with pytest.raises(KeyboardInterrupt), deferred() as signals:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        time.sleep(1)
    assert signals == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_guard_leaves_handlers_and_threads_as_they_were():
    before, threads = signal.getsignal(signal.SIGTERM), threading.active_count()
    with guarded(), guarded():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before and threading.active_count() == threads


@pytest.mark.parametrize("error, line", [
    (UserError("no such preset"), "error: no such preset"),
    (OSError(errno.ENOSPC, "No space left on device", "/disk/out.png"),
     "error: cannot write /disk/out.png: No space left on device"),
])
def test_mistakes_and_full_disks_are_one_line_and_status_2(error, line, capsys):
    with pytest.raises(SystemExit) as ended, guarded():
        raise error
    assert ended.value.code == 2 and capsys.readouterr().err == line + "\n"
