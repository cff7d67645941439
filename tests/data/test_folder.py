"""Folders of pictures: which files are taken and left, what the subfolders mean, and which size the pictures get."""
import numpy as np
import pytest
from PIL import Image

from dipddpm_jax import data
from dipddpm_jax.commands import train
from dipddpm_jax.config.diffusion import TrainConfig
from dipddpm_jax.errors import UserError


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path, **options)


def test_a_damaged_held_out_picture_stops_the_run_and_a_missing_split_does_not(tmp_path):
    for i in range(4):
        save(tmp_path / "train" / f"{i}.png", np.full((8, 8, 3), (10 * i, 0, 50)))
    save(tmp_path / "test" / "a.png", np.full((8, 8, 3), (0, 200, 0)))
    config = TrainConfig(data=f"folder:{tmp_path}", image_size=8, batch_size=2)
    assert train.load_data(config, None).held_images[0, 0, 0].tolist() == [0, 200, 0]
    (tmp_path / "test" / "a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="a.png cannot be read") as raised:
        train.load_data(config, None)
    assert not isinstance(raised.value, data.MissingSplit)
    (tmp_path / "test" / "a.png").unlink()
    with pytest.raises(data.MissingSplit, match="no pictures for test"):
        data.load(config.data, "test")
