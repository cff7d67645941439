"""One picture from memory: NumPy in, NumPy out, in its own type, shape and units."""
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage.restoration import denoise_nl_means

from dipddpm_jax import memory
from dipddpm_jax.commands import fits, restorers
from dipddpm_jax.commands import restore as module
from dipddpm_jax.commands.measurements import Measurements
from dipddpm_jax.commands.restore import restore
from dipddpm_jax.config import dip_ranges
from dipddpm_jax.config.dip import DipConfig
from dipddpm_jax.config.dip_ranges import check_dip
from dipddpm_jax.data.photographs import photograph
from dipddpm_jax.errors import UserError
from dipddpm_jax.inverse.measurement import Cost, Restoration


def scene(side=32):
    y, x = np.mgrid[:side, :side] / side
    return 0.5 + 0.25 * np.sin(5 * x) + 0.2 * np.cos(4 * y)


@pytest.mark.parametrize("dtype, low, high", [
    (np.uint8, 0, 255), (np.uint16, 1000, 3000), (np.int16, -300, 900), (np.int32, 0, 10**6),
    (np.float16, -2, 2), (np.float32, 0, 1), (np.float64, -1e-3, 7e3)])
@pytest.mark.parametrize("channels", [(), (1,), (3,), (5,)])
def test_what_comes_back_has_the_type_the_shape_and_the_units(dtype, low, high, channels, monkeypatch):
    """With a fit that returns its measurement: nothing else may change the picture."""
    monkeypatch.setattr(module, "_fitted", lambda config, given, progress: given.measurements[0])
    noisy = (low + (high - low) * np.random.default_rng(0).uniform(size=(8, 12, *channels))).astype(dtype)
    out = restore(noisy)
    assert out.dtype == noisy.dtype and out.shape == noisy.shape
    np.testing.assert_allclose(out.astype(float), noisy.astype(float), rtol=2e-3 if dtype == np.float16 else 1e-5,
                               atol=1e-6 * (high - low))


def test_options_reach_the_measurement_in_the_pictures_units(monkeypatch):
    seen = []
    monkeypatch.setattr(module, "_fitted", lambda config, given, progress: seen.append((config, given))
                        or np.zeros((*given.size, 1), np.float32))
    noisy = (1000 + 500 * scene(16)).astype(np.float32)
    assert restore(noisy, task="superres", factor=2).shape == (32, 32)
    span = float(noisy.max() - noisy.min())
    restore(noisy, sigma=span / 10, stop="discrepancy", seed=3, num_steps=7)
    config, given = seen[-1]
    assert abs(given.sigma[0] - 0.1) < 1e-6 and abs(config.sigma - 25.5) < 1e-4 and config.num_steps == 7
    restore(noisy, sigma=span / 10)  # ten fits, whose total variation it weighs
    assert abs(seen[-1][1].sigma[0] - 0.1) < 1e-6 and seen[-1][0].variant == "tv"
    mask = np.ones((16, 16), bool)
    mask[4:8, 4:8] = False
    holes = np.where(mask, noisy, np.nan)  # what is missing may be anything
    restore(holes, task="inpaint", mask=mask)
    known = seen[-1][1]
    np.testing.assert_array_equal(known.known[0, ..., 0], mask)
    np.testing.assert_array_equal(known.measurements[0, ..., 0][~mask], 0)


def test_photons_and_impulses_reach_the_measurement(monkeypatch):
    seen = []
    monkeypatch.setattr(module, "_fitted", lambda config, given, progress: seen.append((config, given))
                        or np.zeros((*given.size, 1), np.float32))
    counts = (5 + 20 * scene(16)).astype(np.uint16)
    restore(counts, peak=float(counts.max()), sigma=2.0)
    config, given = seen[-1]
    np.testing.assert_allclose(given.measurements[0, ..., 0], counts / counts.max(), rtol=1e-6)  # no photons are 0
    assert config.peak == counts.max() and config.sigma == pytest.approx(255 * 2 / counts.max())
    struck = (100 + 50 * scene(16)).astype(np.uint8)
    struck[3, 4], struck[9, 9] = 0, 255
    restore(struck, impulse=True)
    np.testing.assert_array_equal(np.argwhere(seen[-1][1].known[0, ..., 0] == 0), [[3, 4], [9, 9]])
    with pytest.raises(UserError, match="photons"):
        restore(-counts.astype(np.float32), peak=30.0)
    with pytest.raises(UserError, match="impulse"):
        restore(struck, impulse=True, task="deblur", blur=1.0)


