"""What is measured: operators against convolutions written out, noise against its moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
import skimage.restoration
from PIL import Image as Pillow

from dipddpm_jax.inverse import noise_level, noises, operators


def picture(height=24, width=32, channels=3, seed=0):
    return np.random.default_rng(seed).uniform(size=(height, width, channels)).astype(np.float32)


def correlate(image, kernel, stride, pad):
    """Cross-correlation in plain NumPy of a picture whose border pixels repeat outwards."""
    image = np.pad(image.astype(np.float64), ((pad, pad), (pad, pad), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(image, kernel.shape, (0, 1))[::stride, ::stride]
    return np.einsum("ijcab,ab->ijc", windows, kernel)


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_downsampling_of_the_dip_authors_is_theirs(factor):
    taps = 4 * factor
    distance = np.abs(np.arange(1, taps + 1) + 0.5 - (taps + 2) / 2) / factor  # the paper's code, kernel_width taps + 1
    one = 2 * np.sin(np.pi * distance) * np.sin(np.pi * distance / 2) / (np.pi * distance) ** 2
    kernel = np.outer(one, one) / np.outer(one, one).sum()
    width = 30 if factor == 3 else 32
    image = picture(width=width)
    expected = correlate(image, kernel, factor, (taps - factor) // 2)
    observed = operators.downsample_of_dip_authors(24, width, factor)(jnp.asarray(image))
    assert observed.shape == (24 // factor, width // factor, 3)
    rows, columns = expected.shape[:2]  # for odd factors the last window would stick out of the padding
    np.testing.assert_allclose(observed[:rows, :columns], expected, atol=1e-5)


@pytest.mark.parametrize("factor", [2, 3, 4, 5, 7])
def test_downsampling_keeps_straight_lines_and_their_places(factor):
    """Pixel i of the result stands for the block i: on a ramp it is the ramp's value in the middle of the block."""
    side = 9 * factor
    rows, columns = np.mgrid[:side, :side]
    image = ((rows + 2 * columns) / (3 * side))[..., None].astype(np.float32)
    blocks = image.reshape(9, factor, 9, factor, 1).mean((1, 3))
    inner = (slice(2, -2),) * 2  # the borders repeat outwards
    np.testing.assert_allclose(operators.downsample(side, side, factor)(jnp.asarray(image))[inner], blocks[inner],
                               atol=1e-6)
    if factor % 2 == 0:
        np.testing.assert_array_equal(operators.downsample(side, side, factor)(jnp.asarray(image)),
                                      operators.downsample_of_dip_authors(side, side, factor)(jnp.asarray(image)))


def test_downsampling_by_three_is_where_pillow_has_it():
    side = 48
    y, x = np.mgrid[:side, :side] / side
    smooth = (0.5 + 0.3 * np.sin(9 * x) * np.cos(7 * y)).astype(np.float32)
    theirs = np.asarray(Pillow.fromarray(smooth).resize((16, 16), Pillow.Resampling.LANCZOS))
    ours = operators.downsample(side, side, 3)(jnp.asarray(smooth[..., None]))[..., 0]
    np.testing.assert_allclose(ours[2:-2, 2:-2], theirs[2:-2, 2:-2], atol=5e-3)


@pytest.mark.parametrize("operator, shape", [
    (operators.identity, (12, 18, 2)), (operators.downsample(12, 18, 3), (4, 6, 2)),
    (operators.downsample_of_dip_authors(12, 18, 3), (4, 6, 2)), (operators.blur(12, 18, 1.3), (12, 18, 2))])
def test_adjoints(operator, shape):
    """<A x, y> = <x, A^T y>."""
    x, y = (jnp.asarray(picture(*sides, seed)) for seed, sides in enumerate([(12, 18, 2), shape]))
    np.testing.assert_allclose(jnp.vdot(operator(x), y), jnp.vdot(x, operator.adjoint(y)), rtol=1e-5)


@pytest.mark.parametrize("count", [2, 3, 16, 24 * 32])
def test_held_out_pixels_are_known_and_leave_some(count):
    known = np.zeros(24 * 32, np.float32)
    known[np.random.default_rng(0).permutation(known.size)[:count]] = 1
    known = known.reshape(24, 32, 1)
    masks = np.stack([operators.held_out_mask(jax.random.key(seed), jnp.asarray(known), 0.1) for seed in range(20)])
    assert np.all(masks <= known) and np.all(masks.sum((1, 2, 3)) >= 1)
    assert np.all((known - masks).sum((1, 2, 3)) >= 1)
    if count == known.size:
        np.testing.assert_allclose(masks.mean(), 0.1, atol=0.01)


