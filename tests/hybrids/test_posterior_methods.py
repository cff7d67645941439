"""Restorers by a diffusion prior against the exact posterior of Gaussian data, where most of them are exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dipddpm_jax.diffusion import schedules, spacings
from dipddpm_jax.diffusion.training import Pixels
from dipddpm_jax.errors import UserError
from dipddpm_jax.hybrids import ddnm, decoupled, diffpir, dps, pigdm, truncated_reverse
from dipddpm_jax.hybrids.averaged import averaged
from dipddpm_jax.hybrids.prior import DiffusionPrior, grid_from, time_of_noise, transitions
from dipddpm_jax.inverse import exact, noises, operators
from dipddpm_jax.inverse.measurement import Cost, Measurement, Restoration
from dipddpm_jax.types import Prediction

SIDE, SIGMA, DEVIATION, CHAINS = 4, 0.1, 0.2, 400
SCHEDULE, PIXELS = schedules.linear(1000), Pixels(0.4, 0.5)
MEAN = 0.5 + 0.1 * jax.random.normal(jax.random.key(3), (1, SIDE, SIDE, 1))
GAUSSIAN = exact.Mixture(MEAN, DEVIATION)
PRIOR = DiffusionPrior(exact.exact_denoiser(GAUSSIAN, SCHEDULE, PIXELS), SCHEDULE, PIXELS)
HALF = operators.masked(jnp.float32(np.indices((SIDE, SIDE)).sum(0)[..., None] % 2))
POOL = operators.downsample(SIDE, SIDE, 2)


def measured(operator, key=4):
    x = GAUSSIAN.draw(jax.random.key(key), 1)[0]
    y = operator.forward(x)
    return Measurement(y + SIGMA * jax.random.normal(jax.random.key(5), y.shape), operator, noises.Gaussian(SIGMA))


def check(restore, measurement, mean=4.0, deviation=0.1):
    """The mean within `mean` standard errors, the deviation within a share; both of the exact posterior."""
    given = exact.infer(GAUSSIAN, measurement.operator, SIGMA)
    wanted = exact.posterior_of(given, measurement.operator, measurement.y)
    found = restore(measurement, jax.random.key(0))
    assert found.samples.shape == (CHAINS, SIDE, SIDE, 1)
    errors = np.abs(found.picture - wanted.mean) / (wanted.deviation / np.sqrt(CHAINS))
    assert errors.max() < mean, errors
    ratio = np.mean(np.square(found.spread)) / np.mean(np.square(wanted.deviation))
    assert abs(np.sqrt(ratio) - 1) < deviation, ratio


def test_one_call_is_the_posterior_mean_of_denoising():
    measurement = measured(operators.identity)
    given = exact.infer(GAUSSIAN, operators.identity, SIGMA)
    found = truncated_reverse.one_step(PRIOR)(measurement, jax.random.key(0))
    np.testing.assert_allclose(found.picture, exact.posterior_of(given, operators.identity, measurement.y).mean,
                               atol=2e-3)  # the nearest time is 0.2 % off the noise
    assert found.evidence.calls == 1 and found.spread is None


def test_turned_calls_are_the_mean_over_the_positions_of_a_square():
    """Of a denoiser that knows an upright: one that darkens the left column, and no square picture."""
    def denoise(x, t):
        return Prediction(x.at[:, :, 0].add(-1.0), x)

    y = jax.random.uniform(jax.random.key(2), (3, 5, 1))
    found = truncated_reverse.one_step(PRIOR._replace(denoise=denoise), turned=True)(
        Measurement(y, operators.identity, noises.Gaussian(SIGMA)), jax.random.key(0))
    edge = np.zeros((3, 5, 1))
    for side in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        edge[side] += 0.25
    a = np.sqrt(SCHEDULE.alpha_bars[time_of_noise(PRIOR, SIGMA)])
    np.testing.assert_allclose(found.picture, PIXELS.mean + a * (y - PIXELS.mean) - PIXELS.std * edge, atol=1e-6)
    assert found.evidence.calls == 8 and found.spread is None


def test_an_average_is_the_mean_of_two_restorations_at_the_cost_of_both():
    def shifted(by, cost):
        return lambda measurement, key: Restoration(measurement.y + by, None, cost)

    measurement = measured(operators.identity)
    found = averaged(shifted(0.5, Cost(8)), shifted(-0.25, Cost(1, 30)))(measurement, jax.random.key(0))
    np.testing.assert_allclose(found.picture, measurement.y + 0.125, atol=1e-6)
    assert (found.evidence.calls, found.evidence.steps) == (9, 30)


def test_ancestral_steps_from_the_noise_of_the_picture_sample_its_posterior():
    check(truncated_reverse.truncated_reverse(PRIOR, 100, CHAINS), measured(operators.identity))


@pytest.mark.parametrize("way", ["ancestral", "ddim"])
def test_a_reverse_from_another_noise_level_compiles_nothing(way):
    traced = []

    def denoise(x, t):
        traced.append(t)
        return PRIOR.denoise(x, t)

    restore = truncated_reverse.truncated_reverse(PRIOR._replace(denoise=denoise), 10, 2, way)
    y = measured(operators.identity).y
    found = [restore(Measurement(y, operators.identity, noises.Gaussian(SIGMA * times)), jax.random.key(0)).picture
             for times in (1, 2)]
    assert len(traced) == 1 and np.abs(found[0] - found[1]).max() > 0.01


def test_the_deterministic_way_keeps_to_the_probability_flow():
    """For N(m, v^2) it shrinks what is measured by v / sqrt(v^2 + sigma^2), the square root of the mean's factor."""
    measurement = measured(operators.identity)
    found = truncated_reverse.truncated_reverse(PRIOR, 200, way="ddim")(measurement, jax.random.key(0))
    wanted = MEAN[0] + DEVIATION / np.hypot(DEVIATION, SIGMA) * (measurement.y - MEAN[0])
    np.testing.assert_allclose(found.picture, wanted, atol=5e-3)


