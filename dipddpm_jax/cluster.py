"""Several processes that train one model (--distributed): how they find each other, and how all end when one does.

A process that dies leaves the others waiting in a sum over devices, until JAX's own service ends them with a C++ stack
trace. So every process keeps a connection to process 0: the kernel closes it when its owner dies, and beats sent along
it tell of a machine or network that is gone. Whoever misses the other says so in one line and ends.
"""
import os
import shlex
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import jax
import numpy as np
from jax._src.distributed import global_state
from jax.experimental import multihost_utils

from dipddpm_jax.config.diffusion import RunOptions
from dipddpm_jax.errors import UserError

BEAT, SILENCE = 5.0, 30.0  # seconds between signs of life, and without one until a process counts as lost
LOST = 75  # exit status: EX_TEMPFAIL of sysexits.h, for schedulers that try again
ALIVE, BYE = b".", b"q"

_links: "Links | None" = None


def join(run: RunOptions) -> None:
    """Waits for the other processes of the run. Raises UserError when they do not come or cannot be found."""
    with suppress(AttributeError):  # else XLA takes SIGTERM away from us, which saves and stops
        jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(run.coordinator, run.num_processes, run.process_id)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"--distributed: {str(error).splitlines()[0]} (without a cluster to ask, give "
                        "--coordinator HOST:PORT --num-processes N --process-id I)") from None


def watch_others(run: RunOptions) -> None:
    """Begins to watch over the other processes. Where they cannot be reached beside JAX, JAX's own service does."""
    global _links
    if jax.process_count() == 1:
        return
    address = run.coordinator or getattr(global_state, "coordinator_address", None) or socket.gethostname()
    host = address.rpartition(":")[0].strip("[]") or address
    again = f"python train.py --resume --workdir {shlex.quote(str(run.workdir))}, in every process as before"
    _links = Links(host, again)


class Links:
    """The connections between process 0 and the others, and the threads that watch them."""

    def __init__(self, host: str, again: str):
        self.again = again
        self.sockets: list[socket.socket] = []
        first = jax.process_index() == 0
        server = socket.create_server(("", 0)) if first else None
        port = multihost_utils.broadcast_one_to_all(np.int32(server.getsockname()[1] if server else 0))
        with suppress(OSError):  # a firewall, say
            if server:
                server.settimeout(60)
                for _ in range(jax.process_count() - 1):
                    link = server.accept()[0]
                    self._hold(link, int.from_bytes(link.recv(4), "big"))
                server.close()
            else:
                link = socket.create_connection((host, int(port)), timeout=60)
                link.sendall(jax.process_index().to_bytes(4, "big"))
                self._hold(link, 0)

    def _hold(self, link: socket.socket, other: int) -> None:
        link.settimeout(SILENCE)
        self.sockets.append(link)
        for target in (self._listen, self._beat):
            threading.Thread(target=target, args=(link, other), daemon=True).start()

    def _listen(self, link: socket.socket, other: int) -> None:
        """Until the other says good-bye, or is lost: then this process ends, whatever its main thread waits for."""
        while BYE not in (got := _received(link)):
            if not got:
                _write(f"\nprocess {other} of this run has ended or cannot be reached, so this one ends too; what was "
                       f"saved is sound. Go on with: {self.again}\n")
                os._exit(LOST)

    def _beat(self, link: socket.socket, other: int) -> None:
        with suppress(OSError):  # the thread that listens notices
            while True:
                link.sendall(ALIVE)
                time.sleep(BEAT)

    def close(self) -> None:
        """Good-bye: this process has done its part."""
        for link in self.sockets:
            with suppress(OSError):
                link.sendall(BYE)


def _received(link: socket.socket) -> bytes:
    try:
        return link.recv(64)
    except OSError:  # silence, or a connection that broke
        return b""


def _write(text: str) -> None:
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        os.write(2, text.encode(errors="replace"))


@contextmanager
def together(orderly: type[BaseException]) -> Iterator[None]:
    """Around what the processes do together: an error in one of them ends all, each with one line.

    `orderly` is an exception that all raise at the same step. A process that left by another one would wait at JAX's
    exit for the others, which wait for it in a sum; so it ends here. Without other processes this does nothing.
    """
    try:
        yield
    except UserError as error:
        if _links is None:
            raise
        _write(f"error: {error}\n")
        os._exit(2)
    except orderly:
        if _links is not None:
            _links.close()
        raise
    except Exception:
        if _links is None:
            raise
        time.sleep(BEAT)  # if another process is gone, the thread that listens to it says so and ends this one
        traceback.print_exc()
        os._exit(1)
    if _links is not None:
        _links.close()
