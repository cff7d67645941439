"""Self-diffusion: its levels against the schedules', one step by hand, and that it restores."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dipddpm_jax.diffusion.schedules import from_betas
from dipddpm_jax.dip.self_diffusion import _whole_error, level_sigmas, self_diffusion
from dipddpm_jax.inverse import operators
from dipddpm_jax.inverse.measurement import Measurement
from dipddpm_jax.inverse.noises import Gaussian, Poisson
from dipddpm_jax.networks import SkipNet
from dipddpm_jax.networks.layers import initial_variables

NETWORK = SkipNet(1, (8, 8), (8, 8), (4, 4))


def scene():
    i, j = np.mgrid[:32, :32] / 32
    return jnp.asarray((0.2 + 0.3 * i + 0.4 * ((i - 0.4) ** 2 + (j - 0.6) ** 2 < 0.05))[..., None], jnp.float32)


def psnr(picture):
    return float(-10 * jnp.log10(jnp.mean(jnp.square(picture - scene()))))


def test_levels_are_those_of_a_linear_schedule():
    schedule = from_betas(np.linspace(1e-4, 0.02, 40))
    assert level_sigmas(40) == pytest.approx(np.sqrt(1 - np.asarray(schedule.alpha_bars[:0:-1])))
    assert np.all(np.diff(level_sigmas(30)) < 0) and level_sigmas(30)[-1] == pytest.approx(0.01)


def test_one_step_at_one_level_by_hand():
    """The output of the first step is the network, untouched, at the noised start."""
    key, measurement = jax.random.key(3), Measurement(scene(), operators.identity, Gaussian(0.0))
    found = self_diffusion(NETWORK, levels=1, steps=1, beta_end=0.01)(measurement, key)
    init_key, start_key, noise_key, _ = jax.random.split(key, 4)
    start = jax.random.normal(start_key, (32, 32, 1))
    noise = jax.random.normal(jax.random.fold_in(noise_key, 0), (32, 32, 1))
    variables = initial_variables(NETWORK, init_key, start[None])
    run = jax.jit(lambda x: NETWORK.apply(variables, x, train=True, mutable=["batch_stats"])[0])
    expected = run((start + 0.01 * noise)[None])
    assert np.asarray(found.picture) == pytest.approx(np.asarray(expected[0]), abs=1e-5)  # sqrt(1e-4) is its one level
    assert found.evidence.steps == 1 and found.evidence.error is None


def test_denoises_and_says_its_error():
    """Held-out pixels choose the level; what they say of the error is near the true one."""
    measurement = Measurement(Gaussian(0.1).draw(jax.random.key(0), scene()), operators.identity, Gaussian(0.1))
    restore = self_diffusion(NETWORK, levels=15, steps=30, learning_rate=0.005, average_decay=0.95, held_out=0.2)
    found = restore(measurement, jax.random.key(1))
    assert psnr(found.picture) > psnr(measurement.y) + 4
    assert found.evidence.error == pytest.approx(float(jnp.mean(jnp.square(found.picture - scene()))), abs=0.003)
    again = restore(measurement, jax.random.key(1))
    assert np.array_equal(found.picture, again.picture)


def test_the_error_is_that_of_the_picture_however_young_its_average_is():
    """20 steps of an average with a decay of 0.99 have 18 % of its weight."""
    measurement = Measurement(jnp.full((16, 16, 1), 0.6), operators.identity, Gaussian(0.0))
    restore = self_diffusion(NETWORK, levels=1, steps=20, average_decay=0.99, held_out=0.3)
    found = restore(measurement, jax.random.key(0))
    true = float(jnp.mean(jnp.square(found.picture - 0.6)))
    assert true < 0.1 and found.evidence.error == pytest.approx(true, rel=0.5)


def test_the_noise_that_is_taken_off_the_error_is_that_of_known_pixels():
    seen = operators.random_mask(jax.random.key(0), 32, 32, 0.3) != 0
    measurement = Measurement(scene(), operators.masked(seen.astype(jnp.float32)), Poisson(20.0))
    variance = float(jnp.mean((scene() / 20)[seen]))
    held = seen & (jnp.arange(32) % 2 == 0)[:, None, None]
    assert _whole_error(variance + 0.01, scene(), measurement, seen, held) == pytest.approx(0.01, rel=1e-3)
    quiet = measurement._replace(y=seen * scene(), noise=Gaussian(0.0))  # right where it was seen, by how much else
    found = _whole_error(0.01, scene(), quiet, seen, held)
    assert found == pytest.approx(0.01 * (1 - float((seen & ~held).mean())), rel=1e-3)


def test_holes_are_filled_and_what_is_known_is_kept():
    known = operators.random_mask(jax.random.key(0), 32, 32, 0.5)
    operator = operators.masked(known)
    measurement = Measurement(operator.forward(scene()), operator, Gaussian(0.0))
    found = self_diffusion(NETWORK, levels=15, steps=30, learning_rate=0.005)(measurement, jax.random.key(1)).picture
    holes = 1 - known
    wrong = jnp.sum(holes * jnp.square(found - scene())) / holes.sum()
    mean = jnp.sum(known * scene()) / known.sum()
    assert wrong < 0.15 * jnp.sum(holes * jnp.square(mean - scene())) / holes.sum()


def test_superresolution_explains_the_measurement():
    operator = operators.downsample(32, 32, 2)
    measurement = Measurement(operator.forward(scene()), operator, Gaussian(0.0))
    found = self_diffusion(NETWORK, levels=15, steps=30, learning_rate=0.005)(measurement, jax.random.key(1)).picture
    assert found.shape == (32, 32, 1)
    assert float(jnp.mean(jnp.square(operator.forward(found) - measurement.y))) < 1e-3
    assert psnr(found) > 20