@pytest.mark.parametrize("operator", [HALF, POOL], ids=["inpaint", "superres"])
@pytest.mark.parametrize("method, calls", [(decoupled.decoupled, 5), (pigdm.pigdm, 100)])
def test_methods_that_know_the_priors_variance_sample_the_posterior(method, calls, operator):
    """Decoupled steps on any grid, ancestral ones with many; for N(m, v^2 I) the matched variance is exact."""
    check(method(PRIOR, calls, CHAINS, variance=pigdm.matched_variance), measured(operator))


def test_the_matched_variance_is_that_of_the_clean_picture_given_the_noisy_one():
    c = jax.tree.map(lambda row: row[0], transitions(SCHEDULE, (400, 0)))
    x = jax.random.normal(jax.random.key(0), (3, SIDE, SIDE, 1))
    _, pull = jax.vjp(lambda x: PRIOR.denoise(x, c.t).x0, x)
    v2, sigma2 = (DEVIATION / PIXELS.std) ** 2, float((c.noise / c.a) ** 2)
    for variance in (pigdm.matched_variance, pigdm.weighted_variance):
        found = variance(c, lambda v: pull(v)[0], jnp.ones_like(x))
        np.testing.assert_allclose(found, v2 * sigma2 / (v2 + sigma2), rtol=1e-5)
    assert np.all(decoupled.noise_variance(c, lambda v: v, x) > found)


def test_variances_of_what_is_uncertain_in_few_directions():
    """C = J s^2 / a with eigenvalues 1 (a tenth of all) and 0.01: the mean is 0.109, the weighted one 0.918."""
    c = jax.tree.map(lambda row: row[0], transitions(SCHEDULE, (400, 0)))
    eigenvalues = jnp.where(jnp.arange(SIDE * SIDE) % 10 == 0, 1.0, 0.01).reshape(1, SIDE, SIDE, 1) * c.a / c.noise**2
    signs = jax.random.rademacher(jax.random.key(0), (2, SIDE, SIDE, 1), jnp.float32)
    mean = float(jnp.mean(eigenvalues) * c.noise**2 / c.a)
    weighted = float(jnp.mean(eigenvalues**2) / jnp.mean(eigenvalues) * c.noise**2 / c.a)
    np.testing.assert_allclose(pigdm.matched_variance(c, lambda v: eigenvalues * v, signs), mean, rtol=1e-5)
    np.testing.assert_allclose(pigdm.weighted_variance(c, lambda v: eigenvalues * v, signs), weighted, rtol=1e-5)
    assert mean < weighted / 5
    worst = pigdm.matched_variance(c, lambda v: -1e-3 * v, signs)  # a trace below 0: as much as it may be wrong by
    np.testing.assert_allclose(worst, 1e-3 / SIDE * c.noise**2 / c.a, rtol=1e-5)


