"""How near two pictures are: PSNR and SSIM as scikit-image has them, compiled and batched."""
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dipddpm_jax.types import Images


@jax.jit
def psnr(a: Images, b: Images, data_range: Float[Array, ""] | float = 1.0) -> Float[Array, "b"]:
    """Peak signal-to-noise ratio in dB of each picture; infinite for equal ones. `data_range`: high - low of pixels."""
    return 10 * jnp.log10(data_range**2 / jnp.mean(jnp.square(a - b), (1, 2, 3)))


@jax.jit
def ssim(a: Images, b: Images, data_range: Float[Array, ""] | float = 1.0) -> Float[Array, "b"]:
    """Structural similarity (Wang et al. 2004, eq. 13) as in scikit-image: uniform 7x7 windows, unbiased variances,
    mean over the pixels whose window fits, and channels. Raises ValueError for sides below 7."""
    if min(a.shape[1:3]) < 7:
        raise ValueError(f"SSIM needs pictures of at least 7x7 pixels; got {a.shape[1]}x{a.shape[2]}")

    def window_mean(x: Images) -> Float[Array, "b i j c"]:
        for axis in (1, 2):
            total = sum(jax.lax.slice_in_dim(x, i, x.shape[axis] - 6 + i, axis=axis) for i in range(7))
            x = total / 7
        return x

    mean_a, mean_b = window_mean(a), window_mean(b)
    unbiased = 49 / 48
    # Subtracting the mean of each picture first changes no (co)variance, and keeps the cancellation below small.
    centred_a, centred_b = a - a.mean((1, 2, 3), keepdims=True), b - b.mean((1, 2, 3), keepdims=True)
    local_a, local_b = window_mean(centred_a), window_mean(centred_b)
    var_a = unbiased * (window_mean(centred_a**2) - local_a**2)
    var_b = unbiased * (window_mean(centred_b**2) - local_b**2)
    covariance = unbiased * (window_mean(centred_a * centred_b) - local_a * local_b)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return jnp.mean(similarity / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)), (1, 2, 3))
