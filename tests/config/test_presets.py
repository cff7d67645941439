"""Every preset trains and samples from the command line, on real or rendered pictures, at small width."""

import jax.numpy as jnp
import numpy as np
import pytest

from dipddpm_jax import networks
from dipddpm_jax.__main__ import main
from dipddpm_jax.commands import cli
from dipddpm_jax.commands.model import load_run
from dipddpm_jax.config.presets import PRESETS
from dipddpm_jax.data import scenes

SMALL = {
    "unet": ["--network.width", "8"],
    "own": ["--network.function", "dipddpm_jax.networks:tiny_unet"],
    "attention-unet": ["--data", "mnist5k", "--network.widths", "8", "8", "8", "8", "--network.time-dim", "8"],
    "small-unet": ["--data", "mnist5k", "--network.widths", "4", "4", "4"],
    "residual-denoiser": ["--data", "photo_crops", "--network.num-blocks", "2"],
    "context-unet": ["--network.width", "8"],
    "scenes": ["--network.width", "8", "--network.multipliers", "1", "--network.patch-size", "4",  # where pixels attend
               "--optimizer.warmup-steps", "0"],  # its pixels are scaled to a tenth
    "iclevr": ["--network.width", "8", "--network.multipliers", "1", "--network.attention-size", "16", "--data",
               "scenes"],
    "teapearce": ["--data", "mnist5k", "--network.width", "8"],
}


pytestmark = pytest.mark.usefixtures("fast_compilation")


@pytest.mark.parametrize("preset", PRESETS)
def test_preset(preset, tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "NUM_PICTURES", {"train": 16, "test": 8})
    monkeypatch.setattr(networks, "tiny_unet", lambda: networks.UNet(width=8, multipliers=(1,), attention_size=0),
                        raising=False)
    steps = ["--schedule.num-steps", "10", "--sampler.num-steps", "2"]
    cli.train_main([preset, *SMALL[preset], *steps, "--steps", "2", "--batch-size", "8", "--chunk", "1", "--data-dir",
                    str(tmp_path / "data"), "--workdir", str(tmp_path / "run")])
    assert (tmp_path / "run" / "samples.png").exists()
    cli.sample_main([str(tmp_path / "run"), "--count", "3", "--gif", "--out", str(tmp_path / "out"), "--data-dir",
                     str(tmp_path / "data")])
    images = np.load(tmp_path / "out" / "samples.npz")["images"]
    assert images.shape[0] == 3 and images.std() > 0
    assert (tmp_path / "out" / "chain.gif").exists()


def test_a_trained_network_runs_in_pytorch(tmp_path):
    """Trains here, exports by the command, loads strictly into the PyTorch reference: same output."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from safetensors.torch import load_file

    from benchmarks.torch_reference import system003

    run, file = tmp_path / "run", tmp_path / "weights.safetensors"
    cli.train_main(["residual-denoiser", "--data", "photo_crops", "--network.num-blocks", "3", "--batch-size", "8",
                    "--schedule.num-steps", "10", "--steps", "20", "--workdir", str(run)])
    main(["export", str(run), str(file)])
    network = system003.DDPM(system003.sigma_table("linear", 10), num_blocks=3)
    network.load_state_dict(load_file(file), strict=True)
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, 8, 8, 3)).astype(np.float32), rng.normal(size=(3, 2, 8, 8, 3)).astype(np.float32)
    with torch.no_grad():
        first, draws = (torch.tensor(np.moveaxis(a, -1, -3)) for a in (x, noise))
        theirs = network(first, 7, lambda block: draws[block])
    model = load_run(run)
    ours = model.network.apply(model.weights, jnp.asarray(x), jnp.array([8, 8]), noise=jnp.asarray(noise))
    np.testing.assert_allclose(np.asarray(ours).transpose(0, 3, 1, 2), theirs.numpy(), atol=1e-5)


def test_several_labels_a_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "NUM_PICTURES", {"train": 16, "test": 8})
    run = str(tmp_path / "run")
    cli.train_main(["context-unet", "--network.width", "8", "--schedule.num-steps", "10", "--sampler.num-steps", "2",
                    "--steps", "2", "--batch-size", "8", "--chunk", "2", "--data-dir", str(tmp_path), "--workdir", run])
    cli.sample_main([run, "--labels", "red sphere,cyan cube", "gray cylinder", "--guidance", "2", "--count", "2"])
    labels = np.load(tmp_path / "run" / "drawn-001" / "samples.npz")["labels"]
    assert labels.sum(1).tolist() == [2, 1]
    file = tmp_path / "labels.json"
    file.write_text('[["red sphere"], ["cyan cube", "blue sphere", "gray cube"]]')
    cli.sample_main([run, "--label-file", str(file)])
    labels = np.load(tmp_path / "run" / "drawn-002" / "samples.npz")["labels"]
    assert labels.sum(1).tolist() == [1, 3]
