"""The referee's choice without the clean picture against the oracle's, and the splits that it judges by."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.optimize import minimize
from scipy.stats import poisson

from dipddpm_jax.errors import UserError
from dipddpm_jax.inverse import anscombe, operators, referee, splitting
from dipddpm_jax.inverse.measurement import Cost, Measurement, Restoration
from dipddpm_jax.inverse.noises import Gaussian, Poisson

SIDE = 64


def scene(side=SIDE):
    """A disc, a bar and a ramp, in [0, 1]."""
    i, j = np.mgrid[:side, :side] / side
    picture = 0.2 + 0.3 * i + 0.4 * ((i - 0.4) ** 2 + (j - 0.6) ** 2 < 0.05) + 0.1 * (abs(j - 0.2) < 0.05)
    return jnp.asarray(picture[..., None], jnp.float32)


def smoother(width):
    """A restorer that blurs by `width` pixels; 0 does nothing."""
    def restore(measurement, key):
        y = np.asarray(measurement.y)
        return Restoration(jnp.asarray(gaussian_filter(y, (width, width, 0)) if width else y, jnp.float32), None,
                           Cost(steps=3))

    return restore


SMOOTHERS = {f"width {width}": smoother(width) for width in (0, 0.5, 1, 2, 4)}


def error(picture):
    return float(np.mean((np.asarray(picture) - np.asarray(scene(len(picture)))) ** 2))


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.3])
def test_the_choice_is_the_oracles_and_the_stack_is_as_good(sigma):
    key = jax.random.key(int(100 * sigma))
    measurement = Measurement(Gaussian(sigma).draw(key, scene()), operators.identity, Gaussian(sigma))
    choice = referee.recommend(SMOOTHERS, measurement, jax.random.key(1), draws=4)
    true = {name: error(restore(measurement, key).picture) for name, restore in SMOOTHERS.items()}
    assert choice.best == min(true, key=true.get)
    stack = referee.stacked(SMOOTHERS, draws=4)(measurement, jax.random.key(2))
    assert error(stack.picture) < 1.02 * min(true.values())
    # y1 is noisier by a quarter, and a mean of n squares of noise of variance v is off by v sqrt(2 / n).
    chance = sigma**2 / 0.2 * (2 / SIDE**2) ** 0.5
    assert error(stack.picture) == pytest.approx(stack.evidence.error, rel=0.5, abs=2 * chance)
    single = referee.chosen(SMOOTHERS)(measurement, jax.random.key(3))
    assert np.array_equal(single.picture, SMOOTHERS[choice.best](measurement, key).picture)


def test_the_estimated_errors_are_those_of_what_the_restorers_saw():
    sigma, key = 0.1, jax.random.key(5)
    clean = scene(256)  # so large that the draw of the noise hardly matters
    measurement = Measurement(Gaussian(sigma).draw(key, clean), operators.identity, Gaussian(sigma))
    choice = referee.recommend(SMOOTHERS, measurement, key, draws=4)
    noisier = [clean + sigma / 0.8**0.5 * jax.random.normal(jax.random.key(i), clean.shape) for i in range(4)]
    for name, restore in SMOOTHERS.items():
        seen = np.mean([error(restore(measurement._replace(y=y), key).picture) for y in noisier])
        assert choice.errors[name] == pytest.approx(seen, rel=0.15, abs=4e-4), name


@pytest.mark.parametrize("peak", [5.0, 200.0])
def test_photons_are_thinned_and_the_choice_is_the_oracles(peak):
    key = jax.random.key(int(peak))
    measurement = Measurement(Poisson(peak).draw(key, scene(256)), operators.identity, Poisson(peak))
    true = {name: error(restore(measurement, key).picture) for name, restore in SMOOTHERS.items()}
    assert referee.recommend(SMOOTHERS, measurement, jax.random.key(1), draws=4).best == min(true, key=true.get)


def test_holes_are_judged_on_known_pixels_without_noise():
    """Normalised blurs of the known pixels: the narrowest that reaches over the holes is best."""
    def filler(width):
        def restore(measurement, key):
            weight = measurement.operator.forward(jnp.ones_like(measurement.y))
            sums, weights = (gaussian_filter(np.asarray(x), (width, width, 0)) for x in (measurement.y, weight))
            return Restoration(jnp.asarray(sums / np.maximum(weights, 1e-9), jnp.float32))

        return restore

    fillers = {f"{width}": filler(width) for width in (1.0, 3.0, 8.0)}
    known = operators.random_mask(jax.random.key(0), SIDE, SIDE, 0.5)
    operator = operators.masked(known)
    measurement = Measurement(operator.forward(scene()), operator, Gaussian(0.0))
    choice = referee.recommend(fillers, measurement, jax.random.key(1), draws=4, split=splitting.split_pixels(known))
    true = {name: error(restore(measurement, jax.random.key(0)).picture) for name, restore in fillers.items()}
    assert choice.best == min(true, key=true.get) == "1.0"
    # In a hole the error is that of the pixels held out, which these are too.
    holes = 1 - np.asarray(known)
    wrong = (np.asarray(fillers["1.0"](measurement, jax.random.key(0)).picture - scene()) * holes) ** 2
    assert choice.errors["1.0"] == pytest.approx(wrong.sum() / holes.sum(), rel=0.5)


def test_what_cannot_be_judged_is_said():
    measurement = Measurement(scene(), operators.identity, Gaussian(0.0))
    with pytest.raises(UserError, match="no noise to split"):
        referee.recommend(SMOOTHERS, measurement, jax.random.key(0))
    with pytest.raises(UserError, match="1 to 12 restorers"):
        referee.recommend({}, measurement, jax.random.key(0))


def test_convex_weights_are_the_minimum():
    independent = np.diag([1.0, 2.0, 4.0])
    assert referee.convex_weights(independent) == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    worse = np.array([[1.0, 1.0], [1.0, 2.0]])  # the second is the first with more error added
    assert referee.convex_weights(worse) == pytest.approx([1, 0])
    rng = np.random.default_rng(0)
    for _ in range(5):
        root = rng.normal(size=(4, 4)) + 1
        products = root @ root.T
        found = minimize(lambda w, p=products: w @ p @ w, np.full(4, 0.25), bounds=[(0, 1)] * 4, method="SLSQP",
                         constraints={"type": "eq", "fun": lambda w: w.sum() - 1}, options={"ftol": 1e-12})
        assert referee.convex_weights(products) == pytest.approx(found.x, abs=1e-3)


def test_gaussian_halves_are_independent_and_make_up_the_whole():
    y = 0.5 + 0.1 * jax.random.normal(jax.random.key(0), (400, 400, 1))
    halves = splitting.split_noise(Measurement(y, operators.identity, Gaussian(0.1)), jax.random.key(1), 0.8)
    first, second = np.asarray(halves.seen.y) - 0.5, np.asarray(halves.kept) - 0.5
    assert 0.8 * first + 0.2 * second == pytest.approx(np.asarray(y) - 0.5, abs=3e-6)
    assert halves.seen.noise.sigma**2 == pytest.approx(0.0125) and first.var() == pytest.approx(0.0125, rel=0.02)
    assert float(halves.variance) == pytest.approx(0.05) and second.var() == pytest.approx(0.05, rel=0.02)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 4 / 400


def test_halves_of_photons_with_read_out_noise_are_uncorrelated():
    noise = Poisson(10.0, 0.05)
    y = noise.draw(jax.random.key(0), jnp.full((400, 400, 1), 0.5))
    halves = splitting.split_noise(Measurement(y, operators.identity, noise), jax.random.key(1), 0.8)
    first, second = halves.seen.y.ravel() - 0.5, halves.kept.ravel() - 0.5
    assert abs(float(jnp.corrcoef(first, second)[0, 1])) < 0.01
    grey = jnp.full((1,), 0.5)
    np.testing.assert_allclose(first.var(), halves.seen.noise.variance(grey)[0], rtol=0.02)
    np.testing.assert_allclose(second.var(), halves.variance, rtol=0.02)
    np.testing.assert_allclose(halves.variance, noise.variance(grey)[0] / 0.2, rtol=0.02)


def test_poisson_halves_are_independent_and_make_up_the_whole():
    y = Poisson(10.0).draw(jax.random.key(0), jnp.full((400, 400, 1), 0.5))
    halves = splitting.split_noise(Measurement(y, operators.identity, Poisson(10.0)), jax.random.key(1), 0.8)
    first, second = np.asarray(halves.seen.y), np.asarray(halves.kept)
    assert 0.8 * first + 0.2 * second == pytest.approx(np.asarray(y), abs=1e-5)
    assert halves.seen.noise.peak == pytest.approx(8)
    assert first.mean() == pytest.approx(0.5, rel=0.01) and first.var() == pytest.approx(0.5 / 8, rel=0.02)
    assert second.var() == pytest.approx(float(halves.variance), rel=0.02)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 4 / 400


def test_anscombes_inverse_is_unbiased():
    counts = np.arange(400)
    means = np.array([0.5, 1.0, 3.0, 10.0, 30.0, 100.0])
    law = poisson.pmf(counts[:, None], means)
    transformed = np.asarray(anscombe.anscombe(jnp.asarray(counts, jnp.float32)), np.float64) @ law
    assert np.asarray(anscombe.unbiased_inverse(jnp.asarray(transformed, jnp.float32))) == pytest.approx(
        means, rel=0.01, abs=0.02)
    spread = np.asarray(anscombe.anscombe(jnp.asarray(counts, jnp.float32)), np.float64) ** 2 @ law - transformed**2
    assert spread[3:] == pytest.approx(np.ones(3), rel=0.02)


def test_a_restorer_of_gaussian_noise_restores_counts():
    def mean(measurement, key):
        assert float(measurement.noise.sigma) == pytest.approx(float(measurement.y.std()), rel=0.05)
        return Restoration(jnp.full_like(measurement.y, measurement.y.mean()), None, Cost(error=1.0))

    y = Poisson(20.0).draw(jax.random.key(0), jnp.full((64, 64, 1), 0.4))
    restoration = anscombe.stabilised(mean)(Measurement(y, operators.identity, Poisson(20.0)), jax.random.key(0))
    assert float(restoration.picture[0, 0, 0]) == pytest.approx(0.4, abs=0.01)
    assert restoration.evidence.error is None
    dim = Poisson(20.0, 0.2)  # reading out adds more noise than the photons have
    y = dim.draw(jax.random.key(0), jnp.full((64, 64, 1), 0.4))
    restoration = anscombe.stabilised(mean)(Measurement(y, operators.identity, dim), jax.random.key(0))
    assert float(restoration.picture[0, 0, 0]) == pytest.approx(0.4, abs=0.015)
    with pytest.raises(UserError, match="operator"):
        anscombe.stabilised(mean)(
            Measurement(y, operators.masked(jnp.ones((64, 64, 1))), Poisson(20.0)), jax.random.key(0))
