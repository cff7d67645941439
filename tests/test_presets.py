"""Every preset trains and samples from the command line, on real or rendered pictures, at small width."""
import numpy as np
import pytest

from dipddpm_jax import cli
from dipddpm_jax.data import scenes
from dipddpm_jax.presets import PRESETS

SMALL = {
    "unet": ["--network.width", "8"],
    "attention-unet": ["--data", "mnist5k", "--network.widths", "8", "8", "8", "8", "--network.time-dim", "8"],
    "small-unet": ["--data", "mnist5k", "--network.widths", "4", "4", "4"],
    "residual-denoiser": ["--data", "photo_crops", "--network.num-blocks", "2"],
    "context-unet": ["--network.width", "8"],
    "teapearce": ["--data", "mnist5k", "--network.width", "8"],
}


@pytest.mark.parametrize("preset", PRESETS)
def test_preset(preset, tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "NUM_PICTURES", {"train": 16, "test": 8})
    steps = ["--schedule.num-steps", "10", "--sampler.num-steps", "2"]
    cli.train_main([preset, *SMALL[preset], *steps, "--steps", "2", "--batch-size", "8", "--chunk", "2", "--data-dir",
                    str(tmp_path / "data"), "--workdir", str(tmp_path / "run")])
    assert (tmp_path / "run" / "samples.png").exists()
    cli.sample_main([str(tmp_path / "run"), "--count", "3", "--gif", "--out", str(tmp_path / "out"), "--data-dir",
                     str(tmp_path / "data")])
    images = np.load(tmp_path / "out" / "samples.npz")["images"]
    assert images.shape[0] == 3 and images.std() > 0
    assert (tmp_path / "out" / "chain.gif").exists()


def test_several_labels_a_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "NUM_PICTURES", {"train": 16, "test": 8})
    run = str(tmp_path / "run")
    cli.train_main(["context-unet", "--network.width", "8", "--schedule.num-steps", "10", "--sampler.num-steps", "2",
                    "--steps", "2", "--batch-size", "8", "--chunk", "2", "--data-dir", str(tmp_path), "--workdir", run])
    cli.sample_main([run, "--labels", "red sphere,cyan cube", "gray cylinder", "--guidance", "2", "--count", "2"])
    labels = np.load(tmp_path / "run" / "samples" / "samples.npz")["labels"]
    assert labels.sum(1).tolist() == [2, 1]
    file = tmp_path / "labels.json"
    file.write_text('[["red sphere"], ["cyan cube", "blue sphere", "gray cube"]]')
    cli.sample_main([run, "--label-file", str(file)])
    labels = np.load(tmp_path / "run" / "samples" / "samples.npz")["labels"]
    assert labels.sum(1).tolist() == [1, 3]
