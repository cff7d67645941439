"""Shapes are checked at run time in tests, at no cost outside them; pictures need no screen."""
import os

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("dipddpm_jax", "beartype.beartype")
jax.config.update("jax_numpy_rank_promotion", "raise")
