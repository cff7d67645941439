"""Memory: how much this machine lets a process have, and a clear refusal of what would need more.

An allocation that is too large ends in a MemoryError if one is lucky, and in a killed process if not; so what a picture
or a network will need is computed from its shapes before anything of that size is made.
"""
import math
import os
from contextlib import suppress
from pathlib import Path

from dipddpm_jax.errors import UserError

CONTROL_GROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


def host_memory() -> int | float:
    """Bytes of memory that this process may use: the machine's, or less where a container or `ulimit -v` says so."""
    limits = [math.inf]
    with suppress(ImportError, OSError, ValueError):
        import resource  # there is none on Windows

        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        limits += [soft for soft, _ in [resource.getrlimit(resource.RLIMIT_AS)] if soft != resource.RLIM_INFINITY]
    for path in CONTROL_GROUPS:
        with suppress(OSError, ValueError):  # "max" is no number: no limit
            limits.append(int(path.read_text()))
    return min(limits)


def in_words(size: int | float) -> str:
    """A number of bytes for people, such as 7.6 GB (decimal units)."""
    power = min(max(int(math.log10(max(size, 1))) // 3, 0), len(UNITS) - 1)
    size /= 1000**power
    return f"{size:.3g} {UNITS[power]}" if size < 1000 else f"{size:,.0f} {UNITS[power]}"


def require(needed: int | float, what: str, have: int | float | None = None) -> None:
    """Raises UserError when `what` (subject of the sentence) needs more bytes than there are; default: the host's."""
    have = host_memory() if have is None else have
    if needed > have:
        raise UserError(f"{what} would need about {in_words(needed)} of memory; there are {in_words(have)} here")
