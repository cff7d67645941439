"""The noise level of a measurement, estimated from the measurement alone."""
import numpy as np
from jaxtyping import Float


def estimate_sigma(image: Float[np.ndarray, "h w c"]) -> float:
    """Standard deviation of Gaussian noise: the median of |diagonal wavelet details| / 0.6745, mean over channels
    (Donoho and Johnstone 1994; Daubechies-2 wavelets, as scikit-image's estimate_sigma). Sides must be at least 4."""
    root = np.sqrt(3)
    high = np.array([1 - root, root - 3, 3 + root, -1 - root]) / (4 * np.sqrt(2))
    padded = np.pad(np.asarray(image, np.float64), ((2, 3), (2, 3), (0, 0)), mode="symmetric")
    for axis in (0, 1):
        windows = np.lib.stride_tricks.sliding_window_view(padded, 4, axis=axis)
        padded = np.take(windows @ high, np.arange(0, windows.shape[axis], 2), axis=axis)
    details = padded.reshape(-1, padded.shape[-1])
    return float(np.mean(np.median(np.abs(details), axis=0) / 0.6744897501960817))
