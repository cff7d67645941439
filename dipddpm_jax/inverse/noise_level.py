"""The noise level of a measurement, estimated from the measurement alone."""
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

NORMAL_QUARTILE = 0.6744897501960817  # the median of |N(0, 1)|
ENOUGH = 100  # values that a median is taken of before a coarser filter is tried
THIRD_DIFFERENCE = np.array([1, -3, 3, -1]) / np.sqrt(20)
HAAR = np.array([1, -1]) / np.sqrt(2)


def estimate_sigma(image: Float[np.ndarray, "h w c"], known: Float[np.ndarray, "h w _"] | None = None) -> float:
    """Standard deviation of Gaussian noise, in the units of `image`: the median of |details| / 0.6745 (Donoho and
    Johnstone 1994), mean over channels. Details are third differences along both axes at every position (as Immerkaer
    1996 with second ones): they see less of the picture than the decimated Daubechies-2 wavelets of scikit-image's
    estimate_sigma, and average four times as many values.

    Details that are exactly 0 are left out: flat regions, such as black or clipped ones, hold no noise. Only windows
    whose pixels are all `known` (not 0) count; where holes leave fewer than 100 of them, smaller windows are used: 2x2,
    then pairs of neighbours, then known pixels that follow one another in reading order, which see more of the picture
    itself, so that the estimate errs upwards. 0 when nothing varies or fewer than two pixels are known.
    """
    image = np.asarray(image, np.float64)
    known = np.ones(image.shape, bool) if known is None else np.broadcast_to(np.asarray(known) != 0, image.shape)
    return float(np.mean([_of_channel(image[..., c], known[..., c]) for c in range(image.shape[-1])]))


def _of_channel(image: Float[np.ndarray, "h w"], known: np.ndarray) -> float:
    rounding = 1e-9 * np.abs(image, where=known, out=np.zeros_like(image)).max()
    found = np.zeros(0)
    for details in _details(image, known):
        details = np.abs(details)
        found = max(found, details[details > rounding], key=len)
        if len(found) >= ENOUGH:
            break
    return float(np.median(found) / NORMAL_QUARTILE) if len(found) else 0.0


def _details(image: np.ndarray, known: np.ndarray) -> Iterator[np.ndarray]:
    """Details of variance sigma^2 whose pixels are all known, from the filter that sees least of the picture on."""
    yield _filtered(image, known, THIRD_DIFFERENCE, (0, 1)).ravel()
    yield _filtered(image, known, HAAR, (0, 1)).ravel()
    yield np.concatenate([_filtered(image, known, HAAR, (axis,)).ravel() for axis in (0, 1)])
    yield np.convolve(image[known], HAAR, "valid") if known.sum() > 1 else np.zeros(0)


def _filtered(image: np.ndarray, known: np.ndarray, taps: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """The correlation with `taps` along axes; 0 where a pixel is unknown."""
    for axis in axes:
        if image.shape[axis] < len(taps):
            return np.zeros(0)
        windows = np.lib.stride_tricks.sliding_window_view
        image = windows(image, len(taps), axis=axis) @ taps
        known = windows(known, len(taps), axis=axis).all(-1)
    return np.where(known, image, 0)
