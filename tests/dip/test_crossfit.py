"""Cross-fitting: parts cover the known pixels once, fits are blind to theirs, errors are right without the clean."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dipddpm_jax.dip import crossfit
from dipddpm_jax.dip.folds import cross_fit_errors, fold_masks
from dipddpm_jax.inverse import operators
from dipddpm_jax.inverse.cut_off import without_cut_off
from dipddpm_jax.inverse.measurement import Measurement
from dipddpm_jax.inverse.noises import Gaussian, Poisson
from dipddpm_jax.networks import SkipNet

SIDE = 16


@functools.cache  # the same fit, so that all tests share its program
def tiny_fit(channels):
    return crossfit.a_fit(lambda channels: SkipNet(channels, (6,), (6,), (2,)), channels, average_decay=0.9)


FIT = dataclasses.replace(tiny_fit(1), observe=operators.identity.forward, size=(SIDE, SIDE))
RESTORE = crossfit.cross_fitted(tiny_fit, folds=4, num_steps=100)


def scene(side=SIDE):
    y, x = np.mgrid[:side, :side] / side
    return jnp.float32(0.5 + 0.25 * np.sin(5 * x) + 0.2 * np.cos(4 * y))[..., None]


@pytest.mark.parametrize("share", [1.0, 0.5, 0.02])
@pytest.mark.parametrize("folds", [2, 10])
def test_parts_cover_every_known_pixel_once_and_are_equal(share, folds):
    known = operators.random_mask(jax.random.key(1), 13, 17, share)
    parts = fold_masks(jax.random.key(0), known, folds)
    assert parts.shape == (folds, 13, 17, 1)
    np.testing.assert_array_equal(parts.sum(0), known)
    sizes = parts.sum((1, 2, 3))
    assert sizes.max() - sizes.min() <= 1


def test_parts_are_drawn():
    one, other = (fold_masks(jax.random.key(seed), jnp.ones((8, 8, 1)), 4) for seed in range(2))
    assert abs(float(jnp.sum(one * other)) / 64 - 1 / 4) < 0.15  # as often in the same part as chance has it


def smoothers(seed, side=14, folds=10, sigma=0.1, own=0.02, missing=0.0):
    """(K fits, y, parts, known, clean): Whittaker smoothers min sum over what is seen (f - y)^2 + 2 |grad f|^2, which
    know their noise's covariance exactly, each with an error of its own."""
    rng = np.random.default_rng(seed)
    clean = np.asarray(scene(side)).ravel()
    difference = np.diff(np.eye(side), axis=0)
    laplacian = np.kron(difference.T @ difference, np.eye(side)) + np.kron(np.eye(side), difference.T @ difference)
    y = clean + sigma * rng.normal(size=clean.shape)
    known = (rng.uniform(size=(side, side, 1)) >= missing).astype(np.float32)
    parts = np.asarray(fold_masks(jax.random.key(seed), jnp.asarray(known), folds))
    fits = []
    for part in parts:
        seen = (known * (1 - part)).ravel()
        fits.append(np.linalg.solve(np.diag(seen) + 2 * laplacian, seen * y) + own * rng.normal(size=y.shape))
    shape = (side, side, 1)
    return [np.float32(a) for a in (np.reshape(fits, (folds, *shape)), y.reshape(shape), parts, known,
                                    clean.reshape(shape))]


@pytest.mark.parametrize("own, missing", [(0.0, 0.0), (0.03, 0.0), (0.03, 0.4)])
def test_the_estimated_errors_are_the_true_ones_on_simulated_fits(own, missing):
    """Within 8 % (0.3 dB) over 40 draws of the noise, whose own mean square stands for sigma^2: it is what a single
    estimate errs by most. That of one blind fit is no substitute: the mean is better."""
    estimated, true, estimate = [], [], jax.jit(cross_fit_errors)
    for seed in range(40):
        fits, y, parts, known, clean = smoothers(seed, own=own, missing=missing)
        noise = np.full_like(y, np.mean((y - clean)[known == 1] ** 2))
        errors = estimate(*map(jnp.asarray, (fits, y, parts, known, noise)))
        square = (fits.mean(0) - clean) ** 2
        blind = (parts * (fits - clean) ** 2).sum() / parts.sum()
        hole = square[known == 0].mean() if missing else square.mean()
        estimated.append([errors.blind, errors.mean, errors.missing])
        true.append([blind, square[known == 1].mean(), hole])
    estimated, true = np.mean(estimated, 0), np.mean(true, 0)
    np.testing.assert_allclose(estimated[:2], true[:2], rtol=0.08)
    assert true[1] < 0.92 * true[0]
    if missing:
        np.testing.assert_allclose(estimated[2], true[2], rtol=0.08)


