"""Exact posteriors against dense matrices and brute force in float64; samples against the same."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dipddpm_jax.diffusion import denoisers, schedules
from dipddpm_jax.diffusion.training import Pixels
from dipddpm_jax.errors import UserError
from dipddpm_jax.inverse import exact, noises, operators
from dipddpm_jax.inverse.measurement import Measurement

SIDE, SIGMA, DEVIATION = 6, 0.2, 0.15
KNOWN = (np.random.default_rng(5).uniform(size=(SIDE, SIDE, 1)) < 0.5).astype(np.float32)
OPERATORS = {
    "denoise": operators.identity, "inpaint": operators.masked(jnp.asarray(KNOWN)),
    "deblur": operators.blur(SIDE, SIDE, 0.8), "superres": operators.downsample(SIDE, SIDE, 2),
}


def centres(count, spread=0.05):
    return 0.5 + spread * np.random.default_rng(1).normal(size=(count, SIDE, SIDE, 1))


def matrix(operator):
    units = jnp.eye(SIDE * SIDE).reshape(-1, SIDE, SIDE, 1)
    return np.asarray(jax.vmap(operator.forward)(units)).reshape(SIDE * SIDE, -1).T


def by_matrices(means, a, y):
    """Weights, mean, covariance of p(x | y) by dense linear algebra, component by component."""
    joint = DEVIATION**2 * a @ a.T + SIGMA**2 * np.eye(len(a))
    gain = DEVIATION**2 * a.T @ np.linalg.inv(joint)
    residual = y - means @ a.T
    logs = -0.5 * np.einsum("ni,ij,nj->n", residual, np.linalg.inv(joint), residual)
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()
    each = means + residual @ gain.T
    mean = weights @ each
    within = DEVIATION**2 * (np.eye(means.shape[1]) - gain @ a)
    return weights, mean, within + np.einsum("n,ni,nj->ij", weights, each - mean, each - mean)


@pytest.mark.parametrize("count", [1, 7])  # one component: the Gaussian prior
@pytest.mark.parametrize("task", OPERATORS)
def test_the_posterior_is_that_of_dense_matrices(task, count):
    with jax.enable_x64(True):
        means, operator = centres(count), OPERATORS[task]
        a = matrix(operator)
        y = (means[0].reshape(-1) @ a.T + 0.3 * np.random.default_rng(2).normal(size=len(a)))
        if task == "inpaint":
            y = y * KNOWN.reshape(-1)
        weights, mean, covariance = by_matrices(means.reshape(count, -1), a, y)
        assert count == 1 or 0.01 < np.sort(weights)[-2]  # more than one component counts
        shape = jax.eval_shape(operator.forward, jnp.zeros((SIDE, SIDE, 1))).shape
        given = exact.infer(exact.Mixture(jnp.asarray(means), DEVIATION), operator, SIGMA)
        found = exact.posterior_of(given, operator, jnp.asarray(y.reshape(shape)))
        np.testing.assert_allclose(found.weights, weights, atol=1e-9)
        np.testing.assert_allclose(found.mean.reshape(-1), mean, atol=1e-9)
        np.testing.assert_allclose(found.deviation.reshape(-1), np.sqrt(np.diag(covariance)), atol=1e-9)


def test_samples_have_the_posteriors_mean_and_covariance():
    means, operator = centres(7), OPERATORS["superres"]
    a = matrix(operator).astype(np.float64)
    y = means[0].reshape(-1) @ a.T
    weights, mean, covariance = by_matrices(means.reshape(7, -1), a, y)
    given = exact.infer(exact.Mixture(jnp.float32(means), DEVIATION), operator, SIGMA)
    drawn = exact.posterior_samples(given, operator, jnp.float32(y.reshape(3, 3, 1)), jax.random.key(0), 8_000)
    drawn = np.asarray(drawn, np.float64).reshape(len(drawn), -1)
    error = 4 * np.sqrt(np.diag(covariance) / len(drawn))  # four standard errors
    assert np.all(np.abs(drawn.mean(0) - mean) < error)
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=5 * DEVIATION**2 / np.sqrt(len(drawn)))


def test_the_denoiser_is_the_mean_given_a_noisy_picture():
    """E[x0 | x_t] is the posterior mean of denoising y = x_t / a at the level s_t / a, in the network's units."""
    pixels, schedule = Pixels(0.4, 0.3), schedules.linear(1000)
    with jax.enable_x64(True):
        prior = exact.Mixture(jnp.asarray(centres(9)), DEVIATION)
        denoise = exact.exact_denoiser(prior, schedule, pixels)
        x = jax.random.normal(jax.random.key(0), (2, SIDE, SIDE, 1))
        for t in (1, 300, 1000):
            a, s = np.sqrt(schedule.alpha_bars[t]), np.sqrt(1 - schedule.alpha_bars[t])
            found = jax.jit(lambda denoise, x, t: denoise(x, t))(denoise, x, jnp.int32(t))
            given = exact.infer(prior, operators.identity, pixels.std * s / a)
            for row, x_t in zip(found.x0, x):
                wanted = exact.posterior_of(given, operators.identity, pixels.to_pixels(x_t[None] / a)[0]).mean
                np.testing.assert_allclose(pixels.to_pixels(row[None])[0], wanted, atol=1e-7)
            np.testing.assert_allclose(a * found.x0 + s * found.eps, x, atol=1e-12)