def test_blur_is_a_gaussian_that_keeps_constants():
    image = picture()
    reach = np.arange(-5, 6)
    taps = np.exp(-0.5 * (reach / 1.5) ** 2)
    kernel = np.outer(taps, taps) / taps.sum() ** 2
    blurred = operators.blur(24, 32, 1.5)(jnp.asarray(image))
    np.testing.assert_allclose(blurred, correlate(image, kernel, 1, 5), atol=1e-5)
    np.testing.assert_allclose(operators.blur(24, 32, 1.5)(jnp.full((24, 32, 1), 0.3)), 0.3, rtol=1e-5)


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="divided by 4"):
        operators.downsample(24, 30, 4)


def test_holes_are_filled_from_their_rims_alone():
    y, x = np.mgrid[:9, :9]
    plane = (x + 2.0 * y)[..., None]
    known = np.ones((9, 9, 1))
    known[4, 4] = 0
    np.testing.assert_allclose(operators.filled(np.where(known, plane, 99), known), plane)  # a plane is its own mean
    known[2:7, 2:7] = 0
    full = operators.filled(np.where(known, plane, np.nan), known)
    np.testing.assert_allclose(full[known > 0], plane[known > 0])
    np.testing.assert_allclose(full[4, 4], plane[4, 4])
    assert np.isfinite(full).all() and np.array_equal(operators.filled(plane, 0 * known), 0 * plane)


def test_noise_has_its_moments():
    grey = jnp.full((128, 128, 3), 0.5)
    gaussian = noises.add_gaussian(jax.random.key(0), grey, 0.1) - grey
    np.testing.assert_allclose([gaussian.mean(), gaussian.std()], [0, 0.1], atol=2e-3)
    poisson = noises.add_poisson(jax.random.key(0), grey, 50.0) - grey
    np.testing.assert_allclose([poisson.mean(), poisson.std()], [0, 0.1], atol=2e-3)
    np.testing.assert_allclose(operators.random_mask(jax.random.key(0), 128, 128, 0.3).mean(), 0.3, atol=0.02)
    assert float(noises.add_gaussian(jax.random.key(0), grey, 9.0).max()) == 1


def test_read_out_noise_adds_to_that_of_photons():
    noise = noises.Poisson(20.0, 0.1)
    clean = jnp.full((300, 300, 1), 0.3)
    y = noise.draw(jax.random.key(0), clean)
    np.testing.assert_allclose([y.mean(), y.var()], [0.3, 0.3 / 20 + 0.01], rtol=0.02)
    np.testing.assert_allclose(noise.variance(clean)[0, 0], 0.3 / 20 + 0.01, rtol=1e-5)
    assert noise.shift == pytest.approx(0.2)  # which makes the variance that of counts, mean / peak
    assert (0.3 + noise.shift) / noise.peak == pytest.approx(float(noise.variance(clean)[0, 0, 0]))


def test_poisson_misfit_with_read_out_noise_is_that_of_shifted_counts():
    observed, y = jnp.asarray([0.1, 0.5]), jnp.asarray([0.2, -0.1])
    np.testing.assert_allclose(noises.poisson_misfit(1.0, 0.2)(observed, y),
                               noises.poisson_misfit(1.0)(observed + 0.2, y + 0.2), rtol=1e-6)


def test_poisson_misfit_is_least_at_the_measurement():
    measured = jnp.array([0.0, 0.2, 0.7])
    misfit = noises.poisson_misfit(30.0)
    np.testing.assert_allclose(misfit(measured, measured), 0, atol=1e-2)
    slope = jax.grad(lambda x: misfit(x, measured).sum())(jnp.array([0.1, 0.2, 0.9]))
    np.testing.assert_allclose(slope, 30 * (1 - measured / jnp.array([0.1, 0.2, 0.9])), atol=1e-4)


@pytest.mark.parametrize("shape", [(64, 64, 3), (61, 75, 1)])
@pytest.mark.parametrize("sigma", [0.02, 0.1])
def test_sigma_of_a_smooth_picture(shape, sigma):
    y, x = np.mgrid[: shape[0], : shape[1]]
    smooth = 0.5 + 0.3 * np.sin(x / 9)[..., None] * np.cos(y / 7)[..., None] * np.ones(shape)
    found = [noise_level.estimate_sigma(smooth + sigma * np.random.default_rng(seed).normal(size=shape))
             for seed in range(40)]
    np.testing.assert_allclose(np.mean(found), sigma, rtol=0.02)
    assert np.std(found) < 0.036 * sigma / shape[2] ** 0.5  # 0.042 by wavelets, which are a quarter as many


CAMERA = skimage.data.camera()[..., None] / 255