def test_the_error_in_holes_is_found_where_fits_repeat_what_they_see():
    """Without noise a fit says nothing where it sees, and everything where it is blind."""
    rng, count, shape = np.random.default_rng(0), 10, (40, 40, 1)
    clean, known = rng.uniform(size=shape), np.float32(rng.uniform(size=shape) < 0.5)
    parts = np.asarray(fold_masks(jax.random.key(0), jnp.asarray(known), count))
    fits = clean + 0.06 * rng.normal(size=shape) + 0.08 * rng.normal(size=(count, *shape))  # shared, and of each
    fits = np.where(known * (1 - parts) > 0, clean, fits)
    errors = cross_fit_errors(*map(jnp.float32, (fits, clean, parts, known, np.zeros(shape))))
    hole, square = known == 0, np.square(fits.mean(0) - clean)
    np.testing.assert_allclose(errors.missing, square[hole].mean(), rtol=0.1)
    np.testing.assert_allclose(errors.overall(jnp.mean(known)), square.mean(), rtol=0.1)


def test_a_fit_never_sees_its_part():
    y = Gaussian(0.1).draw(jax.random.key(0), scene())
    known, key = jnp.ones((SIDE, SIDE, 1)), jax.random.key(1)
    parts = fold_masks(key, known, 4)
    ends = []
    for values in (y, jnp.where(parts[2] == 1, 7.0, y)):
        begun = crossfit.start_fold_fits(FIT, Measurement(values, operators.identity, Gaussian(0.1)), known, parts, key)
        ends.append(crossfit.run_fits(FIT, *begun, 100).average)
    np.testing.assert_array_equal(ends[0][2], ends[1][2])
    assert all(jnp.abs(ends[0][k] - ends[1][k]).max() > 0.1 for k in (0, 1, 3))


@pytest.mark.parametrize("restore, judges", [(RESTORE, SIDE**2), (crossfit.refitted(tiny_fit, 4, 100), SIDE**2 / 4)],
                         ids=["cross-fitted", "refitted"])
def test_restored_is_nearer_than_measured_and_says_how_near(restore, judges):
    """To three deviations of the mean square of the noise on the pixels that judge."""
    noise = Gaussian(0.15)
    y = noise.draw(jax.random.key(0), scene())
    result = restore(Measurement(y, operators.identity, noise), jax.random.key(3))
    error = float(jnp.mean(jnp.square(result.picture - scene())))
    assert error < 0.3 * 0.15**2 and abs(result.evidence.error - error) < 3 * 0.15**2 * np.sqrt(2 / judges)
    assert result.evidence.steps >= 100


def test_errors_are_those_of_what_is_made_black_again_where_noise_was_cut_off():
    noise, x = Gaussian(0.15), 1.6 * scene() - 0.7
    x = jnp.clip(x, 0, 1)
    y = jnp.clip(noise.draw(jax.random.key(0), x), 0, 1)
    result = RESTORE(Measurement(y, operators.identity, noise), jax.random.key(3))
    picture = without_cut_off(result.picture, y, noise)
    before, error = (float(jnp.mean(jnp.square(one - x))) for one in (result.picture, picture))
    assert error < 0.8 * before
    assert abs(result.evidence.error - error) < 3 * 0.15**2 * np.sqrt(2 / SIDE**2)
    parts = fold_masks(jax.random.key(3), jnp.ones((SIDE, SIDE, 1)), 4)
    fits = y[None] + 0.05 * jax.random.normal(jax.random.key(1), (4, SIDE, SIDE, 1))
    of = jnp.ones_like(y), jnp.full_like(y, 0.02)
    whole, grown = (cross_fit_errors(fits, y, parts, *of, jnp.full_like(y, growth)) for growth in (1.0, 4.0))
    for name in ("blind", "mean", "missing"):
        np.testing.assert_allclose(getattr(grown, name), 4 * getattr(whole, name), rtol=1e-5)