def test_one_centre_is_the_gaussian_denoiser():
    schedule = schedules.cosine(50)
    prior = exact.Mixture(jnp.full((1, 4, 4, 1), 0.7), 0.2)
    x = jax.random.normal(jax.random.key(1), (3, 4, 4, 1))
    for t in (1, 25, 50):
        found = exact.exact_denoiser(prior, schedule, Pixels(0.0, 1.0))(x, jnp.int32(t))
        wanted = denoisers.gaussian_data(schedule, 0.7, 0.2)(x, jnp.int32(t))
        np.testing.assert_allclose(found.x0, wanted.x0, atol=2e-6)


def test_float32_is_enough_for_thousands_of_distances():
    """1,000 components at 28x28, at the least noise of the usual schedule: weights as float64 has them."""
    schedule, t = schedules.linear(1000), jnp.int32(1)
    rng = np.random.default_rng(0)
    pictures = rng.uniform(size=(1, 28, 28, 1)) + 0.002 * rng.normal(size=(1000, 28, 28, 1))  # hard to tell apart
    x = 2 * pictures[:2] - 1 + 0.1 * rng.normal(size=(2, 28, 28, 1))

    def found(dtype):
        prior = exact.Mixture(jnp.asarray(pictures, dtype), 0.05)
        return np.asarray(exact.exact_denoiser(prior, schedule)(jnp.asarray(x, dtype), t).x0)

    single = found(jnp.float32)
    with jax.enable_x64(True):
        np.testing.assert_allclose(single, found(jnp.float64), atol=2e-5)


def test_the_restorer_gives_the_posterior_and_refuses_noise_of_counts():
    prior = exact.Mixture(jnp.float32(centres(5)), DEVIATION)
    y = jnp.full((SIDE, SIDE, 1), 0.5)
    restored = exact.exact_posterior(prior, samples=3)(
        Measurement(y, operators.identity, noises.Gaussian(SIGMA)), jax.random.key(0))
    found = exact.posterior_of(exact.infer(prior, operators.identity, SIGMA), operators.identity, y)
    np.testing.assert_array_equal(restored.picture, found.mean)
    np.testing.assert_array_equal(restored.spread, found.deviation)
    assert restored.samples.shape == (3, SIDE, SIDE, 1)
    with pytest.raises(UserError, match="Gaussian noise alone"):
        exact.exact_posterior(prior)(Measurement(y, operators.identity, noises.Poisson(10.0)), jax.random.key(0))
