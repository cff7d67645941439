"""What came before networks, by scikit-image: restorers to stand beside every other in a table.

All denoise one picture under Gaussian noise whose level the measurement names; counts go through Anscombe's transform
(`inverse.anscombe.stabilised`), which is applied here.
"""
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from dipddpm_jax.errors import UserError
from dipddpm_jax.inverse.anscombe import stabilised
from dipddpm_jax.inverse.measurement import Measurement, Restoration, Restore
from dipddpm_jax.inverse.operators import identity

HALVINGS = 12  # of the interval in which the weight of the total variation is sought

Denoise = Callable[[Float[np.ndarray, "h w c"], float], np.ndarray]  # (noisy, sigma) -> restored


def gaussian_denoiser(denoise: Denoise, name: str) -> Restore:
    """The restorer that a function of a noisy picture and its sigma is, for Gaussian and Poisson noise.

    Raises UserError unless the picture itself was measured. The key is not used.
    """
    def restore(measurement: Measurement, key: Key[Array, ""]) -> Restoration:
        if measurement.operator != identity:
            raise UserError(f"{name} denoises a picture whose every pixel was measured; it knows no operator")
        picture = denoise(np.asarray(measurement.y), float(measurement.noise.sigma))
        return Restoration(jnp.asarray(picture, measurement.y.dtype).reshape(measurement.y.shape))

    return stabilised(restore)


def non_local_means(patch: int = 5, distance: int = 6, strength: float = 0.8) -> Restore:
    """Non-local means (Buades et al. 2005): x_i = sum_j w_ij y_j, w_ij ~ exp(-max(d_ij - 2 sigma^2, 0) / h^2), where
    d_ij is the mean squared difference of the patches about i and j, and h = `strength` sigma."""
    from skimage.restoration import denoise_nl_means

    def denoise(noisy, sigma):
        return denoise_nl_means(noisy, patch, distance, strength * sigma, sigma=sigma, channel_axis=-1)

    return gaussian_denoiser(denoise, "non-local means")


def total_variation_denoising() -> Restore:
    """The picture of least total variation within the noise, min TV(x) with mean (x - y)^2 = sigma^2 (Rudin, Osher and
    Fatemi 1992), by Chambolle's projections (2004), the weight found by halving as in his section 4."""
    from skimage.restoration import denoise_tv_chambolle

    def denoise(noisy, sigma):
        low, high = 0.0, max(20 * sigma, 1e-6)
        for _ in range(HALVINGS):
            weight = (low + high) / 2
            restored = denoise_tv_chambolle(noisy, weight, channel_axis=-1)
            low, high = (weight, high) if np.mean((restored - noisy) ** 2) < sigma**2 else (low, weight)
        return restored

    return gaussian_denoiser(denoise, "total variation")


def bayes_shrink(wavelet: str = "db2", shifts: int = 3) -> Restore:
    """Wavelets under BayesShrink (Chang et al. 2000): details d are pulled to 0 by sigma^2 / sqrt(var d - sigma^2),
    band by band; the mean over shifts of up to `shifts` pixels (Coifman and Donoho 1995). Raises UserError where
    PyWavelets, by which scikit-image computes them, is missing."""
    try:
        import pywt  # noqa: F401
    except ImportError:
        raise UserError("wavelets need the package PyWavelets: pip install PyWavelets") from None
    from skimage.restoration import denoise_wavelet

    def one(noisy, sigma):
        return denoise_wavelet(noisy, sigma, wavelet, "soft", method="BayesShrink", channel_axis=-1)

    def denoise(noisy, sigma):
        steps = [(i, j) for i in range(shifts + 1) for j in range(shifts + 1)]
        return np.mean([np.roll(one(np.roll(noisy, (i, j), (0, 1)), sigma), (-i, -j), (0, 1)) for i, j in steps], 0)

    return gaussian_denoiser(denoise, "BayesShrink")
