"""Nonlocal Bayes against its equations, patch by patch, and on noise whose end is known."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dipddpm_jax import classical
from dipddpm_jax.errors import UserError
from dipddpm_jax.inverse import nonlocal_bayes as nlb
from dipddpm_jax.inverse import operators, patches
from dipddpm_jax.inverse.measurement import Cost, Measurement, Restoration
from dipddpm_jax.inverse.noises import Gaussian, Poisson

SIGMA, KEY = 0.1, jax.random.key(0)
GROUPS = patches.Groups(12, 2)


def scene(side=32, channels=1):
    i, j = np.mgrid[:side, :side] / side
    stripes = 0.15 * np.sin(14 * (i + j)) * (i > 0.4)
    picture = 0.3 + 0.3 * j + stripes + 0.2 * ((i - 0.3) ** 2 + (j - 0.6) ** 2 < 0.05)
    return jnp.asarray(np.repeat(picture[..., None], channels, -1), jnp.float32)


def measured(noise, channels=1, side=32):
    return Measurement(noise.draw(KEY, scene(side, channels)), operators.identity, noise)


def error(picture, clean):
    return float(jnp.mean(jnp.square(picture - clean)))


OPPONENT = np.array([[1, 1, 1], [1.5**0.5, 0, -(1.5**0.5)], [0.5**0.5, -(2**0.5), 0.5**0.5]]) / 3**0.5  # orthonormal


def of_colours(y, variance, pilot, groups, known=None):
    """Half of it by small patches of all channels, half by larger ones of each opponent colour, at fewer places."""
    turned = [a @ OPPONENT.T for a in (y, pilot)]
    variances = variance @ (OPPONENT**2).T
    apart = np.concatenate([
        by_hand(turned[0][..., i:i+1], variances[..., i:i+1], turned[1][..., i:i+1],
                groups._replace(stride=2 * groups.stride), known, guide=turned[1]) for i in range(3)], -1)
    return (by_hand(y, variance, pilot, groups, None if known is None else np.repeat(known, 3, -1))
            + apart @ OPPONENT) / 2


def by_hand(y, variance, pilot, groups, known=None, guide=None):
    """The pass as its equations read: loops, and C as it is; of patches with holes the pixels that are known."""
    height, width, channels = y.shape
    guide = pilot if guide is None else guide
    side = min(patches.SIDE, int((patches.LARGEST / channels) ** 0.5))
    corners = [(i, j) for i in range(height - side + 1) for j in range(width - side + 1)]

    def patch(picture, corner):
        return picture[corner[0] : corner[0] + side, corner[1] : corner[1] + side].ravel()

    def places(last):
        return sorted({*range(0, last, groups.stride), last})

    sums, counts = np.zeros_like(y), np.zeros((height, width, 1))
    for i in places(height - side):
        for j in places(width - side):
            near = [c for c in corners if max(abs(c[0] - i), abs(c[1] - j)) <= patches.REACH]
            near.sort(key=lambda c: float(np.sum((patch(guide, c) - patch(guide, (i, j))) ** 2)))
            chosen = near[: groups.count]
            like, noisy = (np.array([patch(picture, c) for c in chosen]) for picture in (pilot, y))
            noise = np.diag(np.mean([patch(variance, c) for c in chosen], 0))
            mean, c = like.mean(0), np.cov(like.T)
            found = mean + (noisy - mean) @ np.linalg.solve(c + noise, c) if known is None else [
                mean + c[:, at] @ np.linalg.solve(c[np.ix_(at, at)] + np.diag(patch(variance, corner)[at]),
                                                  values[at] - mean[at])
                for corner, values in zip(chosen, noisy) for at in [np.flatnonzero(patch(known, corner))]]
            for (a, b), values in zip(chosen, found):
                sums[a : a + side, b : b + side] += values.reshape(side, side, channels)
                counts[a : a + side, b : b + side] += 1
    return sums / counts


@pytest.mark.parametrize("channels", [1, 3])
def test_a_pass_is_the_mean_of_the_patches_that_the_equation_gives(channels):
    clean = np.asarray(scene(20, channels), np.float64)
    rng = np.random.default_rng(0)
    pilot, y = (clean + deviation * rng.normal(size=clean.shape) for deviation in (0.02, SIGMA))
    variance = SIGMA**2 * (0.5 + clean)
    single = [jnp.asarray(a, jnp.float32) for a in (y, variance, pilot)]
    expected = by_hand if channels == 1 else of_colours
    found = patches.nonlocal_bayes_pass(*single, GROUPS)
    np.testing.assert_allclose(found, expected(y, variance, pilot, GROUPS), atol=2e-4)
    known = (rng.random((20, 20, 1)) < 0.5).astype(np.float32)
    found = patches.nonlocal_bayes_pass(*single, GROUPS, jnp.asarray(known))
    np.testing.assert_allclose(found, expected(y, variance, pilot, GROUPS, known), atol=2e-4)
    mosaic = (rng.random(clean.shape) < 0.5).astype(np.float32)
    found = patches.nonlocal_bayes_pass(*single, GROUPS, jnp.asarray(mosaic))
    np.testing.assert_allclose(found, by_hand(y, variance, pilot, GROUPS, mosaic), atol=2e-4)


@pytest.mark.parametrize("noise, channels", [(Gaussian(SIGMA), 1), (Gaussian(SIGMA), 3), (Poisson(60.0), 1),
                                             (Poisson(60.0, 0.05), 1)])
def test_alone_it_leaves_less_noise_than_non_local_means(noise, channels):
    given = measured(noise, channels)
    found, means = (restore(given, KEY).picture for restore in (nlb.nonlocal_bayes(), classical.non_local_means()))
    assert error(found, scene(channels=channels)) < 0.8 * error(means, scene(channels=channels))


def test_where_there_is_nothing_but_noise_the_grey_is_left():
    grey = jnp.full((24, 24, 1), 0.5)
    given = Measurement(Gaussian(SIGMA).draw(KEY, grey), operators.identity, Gaussian(SIGMA))
    assert error(nlb.nonlocal_bayes()(given, KEY).picture, grey) < 0.02 * SIGMA**2


@pytest.mark.parametrize("channels", [1, 3])
def test_patches_that_are_all_the_same_stay_what_they_are(channels):
    """A black frame, as of a scan: more patches than a group holds, none of which tells more than another."""
    frame = jnp.zeros((32, 32, channels)).at[:10, :10].set(scene(10, channels))
    noisy = frame.at[:10, :10].add(SIGMA * jax.random.normal(KEY, (10, 10, channels)))
    found = nlb.nonlocal_bayes()(Measurement(noisy, operators.identity, Gaussian(SIGMA)), KEY).picture
    np.testing.assert_allclose(found[20:, 20:], 0, atol=1e-5)
    assert error(found, frame) < 0.8 * error(noisy, frame)
    if channels > 1:
        return
    known = jax.random.bernoulli(KEY, 0.5, (32, 32, 1)).astype(jnp.float32)
    found = nlb.nonlocal_bayes()(Measurement(known * frame, operators.masked(known), Gaussian(0.0)), KEY).picture
    np.testing.assert_allclose(found[20:, 20:], 0, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(known * found), np.asarray(known * frame))


def test_an_estimate_gets_back_what_it_smoothed_away():
    given = measured(Gaussian(SIGMA))
    smooth = operators.blur(32, 32, 1.6).forward(scene())
    estimate = Restoration(smooth, None, Cost(steps=7, error=0.5))
    found = nlb.nonlocal_bayes_after(lambda measurement, key: estimate, fits=10)(given, KEY)
    assert error(found.picture, scene()) < 0.85 * error(smooth, scene())
    assert found.evidence == estimate.evidence


def test_an_estimate_counts_as_often_as_it_has_fits(monkeypatch):
    """And nonlocal Bayes alone twice."""
    given, pilots = measured(Gaussian(SIGMA)), []
    monkeypatch.setattr(nlb, "_alone", lambda y, variance: jnp.zeros_like(y))
    monkeypatch.setattr(nlb, "nonlocal_bayes_pass", lambda y, variance, pilot, groups: pilots.append(pilot) or pilot)
    nlb.refine_by_patches(given, scene(), 3)
    np.testing.assert_allclose(pilots[0], 0.6 * scene(), rtol=1e-6)


@pytest.mark.parametrize("side, channels, sigma", [(8, 1, SIGMA), (8, 60, SIGMA), (16, 1, 0.0), (16, 1, 10.0)])
def test_small_pictures_many_channels_and_odd_noise_do_no_harm(side, channels, sigma):
    given = measured(Gaussian(sigma), channels, side)
    for found in (nlb.nonlocal_bayes()(given, KEY).picture, nlb.refine_by_patches(given, scene(side, channels))):
        assert jnp.isfinite(found).all() and found.shape == given.y.shape
    if not sigma:
        np.testing.assert_allclose(found, given.y, atol=0.02)


def holes(noise):
    known = jax.random.bernoulli(jax.random.key(3), 0.5, (32, 32, 1)).astype(jnp.float32)
    y = noise.draw(KEY, scene())
    return Measurement(known * y, operators.masked(known), noise), known


def filled(given, known):
    return operators.filled(np.asarray(given.y), np.asarray(known))


@pytest.mark.parametrize("noise, gain", [(Gaussian(0.0), 0.5), (Gaussian(SIGMA / 2), 0.4), (Poisson(200.0), 0.4)])
def test_holes_are_filled_far_better_than_from_their_rims(noise, gain):
    given, known = holes(noise)
    found = nlb.nonlocal_bayes()(given, KEY).picture
    assert error(found, scene()) < gain * error(filled(given, known), scene())
    if noise == Gaussian(0.0):  # what has no noise stays
        np.testing.assert_array_equal(np.asarray(known * found), np.asarray(given.y))


def test_colours_of_a_mosaic_are_filled_one_by_one():
    """Of each pixel one colour is known, as behind a camera's filter."""
    bayer = np.zeros((32, 32, 3), np.float32)
    bayer[::2, ::2, 0] = bayer[::2, 1::2, 1] = bayer[1::2, ::2, 1] = bayer[1::2, 1::2, 2] = 1
    given = Measurement(scene(32, 3) * bayer, operators.masked(jnp.asarray(bayer)), Gaussian(0.0))
    found = nlb.nonlocal_bayes()(given, KEY).picture
    assert error(found, scene(32, 3)) < 0.2 * error(filled(given, bayer), scene(32, 3))


