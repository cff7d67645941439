"""Methods that learn from the one picture: weights between reverse steps, the start of a chain, an educated network.

The denoiser is that of Gaussian data N(mean, v^2 I), whose only weights are the mean; so all that is learned, and what
must not be, is known in closed form.
"""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dipddpm_jax.diffusion import schedules, spacings
from dipddpm_jax.diffusion.training import Pixels
from dipddpm_jax.dip.folds import fold_masks
from dipddpm_jax.errors import UserError
from dipddpm_jax.hybrids import adaptation, educated_start, learned_start, pigdm, trained_self_diffusion
from dipddpm_jax.hybrids.prior import DiffusionPrior, Learned, time_of_noise, transitions
from dipddpm_jax.inverse import exact, noises, operators
from dipddpm_jax.inverse.measurement import Measurement

SIDE, DEVIATION, SIGMA = 8, 0.1, 0.05
SCHEDULE, PIXELS = schedules.linear(1000), Pixels(0.5, 0.5)
HALF = operators.masked(jnp.float32(np.indices((SIDE, SIDE)).sum(0)[..., None] % 2))
POOL = operators.downsample(SIDE, SIDE, 2)
STEP = pigdm.guided_step()


def denoiser(params):
    mean = jnp.broadcast_to(params["mean"], (1, SIDE, SIDE, 1))
    return exact.exact_denoiser(exact.Mixture(mean, DEVIATION), SCHEDULE, PIXELS)


def prior_of(mean):
    params = {"mean": jnp.asarray(mean, jnp.float32)}
    return DiffusionPrior(denoiser(params), SCHEDULE, PIXELS, learned=Learned(params, denoiser))


ONE_MEAN, A_MEAN_A_PIXEL = jnp.full((1, 1, 1, 1), 0.7), jnp.full((1, SIDE, SIDE, 1), 0.7)


def measured(operator, sigma=SIGMA, level=0.3):
    """A picture of N(0.3, v^2), which a prior with the mean 0.7 does not expect, and its measurement."""
    truth = level + DEVIATION * jax.random.normal(jax.random.key(1), (SIDE, SIDE, 1))
    y = operator.forward(truth)
    seen = operator.forward(jnp.ones_like(truth)) != 0
    noise = sigma * jax.random.normal(jax.random.key(2), y.shape)
    return truth, Measurement(y + seen * noise, operator, noises.Gaussian(sigma))


def rms(a, b):
    return float(np.sqrt(np.mean(np.square(a - b))))


def test_without_updates_an_adapted_chain_is_the_chain():
    _, measurement = measured(HALF)
    prior = prior_of(ONE_MEAN)
    wanted = pigdm.pigdm(prior, 10, 3, pigdm.matched_variance)(measurement, jax.random.key(0))
    found = adaptation.adapted(prior, 10, 3, updates=0)(measurement, jax.random.key(0))
    np.testing.assert_array_equal(found.samples, wanted.samples)
    assert found.evidence == wanted.evidence


@pytest.mark.parametrize("operator", [HALF, POOL], ids=["inpaint", "superres"])
def test_what_is_learned_between_steps_holds_for_the_whole_picture(operator):
    """One mean for all pixels: learned where y is seen, it mends the rest as well."""
    truth, measurement = measured(operator)
    before, after = (adaptation.adapted(prior_of(ONE_MEAN), 20, 4, updates=updates, rate=0.02, step=STEP)(
        measurement, jax.random.key(0)) for updates in (0, 3))
    assert rms(after.picture, truth) < 0.6 * rms(before.picture, truth)
    assert after.evidence.steps == 60 and after.evidence.calls > before.evidence.calls


def test_weights_that_learn_by_heart_are_not_taken():
    """A mean for each pixel: what the fitted ones learn tells nothing of those held out, whose error does not fall."""
    _, measurement = measured(HALF)
    before, after = (adaptation.adapted(prior_of(A_MEAN_A_PIXEL), 10, 4, updates=updates, rate=0.02, step=STEP)(
        measurement, jax.random.key(0)) for updates in (0, 3))
    np.testing.assert_allclose(after.samples, before.samples, atol=1e-5)


def gain_of_chain(calls):
    """R(z) = mean + gain z in pixels, for Gaussian data: the steps of DDIM multiplied, in float64."""
    gain, v2 = PIXELS.std, (DEVIATION / PIXELS.std) ** 2
    grid = spacings.even_time(SCHEDULE, calls)
    for t, s in zip(grid[:-1], grid[1:], strict=True):
        bar, bar_s = SCHEDULE.alpha_bars[t], SCHEDULE.alpha_bars[s]
        shrink = np.sqrt(bar) * v2 / (bar * v2 + 1 - bar)
        gain *= np.sqrt(bar_s) * shrink + np.sqrt((1 - bar_s) / (1 - bar)) * (1 - np.sqrt(bar) * shrink)
    return gain


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_a_learned_start_is_the_likeliest_where_it_looks_and_the_mean_where_it_does_not(weight):
    """argmin (m + g z - y)^2 + w sigma^2 z^2 is m + g^2 / (g^2 + w sigma^2) (y - m)."""
    key, folds, calls = jax.random.key(0), 4, 3
    blind = fold_masks(jax.random.fold_in(key, 0), jnp.ones((SIDE, SIDE, 1)), folds)[0]
    _, measurement = measured(operators.identity, level=0.7)
    # Where the start is blind y is the prior's mean, so that the error there falls until z is 0.
    measurement = measurement._replace(y=jnp.where(blind == 1, 0.7, measurement.y))
    found = learned_start.learned_start(prior_of(ONE_MEAN), 1, calls, 400, 0.05, weight, folds, 400)(measurement, key)
    g2 = gain_of_chain(calls) ** 2
    wanted = 0.7 + g2 / (g2 + weight * SIGMA**2) * (measurement.y - 0.7)
    np.testing.assert_allclose(found.picture, wanted, atol=2e-3)
    assert found.evidence.calls == 3 * found.evidence.steps


