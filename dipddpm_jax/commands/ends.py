"""How a command ends: a user's mistake is one line on stderr and exit status 2, an interruption one line and 130.

Signals are noticed by a thread of their own, woken by the byte that the C handler writes (signal.set_wakeup_fd):
it sees Ctrl-C while XLA compiles, and none is lost where an exception would be swallowed (callbacks of the garbage
collector). A loop that wants to save first says so with `deferred`; anywhere else the command ends at once.
"""
import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from dipddpm_jax.errors import UserError

GRACE = 1.0  # seconds that a KeyboardInterrupt has to unwind the main thread before the process is ended from outside
STOPPING = (signal.SIGINT, signal.SIGTERM)
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)


class Stopped(Exception):
    """A computation ended early on purpose, after saving; `code` is the exit status."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


class Signals:
    """The SIGINT and SIGTERM that this command has got; `deferrals` counts the loops that look for them."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self.deferrals = 0
        self.message = "interrupted"


_signals: Signals | None = None  # of the command that runs, if one does


@contextmanager
def guarded(interrupted: str = "interrupted") -> Iterator[None]:
    """Around all that a command does, imports too; `interrupted` is the line that Ctrl-C leaves."""
    _print_anything()
    with _watched(interrupted):
        try:
            yield
            sys.stdout.flush()
        except UserError as error:
            _leave(f"error: {error}", 2)
        except Stopped as stopped:
            _leave(str(stopped), stopped.code)
        except KeyboardInterrupt as stopped:
            _leave(interrupted, 128 + (stopped.args or [signal.SIGINT])[0])
        except BrokenPipeError:  # whoever read our output has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise SystemExit(128 + signal.SIGPIPE) from None
        except ValueError as error:
            if not (fault := _fault_of_environment(error)):
                raise
            _leave(f"error: {fault}", 2)
        except OSError as error:
            if error.errno not in DISK:
                raise
            _leave(f"error: cannot write {error.filename or 'a file'}: {error.strerror}", 2)


def _fault_of_environment(error: ValueError) -> str | None:
    """What to say when importing JAX failed at one of its variables, such as JAX_ENABLE_X64=maybe; else None."""
    found = re.search(r"invalid truth value .* for environment '?(JAX_\w+)|"
                      r"Invalid value \".*\" for JAX flag (jax_\w+)", str(error))
    name = found and (found[1] or found[2].upper())
    return f"{name}={os.environ.get(name, '')}: JAX does not know this value; unset {name}" if name else None


def _print_anything() -> None:
    """Characters that a terminal's encoding lacks (in a file's name, say) are printed as escapes, not as errors."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError, OSError):  # it may be something else than a text file
            stream.reconfigure(errors="backslashreplace")


def _leave(line: str, code: int) -> None:
    print(line, file=sys.stderr)
    raise SystemExit(code) from None


@contextmanager
def deferred() -> Iterator[list[int]]:
    """A list that receives SIGINT and SIGTERM, for a loop to look at between chunks; a second Ctrl-C ends at once.

    Outside a command (a notebook, a script of the user's) the second Ctrl-C is a KeyboardInterrupt instead.
    """
    if _signals is not None:
        _signals.deferrals += 1
        try:
            yield _signals.received
        finally:
            _signals.deferrals -= 1
        return
    received: list[int] = []

    def receive(number, frame):
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    try:
        old = {number: signal.signal(number, receive) for number in STOPPING}
    except ValueError:  # not the main thread: whoever runs us handles signals
        old = {}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler or signal.SIG_DFL)


@contextmanager
def _watched(message: str) -> Iterator[None]:
    """Handlers and their thread, for the main thread of a process that has none yet."""
    global _signals
    signals = _signals or Signals()
    if _signals is not None or threading.current_thread() is not threading.main_thread():
        outer, signals.message = signals.message, message
        try:
            yield
        finally:
            signals.message = outer
        return
    signals.message, _signals = message, signals
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    old = {number: signal.signal(number, _interrupt) for number in STOPPING}
    old_hook, sys.unraisablehook = sys.unraisablehook, _swallowed
    old_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(reader, signals), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(old_writer)
        sys.unraisablehook = old_hook
        for number, handler in old.items():
            signal.signal(number, handler or signal.SIG_DFL)
        os.close(writer)  # the thread reads the end of it
        watcher.join()
        os.close(reader)
        _signals = None


def _interrupt(number, frame) -> None:
    """In the main thread: ends what is not deferred. The thread that watches has noted, or will note, the number."""
    if _signals is not None and not _signals.deferrals:
        raise KeyboardInterrupt(number)


def _swallowed(unraisable) -> None:
    """Exceptions that went nowhere are told, but not an interruption (the thread that watches ends the process soon),
    nor what TensorStore's threads say after a save that failed (its error is raised as well)."""
    error = unraisable.exc_value
    if not isinstance(error, KeyboardInterrupt) and str(error) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _watch(reader: int, signals: Signals) -> None:
    ending = None
    while byte := os.read(reader, 1):
        number = byte[0]
        if number not in STOPPING:
            continue
        again = bool(signals.received) and number == signal.SIGINT
        signals.received.append(number)
        if again:
            _end_now("interrupted twice: ended at once, without saving", number)
        if not signals.deferrals and ending is None:
            ending = threading.Timer(GRACE, _end_now, (signals.message, number))
            ending.daemon = True
            ending.start()
    if ending:
        ending.cancel()


def _end_now(message: str, number: int) -> None:
    with suppress(Exception):
        os.write(2, f"\n{message}\n".encode())
        sys.stdout.flush()
    os._exit(128 + number)
