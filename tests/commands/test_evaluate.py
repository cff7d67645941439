"""The evaluate command: what it writes agrees with what it was given, and what it refuses."""
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from dipddpm_jax import checkpoints, data
from dipddpm_jax.commands import builders, evaluate, evaluation
from dipddpm_jax.commands.train import checkpoint_items
from dipddpm_jax.commands.training_data import load_training_data
from dipddpm_jax.config.diffusion import ScheduleConfig, TrainConfig, UNet
from dipddpm_jax.config.sampler import SamplerConfig
from dipddpm_jax.config.saved import save
from dipddpm_jax.diffusion import samplers

pytestmark = pytest.mark.usefixtures("fast_compilation")

CONFIG = TrainConfig(UNet(width=8, multipliers=(1,), attention_size=0), ScheduleConfig(num_steps=20),
                     sampler=SamplerConfig(num_steps=2), image_size=8, batch_size=8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of no steps: its pictures are noise."""
    workdir = tmp_path_factory.mktemp("evaluate") / "run"
    facts = load_training_data(CONFIG, None).facts
    state = builders.make_state(CONFIG, builders.make_network(CONFIG.network, facts, 20), facts)
    with checkpoints.Checkpoints(workdir / "checkpoints") as kept:
        kept.add(0, checkpoint_items(state))
    save(CONFIG, "unet", facts, workdir / "config.json")
    return workdir


@pytest.fixture(scope="module")
def digits():
    return data.load("mnist5k")


def saved(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_a_run_is_drawn_from_and_judged(run, capsys, tmp_path):
    evaluate.evaluate_main([str(run), "--count", "40", "--guidance", "1", "--batch-size", "40", "--seed", "3",
                   "--png-folder", str(tmp_path / "pngs")])
    out = run / "evaluation"
    assert {path.name for path in out.iterdir()} == {"evaluation.json", "evaluation.md", "nearest.png", "samples.npz"}
    text, found = (out / "evaluation.md").read_text(), json.loads((out / "evaluation.json").read_text())
    assert text in capsys.readouterr().out
    for word in ("FD(digits), n = 40", "KID(digits)", "label accuracy", "nearest training picture", "seed 3",
                 "4 network calls", found["machine"], found["date"]):
        assert word in text
    assert "FID" not in text and text.startswith(f"# Pictures of step 0 of {run}\n")
    assert found["sampler"]["guidance"] == 1 and found["network_calls"] == 4 and found["seconds"] > 0
    assert found["fd"] > 10 * found["floor"]
    with np.load(out / "samples.npz") as file:
        images, labels = file["images"], file["labels"]
    np.testing.assert_array_equal(labels, np.arange(40) % 10)
    pngs = sorted((tmp_path / "pngs").iterdir())
    np.testing.assert_array_equal(np.stack([np.asarray(Image.open(path)) for path in pngs]), images[..., 0])
    evaluate.evaluate_main([str(run), "--samples", str(out / "samples.npz"), "--seed", "3",
                            "--out", str(tmp_path / "again")])
    again = json.loads((tmp_path / "again" / "evaluation.json").read_text())
    same = ("fd", "kid", "floor", "spread", "histogram", "label_accuracy", "nearest", "mean_confidence")
    assert {key: again[key] for key in same} == {key: found[key] for key in same}


def test_copies_of_training_pictures_are_found_out(digits, tmp_path):
    rng = np.random.default_rng(0)
    copies = rng.choice(len(digits.images), 60, replace=False)
    file = saved(tmp_path / "copies.npz", images=digits.images[copies], labels=digits.labels[copies])
    evaluate.evaluate_main(["--samples", str(file), "--data", "mnist5k"])
    found = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert found["nearest"]["median"] == found["nearest"]["least"] == 0 < 20 < found["nearest"]["held_out_median"]
    assert found["label_accuracy"] > 0.98 and found["fd"] < 2 * found["floor"]


def test_nearest_is_its_definition():
    rng = np.random.default_rng(0)
    pictures, train = (rng.integers(0, 256, (n, 5, 4, 3), np.uint8) for n in (7, 2100))
    train[2050] = pictures[3]
    which, distance = evaluation.nearest(pictures, train)
    wanted = np.sqrt(((pictures[:, None].astype(float) - train[None]) ** 2).mean((2, 3, 4)))
    np.testing.assert_array_equal(which, wanted.argmin(1))
    np.testing.assert_allclose(distance, wanted.min(1), rtol=1e-6)
    assert (which[3], distance[3]) == (2050, 0)


@pytest.mark.parametrize("sampler, labels, calls", [
    (SamplerConfig(num_steps=3), None, 3),
    (SamplerConfig(name="ancestral"), None, 6),
    (SamplerConfig(name="heun", num_steps=3), None, 6),
    (SamplerConfig(name="ddim", num_steps=2, guidance=2.0), np.array([1, 2]), 4),
    (SamplerConfig(num_steps=2, compose=True), np.array([[1.0, 1, 0], [1, 1, 1]], np.float32), 8),
])
def test_network_calls_are_those_that_are_made(sampler, labels, calls):
    config = TrainConfig(schedule=ScheduleConfig(num_steps=6), target="eps")
    assert evaluation.network_calls(sampler, config, labels) == calls
    schedule, made = builders.make_schedule(config.schedule), []

    class Counted(nn.Module):
        def __call__(self, x, t, labels):
            made.append(x.shape[0])
            return 0 * x

    x, labels = jnp.zeros((2, 1, 1, 1)), None if labels is None else jnp.asarray(labels)
    with jax.disable_jit():
        denoise = builders.make_denoiser(config, sampler, Counted(), {}, labels, sampler.guidance, 3 * sampler.compose)
        noise = samplers.gaussian_noise(jax.random.split(jax.random.key(0), 2), (1, 1, 1))
        builders.make_sampler(sampler)(denoise, schedule, x, builders.sampling_grid(sampler, schedule), noise)
    assert sum(made) == 2 * calls


@pytest.mark.parametrize("args, words", [
    (["nowhere"], "not the directory of a training run"),
    (["RUN", "--count", "1"], "--count"),
    (["RUN", "--batch-size", "0"], "--batch-size"),
    (["RUN", "--seed", "-1"], "--seed"),
    (["RUN", "--sampler", "dim"], "unknown sampler"),
    (["RUN", "--num-steps", "21"], "--num-steps must be 1 to 20"),
    (["RUN", "--data", "mnist6k"], "did you mean mnist5k"),
    (["RUN", "--data", "photo_crops", "--samples", "GREY"], "1 channels"),
    (["RUN", "--judge", "scenes", "--samples", "GREY"], "channels"),
    (["RUN", "--judge", "cat"], "Known are digits, crops, scenes, those of the data sets"),
    (["RUN", "--judge", "scene"], "did you mean scenes?"),
    (["RUN", "--judge", "fashion_mnist"], "dipddpm-jax judge fashion_mnist"),
    (["RUN", "--judge", "none.pth"], "no such file"),
    (["RUN", "--samples", "none.npz"], "none.npz"),
    (["RUN", "--samples", "FLOAT"], "uint8"),
    (["RUN", "--samples", "EMPTY"], "`images`"),
    (["RUN", "--samples", "SHORT"], "40 images and 2 labels"),
    (["RUN", "--samples", "STRANGE"], "not those of the judge digits"),
    (["RUN", "--out", "FLOAT"], "is a file"),
    (["RUN", "--png-folder", "."], "not empty"),
    (["RUN", "--step", "99"], "no checkpoint of step 99"),
])
def test_what_is_refused(run, args, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grey = np.zeros((40, 8, 8, 1), np.uint8)
    files = {"GREY": saved(tmp_path / "grey.npz", images=grey), "EMPTY": saved(tmp_path / "empty.npz", other=grey),
             "FLOAT": saved(tmp_path / "float.npz", images=grey / 255),
             "SHORT": saved(tmp_path / "short.npz", images=grey, labels=np.zeros(2, int)),
             "STRANGE": saved(tmp_path / "strange.npz", images=grey, labels=np.full(40, 10)), "RUN": run}
    before = sorted(Path(run).rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        evaluate.evaluate_main([str(files.get(arg, arg)) for arg in args])
    text = capsys.readouterr().err
    assert stopped.value.code == 2 and words in text and len(text.splitlines()) <= 2, text
    assert sorted(Path(run).rglob("*")) == before