@pytest.mark.parametrize("sigma, recorded", [(5, 6.2607012), (10, 11.1318853), (25, 25.5317748)])
def test_sigma_of_a_photograph_is_as_near_as_by_wavelets(sigma, recorded):
    """Recorded: skimage.restoration.estimate_sigma of version 0.26 of the same noisy picture."""
    noisy = CAMERA + sigma / 255 * np.random.default_rng(sigma).normal(size=CAMERA.shape)
    found = 255 * noise_level.estimate_sigma(noisy)
    assert abs(found - sigma) < abs(recorded - sigma)
    half_black = np.concatenate([0 * noisy, noisy])  # details are left out that are exactly 0
    np.testing.assert_allclose(255 * noise_level.estimate_sigma(half_black), found, rtol=5e-3)
    np.testing.assert_allclose(noise_level.estimate_sigma(half_black + 1), noise_level.estimate_sigma(half_black),
                               rtol=1e-6)  # white is as flat as black


@pytest.mark.parametrize("keep", [0.7, 0.5, 0.2, 0.05])
def test_holes_do_not_count_as_noise(keep):
    rng = np.random.default_rng(0)
    noisy = CAMERA + 25 / 255 * rng.normal(size=CAMERA.shape)
    known = (rng.uniform(size=CAMERA.shape) < keep).astype(np.float32)
    np.testing.assert_allclose(255 * noise_level.estimate_sigma(noisy, known), 25, rtol=0.1)
    assert noise_level.estimate_sigma(noisy * known, known) == noise_level.estimate_sigma(noisy, known)
    if keep == 0.5:  # what holes that were set to 0 were taken for
        assert 255 * noise_level.estimate_sigma(noisy * known) > 50


def test_the_level_of_nothing_is_zero():
    black = np.zeros((16, 16, 3))
    assert noise_level.estimate_sigma(black) == 0 and noise_level.estimate_sigma(black + 1) == 0
    assert noise_level.estimate_sigma(CAMERA, np.zeros_like(CAMERA)) == 0
    assert noise_level.estimate_sigma(CAMERA[:3, :2]) > 0  # smaller than the filter


def dense(operator, shape):
    """An operator as a matrix."""
    basis = jnp.eye(int(np.prod(shape)), dtype=jnp.float64).reshape(-1, *shape)
    return np.asarray(jax.vmap(operator)(basis)).reshape(len(basis), -1).T


@pytest.mark.parametrize("name", ["identity", "masked", "blur", "downsample"])
@pytest.mark.parametrize("ridge", [0.0, 0.03])
def test_solve_is_the_regularised_inverse(name, ridge):
    """A^T (A A^T + ridge I)^-1 y with the matrix written out; the pseudo-inverse of NumPy at ridge 0."""
    with jax.enable_x64(True):
        shape = (12, 8, 2)
        rng = np.random.default_rng(1)
        known = jnp.asarray(rng.integers(0, 2, (12, 8, 1)), jnp.float64)
        operator = {"identity": operators.identity, "masked": operators.masked(known),
                    "blur": operators.blur(12, 8, 0.8), "downsample": operators.downsample(12, 8, 4)}[name]
        matrix = dense(operator, shape)
        y = matrix @ rng.normal(size=np.prod(shape)) + 0.1 * matrix @ rng.normal(size=np.prod(shape))
        inverse = (np.linalg.pinv(matrix, 1e-6) if ridge == 0 else
                   matrix.T @ np.linalg.inv(matrix @ matrix.T + ridge * np.eye(len(y))))
        observed = jax.eval_shape(operator.forward, jax.ShapeDtypeStruct(shape, jnp.float64)).shape
        np.testing.assert_allclose(operator.solve(jnp.asarray(y).reshape(observed), ridge).ravel(), inverse @ y,
                                   atol=1e-8)
        np.testing.assert_allclose(dense(operator.adjoint, observed), matrix.T, atol=1e-12)


def test_noises_have_the_moments_that_they_claim():
    image = jnp.linspace(0.0, 1.0, 50)[:, None] * jnp.ones((1, 4000))
    for noise in (noises.Gaussian(0.1), noises.Poisson(30.0)):
        drawn = np.asarray(noise.draw(jax.random.key(0), image))
        np.testing.assert_allclose(drawn.mean(1), image[:, 0], atol=0.02)
        np.testing.assert_allclose(drawn.var(1), noise.variance(image)[:, 0], rtol=0.15, atol=1e-9)


def test_what_a_mask_shows_is_told_from_what_filters():
    shape = (12, 16, 3)
    for known in (np.ones((12, 16, 1)), np.random.default_rng(0).random((12, 16, 1)) < 0.5,
                  np.random.default_rng(1).random(shape) < 0.3):
        found = operators.mask_of(operators.masked(jnp.asarray(known, jnp.float32)), shape)
        np.testing.assert_array_equal(found, np.broadcast_to(known, shape))
    assert operators.mask_of(operators.identity, shape).all()
    for other in (operators.blur(12, 16, 1.0), operators.downsample(12, 16, 2)):
        assert operators.mask_of(other, shape) is None
