"""Restoring pictures by other means than a fitted deep image prior (train.py dip --method NAME)."""
import shlex
from dataclasses import asdict
from pathlib import Path

import jax.numpy as jnp

from dipddpm_jax import devices
from dipddpm_jax.commands.measurements import load_measurements
from dipddpm_jax.commands.restoration_files import measurement_of, restore_and_write
from dipddpm_jax.commands.restorers import check_method, restorer_for
from dipddpm_jax.config.dip import MEASURING, DipConfig
from dipddpm_jax.config.saved import MEASURED
from dipddpm_jax.inverse.measurement import Restore


def restore_by_method(method: str, config: DipConfig, out: Path | None, argv: list[str]) -> str:
    """Restores the pictures of a configuration by a restorer of that name; returns what to tell the user.

    Raises UserError as `restoration_files.restore_and_write` and `restorers.restorer_for` do.
    """
    devices.set_up()
    given = load_measurements(config)
    check_method(method, {}, None if given.degraded else config.sigma)

    def restore_for(i: int) -> Restore:
        known = None if given.known is None else jnp.asarray(given.known[i])
        return restorer_for(method, measurement_of(given, i, config), known)

    measured = {name: value for name, value in asdict(config).items() if name in MEASURING}
    return restore_and_write(restore_for, given, config, out, {"method": method, MEASURED: measured},
                             {"method": method}, shlex.join(["python", "train.py", "dip", *argv]))
