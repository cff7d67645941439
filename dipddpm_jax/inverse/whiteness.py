"""Whether the noise of a picture is white, told from the picture alone.

The noise of a camera's picture that was interpolated from a mosaic, resized or compressed is correlated: neighbours
share it. A fit then predicts the noise of a pixel that it does not see from the pixels beside it, and whatever is
judged by single held-out pixels goes wrong without a sign.
"""
import numpy as np
from jaxtyping import Float

from dipddpm_jax.inverse.noise_level import NORMAL_QUARTILE, THIRD_DIFFERENCE

RATIO = 2.0  # of the levels two pixels apart and one apart, above which noise counts as correlated
LEAST = 10 / 255  # level below which the picture's own structure, which is smooth, cannot be told from such noise
FAR = 3  # pixels apart, at which the level is that of noise which neighbours share


def level_at(image: Float[np.ndarray, "h w c"], stride: int) -> float:
    """Standard deviation of the noise by third differences, along both axes, of pixels `stride` apart (1 is that of
    `noise_level.estimate_sigma`); 0 where the picture is too small. Noise whose correlation ends before `stride` has
    its true level there."""
    details = np.asarray(image, np.float64)
    for axis in (0, 1):
        length = details.shape[axis] - 3 * stride
        if length < 1:
            return 0.0
        details = sum(tap * np.take(details, np.arange(i * stride, i * stride + length), axis)
                      for i, tap in enumerate(THIRD_DIFFERENCE))
    return float(np.mean(np.median(np.abs(details), (0, 1)))) / NORMAL_QUARTILE


def is_correlated(image: Float[np.ndarray, "h w c"]) -> bool:
    """True if pixels two apart differ by more than twice as much noise as neighbours do, and those three apart by more
    than 10 of 255.

    White noise has the ratio 1; noise blurred with a standard deviation of 0.6 pixels has 2.5. Structure of the picture
    raises the ratio too, where the noise is weak: the rule is for noise of 10 of 255 and more."""
    return level_at(image, FAR) > LEAST and level_at(image, 2) > RATIO * level_at(image, 1)
