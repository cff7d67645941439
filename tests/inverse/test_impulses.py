"""Salt-and-pepper noise: what is struck is found, what is black or white by itself stays."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dipddpm_jax.data.photographs import photograph
from dipddpm_jax.data.pictures import square
from dipddpm_jax.inverse.impulses import add_impulses, not_impulses


def camera(side):
    return square(photograph("camera"), side).mean(-1, keepdims=True).astype(np.float32) / 255


@pytest.mark.parametrize("share", [0.05, 0.3, 0.7])
def test_what_is_struck_is_found(share):
    clean = np.clip(camera(96), 0.02, 0.98)
    noisy = np.asarray(add_impulses(jax.random.key(0), jnp.asarray(clean), share))
    struck = noisy != clean
    known = not_impulses(noisy)
    assert abs(struck.mean() - share) < 0.02
    assert abs((noisy == 1).mean() - share / 2) < 0.02
    assert (known[~struck] == 1).all()
    assert (known[struck] == 0).mean() > (0.95 if share > 0.5 else 0.999)


def test_black_and_white_regions_stay_known():
    clean = np.full((48, 48, 3), 0.5, np.float32)
    clean[:24, :24], clean[24:, 24:] = 0, 1
    noisy = np.asarray(add_impulses(jax.random.key(1), jnp.asarray(clean), 0.2))
    known = not_impulses(noisy)[..., 0]
    struck = (noisy != clean).any(-1)
    assert (known[struck] == 0).mean() > 0.95  # but at the regions' edges
    inside = np.zeros((48, 48), bool)
    inside[:21, :21] = inside[27:, 27:] = True
    assert (known[inside & ~struck] == 1).all()


def test_one_channel_that_is_struck_is_enough():
    picture = np.full((16, 16, 3), 0.5, np.float32)
    picture[5, 7, 1] = 1
    assert np.argwhere(not_impulses(picture)[..., 0] == 0).tolist() == [[5, 7]]
