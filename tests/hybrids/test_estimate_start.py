"""Reverse steps from an estimate, and fits that a denoiser guides: their limits on Gaussian data."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dipddpm_jax.diffusion import schedules
from dipddpm_jax.diffusion.training import Pixels
from dipddpm_jax.errors import UserError
from dipddpm_jax.hybrids import estimate_start, guided_fit, pigdm
from dipddpm_jax.hybrids.prior import DiffusionPrior
from dipddpm_jax.inverse import exact, noises, operators
from dipddpm_jax.inverse.measurement import Cost, Measurement, Restoration
from dipddpm_jax.networks import ConvStack

SIDE, DEVIATION = 8, 0.1
SCHEDULE, PIXELS = schedules.linear(1000), Pixels(0.5, 0.5)
GAUSSIAN = exact.Mixture(jnp.full((1, SIDE, SIDE, 1), 0.6), DEVIATION)
PRIOR = DiffusionPrior(exact.exact_denoiser(GAUSSIAN, SCHEDULE, PIXELS), SCHEDULE, PIXELS)
GUESS = jnp.full((SIDE, SIDE, 1), 0.3)


def guess(error=None):
    return lambda measurement, key: Restoration(GUESS, evidence=Cost(calls=3, steps=7, error=error))


def measured(operator=operators.identity, sigma=0.05):
    y = operator.forward(GAUSSIAN.draw(jax.random.key(1), 1)[0])
    return Measurement(y, operator, noises.Gaussian(sigma))


def test_a_late_start_forgets_the_estimate_and_an_early_one_keeps_it():
    found = {time: estimate_start.estimate_start(PRIOR, guess(), estimate_start.at_time(time), 100, 64)(
        measured(), jax.random.key(0)) for time in (1, 1000)}
    np.testing.assert_allclose(found[1].picture, GUESS, atol=0.01)
    np.testing.assert_allclose(found[1000].picture.mean(), 0.6, atol=0.01)
    np.testing.assert_allclose(found[1000].spread.mean(), DEVIATION, rtol=0.1)
    assert found[1].evidence == Cost(1 * 64 + 3, 7) and found[1000].evidence.calls == 100 * 64 + 3


def test_a_start_between_shrinks_the_estimate_as_the_prior_says():
    """From x_t = a d + s eps the chain samples p(x0 | x_t): mean m + g (d - m), g = v^2 / (v^2 + (s / a)^2)."""
    time = 300
    found = estimate_start.estimate_start(PRIOR, guess(), estimate_start.at_time(time), 100, 256)(
        measured(), jax.random.key(0))
    v2, level2 = (DEVIATION / 0.5) ** 2, 1 / SCHEDULE.alpha_bars[time] - 1
    np.testing.assert_allclose(found.picture.mean(), 0.6 + v2 / (v2 + level2) * (0.3 - 0.6), atol=0.01)


def test_guided_steps_from_an_estimate_end_in_the_posterior():
    """CCDF: from a late time the estimate is forgotten, and the measurement is not."""
    half = operators.masked(jnp.float32(np.indices((SIDE, SIDE))[0][..., None] % 2))
    measurement = measured(half, 0.1)
    found = estimate_start.estimate_start(PRIOR, guess(), estimate_start.at_time(900), 100, 400,
                                          pigdm.guided_step(pigdm.matched_variance))(measurement, jax.random.key(0))
    wanted = exact.exact_posterior(GAUSSIAN)(measurement, jax.random.key(0))
    np.testing.assert_allclose(found.picture, wanted.picture, atol=4 * DEVIATION / 400**0.5)
    ratio = np.mean(np.square(found.spread)) / np.mean(np.square(wanted.spread))
    np.testing.assert_allclose(np.sqrt(ratio), 1, rtol=0.1)


def test_a_start_of_its_own_for_every_picture_compiles_nothing():
    traced = []

    def denoise(x, t):
        traced.append(t)
        return PRIOR.denoise(x, t)

    times = iter((300, 500))
    restore = estimate_start.estimate_start(PRIOR._replace(denoise=denoise), guess(), lambda *_: next(times), 10, 2)
    restore(measured(), jax.random.key(0))
    count = len(traced)
    restore(measured(), jax.random.key(0))
    assert len(traced) == count > 0


def test_the_rules_for_the_start_follow_the_estimated_error():
    error, delta = 0.01, 2.0
    estimate = guess(error)(None, None)
    assert abs(SCHEDULE.alpha_bars[estimate_start.at_error(PRIOR, estimate)] - 1 / (1 + error / 0.25)) < 0.002
    thrice = estimate_start.at_error(PRIOR, guess(error / 9)(None, None), 3.0)
    assert thrice == estimate_start.at_error(PRIOR, estimate)
    assert estimate_start.at_error(PRIOR, guess(-1e-4)(None, None)) == 1  # estimates may say so, of good restorations
    time = estimate_start.at_divergence(delta)(PRIOR, estimate)
    snr = SCHEDULE.alpha_bars / (1 - SCHEDULE.alpha_bars + 1e-300)
    total = error / 0.25 * SIDE * SIDE
    assert snr[time] * total <= 2 * delta < snr[time - 1] * total
    assert estimate_start.at_divergence(delta)(PRIOR, guess(error / 100)(None, None)) < time
    with pytest.raises(UserError, match="how large its error is"):
        estimate_start.at_error(PRIOR, guess()(None, None))


def test_a_guided_fit_fills_what_is_not_known_as_the_denoiser_would():
    known = jnp.float32(np.indices((SIDE, SIDE))[0][..., None] % 2)
    measurement = measured(operators.masked(known), 0.0)
    found = {weight: guided_fit.guided_fit(PRIOR, ConvStack((16,), 1), 10, 30, weight)(measurement, jax.random.key(0))
             for weight in (0.0, 0.3)}
    missing = np.asarray(known)[..., 0] == 0
    far, near = (np.sqrt(np.mean((np.asarray(found[weight].picture)[missing] - 0.6) ** 2)) for weight in (0.0, 0.3))
    assert near < 0.7 * far
    assert np.sqrt(np.mean((np.asarray(found[0.0].picture)[~missing] - measurement.y[~missing]) ** 2)) < 0.1
    assert found[0.3].evidence == Cost(calls=10, steps=300) and found[0.3].spread is None
