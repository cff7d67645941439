"""Files of numbers in units of their own: what is read is what is written, whatever the type, and what is refused."""
import numpy as np
import pytest
import tifffile

from dipddpm_jax.commands import cli_fits
from dipddpm_jax.commands.sources import read_pictures
from dipddpm_jax.data import arrays, pictures
from dipddpm_jax.errors import UserError

RNG = np.random.default_rng(0)
NUMBERS = RNG.normal(0, 1, (2, 24, 16)).cumsum(1)


def back(path, folder):
    """What is written when the pictures of a file are restored as they are."""
    source = read_pictures(str(path))
    arrays.write_restored(folder, source.names, source.origins, list(source.pictures))
    (written,) = folder.glob(f"restored{path.suffix}")
    return written


def read(path):
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".tif":
        return tifffile.imread(path)
    return pytest.importorskip("astropy.io.fits").getdata(path)


@pytest.mark.parametrize("suffix", [".npy", ".tif", ".fits"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
@pytest.mark.parametrize("pages", [1, 2])
def test_numbers_keep_their_units_type_and_sum(tmp_path, suffix, dtype, pages):
    numbers = NUMBERS[0] if pages == 1 else NUMBERS
    flux = (1e-17 * (numbers + 40) if np.dtype(dtype).kind == "f" else
            20 * numbers - 100 if dtype == "int16" else np.clip(8 * numbers + 128, 0, 255))
    path = tmp_path / f"flux{suffix}"
    given = flux.astype(dtype)
    if suffix == ".npy":
        np.save(path, given)
    elif suffix == ".tif":
        tifffile.imwrite(path, given, photometric="minisblack")
    else:
        fits = pytest.importorskip("astropy.io.fits")
        fits.writeto(path, given, fits.Header({"BUNIT": "erg/s"}))
    (tmp_path / "out").mkdir()
    written = back(path, tmp_path / "out")
    found = read(written)
    assert found.shape == given.shape
    wider = {("float64", ".tif"): "float32", ("int16", ".tif"): "int32"}  # what Pillow and our reader make of them
    assert found.dtype.newbyteorder("=") == wider.get((dtype, suffix), dtype)
    if given.dtype.kind == "f":
        np.testing.assert_allclose(found, given, rtol=0, atol=2e-7 * np.ptp(given))
        np.testing.assert_allclose(found.sum(dtype=np.float64), given.sum(dtype=np.float64), rtol=1e-6)
    else:
        np.testing.assert_array_equal(found, given)
    if suffix == ".fits":
        assert fits.getheader(written)["BUNIT"] == "erg/s"


def test_files_of_one_name_in_two_folders_are_both_written(tmp_path):
    for folder in "ab":
        (tmp_path / "in" / folder).mkdir(parents=True)
        tifffile.imwrite(tmp_path / "in" / folder / "scan.tif", NUMBERS.astype(np.float32), photometric="minisblack")
    source = read_pictures(str(tmp_path / "in"))
    arrays.write_restored(tmp_path, source.names, source.origins, list(source.pictures))
    assert {path.name for path in tmp_path.glob("*.tif")} == {"a_scan-restored.tif", "b_scan-restored.tif"}


def test_pages_share_black_and_white(tmp_path):
    np.save(tmp_path / "stack.npy", NUMBERS)
    source = read_pictures(str(tmp_path / "stack.npy"))
    assert source.names == ("stack_1", "stack_2")
    assert source.pictures.min() == 0 and source.pictures.max() == 1
    np.testing.assert_allclose(source.pictures[..., 0], (NUMBERS - NUMBERS.min()) / np.ptp(NUMBERS), atol=1e-6)


def test_only_pages_of_the_first_ones_size_belong_together(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for page in (NUMBERS[0], NUMBERS[0, ::2, ::2], NUMBERS[1]):  # the second one is a small view of the first
            file.write(page.astype(np.float32), photometric="minisblack")
    (tmp_path / "out").mkdir()
    np.testing.assert_allclose(read(back(tmp_path / "a.tif", tmp_path / "out")), NUMBERS, atol=1e-5)


def test_colours_with_a_sign_keep_their_channels(tmp_path):
    given = RNG.integers(-200, 200, (12, 10, 3), np.int16)
    tifffile.imwrite(tmp_path / "a.tif", given, photometric="rgb")
    (tmp_path / "out").mkdir()
    np.testing.assert_array_equal(read(back(tmp_path / "a.tif", tmp_path / "out")), given)


def test_channels_stand_last_and_a_mask_may_be_an_array(tmp_path):
    np.save(tmp_path / "colour.npy", RNG.integers(0, 256, (12, 10, 3), np.uint8))
    assert read_pictures(str(tmp_path / "colour.npy")).pictures.shape == (1, 12, 10, 3)
    np.save(tmp_path / "mask.npy", NUMBERS[0] > 0)
    with pytest.raises(UserError, match="bool of shape"):
        pictures.known_pixels(tmp_path / "mask.npy")
    np.save(tmp_path / "mask.npy", np.uint8(NUMBERS[0] > 0))
    np.testing.assert_array_equal(pictures.known_pixels(tmp_path / "mask.npy")[..., 0], NUMBERS[0] > 0)


@pytest.mark.parametrize("array, said", [
    (np.ones((8, 8), complex), "complex128 of shape"), (np.ones(8), "of shape"), (np.ones((2, 8, 8, 2)), "of shape"),
    (np.ones((8, 8)), "one number only"), (np.full((8, 8), np.nan), "not finite"), (np.array([{}]), "as an array")])
def test_what_is_no_picture_is_one_line(tmp_path, array, said):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(UserError, match=said):
        pictures.read_pages(tmp_path / "a.npy")


@pytest.mark.parametrize("suffix", [".npy", ".fits"])
def test_a_damaged_file_is_named(tmp_path, suffix):
    if suffix == ".fits":
        pytest.importorskip("astropy")
    (tmp_path / f"a{suffix}").write_bytes(b"no numbers at all")
    with pytest.raises(UserError, match=f"a{suffix} cannot be read as an array"):
        pictures.read_pages(tmp_path / f"a{suffix}")


def test_a_restored_array_is_nearer_to_the_truth_in_its_own_units(tmp_path):
    y, x = np.mgrid[:32, :32] / 32
    truth = 3e-15 * (1 + np.sin(6 * x) * np.cos(5 * y))
    noisy = truth + RNG.normal(0, 3e-16, truth.shape)
    np.save(tmp_path / "flux.npy", noisy)
    cli_fits.dip_main(["--image", str(tmp_path / "flux.npy"), "--method", "non-local-means", "--workdir",
                       str(tmp_path / "run")])
    found = np.load(tmp_path / "run" / "restored.npy")
    assert found.dtype == noisy.dtype and found.shape == noisy.shape
    assert np.mean((found - truth) ** 2) < 0.5 * np.mean((noisy - truth) ** 2)
    np.testing.assert_allclose(found.sum(), noisy.sum(), rtol=5e-3)
    assert (tmp_path / "run" / "restored.png").is_file()
