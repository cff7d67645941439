"""Folders of pictures: which files are taken and left, what the subfolders mean, and which size the pictures get."""
import numpy as np
import pytest
from PIL import Image

from dipddpm_jax import data
from dipddpm_jax.commands import train
from dipddpm_jax.commands.training_data import load_training_data
from dipddpm_jax.config import saved
from dipddpm_jax.config.diffusion import RunOptions, TrainConfig
from dipddpm_jax.data.folder import choose
from dipddpm_jax.errors import UserError


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path, **options)


def test_a_damaged_held_out_picture_stops_the_run_and_a_missing_split_does_not(tmp_path):
    for i in range(4):
        save(tmp_path / "train" / f"{i}.png", np.full((8, 8, 3), (10 * i, 0, 50)))
    save(tmp_path / "test" / "a.png", np.full((8, 8, 3), (0, 200, 0)))
    config = TrainConfig(data=f"folder:{tmp_path}", image_size=8, batch_size=2)
    assert load_training_data(config, None).held_images[0, 0, 0].tolist() == [0, 200, 0]
    (tmp_path / "test" / "a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="a.png cannot be read") as raised:
        load_training_data(config, None)
    assert not isinstance(raised.value, data.MissingSplit)
    (tmp_path / "test" / "a.png").unlink()
    with pytest.raises(data.MissingSplit, match="no pictures for test"):
        data.load(config.data, "test")


def colour(r, g, b, shape=(8, 8)):
    return np.broadcast_to(np.array([r, g, b], np.uint8), (*shape, 3))


def fill(folder, *names, shade=0):
    for i, name in enumerate(names):
        save(folder / name, colour(i, shade, 9))


def files(folder, split="train"):
    return [path.as_posix() for path in choose(folder, split).files]


def test_class_folders_become_labels_with_fixed_names(tmp_path, capsys):
    for i in range(10):
        save(tmp_path / "dog" / f"{i}.png", colour(i, 0, 9))
        save(tmp_path / "cat" / f"{i}.JPG", colour(200, 90, 0))
    train, test = (data.load(f"folder:{tmp_path}", s) for s in ("train", "test"))
    assert train.label_names == test.label_names == ("cat", "dog")
    assert np.bincount(train.labels).tolist() == [9, 9] and test.labels.tolist() == [0, 1]
    assert train.images.shape == (18, 8, 8, 3)
    assert test.images[1, 0, 0].tolist() == [9, 0, 9]  # every tenth, in the order of the names
    save(tmp_path / "loose.png", colour(0, 0, 1))
    (tmp_path / "cat" / "notes.txt").write_text("not a picture")
    capsys.readouterr()
    strays = data.load(f"folder:{tmp_path}")
    np.testing.assert_array_equal(strays.images, train.images)
    np.testing.assert_array_equal(strays.labels, train.labels)
    said = capsys.readouterr().err
    assert "18 pictures of 2 classes (9 .jpg, 9 .png) of 8x8" in said and said.count("\n") == 1
    assert "left out: 1 file that is no picture (1 .txt); 1 picture beside the class folders" in said


def test_folders_of_a_few_beside_many_pictures_are_not_classes(tmp_path):
    fill(tmp_path, *(f"{i}.png" for i in range(9)), "old/1.png", "older/1.png")
    train = data.load(f"folder:{tmp_path}")
    assert train.labels is None and len(train.images) == 10
    fill(tmp_path / "one", *(f"images/{i}.png" for i in range(9)))
    assert data.load(f"folder:{tmp_path / 'one'}").labels is None  # one class is none


@pytest.mark.parametrize("train, test", [
    ("train", "test"), ("train", "val"), ("Train", "Validation"), ("training", "valid")])
def test_folders_called_as_splits_are_splits(tmp_path, train, test):
    fill(tmp_path / train, *(f"cat/{i}.png" for i in range(12)), "dog/1.png")
    fill(tmp_path / test, "dog/1.png", "dog/2.png", shade=7)
    for split, count, shade in (("train", 13, 0), ("test", 2, 7)):
        dataset = data.load(f"folder:{tmp_path}", split)
        assert len(dataset.images) == count and (dataset.images[..., 1] == shade).all()
        assert dataset.label_names == ("cat", "dog")
    assert dataset.labels.tolist() == [1, 1]


def test_validation_pictures_beside_a_test_split_are_left_out_and_said(tmp_path):
    for name in ("train", "val", "test"):
        fill(tmp_path / name, "1.png", "2.png")
    fill(tmp_path, "logo.png", "extra/1.png")
    chosen = choose(tmp_path, "train")
    assert (chosen.root.name, len(chosen.files), chosen.classes) == ("train", 2, ())
    assert sorted(chosen.left) == ["1 picture beside train", "1 picture in extra", "2 pictures in val"]
    assert choose(tmp_path, "test").root.name == "test"


def test_a_train_is_a_class_too(tmp_path):
    fill(tmp_path, "train/1.png", "bus/1.png", "bus/2.png")
    assert choose(tmp_path, "train").classes == ("bus", "train")
    fill(tmp_path / "alone", *(f"train/{i % 2}/{i}.png" for i in range(20)))
    chosen = choose(tmp_path / "alone", "test")
    assert chosen.classes == ("0", "1") and files(tmp_path / "alone", "test") == ["0/8.png", "1/9.png"]
    fill(tmp_path / "only", "test/1.png")
    assert files(tmp_path / "only", "test") == ["1.png"]
    with pytest.raises(data.MissingSplit, match="no pictures for train"):
        choose(tmp_path / "only", "train")


def test_a_missing_split_folder_is_no_class(tmp_path):
    fill(tmp_path, "train/cat/1.png", "train/dog/1.png")
    (tmp_path / "val").mkdir()
    assert choose(tmp_path, "train").classes == ("cat", "dog")
    with pytest.raises(data.MissingSplit):
        choose(tmp_path, "test")


def test_links_to_folders_are_followed_and_loops_are_not(tmp_path):
    fill(tmp_path / "elsewhere", *(f"{i}.png" for i in range(3)))
    fill(tmp_path / "data", "cat/1.png", "cat/2.png")
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "cat" / "again").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "gone.png").symlink_to(tmp_path / "nothing")
    chosen = choose(tmp_path / "data", "train")
    assert chosen.classes == ("cat", "dog") and "1 broken links" in chosen.left[0]
    assert files(tmp_path / "data") == ["cat/1.png", "cat/2.png", "dog/0.png", "dog/1.png", "dog/2.png"]


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "gif", "ppm", "tga", "jp2"])
def test_whatever_pillow_reads_is_taken(tmp_path, suffix):
    fill(tmp_path, "a.png", f"b.{suffix.upper()}")
    assert len(data.load(f"folder:{tmp_path}").images) == 2