def test_without_noise_ddnm_keeps_what_was_measured_and_draws_the_rest():
    truth = GAUSSIAN.draw(jax.random.key(4), 1)[0]
    measurement = Measurement(HALF.forward(truth), HALF, noises.Gaussian(0.0))
    found = ddnm.ddnm(PRIOR, 100, CHAINS)(measurement, jax.random.key(0))
    known = np.asarray(HALF.forward(jnp.ones_like(truth)))[..., 0] == 1
    np.testing.assert_allclose(found.picture[known], truth[known], atol=1e-5)
    np.testing.assert_allclose(found.picture[~known], MEAN[0][~known], atol=4 * DEVIATION / np.sqrt(CHAINS))
    np.testing.assert_allclose(np.asarray(found.spread)[~known].mean(), DEVIATION, rtol=0.1)


def test_ddnm_refuses_noise_that_it_would_multiply():
    """Masks and downsampling pass noise on; a blur that takes fine detail away divides by next to nothing."""
    y = jnp.ones((SIDE, SIDE, 1))
    assert ddnm.noise_gain(operators.identity, y) == pytest.approx(1, abs=0.2)
    assert ddnm.noise_gain(HALF, y) <= 1.1 and ddnm.noise_gain(POOL, POOL.forward(y)) < ddnm.MOST_GAIN
    blur = operators.blur(SIDE, SIDE, 1.6)
    with pytest.raises(UserError, match="multiplies"):
        ddnm.ddnm(PRIOR, 2)(Measurement(y, blur, noises.Gaussian(0.01)), jax.random.key(0))


def test_a_fully_known_picture_comes_back_from_each_method():
    """Little noise and A = I: whatever a method assumes of the prior, y is the answer."""
    y = GAUSSIAN.draw(jax.random.key(4), 1)[0]
    for make in (ddnm.ddnm, pigdm.pigdm, diffpir.diffpir, decoupled.decoupled):
        found = make(PRIOR, 20)(Measurement(y, operators.identity, noises.Gaussian(1e-3)), jax.random.key(0))
        np.testing.assert_allclose(found.picture, y, atol=0.02)
        assert found.evidence.calls == 20 and found.spread is None


def test_dps_steps_down_the_misfit():
    measurement = measured(POOL)
    far, near = (dps.dps(PRIOR, 50, 8, step_size=size)(measurement, jax.random.key(0)) for size in (0.0, 0.5))
    misfits = [np.sqrt(np.mean(np.square(jax.vmap(POOL.forward)(found.samples) - measurement.y[None])))
               for found in (far, near)]
    assert misfits[1] < 0.5 * misfits[0]


def test_a_step_to_time_0_is_the_clean_picture_and_others_keep_the_variance():
    rows = transitions(SCHEDULE, (1000, 500, 0))
    np.testing.assert_allclose(rows.x0_gain[1], 1, atol=1e-6)
    np.testing.assert_allclose([rows.x_gain[1], rows.deviation[1]], 0, atol=1e-6)
    total = rows.x_gain[0] ** 2 * rows.noise[0] ** 2 + rows.deviation[0] ** 2  # var of x_s given x0
    np.testing.assert_allclose(total, rows.noise_s[0] ** 2, rtol=1e-5)


def test_the_spacing_of_a_prior_is_that_of_its_chains():
    even = PRIOR._replace(spacing=spacings.even_time)
    assert grid_from(even, 100, 4) == (100, 75, 50, 25, 0)
    assert grid_from(PRIOR, 100, 4) == tuple(spacings.even_log_snr(SCHEDULE, 4, 100))


def test_times_of_noise():
    levels = PIXELS.std * np.sqrt(1 / SCHEDULE.alpha_bars[1:] - 1)
    assert time_of_noise(PRIOR, float(levels[299])) == 300
    assert grid_from(PRIOR, 5, 50) == (5, 4, 3, 2, 1, 0)
    for sigma in (0.2 * levels[0], 2 * levels[-1], 0.0):
        with pytest.raises(UserError, match="out of reach"):
            time_of_noise(PRIOR, float(sigma))


def test_what_cannot_be_restored_is_refused():
    with pytest.raises(UserError, match="denoises, and does nothing else"):
        truncated_reverse.one_step(PRIOR)(measured(POOL), jax.random.key(0))
    counts = Measurement(jnp.ones((SIDE, SIDE, 1)), operators.identity, noises.Poisson(20.0))
    with pytest.raises(UserError, match="Gaussian noise alone"):
        pigdm.pigdm(PRIOR, 5)(counts, jax.random.key(0))
