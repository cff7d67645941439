"""Sliced Wasserstein distance, precision and recall: small cases whose values are known, limits and invariances."""
import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from dipddpm_jax.judging import comparison, coverage

AXES = np.eye(2)


def test_translation_moves_each_projection_by_as_much():
    """Shifted by v, the squared distance is the mean of (v . direction)^2: |v|^2 / d over the axes."""
    rows = np.random.default_rng(0).normal(size=(50, 2))
    assert coverage.sliced_wasserstein(rows, rows, AXES) == 0
    assert coverage.sliced_wasserstein(rows, rows + [3, 4], AXES) == pytest.approx(5 / np.sqrt(2))
    many = coverage.random_directions(np.random.default_rng(1), 2, 20_000)
    np.testing.assert_allclose(np.linalg.norm(many, axis=1), 1)
    assert coverage.sliced_wasserstein(rows, rows + [3, 4], many) == pytest.approx(5 / np.sqrt(2), rel=0.01)


def test_sets_of_two_sizes_are_compared_by_their_quantiles():
    """{0, 6} and {0, 3, 6}: a third each way, of which the middle one is 3 off on either side."""
    a, b, line = np.array([[0.0], [6.0]]), np.array([[6.0], [0.0], [3.0]]), np.ones((1, 1))
    assert coverage.sliced_wasserstein(a, b, line) == pytest.approx(np.sqrt(9 / 3))
    assert coverage.sliced_wasserstein(b, a, line) == pytest.approx(np.sqrt(9 / 3))
    twice = np.concatenate([b, b])
    assert coverage.sliced_wasserstein(b, twice, line) == 0
    rng = np.random.default_rng(2)  # SciPy knows the distance of first order, which is at most that of second order
    a, b = rng.normal(size=(30, 1)), rng.normal(1, 2, size=(47, 1))
    assert coverage.sliced_wasserstein(a, b, line) >= wasserstein_distance(a[:, 0], b[:, 0])
    many = np.repeat(a, 47, 0), np.repeat(b, 30, 0)  # sets of equal size: sorted rows in pairs
    wanted = np.sqrt(((np.sort(many[0], 0) - np.sort(many[1], 0)) ** 2).mean())
    assert coverage.sliced_wasserstein(a, b, line) == pytest.approx(wanted)
    with pytest.raises(ValueError, match="at least one row"):
        coverage.sliced_wasserstein(a[:0], b, line)


def test_precision_and_recall_of_points_on_a_line():
    """Real 0, 1, 2, 3 reach to their nearest other, 1; samples 0.5, 3.5, 5, 9 reach 3, 1.5, 1.5, 4."""
    real, samples = np.array([[0.0], [1], [2], [3]]), np.array([[0.5], [3.5], [5], [9]])
    assert coverage.precision_recall(samples, real, 1) == (0.5, 1.0)  # 0.5 and 3.5 lie inside; all real ones do
    assert coverage.precision_recall(real, samples, 1) == (1.0, 0.5)


def test_precision_falls_with_wrong_samples_and_recall_with_missing_ones():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(600, 4)) + np.where(np.arange(600)[:, None] < 300, 0, 40)
    other = rng.normal(size=(600, 4)) + np.where(np.arange(600)[:, None] < 300, 0, 40)
    precision, recall = coverage.precision_recall(other, real)
    assert min(precision, recall) > 0.85 and abs(precision - recall) < 0.1
    precision, recall = coverage.precision_recall(np.concatenate([other[:300], rng.normal(-90, 1, (300, 4))]), real)
    assert 0.4 < precision < 0.5 and 0.4 < recall < 0.5  # half is nonsense, and half of the real ones is missing
    assert coverage.precision_recall(other[:300], real)[0] > 0.85  # all is well with those that there are
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    assert coverage.precision_recall(3 * other @ turn, 3 * real @ turn) == coverage.precision_recall(other, real)
    with pytest.raises(ValueError, match="3 neighbours need more rows"):
        coverage.precision_recall(other[:3], real)


def test_comparisons_have_them_beside_their_floors():
    rng = np.random.default_rng(3)
    real = rng.normal(size=(400, 3))
    same = comparison.compare_features(rng.normal(size=(150, 3)), real, rng, 8)
    far = comparison.compare_features(rng.normal(5, 1, size=(150, 3)), real, rng, 8)
    assert abs(same["sliced_wasserstein"] - same["sliced_wasserstein_floor"]) < 4 * same[
        "sliced_wasserstein_floor_spread"]
    assert far["sliced_wasserstein"] == pytest.approx(5, rel=0.1)  # |(5, 5, 5)| / sqrt(3)
    assert far["precision"] == far["recall"] == 0 and far["precision_floor"] > 0.8 < far["recall_floor"]
    assert abs(same["precision"] - same["precision_floor"]) < 0.1 > abs(same["recall"] - same["recall_floor"])
