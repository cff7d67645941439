"""The five reports, and what 004 left open, one module each: settings, printed numbers, what is measured, verdicts.

Imports nothing heavy, so that the command line is parsed first.
"""
from importlib import import_module
from typing import Any

MODULES = {
    "000": "single_image",
    "001": "filtered_start",
    "002": "staged_dip",
    "003": "autoencoder",
    "004": "conditional",
    "scenes": "several_labels",
}


def load_report(name: str) -> Any:
    """The `Report` of a name."""
    return import_module(f"dipddpm_jax.experiments.{MODULES[name]}").REPORT
