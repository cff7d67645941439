"""The staged command: a noisy picture alone, resumption bit for bit, and its own finished folder."""
import json

import jax
import numpy as np
import pytest
from PIL import Image

from dipddpm_jax.commands import staged
from dipddpm_jax.commands.cli import train_main
from dipddpm_jax.commands.loop import Pace, run_to_end
from dipddpm_jax.commands.measurements import load_measurements
from dipddpm_jax.config.dip import DipConfig, StagedConfig

PACE = Pace(4, 8)


@pytest.fixture
def noisy(tmp_path):
    y, x = np.mgrid[:16, :16]
    picture = 128 + 60 * np.sin(x / 4) + 40 * np.cos(y / 5) + 10 * np.random.default_rng(0).normal(size=(16, 16))
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(tmp_path / "noisy.png")
    return tmp_path / "noisy.png"


def job(stages, folder, compiled):
    """One that need not be compiled again."""
    made = staged.StagedJob(stages, folder, 0)
    made.compiled = compiled
    return made


def test_a_killed_fit_goes_on_to_the_same_bits(noisy, tmp_path, monkeypatch):
    config = StagedConfig(image=str(noisy), levels=(0.1, 0.05), steps=(12, 8), stop="never")
    stages = staged.make_stages(config, load_measurements(DipConfig(image=str(noisy))))
    whole = staged.StagedJob(stages, tmp_path / "whole", 0)
    rows = run_to_end(whole, tmp_path / "whole", PACE, "", staged.LOG)
    assert whole.progress.steps.tolist() == [12, 8] and [row["step"] for row in rows] == list(range(1, 21))
    for killed_at in (12, 16):  # between the stages, and within one
        folder = tmp_path / f"parts{killed_at}"
        advance = staged.StagedJob.advance

        def dies(self, count, killed_at=killed_at, advance=advance):
            if self.step == killed_at:
                raise KeyboardInterrupt
            return advance(self, count)

        with monkeypatch.context() as patch:
            patch.setattr(staged.StagedJob, "advance", dies)
            with pytest.raises(KeyboardInterrupt):
                run_to_end(job(stages, folder, whole.compiled), folder, PACE, "", staged.LOG)
        parts = job(stages, folder, whole.compiled)
        assert parts.step == killed_at - killed_at % 8
        assert run_to_end(parts, folder, PACE, "", staged.LOG) == rows
        trees = [one.progress._replace(state=one.progress.state._replace(key=None)) for one in (whole, parts)]
        jax.tree.map(np.testing.assert_array_equal, *trees)


def test_a_noisy_picture_needs_no_clean_one_and_a_finished_folder_is_answered(noisy, tmp_path, capsys):
    out = tmp_path / "out"
    args = ["staged", "--image", str(noisy), "--levels", "0.1", "0.05", "--steps", "5", "--workdir", str(out)]
    train_main(args)
    report = json.loads((out / "results.json").read_text())
    assert "measurement" not in report and [stage["level"] for stage in report["stages"]] == [0.1, 0.05]
    assert (out / "restored.png").exists() and "sigma" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        train_main(args)
    assert stopped.value.code == 2 and "holds another run" in capsys.readouterr().err
    before = (out / "restored.png").read_bytes()
    train_main(["staged", "--resume", "--workdir", str(out)])  # nothing is left to do: the same once more
    assert (out / "restored.png").read_bytes() == before
    with pytest.raises(SystemExit):
        train_main(["staged", "--resume", "--workdir", str(out), "--layers", "4"])
    assert "--layers (3 before, 4 now)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train_main([*args[:-1], str(tmp_path / "other"), "--stop", "oracle"])
    assert "--stop oracle needs the clean picture" in capsys.readouterr().err
