"""Pictures that are restored: cut or resized, at their depth, with what the user should know about it."""
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dipddpm_jax import memory
from dipddpm_jax.commands import measurements, sources
from dipddpm_jax.config.dip import DipConfig
from dipddpm_jax.data.pictures import write_picture
from dipddpm_jax.errors import UserError


def smooth(height, width):
    y, x = np.mgrid[:height, :width]
    return (0.5 + 0.2 * np.sin(x / 20) + 0.2 * np.cos(y / 17))[..., None].astype(np.float32)


def noisy(height, width, sigma, seed=0):
    return (smooth(height, width) + sigma * np.random.default_rng(seed).normal(size=(height, width, 1))).astype("f4")


def saved(path, picture, white=255.0):
    write_picture(path, picture.astype(np.float32), white)
    return path


def test_cropping_keeps_the_pixels_and_their_noise(tmp_path):
    picture = noisy(96, 130, 25 / 255)
    path = saved(tmp_path / "noisy.png", picture)
    given = measurements.load_measurements(DipConfig(image=str(path), crop=64))
    stored = np.asarray(Image.open(path), np.float32)[..., None] / 255
    np.testing.assert_array_equal(given.measurements[0], stored[16:80, 33:97])
    assert abs(given.sigma[0] - 25 / 255) < 0.1 * 25 / 255 and given.notes == ()
    with pytest.raises(UserError, match="--crop 128 is more than a picture of 130x96"):
        measurements.load_measurements(DipConfig(image=str(path), crop=128))


def test_resizing_a_noisy_picture_says_what_becomes_of_the_noise(tmp_path):
    path = saved(tmp_path / "noisy.png", noisy(256, 256, 25 / 255))
    given = measurements.load_measurements(DipConfig(image=str(path), size=64))
    assert 255 * given.sigma[0] < 12
    before = float(given.notes[0].split(" before")[0].split()[-1])
    assert len(given.notes) == 1 and abs(before - 25) < 2.5 and "--crop 64" in given.notes[0]
    assert measurements.load_measurements(DipConfig(image=str(path), size=256)).notes == ()
    clean = saved(tmp_path / "clean.png", smooth(256, 256))
    assert measurements.load_measurements(DipConfig(clean=clean, size=64)).notes == ()  # noise is added afterwards


def test_a_picture_of_lower_resolution_is_cut_as_the_clean_one(tmp_path):
    clean = np.random.default_rng(0).uniform(size=(3 * 21, 3 * 18, 1))
    low = clean.reshape(21, 3, 18, 3, 1).mean((1, 3))
    config = DipConfig(image=str(saved(tmp_path / "low.png", low)), clean=saved(tmp_path / "clean.png", clean),
                       task="superres", factor=3, crop=10)
    given = measurements.load_measurements(config)
    assert given.size == (30, 30)
    block = given.clean[0].reshape(10, 3, 10, 3, 1).mean((1, 3))
    np.testing.assert_allclose(block, given.measurements[0], atol=1.5 / 255)


def test_superresolution_is_centred_for_odd_factors():
    """A ramp, seen at a third of the resolution, has at each pixel the value in the middle of its block."""
    ramp = np.broadcast_to((np.arange(30.0) / 30)[None, :, None], (30, 30, 1)).astype(np.float32)
    seen = np.asarray(measurements.operator(DipConfig(task="superres", factor=3), (30, 30))(jnp.asarray(ramp)))
    np.testing.assert_allclose(seen[5, 3:7, 0], ramp[0, 1::3, 0][3:7], atol=1e-6)


def test_noise_of_a_masked_picture_is_that_of_its_known_pixels(tmp_path):
    picture, mask = noisy(64, 64, 10 / 255), np.random.default_rng(1).uniform(size=(64, 64, 1)) < 0.5
    for name, hole in (("black", 0.0), ("white", 1.0)):
        image = saved(tmp_path / f"{name}.png", np.where(mask, picture, hole))
        config = DipConfig(image=str(image), task="inpaint", mask=saved(tmp_path / "mask.png", mask))
        given = measurements.load_measurements(config)
        assert abs(255 * given.sigma[0] - 10) < 2.5, name
        np.testing.assert_array_equal(given.measurements[0][~mask], 0)


def test_a_mask_that_says_nothing_is_refused_and_its_transparent_holes_are_unknown(tmp_path):
    image = saved(tmp_path / "image.png", noisy(16, 16, 0.1))
    config = DipConfig(image=str(image), task="inpaint", mask=saved(tmp_path / "white.png", np.ones((16, 16, 1))))
    with pytest.raises(UserError, match="white everywhere"):
        measurements.load_measurements(config)
    pixels = np.full((16, 16, 4), 255, np.uint8)
    pixels[4:8, 4:8, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "white.png")
    assert measurements.load_measurements(config).known.sum() == 256 - 16


def test_sixteen_bits_are_read_as_such_and_said(tmp_path):
    picture = smooth(16, 16)
    given = sources.read_pictures(str(saved(tmp_path / "deep.png", picture, 65535.0)))
    assert np.abs(given.pictures[0] - picture).max() < 1e-5 and given.whites == (65535.0,)
    assert len(given.notes) == 1 and given.notes[0].startswith("deep: uint16 from ")
    assert sources.read_pictures(str(saved(tmp_path / "8.png", picture))).notes == ()


@pytest.mark.parametrize("name, meant", [("astronout", "astronaut"), ("{}/phoot.png", "photo.png"),
                                         ("{}/photo.jpg", "photo.png")])
def test_a_name_that_is_nearly_right_is_answered_with_the_right_one(tmp_path, name, meant):
    saved(tmp_path / "photo.png", smooth(16, 16))
    with pytest.raises(UserError) as refused:
        sources.read_pictures(name.format(tmp_path))
    assert f"{meant}?" in str(refused.value) and "did you mean" in str(refused.value)


def test_a_factor_that_does_not_divide_says_what_is_cut():
    given = measurements.load_measurements(DipConfig(image="camera", size=64, task="superres", factor=7))
    assert given.size == (63, 63) and "cut from 64x64 to 63x63" in given.notes[0]


def test_sizes_that_no_machine_holds_are_refused_before_they_are_made(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "host_memory", lambda: 2e9)
    path = saved(tmp_path / "a.png", smooth(16, 16))
    with pytest.raises(UserError, match=r"16384x16384 \(--size\) would need about .* GB of memory; there are 2 GB"):
        sources.read_pictures(str(path), size=16384)


@pytest.mark.parametrize("task, said", [("deblur", True), ("denoise", False)])
def test_that_a_files_range_bounds_what_is_restored_is_said(tmp_path, task, said):
    np.save(tmp_path / "stars.npy", np.random.default_rng(0).random((16, 16)).astype(np.float32))
    notes = measurements.load_measurements(DipConfig(image=str(tmp_path / "stars.npy"), task=task)).notes
    assert any("above the highest" in note for note in notes) == said


def test_what_was_read_has_a_checksum(tmp_path):
    path = saved(tmp_path / "a.png", smooth(16, 16))
    one = measurements.load_measurements(DipConfig(image=str(path), clean=path))
    assert one.checksums["--image"] == one.checksums["--clean"] and one.degraded
    saved(path, smooth(16, 16) + 1 / 255)
    two = measurements.load_measurements(DipConfig(image=str(path)))
    assert two.checksums != {"--image": one.checksums["--image"]} and set(two.checksums) == {"--image"}