BAD = {
    "not finite": dict(noisy=np.full((8, 8), np.nan)),
    "all numbers of the picture are equal": dict(noisy=np.full((8, 8), 3.0)),
    "integers or floats": dict(noisy=np.zeros((8, 8), complex)),
    "got uint8 of shape": dict(noisy=np.zeros((2, 8, 8, 3), np.uint8)),
    "at least 8x8": dict(noisy=np.zeros((4, 80))),
    "unknown task 'sharpen'": dict(task="sharpen"),
    "needs a mask": dict(task="inpaint"),
    "no other task takes": dict(mask=np.eye(16)),
    "the mask has shape": dict(task="inpaint", mask=np.eye(8)),
    "nothing of the picture is missing": dict(task="inpaint", mask=np.ones((16, 16))),
    "nothing is known": dict(task="inpaint", mask=np.zeros((16, 16))),
    "'superres' needs factor": dict(task="superres"),
    "'deblur' needs blur": dict(blur=1.0),
    "sigma does nothing": dict(task="superres", factor=2, sigma=3.0),
    "--factor must lie between": dict(task="superres", factor=1),
    "needs the clean picture": dict(stop="oracle"),
    "unknown network": dict(network="bogus"),
    "unknown stop": dict(stop="sometime"),
    "--num-steps must": dict(num_steps=0),
    "--seed must": dict(seed=-1),
}


@pytest.mark.parametrize("words", BAD)
def test_bad_input_is_refused(words):
    with pytest.raises(UserError, match=words):
        restore(**{"noisy": scene(16), **BAD[words]})


@pytest.mark.parametrize("name", ["folds", "factor", "num_steps", "seed", "crop"])
def test_numbers_that_must_be_whole_are_refused_otherwise(name):
    """From Python without type checks, or a config.json that somebody edited."""
    config = DipConfig()
    object.__setattr__(config, name, 20.5)
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} must be a whole number; got 20.5"):
        check_dip(config)


def test_a_noisy_picture_gets_better():
    clean = 40_000 * scene() + 5000
    noisy = np.round(clean + 4000 * np.random.default_rng(0).normal(size=clean.shape)).astype(np.uint16)
    out = restore(noisy, network="conv", num_steps=250, folds=3, seed=1)
    before, after = (np.mean((x - clean) ** 2) for x in (noisy, out))
    assert out.dtype == np.uint16 and after < 0.5 * before


def test_another_method_restores_in_the_pictures_units():
    """Non-local means of a 12-bit picture is that of the picture in [0, 1], in 12 bits again."""
    rng = np.random.default_rng(0)
    noisy = np.rint(1000 + 2000 * scene() + 60 * rng.normal(size=(32, 32))).astype(np.uint16)
    low, span = float(noisy.min()), float(noisy.max()) - float(noisy.min())
    expected = denoise_nl_means(((noisy - low) / span).astype(np.float32), 5, 6, 0.8 * 60 / span, sigma=60 / span)
    found = restore(noisy, method="non-local-means", sigma=60.0)
    assert found.dtype == np.uint16
    np.testing.assert_allclose(found, np.clip(expected, 0, 1) * span + low, atol=1)


def test_numbers_of_numpy_are_numbers():
    dip_ranges._check_bounds({"--seed": (np.int64(1), 0, 9), "--blend": (np.float32(0.25), 0, 1)})
    with pytest.raises(UserError, match="--blend must lie between 0 and 1; got nan"):
        dip_ranges._check_bounds({"--blend": (np.float32("nan"), 0, 1)})


def test_a_picture_of_which_a_tile_knows_nothing_is_refused():
    mask = np.zeros((16, 300), bool)
    mask[:, :40] = True
    with pytest.raises(UserError, match="nothing is known in the tile of 128x16"):
        fits.make_fits(DipConfig(task="inpaint", tile=128), Measurements(
            ("p",), np.zeros((1, 16, 300, 1), np.float32), None, mask[None, ..., None].astype(np.float32),
            np.float32([0]), (16, 300)))


def test_numbers_that_are_not_finite_are_refused(monkeypatch):
    monkeypatch.setitem(restorers.RESTORERS, "wavelets", lambda channels: lambda m, key: Restoration(m.y * jnp.nan))
    with pytest.raises(UserError, match="made NaN or infinite numbers"):
        restore(scene(), method="wavelets")


