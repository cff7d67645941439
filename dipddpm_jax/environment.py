"""The environment of a process: JAX's settings, XLA's flags and the compilation cache, made fit or refused in one line.

A run must give the same numbers wherever it is typed. So environment variables that would change them (64-bit numbers,
another random generator) are set back, and that is said; what only concerns speed or debugging is the user's own.
"""
import mmap
import os
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

import jax
import jaxlib

from dipddpm_jax import records
from dipddpm_jax.errors import UserError

CPU_FLAGS = {
    # XLA unrolls loops over few channels before LLVM can vectorise them: SiLU of 20 channels takes 4 times as long
    "xla_backend_extra_options": "xla_cpu_disable_loop_unrolling",
    "xla_cpu_prefer_vector_width": "512",  # where the processor has them: sampling takes 5 % less time
    # values are used soon after they were made, from a core's cache: a training step of SmallUNet takes 8 % less time
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    # One device waits for another in every sum over a batch. XLA ends the process when that takes 40 s, as it does on a
    # machine that is busy with other things; it says so from 20 s on, and an end is of no use to anyone.
    "xla_cpu_collective_call_warn_stuck_timeout_seconds": "300",
    "xla_cpu_collective_call_terminate_timeout_seconds": "3600",
}
OURS = {  # setting of JAX -> what all runs have
    "jax_enable_x64": False,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,  # else the numbers depend on how many devices share them
    "jax_numpy_dtype_promotion": "standard",
    "jax_transfer_guard": "allow",
}


def settle() -> None:
    """Before anything is computed: flags, settings and the cache. Raises UserError for flags that XLA would die of."""
    set_flags()
    for name, ours in OURS.items():
        given = getattr(jax.config, name, ours)
        if given not in (ours, None):
            jax.config.update(name, ours)
            _say(f"{name.upper()}={given} is left aside: everything here is computed with {ours}")
    set_cache()


def _say(line: str) -> None:
    print(f"note: {line}", file=sys.stderr)


# --- XLA's flags

@cache
def library() -> Path | None:
    """The shared library that holds XLA: the largest of jaxlib's."""
    found = sorted(Path(jaxlib.__file__).parent.glob("*.so"), key=lambda path: path.stat().st_size)
    return found[-1] if found else None


@cache
def knows_flag(name: str, unknown: bool = False) -> bool:
    """True if this jaxlib has an XLA flag of that name: it stands in its library as a string that ends there.

    XLA ends the process at a flag that it does not know, so that names are asked for, not guessed from versions.
    `unknown` is returned when the library cannot be read.
    """
    with suppress(OSError, ValueError), open(library() or "", "rb") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            return text.find(name.encode() + b"\0") >= 0
    return unknown


def set_flags() -> None:
    """XLA's flags for a CPU, unless the user gives others; of use only before the first computation.

    Raises UserError for flags of the user's that this XLA does not know.
    """
    given = os.environ.get("XLA_FLAGS", "").strip()
    if given and not given.startswith("-"):  # then it names a file that holds them
        try:
            given = Path(given).read_text().strip()
        except (OSError, ValueError):
            raise UserError(f"XLA_FLAGS={given}: flags begin with --, and no file of that name can be read") from None
    for flag in given.split():
        name = flag.partition("=")[0].lstrip("-")
        if flag.startswith("--") and name not in CPU_FLAGS and not knows_flag(name, unknown=True):
            raise UserError(f"XLA_FLAGS: the installed jaxlib {jaxlib.__version__} has no flag --{name}; remove it")
    ours = [f"--{name}={value}" for name, value in CPU_FLAGS.items() if name not in given and knows_flag(name)]
    os.environ["XLA_FLAGS"] = " ".join([given, *ours]).strip()


# --- the compilation cache

def set_cache() -> None:
    """Compiled programs are kept in $JAX_COMPILATION_CACHE_DIR or the user's cache folder, if that can be written."""
    given = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if given is not None and (not given or _writable(Path(given))):
        return
    if given:
        _say(f"JAX_COMPILATION_CACHE_DIR={given} is left aside: nothing can be written there")
    folder = records.cache_folder()
    jax.config.update("jax_compilation_cache_dir", str(folder) if _writable(folder) else None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def _writable(folder: Path) -> bool:
    if "://" in str(folder):  # a bucket, which JAX asks by itself
        return True
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return os.access(folder, os.W_OK | os.X_OK)


# --- what there is to compute with

def check_platform() -> None:
    """Raises UserError when JAX finds no device of the kind that JAX_PLATFORMS asks for. Begins JAX's work."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = (str(error).strip() or "there is no such device here").splitlines()[0]
        reason = reason.split(" (set JAX_PLATFORMS")[0].rstrip(".")
        asked = jax.config.jax_platforms
        if not asked:
            raise UserError(f"JAX finds nothing to compute with: {reason}") from None
        raise UserError(f"JAX_PLATFORMS={asked}: {reason}; unset JAX_PLATFORMS, or set it to cpu") from None
