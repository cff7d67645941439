"""The mean of a deep image prior and of a diffusion model, or of any two restorers.

Two estimates of one picture with errors e1 and e2 of equal size have a mean whose error is |e|^2 (1 + r) / 2, r being
their correlation: it pays as far as the two err differently. No weight is chosen, so nothing is fitted to the picture.
"""
from jaxtyping import Array, Key

from dipddpm_jax.inverse.measurement import Cost, Measurement, Restoration, Restore


def averaged(first: Restore, second: Restore) -> Restore:
    """(first + second) / 2, at the cost of both. Raises what they raise."""
    def restore(measurement: Measurement, key: Key[Array, ""]) -> Restoration:
        one, other = (part(measurement, key) for part in (first, second))
        cost = Cost(one.evidence.calls + other.evidence.calls, one.evidence.steps + other.evidence.steps)
        return Restoration((one.picture + other.picture) / 2, None, cost)

    return restore
