"""Picture files: every mode at its full depth, the range that is taken, masks, and files written as they came."""
import struct
import warnings
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from benchmarks import places
from dipddpm_jax.data import pictures
from dipddpm_jax.data.pictures import known_pixels, read_float, read_picture, same_white, square, write_picture
from dipddpm_jax.errors import UserError

CASES = places.SHARED / "cases"
RNG = np.random.default_rng(0)
DEEP = {channels: RNG.integers(0, 65536, (6, 9, channels), np.uint16) for channels in (1, 2, 3, 4)}
for array in DEEP.values():
    array[0, 0] = 65535  # all 16 bits are in use
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="no shared cases beside the checkout")


def write_png(path, array, extra=b""):
    """A 16-bit PNG, written here chunk by chunk, without filters."""
    height, width, channels = array.shape
    rows = np.pad(array.astype(">u2").reshape(height, -1).view(np.uint8), ((0, 0), (1, 0)))
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = [(b"IHDR", header), *([(b"tRNS", extra)] if extra else []),
              (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks))


def write_tiff(path, array, **options):
    photometric = "rgb" if array.shape[-1] >= 3 else "minisblack"
    if array.shape[-1] == 2:
        options |= {"planarconfig": "contig", "extrasamples": ["unassalpha"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tifffile.imwrite(path, array if array.shape[-1] > 1 else array[..., 0], photometric=photometric, **options)


WRITERS = {
    "png": write_png,
    "little.tif": write_tiff,
    "big.tif": lambda path, array: write_tiff(path, array, byteorder=">"),
    "deflated.tif": lambda path, array: write_tiff(path, array, compression="zlib"),
    "big deflated.tif": lambda path, array: write_tiff(path, array, compression="zlib", byteorder=">"),
}


@pytest.mark.parametrize("channels", DEEP)
@pytest.mark.parametrize("name", WRITERS)
def test_sixteen_bits_are_read_whole_in_every_layout(tmp_path, name, channels):
    array = DEEP[channels]
    WRITERS[name](path := tmp_path / f"a.{name}", array)
    read, exact = read_float(path), array / 65535
    assert read.white == 65535 and read.kind == "uint16"
    if channels % 2:
        np.testing.assert_array_equal(np.rint(read.values.astype(np.float64) * 65535), array)
    else:
        alpha = exact[..., -1:]
        np.testing.assert_allclose(read.alpha, alpha, atol=1e-7)
        np.testing.assert_allclose(read.values, exact[..., :-1] * alpha + 1 - alpha, atol=1e-6)


@pytest.mark.parametrize("bits, white", [(8, 255), (10, 1023), (12, 4095), (14, 16383), (16, 65535)])
@pytest.mark.parametrize("channels", [1, 3])
def test_fewer_bits_in_a_file_of_sixteen(tmp_path, bits, white, channels):
    """A camera's 12 bits were 16 grey levels once."""
    ramp = np.linspace(0, white, 9 * 7 * channels).astype(np.uint16).reshape(7, 9, channels)
    for path, write in ((tmp_path / "a.png", write_png), (tmp_path / "a.tif", write_tiff)):
        write(path, ramp)
        read = read_float(path)
        np.testing.assert_allclose(read.values, ramp / white, atol=1e-7)
        assert f"white {white}" in read.range and f"to {white}" in read.range
        expected = np.rint(ramp / white * 255)
        np.testing.assert_array_equal(read_picture(path), np.broadcast_to(expected, (7, 9, 3)))


def test_packed_twelve_bits_have_the_white_that_the_file_states(tmp_path):
    values = np.array([[0, 100, 2000, 300]], np.uint16)
    packed = bytes(b for a, c in values.reshape(-1, 2) for b in (a >> 4, (a & 15) << 4 | c >> 8, c & 255))
    tags = [(256, 4, 4), (257, 4, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 4, 1),
            (279, 4, len(packed))]
    ifd = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, kind, 1, v) for tag, kind, v in tags)
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + ifd + bytes(4))
    np.testing.assert_allclose(read_float(tmp_path / "a.tif").values[..., 0], values / 4095, atol=1e-7)


