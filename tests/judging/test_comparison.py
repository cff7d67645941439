"""Spreads and floors of distances against simulations in which every draw is fresh and the truth is known."""
import numpy as np
import pytest

from dipddpm_jax.judging import metrics
from dipddpm_jax.judging.comparison import compare_features, split_as

SIZE, N, M, KINDS = 12, 80, 240, 10
SCALE = 0.5 + np.arange(SIZE) / SIZE
MEANS = 1.5 * np.random.default_rng(9).normal(size=(KINDS, SIZE))


def gaussian(rng, n, shift=0.0):
    return shift + SCALE * rng.normal(size=(n, SIZE))


def of_classes(rng, classes, shift=0.0):
    return MEANS[classes] + rng.normal(size=(len(classes), SIZE)) + shift


def distances(a, b):
    return metrics.frechet_distance(a, b), metrics.kernel_distance(a, b)


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_spread_is_the_deviation_over_fresh_draws(shift):
    """Near the floor, where a bootstrap finds 1.5 to 2 times as much, and far from it."""
    rng = np.random.default_rng(0)
    true = np.std([distances(gaussian(rng, N, shift), gaussian(rng, M)) for _ in range(150)], axis=0, ddof=1)
    found = [compare_features(gaussian(rng, N, shift), gaussian(rng, N + M), rng, 20) for _ in range(10)]
    for name, deviation in zip(("spread", "kid_spread"), true):
        ratios = np.array([one[name] for one in found]) / deviation
        assert 0.8 < np.sqrt((ratios**2).mean()) < 1.25, (name, ratios)  # 150 draws know the truth within 6 %
        assert (0.5 < ratios).all() and (ratios < 2).all(), (name, ratios)
    if not shift:
        floors = np.mean([[one["floor_spread"], one["kid_floor_spread"]] for one in found], 0)
        np.testing.assert_allclose(floors, true, rtol=0.25)


def test_floor_and_spread_of_samples_with_equal_shares_of_all_classes():
    """Random real pictures have unequal shares, which would put such samples below the floor."""
    rng = np.random.default_rng(1)
    asked, known = np.arange(N) % KINDS, np.arange(N + M) % KINDS
    rest = known[N:]
    draws = np.array([distances(of_classes(rng, asked), of_classes(rng, rest)) for _ in range(120)])
    found, random = [], []
    for _ in range(8):
        samples, real = of_classes(rng, asked), of_classes(rng, known)
        found.append(compare_features(samples, real, rng, 20, asked, known))
        random.append(compare_features(samples, real, rng, 20)["floor"])
    mean = {name: np.mean([one[name] for one in found]) for name in found[0]}
    np.testing.assert_allclose(mean["floor"], draws[:, 0].mean(), rtol=0.08)
    assert np.mean(random) > 1.25 * draws[:, 0].mean()  # what was called the floor
    assert mean["kid_floor"] == pytest.approx(draws[:, 1].mean(), abs=0.5 * draws[:, 1].std())
    np.testing.assert_allclose([mean["spread"], mean["kid_spread"]], draws.std(0, ddof=1), rtol=0.25)


def test_real_pictures_take_the_classes_that_were_asked_for():
    rng = np.random.default_rng(0)
    asked, known = rng.integers(0, 4, 40), rng.integers(0, 4, 200)
    order = split_as(asked, known, rng.permutation(200))
    assert sorted(order) == list(range(200))
    np.testing.assert_array_equal(np.bincount(known[order[:40]]), np.bincount(asked))
    rare = np.array([0] * 3 + [1] * 30)  # of a class with too few all are taken
    order = split_as(np.zeros(10, int), rare, np.arange(33))
    assert np.bincount(rare[order[:10]]).tolist() == [3, 7] and sorted(order) == list(range(33))


def test_influence_is_the_derivative_with_respect_to_a_rows_weight():
    rng = np.random.default_rng(0)
    a, b = gaussian(rng, 60, 0.3), gaussian(rng, 80)

    def weighted_moments(rows, i, eps):
        weights = np.full(len(rows), (1 - eps) / len(rows))
        weights[i] += eps
        mean = weights @ rows
        return mean, (weights[:, None] * (rows - mean)).T @ (rows - mean)

    def moved(eps, i):
        parts = weighted_moments(a, i, eps), weighted_moments(b, 0, 0.0)
        return metrics.gaussian_distance(*parts[0], *parts[1])

    numeric = np.array([(moved(1e-5, i) - moved(-1e-5, i)) / 2e-5 for i in range(10)])
    found = metrics.frechet_influence(a, b)[0][:10]
    np.testing.assert_allclose(numeric - numeric.mean(), found - found.mean(), rtol=0.05, atol=0.05)
    swapped = metrics.frechet_influence(b, a)
    np.testing.assert_allclose(metrics.frechet_influence(a, b)[0], swapped[1], rtol=1e-6, atol=1e-6)


def test_kernel_influence_is_its_definition():
    rng = np.random.default_rng(0)
    a, b = gaussian(rng, 7), gaussian(rng, 5)
    def k(x, y):
        return (x @ y / SIZE + 1) ** 3
    wanted = [2 * (np.mean([k(x, y) for j, y in enumerate(a) if j != i]) - np.mean([k(x, y) for y in b]))
              for i, x in enumerate(a)]
    np.testing.assert_allclose(metrics.kernel_influence(a, b)[0], wanted, rtol=1e-12)
    np.testing.assert_allclose(metrics.kernel_influence(b, a)[1], wanted, rtol=1e-12)


def test_few_pictures_and_equal_ones_have_a_spread():
    rng = np.random.default_rng(0)
    found = compare_features(gaussian(rng, 3), gaussian(rng, 6), rng, 4)  # singular covariances
    shares = [key for key in found if key.startswith(("precision", "recall"))]
    assert {found.pop(key) for key in shares} == {None}  # three pictures have no three neighbours each
    assert all(np.isfinite(value) for value in found.values())
    flat = compare_features(np.zeros((4, 3)), np.zeros((9, 3)), rng, 4)
    assert [flat.pop(key) for key in shares] == [1, 1, 0] * 2  # value, floor and its deviation
    assert set(flat.values()) == {0.0}
    assert compare_features(gaussian(rng, 3), gaussian(rng, 6), rng, 1)["spread"] is None
