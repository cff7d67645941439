"""Training in this process: from Python with an array, and what a run may not be made to do."""
import json
import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dipddpm_jax import checkpoints, data, files
from dipddpm_jax.commands import builders
from dipddpm_jax.commands import train as training_command
from dipddpm_jax.commands.model import load_run
from dipddpm_jax.commands.train import Training, train_model
from dipddpm_jax.commands.trainer import train
from dipddpm_jax.commands.training_data import array_training_data, load_training_data
from dipddpm_jax.config import saved
from dipddpm_jax.config.diffusion import OptimizerConfig, RunOptions, ScheduleConfig, TrainConfig, UNet
from dipddpm_jax.config.sampler import SamplerConfig
from dipddpm_jax.diffusion.training import Metrics
from dipddpm_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("fast_compilation")

TINY = TrainConfig(UNet(width=8, multipliers=(1,), attention_size=0), ScheduleConfig(num_steps=20),
                   OptimizerConfig(decay="constant"), SamplerConfig(num_steps=2), batch_size=8, steps=8, image_size=8)
RUN = RunOptions(chunk=4, save_every=4, sample_every=4, devices=1)
PICTURES = np.random.default_rng(0).random((10, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def quiet():
    """Compilation caches and devices are as the tests have them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_command.devices, "set_up", lambda run: None)
        patch.setattr("dipddpm_jax.commands.trainer.devices.set_up", lambda run: None)
        yield


@pytest.fixture(scope="module")
def array_run(tmp_path_factory):
    """A run of ten grey pictures with two classes."""
    workdir = tmp_path_factory.mktemp("array") / "run"
    assert train(PICTURES, np.arange(10) % 2, TINY, workdir=workdir, run=RUN, label_names=("even", "odd")) == workdir
    return workdir


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_an_array_becomes_a_run_that_is_loaded_and_denoises(array_run):
    model = load_run(array_run)
    assert model.step == 8 and model.facts.label_names == ("even", "odd") and model.facts.count == 10
    assert model.config.data == "array" and model.config.image_size is None
    out = model.network.apply(model.weights, jnp.zeros((2, 8, 8, 1)), jnp.ones(2, jnp.int32), jnp.arange(2))
    assert out.shape == (2, 8, 8, 1) and np.isfinite(out).all()
    assert [row["step"] for row in rows(array_run)] == [4, 8] and "held_out_loss" not in rows(array_run)[0], \
        "no loss is called held-out where nothing is held out"


def test_a_run_of_an_array_goes_on_with_the_same_array_only(array_run, tmp_path):
    workdir = shutil.copytree(array_run, tmp_path / "run")
    before = (workdir / "config.json").read_bytes()
    for step in (4, 6):  # the run is at 8
        with pytest.raises(UserError, match=f"--steps {step}: the run in .* is at step 8 already"):
            train(PICTURES, np.arange(10) % 2, workdir=workdir, resume=True, steps=step, run=RUN)
    with pytest.raises(UserError, match="other data .*--checksum"):
        train(PICTURES[::-1], np.arange(10) % 2, workdir=workdir, resume=True, steps=12, run=RUN)
    with pytest.raises(UserError, match="only Python has"):
        load_training_data(saved.load(workdir / "config.json")[1], None)
    assert (workdir / "config.json").read_bytes() == before and len(rows(workdir)) == 2
    train(PICTURES, np.arange(10) % 2, workdir=workdir, resume=True, steps=12, run=RUN)
    at_once = train(PICTURES, np.arange(10) % 2, TINY, 12, tmp_path / "at_once", run=RUN, label_names=("even", "odd"))
    for a, b in zip(jax.tree.leaves(load_run(workdir).weights), jax.tree.leaves(load_run(at_once).weights)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
def test_a_run_of_eight_devices_goes_on_with_one_two_four_or_eight(tmp_path):
    """What is read is equal bit by bit; so is the end on as many devices, and on others up to the order of sums."""
    given = array_training_data(replace(TINY, data="array", image_size=None), PICTURES, np.arange(10) % 2,
                                ("even", "odd"))

    def job(count, name):
        return Training(TINY, replace(RUN, devices=count), tmp_path / name, given)

    def arrays(job):
        return jax.tree.leaves(jax.tree.map(np.array, job.state._replace(key=None)))  # copies: it is donated

    whole = job(8, "whole")
    whole.advance(4)
    with checkpoints.Checkpoints(tmp_path / "saved" / "checkpoints") as kept:
        kept.add(4, whole.items())
    middle = arrays(whole)
    whole.advance(4)
    for count in (8, 4, 2, 1):
        again = job(count, "saved")
        assert again.step == 4 and len(jax.tree.leaves(again.state.params)[0].devices()) == count
        for got, expected in zip(arrays(again), middle, strict=True):
            np.testing.assert_array_equal(got, expected)
        again.advance(4)
        for got, expected in zip(arrays(again), arrays(whole), strict=True):
            np.testing.assert_allclose(got, expected, rtol=0, atol=0 if count == 8 else 2e-4)  # Adam's steps: 1e-3


def test_muon_turns_each_kernel_by_an_orthogonal_matrix_and_a_run_of_it_resumes_bitwise(tmp_path):
    params = {"kernel": jnp.zeros((3, 3, 4, 8)), "bias": jnp.zeros(8)}
    keys = jax.random.split(jax.random.key(0), 2)
    grads = {"kernel": jax.random.normal(keys[0], (3, 3, 4, 8)), "bias": jax.random.normal(keys[1], (8,))}
    moved = {}
    for name in ("muon", "adam"):
        optimizer = builders.make_optimizer(OptimizerConfig(name, learning_rate=0.01), 10)
        moved[name], _ = optimizer.update(grads, optimizer.init(params), params)
    singular = jnp.linalg.svd(moved["muon"]["kernel"].reshape(36, 8), compute_uv=False)
    np.testing.assert_allclose(singular / (0.01 * 0.2 * 6), 1, atol=0.35)  # of 0.2 rate sqrt(36), to Newton and Schulz
    np.testing.assert_array_equal(jnp.sign(moved["muon"]["bias"]), -jnp.sign(grads["bias"]))
    assert jnp.abs(moved["adam"]["kernel"]).max() < 1.01 * 0.01
    config = replace(TINY, optimizer=OptimizerConfig("muon", decay="constant"))
    whole, parts = (train(PICTURES, None, config, steps, tmp_path / name, run=RUN)
                    for name, steps in (("whole", 8), ("parts", 4)))
    train(PICTURES, steps=8, workdir=parts, resume=True, run=RUN)
    jax.tree.map(np.testing.assert_array_equal, load_run(whole).weights, load_run(parts).weights)
    assert rows(whole)[-1]["loss"] == rows(parts)[-1]["loss"]


@pytest.mark.parametrize("images, labels, message", [
    (np.full((9, 8, 8), 2.0), None, "floats in \\[0, 1\\]"),
    (np.full((9, 8, 8), np.nan), None, "floats in \\[0, 1\\]"),
    (np.full((9, 8, 8), 256), None, "0..255"),
    (np.full((9, 8, 8), -1), None, "0..255"),
    (np.zeros((8, 8)), None, "\\(n, h, w\\)"),
    (np.zeros((0, 8, 8)), None, "\\(n, h, w\\)"),
    (np.full((9, 8, 8), "a"), None, "must be numbers"),
    (np.zeros((9, 8, 8)), np.zeros(8, int), "9 images, and labels of shape"),
    (np.zeros((9, 8, 8)), np.full(9, 0.5), "whole numbers"),
    (np.zeros((9, 8, 8)), np.full(9, -1), "whole numbers"),
    (np.zeros((9, 8, 8)), np.full((9, 2), 2), "zeros and ones"),
    (np.zeros((2, 8, 8)), None, "--batch-size 8 is more than the 2 pictures"),
])
def test_arrays_that_are_no_pictures_are_refused(images, labels, message):
    with pytest.raises(UserError, match=message):
        array_training_data(TINY, images, labels, ())


def test_pictures_of_any_type_are_the_same_bytes():
    whole = np.arange(10 * 64).reshape(10, 8, 8, 1) % 256
    for images in (whole.astype(np.uint8), whole, whole / 255, (whole / 255).astype(np.float16)):
        np.testing.assert_array_equal(array_training_data(TINY, images, None, ()).images, whole)


def test_a_damaged_test_split_stops_the_run_and_a_missing_one_is_said(monkeypatch, tmp_path, capsys):
    digits = data.Dataset((PICTURES[..., None] * 255).astype(np.uint8), None, (), "digits")

    def load(error):
        def load(name, split, *_):
            if split == "test":
                raise error
            return digits
        return load

    monkeypatch.setattr(data, "load", load(UserError("test.npz is damaged")))
    with pytest.raises(UserError, match="test.npz is damaged"):
        load_training_data(TINY, None)
    monkeypatch.setattr(data, "load", load(data.MissingSplit("no test pictures")))
    given = load_training_data(TINY, None)
    assert len(given.held_images) == 0 and len(given.examples().held_images) == 10
    monkeypatch.setattr(training_command, "train_on",
                        lambda given, *_: (tmp_path, tmp_path / str(len(given.held_images))))
    assert train_model(TINY, RunOptions(), "unet") == (tmp_path, tmp_path / "0")
    assert "no test pictures: no held-out loss" in capsys.readouterr().err


@pytest.mark.parametrize("losses, norms, step", [([1, np.nan, np.nan], [1, 1, 1], 7), ([1, 1, 1], [1, 1, np.inf], 8)])
def test_a_chunk_tells_the_step_that_was_not_finite(losses, norms, step):
    job = SimpleNamespace(config=TINY, workdir="runs/unet-001")
    metrics = [jnp.array([*values, np.nan], jnp.float32) for values in (losses, norms)]  # of a chunk of four, three ran
    report = Training.report(job, (8, 3, Metrics(*metrics)), 1.0)
    assert f"not finite in step {step} of runs/unet-001" in report.problem and report.rows == []
    metrics = [jnp.array([1.0, 2.0, 3.0, np.nan])] * 2
    report = Training.report(job, (8, 3, Metrics(*metrics)), 2.0)
    assert report.problem is None
    assert report.rows == [{"step": 8, "loss": 2.0, "grad_norm": 2.0, "images_per_s": 12.0}]


@pytest.mark.parametrize("what", ["samples.png", "loss.png", "config.json"])
def test_a_full_disk_names_the_file(array_run, tmp_path, monkeypatch, what):
    workdir, real = shutil.copytree(array_run, tmp_path / "run"), os.replace

    def full(source, target):
        if str(target).endswith(what):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(UserError, match=f"cannot write .*{what}: No space left on device"):
        train(PICTURES, np.arange(10) % 2, workdir=workdir, resume=True, run=RUN)
    assert checkpoints.latest_step(workdir / "checkpoints") == 8 and not list(workdir.glob(".part*"))
