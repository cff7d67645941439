"""Cross-fitting: parts cover the known pixels once, fits are blind to theirs, errors are right without the clean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dipddpm_jax.dip import crossfit
from dipddpm_jax.dip.folds import cross_fit_errors, fold_masks
from dipddpm_jax.inverse import operators
from dipddpm_jax.inverse.measurement import Measurement
from dipddpm_jax.inverse.noises import Gaussian
from dipddpm_jax.networks import SkipNet

SIDE = 16


def tiny_fit(channels):
    return crossfit.a_fit(lambda channels: SkipNet(channels, (6,), (6,), (2,)), channels, average_decay=0.9)



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


def test_a_fit_never_sees_its_part():
    y = Gaussian(0.1).draw(jax.random.key(0), scene())
    known, key = jnp.ones((SIDE, SIDE, 1)), jax.random.key(1)
    parts = fold_masks(key, known, 4)
    fit = tiny_fit(1)
    ends = []
    for values in (y, jnp.where(parts[2] == 1, 7.0, y)):
        begun = crossfit.start_fold_fits(fit, Measurement(values, operators.identity, Gaussian(0.1)), known, parts, key)
        ends.append(crossfit.run_fits(fit, *begun, 100).average)
    np.testing.assert_array_equal(ends[0][2], ends[1][2])
    assert all(jnp.abs(ends[0][k] - ends[1][k]).max() > 0.1 for k in (0, 1, 3))
