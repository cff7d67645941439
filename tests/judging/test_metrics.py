"""PSNR and SSIM against scikit-image."""
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from dipddpm_jax.judging.metrics import psnr, ssim


@pytest.mark.parametrize("shape", [(19, 23, 3), (7, 7, 1), (32, 40, 3)])
@pytest.mark.parametrize("low, data_range", [(0.0, 1.0), (-1.0, 2.0), (-1.0, 1.0)])
def test_psnr_and_ssim_equal_scikit_image(shape, low, data_range):
    rng = np.random.default_rng(0)
    a = rng.uniform(low, 1, (3, *shape)).astype(np.float32)
    b = np.clip(a + rng.normal(0, 0.1, a.shape), low, 1).astype(np.float32)
    for i in range(3):
        p = peak_signal_noise_ratio(a[i], b[i], data_range=data_range)
        s = structural_similarity(a[i], b[i], data_range=data_range, channel_axis=-1)
        np.testing.assert_allclose(psnr(jnp.asarray(a), jnp.asarray(b), data_range)[i], p, rtol=1e-5)
        np.testing.assert_allclose(ssim(jnp.asarray(a), jnp.asarray(b), data_range)[i], s, atol=2e-6)


def test_limits():
    a = jnp.linspace(0, 1, 192).reshape(1, 8, 8, 3)
    assert jnp.isinf(psnr(a, a)[0])
    np.testing.assert_allclose(ssim(a, a), 1, atol=1e-6)
    np.testing.assert_allclose(psnr(a, a + 0.1), 20, atol=1e-4)
    with pytest.raises(ValueError, match="7x7"):
        ssim(a[:, :6], a[:, :6])
