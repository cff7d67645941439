"""TensorBoard's event files of a run: TensorBoard's own reader finds the numbers of metrics.jsonl in them."""
import json

import numpy as np
import pytest

from dipddpm_jax.commands import event_files
from dipddpm_jax.commands import train as training_command
from dipddpm_jax.commands.trainer import train
from dipddpm_jax.config.diffusion import OptimizerConfig, RunOptions, ScheduleConfig, TrainConfig, UNet
from dipddpm_jax.config.sampler import SamplerConfig
from dipddpm_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("fast_compilation")

TINY = TrainConfig(UNet(width=8, multipliers=(1,), attention_size=0), ScheduleConfig(num_steps=20),
                   OptimizerConfig(decay="constant"), SamplerConfig(num_steps=2), batch_size=4, image_size=8)
PICTURES = np.random.default_rng(0).random((10, 8, 8)).astype(np.float32)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Compilation caches and devices are as the tests have them."""
    monkeypatch.setattr(training_command.devices, "set_up", lambda run: None)
    monkeypatch.setattr("dipddpm_jax.commands.trainer.devices.set_up", lambda run: None)


def scalars(folder):
    """{name: [(step, value), ...]} as TensorBoard reads them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    read.Reload()
    return {name: [(event.step, event.value) for event in read.Scalars(name)] for name in read.Tags()["scalars"]}


def test_they_hold_the_numbers_of_the_log(tmp_path):
    pytest.importorskip("tensorboard")
    run = train(PICTURES, np.arange(10) % 2, TINY, steps=4, workdir=tmp_path / "run",
                run=RunOptions(chunk=2, save_every=2, sample_every=0, devices=1, tensorboard=True))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = scalars(run)
    assert set(found) == {"loss", "grad_norm", "images_per_s"}
    for name, values in found.items():
        assert values == [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows]


def test_a_resumed_run_replaces_the_steps_that_it_does_again(tmp_path):
    pytest.importorskip("tensorboard")
    with event_files.event_file(tmp_path, 0) as write:
        write([{"step": 2, "loss": 1.0}, {"step": 4, "loss": 2.0, "held_out_loss": None}])
    with event_files.event_file(tmp_path, 2) as write:  # its newest checkpoint was that of step 2
        write([{"step": 4, "loss": 3.0}])
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 2
    assert scalars(tmp_path) == {"loss": [(2, 1.0), (4, 3.0)]}


def test_a_missing_package_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(event_files, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        train(PICTURES, None, TINY, steps=1, workdir=tmp_path / "run", run=RunOptions(tensorboard=True, devices=1))
    assert not (tmp_path / "run").exists()