def test_a_share_of_the_picture_is_mixed_back_in_where_it_is_known():
    noisy = (scene() + 0.1 * np.random.default_rng(0).normal(size=(32, 32))).astype(np.float32)
    alone, mixed = (restore(noisy, method="total-variation", blend=blend) for blend in (0.0, 0.25))
    np.testing.assert_allclose(mixed, 0.75 * alone + 0.25 * noisy, atol=1e-5)
    mask = np.random.default_rng(1).random((32, 32)) < 0.7
    options = {"task": "inpaint", "mask": mask, "num_steps": 5, "network": "conv", "stop": "never"}
    alone, mixed = (restore(noisy, blend=blend, **options) for blend in (0.0, 0.5))
    np.testing.assert_allclose(mixed[~mask], alone[~mask], atol=1e-5)
    np.testing.assert_allclose(mixed[mask], (alone + noisy)[mask] / 2, atol=1e-5)
    for task, blend, words in (("superres", 0.5, "--task superres has none"), ("denoise", 1.5, "between 0 and 1")):
        with pytest.raises(UserError, match=words):
            restore(noisy, task=task, factor=2 if task == "superres" else None, blend=blend)


def test_a_photograph_that_no_memory_holds_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "host_memory", lambda: 1e6)
    with pytest.raises(UserError, match="restoring a picture of 64x64 pixels by this prior would need about .* MB"):
        restore(np.random.default_rng(0).random((64, 64, 3)), method="photos")


def test_fits_that_no_memory_holds_are_refused(monkeypatch):
    monkeypatch.setattr(memory, "host_memory", lambda: 1e9)
    large = np.random.default_rng(0).random((1000, 1000))
    for method, count in (("cross-fit", 10), ("self-diffusion", 1)):
        with pytest.raises(UserError, match=f"{count} fits of 1000x1000 pixels at once would need about"):
            restore(large, method=method, sigma=0.1)


@pytest.mark.parametrize("grey", [False, True])
def test_the_prior_of_photographs_restores_pictures_of_any_size(grey):
    """A part that it was not trained on, of odd sides: 7 dB nearer to the clean one."""
    clean = photograph("coffee")[100:153, -75:]
    clean = clean.mean(-1).round().astype(np.uint8) if grey else clean
    noisy = np.clip(clean + np.random.default_rng(0).normal(0, 25, clean.shape), 0, 255).round().astype(np.uint8)
    found = restore(noisy, method="photos")
    before, after = (np.mean(np.square(x.astype(float) - clean)) for x in (noisy, found))
    assert found.dtype == np.uint8 and found.shape == clean.shape and after < before / 5


@pytest.mark.parametrize("method", ["photos", "auto"])
def test_the_prior_of_photographs_enlarges_pictures(method):
    """By itself, and by taking turns with patches."""
    clean = photograph("chelsea")[100:140, -64:].mean(-1).astype(np.float32) / 255
    small = clean.reshape(20, 2, 32, 2).mean((1, 3))
    found = restore(small, task="superres", factor=2, method=method)
    repeated = np.repeat(np.repeat(small, 2, 0), 2, 1)
    assert np.mean((found - clean) ** 2) < 0.5 * np.mean((repeated - clean) ** 2)
    np.testing.assert_allclose(found.reshape(20, 2, 32, 2).mean((1, 3)), small, atol=0.02)


def test_patches_go_on_from_the_prior_of_photographs():
    """To denoise; where pixels are missing it is refused, since patches alone are as good."""
    clean = photograph("coffee")[100:132, -32:].astype(np.float32) / 255
    rng = np.random.default_rng(0)
    noisy = clean + rng.normal(0, 0.1, clean.shape).astype(np.float32)
    by_prior, both = (restore(noisy, sigma=0.1, method=method) for method in ("photos", "photos-bayes"))
    assert np.mean((both - clean) ** 2) < np.mean((by_prior - clean) ** 2) < 0.2 * 0.1**2
    with pytest.raises(UserError, match="'nonlocal-bayes' is as good"):
        restore(clean, task="inpaint", mask=rng.random((32, 32)) < 0.5, sigma=0.0, method="photos-bayes")


