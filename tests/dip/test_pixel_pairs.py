"""Noise2Noise of one picture's pixel pairs: the pairs, the loss by hand, and that it denoises."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dipddpm_jax.dip.pixel_pairs import pair_loss, pixel_pair, pixel_pairs
from dipddpm_jax.errors import UserError
from dipddpm_jax.inverse import operators
from dipddpm_jax.inverse.measurement import Measurement
from dipddpm_jax.inverse.noises import Gaussian


def scene(height=32, width=32, channels=1):
    i, j = np.mgrid[:height, :width] / max(height, width)
    picture = 0.2 + 0.3 * i + 0.4 * ((i - 0.4) ** 2 + (j - 0.6) ** 2 < 0.05)
    return jnp.asarray(np.repeat(picture[..., None], channels, -1), jnp.float32)


def measured(picture, sigma=0.1):
    return Measurement(Gaussian(sigma).draw(jax.random.key(0), picture), operators.identity, Gaussian(sigma))


def test_pairs_are_the_means_of_diagonals():
    image = jnp.arange(15.0).reshape(3, 5, 1)  # the last row and column are odd ones
    assert np.asarray(pixel_pair(image))[..., 0].tolist() == [[[3.0, 5.0]], [[3.0, 5.0]]]
    image = image.at[0, 0].set(10.0)
    assert np.asarray(pixel_pair(image))[..., 0].tolist() == [[[8.0, 5.0]], [[3.0, 5.0]]]


def test_the_loss_of_a_network_that_is_a_number():
    """f(x) = a x, so that g = (1 - a) x and the consistency loss is 0, since both sides are linear."""
    image = jax.random.normal(jax.random.key(0), (8, 8, 2))
    first, second = np.asarray(pixel_pair(image), np.float64)
    for a in (0.0, 0.3, 1.0):
        residual = (np.mean(((1 - a) * first - second) ** 2) + np.mean(((1 - a) * second - first) ** 2)) / 2
        assert float(pair_loss(lambda x, a=a: a * x, image)) == pytest.approx(residual, rel=1e-5)


def test_the_loss_minds_consistency():
    """f(x) = a + b x^2 on one constant picture v: both losses are those of numbers."""
    loss = float(pair_loss(lambda x: 0.1 + 0.5 * x**2, jnp.full((4, 4, 1), 0.4)))
    assert loss == pytest.approx((0.1 + 0.5 * 0.4**2) ** 2)  # consistent; the residual is the noise that f sees
    board = jnp.asarray(np.where([[1, 0], [1, 0]], 1.0, 0.0), jnp.float32)[..., None]
    # D1 = D2 = 1/2; g(y) is 1 - f(1) and -f(0), whose diagonals' means are (1 - f(1) - f(0)) / 2.
    f = lambda x: 0.1 + 0.5 * x**2  # noqa: E731
    half, whole = 0.5 - f(0.5), (1 - f(1.0) - f(0.0)) / 2
    assert float(pair_loss(f, board)) == pytest.approx((half - 0.5) ** 2 + (half - whole) ** 2, rel=1e-5)


@pytest.mark.parametrize("shape", [(32, 32, 1), (31, 33, 3)])
def test_denoises_without_knowing_the_noise(shape):
    given = measured(scene(*shape))._replace(noise=Gaussian(0.0))
    found = pixel_pairs(width=8, steps=400, learning_rate=0.005)(given, jax.random.key(1))
    errors = [float(jnp.mean(jnp.square(x - scene(*shape)))) for x in (found.picture, given.y)]
    assert errors[0] < 0.4 * errors[1]
    assert found.evidence.steps == 400


def test_pictures_without_pairs_are_refused():
    restore = pixel_pairs(width=4, steps=1)
    given = measured(scene())
    for bad in (given._replace(operator=operators.blur(32, 32, 1.0)), given._replace(y=given.y[:1])):
        with pytest.raises(UserError, match="whose every pixel was measured"):
            restore(bad, jax.random.key(0))