def test_an_estimate_of_what_is_missing_is_gone_on_from():
    given, known = holes(Gaussian(0.0))
    smooth = operators.blur(32, 32, 1.0).forward(scene())
    estimate = Restoration(smooth, None, Cost(steps=7, error=0.5))
    found = nlb.nonlocal_bayes_after(lambda measurement, key: estimate, fits=10)(given, KEY)
    put_back = known * given.y + (1 - known) * smooth
    assert error(found.picture, scene()) < 0.8 * error(put_back, scene())
    assert found.evidence == Cost(steps=7)  # the error was that of the estimate


@pytest.mark.parametrize("operator, sigma, gain", [(operators.blur(32, 32, 1.6), 0.01, 0.4),
                                                   (operators.downsample(32, 32, 2), 0.0, 0.4)])
def test_behind_an_operator_it_is_nearer_than_what_explains_the_measurement(operator, sigma, gain):
    y = Gaussian(sigma).draw(KEY, operator.forward(scene()))
    given = Measurement(y, operator, Gaussian(sigma))
    found = nlb.nonlocal_bayes()(given, KEY).picture
    assert error(found, scene()) < gain * error(operator.solve(y, sigma), scene())
    assert error(operator.forward(found), y) < 2 * sigma**2 + 1e-5


def test_an_estimate_behind_an_operator_is_refused():
    given = measured(Gaussian(SIGMA))._replace(operator=operators.blur(32, 32, 1.0))
    with pytest.raises(UserError, match="stands alone"):
        nlb.nonlocal_bayes_after(lambda measurement, key: None)(given, KEY)
