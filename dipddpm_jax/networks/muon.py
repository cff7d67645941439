"""Muon (Jordan et al. 2024): the optimiser that moves each kernel by an orthogonal matrix, and all else by Adam."""
import jax
import optax
import optax.contrib
from jaxtyping import PyTree

MUON_RMS = 0.2  # of a step, in learning rates: about that of Adam's (Liu et al. 2025, arXiv 2502.16982)
_NEWTON_SCHULZ = 5 * ((3.4445, -4.7750, 2.0315),)  # five times the usual step: optax scans a list, and unrolls a number


def muon(rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """Muon with learning rate `rate`: the momentum of each kernel, as a matrix from all its inputs to its outputs, is
    made orthogonal by five steps of Newton and Schulz; biases and norms take Adam with the same rate."""
    return optax.contrib.muon(rate, _NEWTON_SCHULZ, muon_weight_dimension_numbers=_kernels, consistent_rms=MUON_RMS)


def _kernels(params: PyTree) -> PyTree:
    """Which parameters Muon takes, and as which matrices."""
    return jax.tree.map(lambda p: optax.contrib.MuonDimensionNumbers(tuple(range(p.ndim - 1)), p.ndim - 1)
                        if p.ndim > 1 else None, params)
