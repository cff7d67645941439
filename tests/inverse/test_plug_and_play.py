"""Plug-and-play against a denoiser whose end is known in closed form."""
import jax
import jax.numpy as jnp
import numpy as np

from dipddpm_jax.inverse import operators
from dipddpm_jax.inverse import plug_and_play as pnp
from dipddpm_jax.inverse.measurement import Measurement, Restoration
from dipddpm_jax.inverse.noises import Gaussian

KEY = jax.random.key(0)


def test_turns_are_those_of_the_equations(monkeypatch):
    """With A = 1 and a denoiser that halves, x = z + (y - z) / (1 + lambda sigma^2 / t^2) and z = x / 2."""
    monkeypatch.setattr(pnp, "TURNS", 3)
    y, sigma, levels = jnp.full((4, 4, 1), 0.6), 0.1, []

    def halved(x, level, before):
        levels.append(level)
        return x / 2

    found = pnp.plug_and_play(halved)(Measurement(y, operators.identity, Gaussian(sigma)), KEY).picture
    wanted = [50 / 255, (50 / 255 * 0.1) ** 0.5, 0.1]
    np.testing.assert_allclose(levels, wanted, rtol=1e-5)
    z = 0.6 / (1 + sigma**2 / wanted[0] ** 2)
    for level in wanted:
        z = (z + (0.6 - z) / (1 + 0.3 * sigma**2 / level**2)) / 2
    np.testing.assert_allclose(found, z, rtol=1e-5)


def test_a_denoiser_that_does_nothing_explains_the_measurement():
    clean = jax.random.uniform(KEY, (16, 16, 3))
    operator = operators.blur(16, 16, 1.0)
    nothing = pnp.removed_by(lambda measurement, key: Restoration(measurement.y))
    found = pnp.plug_and_play(nothing)(Measurement(operator(clean), operator, Gaussian(0.0)), KEY).picture
    np.testing.assert_allclose(operator(found), operator(clean), atol=1e-3)