@needs_cases
def test_eight_bits_in_integers_of_32():
    """It was black, and was "restored"."""
    read = read_float(CASES / "i32_8bit.tif")
    assert read.white == 255 and read.range == "uint32 from 20 to 220, black is 0 and white 255"
    assert read_picture(CASES / "i32_8bit.tif").min() == 20


@pytest.mark.parametrize("dtype, top, white", [
    (np.uint32, 2**32 - 1, 2**32 - 1), (np.int32, 2**31 - 1, 2**31 - 1), (np.int32, 60_000, 65535),
    (np.float32, 1.0, 1), (np.float32, 1.9, 1), (np.float32, 255, 255), (np.float32, 4095, 4095), (np.float64, 1.0, 1)])
def test_integers_of_32_bits_and_floats(tmp_path, dtype, top, white):
    array = np.array([[[0], [top / 4], [top]]]).astype(dtype)
    write_tiff(tmp_path / "a.tif", array)
    np.testing.assert_allclose(read_float(tmp_path / "a.tif").values, array / white, rtol=1e-6)


def test_float_colours_keep_what_lies_outside_the_range_of_pixels(tmp_path):
    noisy = RNG.normal(0.5, 0.3, (5, 7, 3)).astype(np.float32)
    write_tiff(tmp_path / "a.tif", noisy)
    read = read_float(tmp_path / "a.tif")
    np.testing.assert_array_equal(read.values, noisy)
    assert read.kind == "float" and noisy.min() < 0
    planes = np.moveaxis(noisy, -1, 0)
    tifffile.imwrite(tmp_path / "planes.tif", planes, photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(read_float(tmp_path / "planes.tif").values, noisy)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_modes_of_eight_bits(tmp_path, mode):
    colours = np.repeat(np.repeat(np.array([[[255, 0, 0], [0, 0, 255]], [[0, 255, 0], [255, 255, 255]]], np.uint8),
                                  8, 0), 8, 1)
    image = Image.fromarray(colours).convert(mode)
    image.save(path := tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png"))
    expected = np.asarray(image.convert("RGB")) / 255
    read = read_float(path)
    assert read.values.shape[-1] == (1 if mode in ("1", "L", "LA") else 3) and read.white == 255
    np.testing.assert_allclose(np.broadcast_to(read.values, expected.shape), expected, atol=1e-6)
    np.testing.assert_array_equal(read_picture(path), np.rint(expected * 255))


def test_one_transparent_colour(tmp_path):
    """PNG's tRNS chunk, in the units of the file."""
    write_png(tmp_path / "a.png", DEEP[3], DEEP[3][2, 3].astype(">u2").tobytes())
    alpha = read_float(tmp_path / "a.png").alpha
    assert alpha[2, 3] == 0 and alpha.sum() == alpha.size - 1
    write_png(tmp_path / "b.png", DEEP[1], DEEP[1][2, 3].astype(">u2").tobytes())
    read = read_float(tmp_path / "b.png")
    assert read.alpha[2, 3] == 0 and read.values[2, 3] == 1


def test_a_picture_of_sixteen_bits_is_upright(tmp_path):
    write_png(tmp_path / "a.png", DEEP[3])
    turned = Image.Exif()
    turned[0x112] = 6
    with Image.open(tmp_path / "a.png") as image:
        exif = turned.tobytes().removeprefix(b"Exif\0\0")
        assert image.size == (9, 6)
    raw = (tmp_path / "a.png").read_bytes()
    chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    (tmp_path / "a.png").write_bytes(raw[:33] + chunk + raw[33:])
    np.testing.assert_allclose(read_float(tmp_path / "a.png").values, np.rot90(DEEP[3], -1) / 65535, atol=1e-7)


def test_binary_pnm_files_state_their_white(tmp_path):
    ramp = np.linspace(0, 900, 5 * 4 * 3).astype(np.uint16)
    (tmp_path / "a.ppm").write_bytes(b"P6\n5 4\n1000\n" + ramp.astype(">u2").tobytes())
    np.testing.assert_allclose(read_float(tmp_path / "a.ppm").values.ravel(), ramp / 1000, atol=1e-7)
    (tmp_path / "a.pgm").write_bytes(b"P5\n6 10\n1000\n" + ramp.astype(">u2").tobytes())
    np.testing.assert_allclose(read_float(tmp_path / "a.pgm").values.ravel(), ramp / 1000, atol=1e-5)


@pytest.mark.parametrize("array, line", [
    (np.array([[[-5], [9]]], np.int32), "not negative"), (np.array([[[np.nan]]], np.float32), "not finite"),
    (np.full((1, 1, 1), 1e9, np.float32), "at most 65535")])
def test_what_is_no_picture_is_refused(tmp_path, array, line):
    write_tiff(tmp_path / "a.tif", array)
    with pytest.raises(UserError, match=f"a.tif.*{line}"):
        read_float(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp"])
def test_a_damaged_file_is_named(tmp_path, suffix):
    image = Image.fromarray(RNG.integers(0, 256, (40, 40, 3), np.uint8))
    image.save(path := tmp_path / f"a.{suffix}")
    for content in (path.read_bytes()[:300], b"", b"not a picture"):
        path.write_bytes(content)
        for read in (read_float, read_picture, known_pixels):
            with pytest.raises(UserError, match=rf"a\.{suffix}"):
                read(path)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("white", [255, 1023, 4095, 65535])
def test_a_written_picture_has_the_numbers_that_came_in(tmp_path, channels, white):
    numbers = RNG.integers(0, white + 1, (7, 5, channels))
    numbers[0, 0] = white
    write_picture(tmp_path / "a.png", (numbers / white).astype(np.float32), float(white))
    stored = pictures.decoding.decode(tmp_path / "a.png")
    both = stored.colour if stored.alpha is None else np.concatenate([stored.colour, stored.alpha], -1)
    np.testing.assert_array_equal(both, numbers)
    assert both.itemsize == (1 if white == 255 else 2)


def test_floats_are_written_in_sixteen_bits_and_clipped(tmp_path):
    write_picture(tmp_path / "a.png", np.array([[[-0.5], [0.25], [1.5]]], np.float32), 1.0)
    assert np.asarray(Image.open(tmp_path / "a.png")).tolist() == [[0, 16384, 65535]]


def test_pictures_that_belong_together_share_their_white(tmp_path):
    for name, top in (("dark", 900), ("bright", 4000)):
        write_png(tmp_path / name, np.full((2, 2, 1), top, np.uint16))
    Image.new("L", (2, 2), 30).save(tmp_path / "bytes.png")
    dark, bright, bytes_ = same_white([read_float(tmp_path / n) for n in ("dark", "bright", "bytes.png")])
    assert (dark.white, bright.white, bytes_.white) == (4095, 4095, 255)
    np.testing.assert_allclose([dark.values[0, 0, 0], bright.values[0, 0, 0]], [900 / 4095, 4000 / 4095], rtol=1e-6)


@needs_cases
def test_a_transparent_hole_of_a_mask_is_unknown():
    with Image.open(CASES / "malpha.png") as image:
        hole = np.asarray(image)[..., 3:] == 0
    assert hole.sum() == 400
    np.testing.assert_array_equal(known_pixels(CASES / "malpha.png"), ~hole)
    with Image.open(CASES / "m0.5.png") as image:
        np.testing.assert_array_equal(known_pixels(CASES / "m0.5.png")[..., 0], np.asarray(image) == 255)


@pytest.mark.parametrize("top, dtype", [(1, np.uint8), (255, np.uint8), (255, np.uint16), (65535, np.uint16)])
def test_the_brightest_pixels_of_a_mask_are_its_white(tmp_path, top, dtype):
    mask = RNG.integers(0, 2, (8, 8)).astype(dtype)
    Image.fromarray(mask * dtype(top)).save(tmp_path / "m.png")
    np.testing.assert_array_equal(known_pixels(tmp_path / "m.png")[..., 0], mask)


def test_a_mask_of_one_kind_is_refused(tmp_path):
    for colour, word in ((255, "white"), (0, "black")):
        Image.new("L", (8, 8), colour).save(tmp_path / "m.png")
        with pytest.raises(UserError, match=f"m.png is {word}.*everywhere"):
            known_pixels(tmp_path / "m.png")


def test_floats_are_resized_like_bytes():
    image = RNG.integers(0, 256, (30, 20, 3), np.uint8)
    exact = square((image / 255).astype(np.float32), 8)
    assert exact.shape == (8, 8, 3) and exact.dtype == np.float32
    np.testing.assert_allclose(exact, square(image, 8) / 255, atol=1.01 / 255)