def test_auto_sharpens_channels_that_no_prior_knows_by_patches_alone():
    pictures = np.stack([scene(24), scene(24)[::-1]], -1).astype(np.float32)
    found, patches = (restore(pictures, task="deblur", blur=1.0, sigma=0.01, method=method)
                      for method in ("auto", "nonlocal-bayes"))
    np.testing.assert_array_equal(found, patches)


def test_the_prior_of_photographs_goes_on_from_a_cross_fit(monkeypatch):
    """Holes that the fit filled with white noise of the level that it tells."""
    clean = photograph("chelsea")[100:140, -64:].mean(-1).astype(np.float32) / 255
    mask = np.random.default_rng(0).random(clean.shape) < 0.7
    filled = np.where(mask, clean, clean + 0.1 * np.random.default_rng(1).normal(size=clean.shape))

    def fit(measurement, key):
        assert measurement.operator.forward(jnp.ones((40, 64, 1))).sum() == mask.sum()
        return Restoration(jnp.asarray(filled[..., None], jnp.float32), None, Cost(error=0.01 * (1 - mask.mean())))

    monkeypatch.setattr(restorers, "_cross_fit", lambda channels: fit)
    restorers._made.cache_clear()
    found = restore(np.where(mask, clean, 0), task="inpaint", mask=mask, sigma=0.0, method="cross-fit-photos")
    restorers._made.cache_clear()
    assert np.mean((found - clean) ** 2) < 0.2 * np.mean((filled - clean) ** 2)
    np.testing.assert_allclose(found[mask], clean[mask], atol=0.02)


def test_photons_behind_holes_are_refused_before_anything_is_fitted(monkeypatch):
    monkeypatch.setattr(restorers, "_cross_fit", lambda channels: lambda measurement, key: pytest.fail("it was fitted"))
    restorers._made.cache_clear()
    struck = (100 + 50 * scene(16)).astype(np.uint8)
    struck[3, 4] = 255
    with pytest.raises(UserError, match="Gaussian noise alone"):
        restore(struck, peak=30.0, impulse=True, method="cross-fit-photos")
    restorers._made.cache_clear()


def test_auto_averages_what_the_picture_itself_recommends(monkeypatch):
    """One restorer does nothing and one blurs: a smooth noisy picture wants the blur."""
    def blurred(measurement, key):
        return Restoration(jnp.asarray(gaussian_filter(np.asarray(measurement.y), (2, 2, 0))))

    known = {name: lambda channels: blurred for name in ("cross-fit", "nonlocal-bayes")}
    monkeypatch.setattr(restorers, "RESTORERS", known | {"nothing": lambda channels: lambda m, key: Restoration(m.y)})
    monkeypatch.setattr(restorers, "DENOISERS", ("cross-fit", "nothing"))
    monkeypatch.setattr(restorers, "FILLERS", restorers.UNTRAINED_FILLERS)
    noisy = (scene() + 0.1 * np.random.default_rng(0).normal(size=(32, 32))).astype(np.float32)
    found = restore(noisy, method="auto")
    assert np.mean((found - scene()) ** 2) < 0.2 * np.mean((noisy - scene()) ** 2)
    mask = np.random.default_rng(1).random((32, 32)) < 0.7
    assert restore(noisy, task="inpaint", mask=mask, method="auto").shape == (32, 32)
    with pytest.raises(UserError, match="none to judge by"):
        restore(noisy, sigma=0.0, method="auto")


@pytest.mark.parametrize("words, options", [
    ("makes no use of sigma", {"method": "pixel-pairs", "sigma": 0.1}),
    ("unknown method 'bm4d'", {"method": "bm4d"}),
    ("does not take num_steps, stop", {"method": "auto", "num_steps": 3, "stop": "wmv"}),
    ("knows no operator", {"method": "non-local-means", "task": "superres", "factor": 2}),
])
def test_what_a_method_does_not_take(words, options):
    with pytest.raises(UserError, match=words):
        restore(scene(), **options)


def test_auto_leaves_out_what_cannot_take_the_channels(monkeypatch):
    monkeypatch.setattr(restorers, "DENOISERS", ("photos", "non-local-means"))
    noisy = np.random.default_rng(0).random((32, 32, 2))
    found, wanted = (restore(noisy, method=method, sigma=0.2) for method in ("auto", "non-local-means"))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_the_prior_of_photographs_takes_grey_or_colour():
    with pytest.raises(UserError, match="got 2 channels"):
        restore(np.random.default_rng(0).random((32, 32, 2)), method="photos")