def test_kinds_of_files_in_a_folder(tmp_path):
    save(tmp_path / "grey.png", np.full((9, 5), 77, np.uint8))
    Image.fromarray(np.full((9, 9), 77 * 256 + 77, np.uint16)).save(tmp_path / "sixteen bits.png")
    assert data.load(f"folder:{tmp_path}", image_size=4).images.tolist() == np.full((2, 4, 4, 1), 77).tolist()
    save(tmp_path / "transparent.png", np.zeros((6, 6, 4), np.uint8))
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "._grey.png").write_text("what macOS leaves behind")
    images = data.load(f"folder:{tmp_path}", image_size=4).images
    assert images.shape == (3, 4, 4, 1) and (images[2] == 255).all()
    turned = Image.Exif()
    turned[0x112] = 6  # the camera was held upright: the left half of the file is the top of the picture
    save(tmp_path / "turned.png", np.repeat([[[200, 0, 0]] * 8 + [[0, 0, 200]] * 8], 16, 0).astype(np.uint8),
         exif=turned)
    image = data.load(f"folder:{tmp_path}", image_size=16).images[3]
    assert (image[:8] == [200, 0, 0]).all() and (image[8:] == [0, 0, 200]).all()


def test_deep_pictures_of_a_folder_share_their_white(tmp_path):
    """A dark picture of a 12-bit camera stays dark beside a bright one."""
    for name, top in (("dark", 1000), ("bright", 4095)):
        Image.fromarray(np.full((4, 4), top, np.uint16)).save(tmp_path / f"{name}.png")
    images = data.load(f"folder:{tmp_path}").images
    assert images[:, 0, 0, 0].tolist() == [255, round(1000 / 4095 * 255)]


def test_pictures_keep_their_size_or_it_must_be_chosen(tmp_path):
    fill(tmp_path, "a.png", "b.png")
    save(tmp_path / "a.png", colour(1, 2, 3, (20, 30)))
    with pytest.raises(UserError, match=r"b.png has 8x8 pixels and .*a.png 30x20; --image-size N"):
        data.load(f"folder:{tmp_path}")
    assert data.load(f"folder:{tmp_path}", image_size=5).images.shape == (2, 5, 5, 3)
    (tmp_path / "b.png").unlink()
    np.testing.assert_array_equal(data.load(f"folder:{tmp_path}").images, [colour(1, 2, 3, (20, 30))])


def test_the_order_of_many_pictures_is_that_of_their_names(tmp_path):
    for i in range(300):
        save(tmp_path / f"{i:03d}.png", colour(i % 256, i // 256, 0))
    images = data.load(f"folder:{tmp_path}").images
    numbers = images[:, 0, 0, 0].astype(int) + 256 * images[:, 0, 0, 1].astype(int)
    assert numbers.tolist() == [i for i in range(300) if i % 10 != 9]


def test_what_is_wrong_with_a_folder_is_said(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="is not a folder"):
        data.load(f"folder:{tmp_path / 'absent'}")
    (tmp_path / "pictures").mkdir()
    with pytest.raises(UserError, match="did you mean .*/pictures"):
        data.load(f"folder:{tmp_path / 'picturs'}")
    monkeypatch.chdir(tmp_path)
    for name in ("folder:", "folder: "):
        with pytest.raises(UserError, match="names no folder"):
            data.load(name)
    with pytest.raises(UserError, match="holds no pictures"):
        data.load(f"folder:{tmp_path}")
    save(tmp_path / "a.png", np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8))
    assert len(data.load(f"folder:{tmp_path}").images) == 1
    with pytest.raises(data.MissingSplit, match="no pictures for test"):
        data.load(f"folder:{tmp_path}", "test")
    fill(tmp_path, "0.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:900])
    with pytest.raises(UserError, match="a.png cannot be read"):
        data.load(f"folder:{tmp_path}", image_size=8)


def test_a_run_from_when_folders_were_shrunk_is_resumed_at_its_own_size(tmp_path):
    fill(tmp_path / "pictures", "a.png", "b.png")
    config = TrainConfig(data=f"folder:{tmp_path / 'pictures'}", batch_size=2)
    saved.save(config, "unet", saved.Facts((32, 32, 3)), tmp_path / "config.json")
    resumed = train._of_saved_size(config, RunOptions(tmp_path, resume=True))
    assert load_training_data(resumed, None).images.shape == (2, 32, 32, 3)
    assert load_training_data(config, None).images.shape == (2, 8, 8, 3)
