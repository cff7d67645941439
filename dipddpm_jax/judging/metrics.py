"""How near two pictures are (PSNR, SSIM), how near two sets of pictures are, and whether labels are met.

PSNR and SSIM are compiled and batched. Distances of sets take features of pictures, one row each, on the host in
float64: differences of nearly equal numbers are what they are made of.
"""
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dipddpm_jax.errors import UserError
from dipddpm_jax.types import Image, Images

BLOCK = 1000  # rows of a kernel matrix held at once


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


def clipped_psnr(clean: Image, picture: Image) -> float:
    """PSNR in dB of one picture in [0, 1]; what lies outside is clipped. Infinite where nothing differs."""
    return float(psnr(jnp.asarray(clean)[None], jnp.clip(jnp.asarray(picture), 0, 1)[None])[0])


def clipped_ssim(clean: Image, picture: Image) -> float:
    """SSIM of one picture in [0, 1]; what lies outside is clipped. Raises ValueError for sides below 7."""
    return float(ssim(jnp.asarray(clean)[None], jnp.clip(jnp.asarray(picture), 0, 1)[None])[0])


def frechet_distance(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """Squared Frechet distance of the Gaussians with the sets' means and unbiased covariances (Heusel et al. 2017,
    eq. 6). Its expectation falls with n: compare at equal n only. Raises ValueError below two rows."""
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a covariance needs at least two rows; got {len(a)} and {len(b)}")
    a, b = a.astype(np.float64), b.astype(np.float64)
    return gaussian_distance(a.mean(0), np.cov(a.T, ddof=1).reshape(a.shape[1], -1),
                             b.mean(0), np.cov(b.T, ddof=1).reshape(b.shape[1], -1))


def gaussian_distance(
    mean_a: Float[np.ndarray, "d"], cov_a: Float[np.ndarray, "d d"],
    mean_b: Float[np.ndarray, "d"], cov_b: Float[np.ndarray, "d d"],
) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (AB)^(1/2)) (Dowson and Landau 1982, eq. 4); singular covariances too."""
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()  # AB has the eigenvalues of root B root
    return max(float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross), 0.0)


def kernel_distance(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x.y / d + 1)^3, which is the KID (Binkowski et al.
    2018, section 4; Gretton et al. 2012, eq. 3). Near 0 it may be negative. Raises ValueError below two rows."""
    if min(len(a), len(b)) < 2:
        raise ValueError(f"an unbiased estimate needs at least two rows; got {len(a)} and {len(b)}")
    a, b = a.astype(np.float64), b.astype(np.float64)

    def total(x, y):
        return sum(float(((x[i : i + BLOCK] @ y.T / x.shape[1] + 1) ** 3).sum()) for i in range(0, len(x), BLOCK))

    def within(x):  # pairs of different rows
        return (total(x, x) - (((x**2).sum(1) / x.shape[1] + 1) ** 3).sum()) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2 * total(a, b) / (len(a) * len(b)))


def frechet_influence(
    a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "m"]]:
    """Influence of each row on `frechet_distance`, its derivative with respect to the row's weight but for a constant:
    2 (mu_a - mu_b).(x - mu_a) + (x - mu_a)' (1 - T) (x - mu_a), T = A^(-1/2) (A^(1/2) B A^(1/2))^(1/2) A^(-1/2), the
    optimal transport from one Gaussian to the other; for rows of b the same with T's inverse. Directions without
    variance are left out."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    size = a.shape[1]
    root, inverse = _roots(np.cov(a.T, ddof=1).reshape(size, size))
    middle, middle_inverse = _roots(root @ np.cov(b.T, ddof=1).reshape(size, size) @ root)
    shift, found = a.mean(0) - b.mean(0), []
    for rows, sign, transport in ((a, 1, inverse @ middle @ inverse), (b, -1, root @ middle_inverse @ root)):
        centred = rows - rows.mean(0)
        found.append(2 * sign * centred @ shift + (centred @ (np.eye(size) - transport) * centred).sum(1))
    return found[0], found[1]


def _roots(matrix: Float[np.ndarray, "d d"]) -> tuple[Float[np.ndarray, "d d"], Float[np.ndarray, "d d"]]:
    """Square root of a symmetric positive semidefinite matrix, and the pseudo-inverse of that root."""
    values, vectors = np.linalg.eigh(matrix)
    values = np.where(values > 1e-10 * max(values.max(), 0.0), values, 0.0)
    inverse = np.divide(1, np.sqrt(values), out=np.zeros_like(values), where=values > 0)
    return (vectors * np.sqrt(values)) @ vectors.T, (vectors * inverse) @ vectors.T


def kernel_influence(
    a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "m"]]:
    """Influence of each row on `kernel_distance`, but for a constant: 2 (mean of k(x, others of its set) - mean of
    k(x, the other set)), the first term of the statistic's Hoeffding decomposition."""
    a, b = a.astype(np.float64), b.astype(np.float64)

    def mean(x, y):  # of k(row of x, each of y)
        blocks = [((x[i : i + BLOCK] @ y.T / x.shape[1] + 1) ** 3).sum(1) for i in range(0, len(x), BLOCK)]
        return np.concatenate(blocks) / len(y)

    def within(x):
        own = ((x**2).sum(1) / x.shape[1] + 1) ** 3
        return (len(x) * mean(x, x) - own) / (len(x) - 1)

    return 2 * (within(a) - mean(a, b)), 2 * (within(b) - mean(b, a))


def label_accuracy(scores: Float[np.ndarray, "n k"], wanted: Float[np.ndarray, "n k"]) -> float:
    """The score of the iCLEVR course: of the labels asked for (ones in `wanted`), the share found among as many
    highest scores of their picture. Of equal scores the lower index comes first. UserError for rows without labels."""
    found = _found(scores, wanted)
    return float(found.sum() / wanted.sum())


def label_accuracies(scores: Float[np.ndarray, "n k"], wanted: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "k"]:
    """The same score of each label by itself: the share of those pictures that were asked for it; nan for none."""
    found, asked = _found(scores, wanted).sum(0), wanted.sum(0)
    return np.divide(found, asked, out=np.full(len(asked), np.nan), where=asked > 0)


def _found(scores: Float[np.ndarray, "n k"], wanted: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Ones where a label was asked for and found."""
    counts = wanted.sum(1).astype(int)
    if not np.isin(wanted, (0, 1)).all() or not len(wanted) or counts.min() < 1:
        raise UserError("label accuracy needs pictures, and at least one label (a 1 among zeros) for each of them")
    if not np.isfinite(scores).all():
        raise UserError("label accuracy needs finite scores")
    rank = np.argsort(np.argsort(-scores, 1, kind="stable"), 1)
    return ((rank < counts[:, None]) * wanted).astype(np.float64)
