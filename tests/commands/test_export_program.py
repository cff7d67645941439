"""The sampler of a run as a program: another process draws the same pictures without this package."""
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from dipddpm_jax.__main__ import main
from dipddpm_jax.commands.export_program import HOW_TO_RUN
from dipddpm_jax.commands.trainer import train
from dipddpm_jax.config.diffusion import OptimizerConfig, RunOptions, ScheduleConfig, TrainConfig, UNet
from dipddpm_jax.config.sampler import SamplerConfig

TINY = TrainConfig(UNet(width=8, multipliers=(1,), attention_size=0), ScheduleConfig(num_steps=20),
                   OptimizerConfig(decay="constant"), SamplerConfig("ancestral", num_steps=6), batch_size=8, steps=8)


@pytest.fixture(scope="module")
def run(tmp_path_factory, fast_compilation):
    """A run of two classes of pictures."""
    pictures = np.random.default_rng(0).random((10, 8, 8)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dipddpm_jax.devices.set_up", lambda *_: None)
        yield train(pictures, np.arange(10) % 2, TINY, workdir=tmp_path_factory.mktemp("runs") / "run",
                    run=RunOptions(chunk=4, save_every=8, sample_every=0, devices=1), label_names=("even", "odd"))


def test_another_process_draws_the_pictures_of_sample_without_this_package(run, tmp_path, capsys):
    program, drawn = tmp_path / "program", tmp_path / "drawn"
    main(["export-program", str(run), str(program), "--batch-size", "4", "--guidance", "2"])
    said = capsys.readouterr().out
    main(["sample", str(run), "--count", "8", "--seed", "5", "--labels", "odd", "--guidance", "1", "--out", str(drawn)])
    lines = said[said.index("import json"):].replace('"seed": 0, "first": 0, "labels": 0', '"seed": 5, "first": 4, '
                                                     '"labels": 1')  # the second four, of class "odd"
    code = f"import sys\nsys.modules['dipddpm_jax'] = None\n{lines}\nnp.save('images.npy', images)\nassert finite.all()"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    ours, theirs = np.load(drawn / "samples.npz")["images"][4:], np.load(tmp_path / "images.npy")
    assert theirs.shape == (4, 8, 8, 1) and theirs.dtype == np.uint8 and theirs.std() > 20
    assert np.abs(ours.astype(int) - theirs).max() <= 1  # a value that lies between two bytes may round either way


def test_the_description_says_how_to_call_it_and_that_it_is_no_archive(run, tmp_path, capsys):
    main(["export-program", str(run), str(tmp_path / "program"), "--batch-size", "2", "--sampler", "ddim"])
    about = json.loads((tmp_path / "program" / "program.json").read_text())
    assert [(a["name"], a["dtype"], a["shape"]) for a in about["arguments"]] == [
        ("seed", "int32", []), ("first", "int32", []), ("labels", "int32", [2])]  # the run has no guidance
    assert about["label_names"] == ["even", "odd"] and about["sampler"]["name"] == "ddim" and about["step"] == 8
    assert about["platforms"] == ["cpu", "cuda", "tpu"] and about["versions"]["jax"]
    assert "six months" in about["purpose"] and about["how_to_run"] == HOW_TO_RUN.splitlines()
    with pytest.raises(SystemExit, match="2"):
        main(["export-program", str(run), str(tmp_path / "program")])
    assert "exists already; name a new directory" in capsys.readouterr().err


@pytest.mark.parametrize("options, said", [
    (["--compose"], "--compose cannot be exported"), (["--batch-size", "0"], "--batch-size must be 1 to 65536"),
    (["--sampler", "random_passes"], "begins with pictures of a data set"), (["--num-steps", "99"], "must be 1 to 20")])
def test_what_cannot_be_exported_is_one_line(run, tmp_path, capsys, options, said):
    with pytest.raises(SystemExit, match="2"):
        main(["export-program", str(run), str(tmp_path / "out"), *options])
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "out").exists()