def test_learned_starts_stop_by_themselves_near_the_posterior_mean():
    truth, measurement = measured(POOL, level=0.7)
    restore = learned_start.learned_start(prior_of(ONE_MEAN), 4, steps=2000, weight=0.01, patience=30)
    found = restore(measurement, jax.random.key(0))
    assert found.evidence.steps < 1000 and found.samples.shape == (4, SIDE, SIDE, 1)
    wanted = exact.exact_posterior(exact.Mixture(jnp.full((1, SIDE, SIDE, 1), 0.7), DEVIATION))(
        measurement, jax.random.key(0))
    assert rms(found.picture, truth) < 1.3 * rms(wanted.picture, truth)


def test_a_smooth_explanation_keeps_what_it_sees_and_sees_nothing_else():
    truth, measurement = measured(operators.identity, 0.0)
    everywhere = jnp.ones_like(truth)
    np.testing.assert_allclose(educated_start.smooth_explanation(operators.identity, truth, everywhere, 1e-4), truth,
                               atol=1e-3)
    seen = HALF.forward(everywhere)
    one, other = (educated_start.smooth_explanation(operators.identity, y, seen, 0.01)
                  for y in (truth, jnp.where(seen == 1, truth, 9.0)))
    np.testing.assert_array_equal(one, other)
    for operator in (HALF, POOL):  # a constant is smooth, and explained by itself
        y = operator.forward(0.4 * everywhere)
        np.testing.assert_allclose(educated_start.smooth_explanation(operator, y, jnp.ones_like(y), 0.01), 0.4,
                                   atol=1e-3)


def test_an_educated_start_that_learns_nothing_is_the_denoiser_where_it_was_blind_too():
    _, measurement = measured(operators.identity)
    prior, key = prior_of(ONE_MEAN), jax.random.key(0)
    found = educated_start.educated_start(prior, 3, 100, 0.0, SIGMA)(measurement, key)
    time = time_of_noise(prior, SIGMA)
    c = jax.tree.map(lambda row: row[0], transitions(SCHEDULE, (time, 0)))
    pictures = []
    for part in fold_masks(jax.random.fold_in(key, 0), jnp.ones((SIDE, SIDE, 1)), 3):
        z = educated_start.smooth_explanation(operators.identity, measurement.y, 1 - part, 0.01)
        pictures.append(PIXELS.to_pixels(prior.denoise(c.a * PIXELS.to_network(z[None]), c.t).x0)[0])
    np.testing.assert_allclose(found.picture, np.mean(pictures, 0), atol=1e-5)


def test_self_diffusion_that_learns_nothing_is_a_chain_of_the_denoiser():
    """At rate 0 each level is x <- mean + g (x - mean) + noise, and the level with the lowest blind error is kept."""
    _, measurement = measured(operators.identity)
    prior, key, levels = prior_of(ONE_MEAN), jax.random.key(0), 6
    found = trained_self_diffusion.trained_self_diffusion(prior, levels, 2, 0.0, 3)(measurement, key)
    grid = spacings.even_log_snr(SCHEDULE, levels, spacings.start_time(SCHEDULE))
    keys, pictures = jax.random.split(jax.random.fold_in(key, 1), 3), []
    for part, own in zip(fold_masks(jax.random.fold_in(key, 0), jnp.ones((SIDE, SIDE, 1)), 3), keys, strict=True):
        x, best = jnp.zeros((1, SIDE, SIDE, 1)), (np.inf, None)
        for t in jnp.asarray(grid[:-1]):
            a, s = SCHEDULE.signal_scale(t), SCHEDULE.noise_scale(t)
            eps = jax.random.normal(jax.random.fold_in(own, t), (SIDE, SIDE, 1))[None]
            x = prior.denoise(a * x + s * eps, t).x0
            picture = PIXELS.to_pixels(x)[0]
            wrong = float(jnp.sum(part * jnp.square(picture - measurement.y)))
            best = min(best, (wrong, picture), key=lambda pair: pair[0])
        pictures.append(best[1])
    np.testing.assert_allclose(found.picture, np.mean(pictures, 0), atol=1e-5)
    assert found.evidence.calls == 3 * levels and found.evidence.steps == 3 * levels * 2


@pytest.mark.parametrize("make", [
    lambda prior, learns: educated_start.educated_start(prior, 3, 200, 0.02 * learns, 0.2),
    lambda prior, learns: trained_self_diffusion.trained_self_diffusion(prior, 20, 10, 0.01 * learns, 3),
], ids=["educated start", "self-diffusion"])
@pytest.mark.parametrize("operator", [operators.identity, HALF, POOL], ids=["denoise", "inpaint", "superres"])
def test_a_network_that_begins_as_the_trained_one_learns_what_the_prior_did_not_know(operator, make):
    truth, measurement = measured(operator)
    before, after = (make(prior_of(ONE_MEAN), learns)(measurement, jax.random.key(0)) for learns in (False, True))
    assert rms(after.picture, truth) < 0.6 * rms(before.picture, truth)
    assert after.evidence.steps > 0 and after.evidence.error < before.evidence.error


@pytest.mark.parametrize("make", [adaptation.adapted, educated_start.educated_start,
                                  trained_self_diffusion.trained_self_diffusion])
def test_a_denoiser_in_closed_form_has_no_weights_to_learn(make):
    with pytest.raises(UserError, match="a denoiser in closed form has none"):
        make(prior_of(ONE_MEAN)._replace(learned=None))