def test_the_mean_errs_less_than_its_fits_and_spread_says_how_they_differ():
    noise = Gaussian(0.15)
    measurement = Measurement(noise.draw(jax.random.key(0), scene()), operators.identity, noise)
    known, key = crossfit.observed_pixels(measurement, jax.random.key(3)), jax.random.key(3)
    parts = fold_masks(key, known, 4)
    states = crossfit.run_fits(FIT, *crossfit.start_fold_fits(FIT, measurement, known, parts, key), 100)
    result = crossfit.mean_of_fits(measurement, known, parts, states.kept.average, int(states.step.sum()))
    errors = jnp.square(states.kept.average - scene()[None])
    # (mean f - x)^2 = mean (f - x)^2 - spread^2, pixel by pixel
    np.testing.assert_allclose(jnp.square(result.picture - scene()), errors.mean(0) - result.spread**2, atol=1e-5)


def test_holes_are_filled():
    known = operators.random_mask(jax.random.key(5), SIDE, SIDE, 0.6)
    operator, noise = operators.masked(known), Gaussian(0.05)
    measurement = Measurement(operator(noise.draw(jax.random.key(0), scene())), operator, noise)
    np.testing.assert_array_equal(crossfit.observed_pixels(measurement, jax.random.key(0)), known)
    result = RESTORE(measurement, jax.random.key(3))
    hole = jnp.mean((1 - known) * jnp.square(result.picture - scene())) / jnp.mean(1 - known)
    assert hole < 0.01  # the picture's own variance is 0.05


def test_pixels_of_a_smaller_measurement_are_held_out_and_photons_have_their_variance():
    operator, noise = operators.downsample(SIDE, SIDE, 2), Poisson(400.0)
    measurement = Measurement(noise.draw(jax.random.key(0), operator(scene())), operator, noise)
    result = RESTORE(measurement, jax.random.key(3))
    assert result.picture.shape == (SIDE, SIDE, 1) and jnp.mean(jnp.square(result.picture - scene())) < 0.01
    error = float(jnp.mean(jnp.square(operator(result.picture) - operator(scene()))))
    assert abs(result.evidence.error - error) < 3 * 0.5 / 400 * np.sqrt(2 / (SIDE / 2) ** 2)


def test_the_second_picture_of_a_size_compiles_nothing():
    """What was measured is an argument of the program that starts the fits, not a constant in it."""
    known, programs = jnp.ones((SIDE, SIDE, 1)), []
    parts = fold_masks(jax.random.key(0), known, 4)
    for i in range(2):
        measurement = Measurement(scene() + 0.1 * i, operators.identity, Gaussian(0.1 + 0.1 * i))
        problems, _ = crossfit.start_fold_fits(FIT, measurement, known, parts, jax.random.key(i))
        np.testing.assert_array_equal(problems.measurement[3], measurement.y)
        programs.append(crossfit._start_all._cache_size())
    assert programs[0] == programs[1] > 0


def test_quiet_pictures_take_the_fit_of_larger_ones_unless_their_measurement_is_smaller():
    x, hole = scene(), operators.random_mask(jax.random.key(5), SIDE, SIDE, 0.5)
    known = jnp.ones((SIDE, SIDE, 1))
    for operator, sigma, quiet in ((operators.masked(hole), 0.0, True), (operators.masked(hole), 0.04, False),
                                   (operators.blur(SIDE, SIDE, 1.0), 0.005, True),
                                   (operators.downsample(SIDE, SIDE, 2), 0.0, False)):
        fit = crossfit.remembered(None)(Measurement(operator(x), operator, Gaussian(sigma)), known)
        assert fit.network == (crossfit.tapered_skip_net if quiet else crossfit.small_skip_net)(1)


def test_larger_pictures_take_another_network_and_optimiser():
    small, large = (crossfit.recommended_fit(3, (64, side)) for side in (64, 65))
    assert (small.network, large.network) == (crossfit.small_skip_net(3), crossfit.tapered_skip_net(3))
    kernel = {"kernel": jnp.ones((3, 3, 2, 8)), "bias": jnp.ones(8)}
    grads = jax.tree.map(lambda p: jax.random.normal(jax.random.key(0), p.shape), kernel)
    turned, scaled = (fit.optimizer.update(grads, fit.optimizer.init(kernel), kernel)[0] for fit in (large, small))
    singular = jnp.linalg.svd(turned["kernel"].reshape(18, 8), compute_uv=False)
    assert singular.max() < 2 * singular.min()  # five steps of Newton and Schulz leave them within .7 and 1.2
    np.testing.assert_allclose(jnp.abs(scaled["kernel"]), 0.01, rtol=1e-4)  # Adam's first step is the sign
    np.testing.assert_array_equal(jnp.sign(turned["bias"]), -jnp.sign(grads["bias"]))
