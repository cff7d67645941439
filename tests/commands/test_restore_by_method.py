"""train.py dip --method NAME: what is written, what is refused."""
import json
import typing

import jax
import numpy as np
import pytest
from PIL import Image

from dipddpm_jax import classical
from dipddpm_jax.commands import cli_fits, restorers
from dipddpm_jax.commands.measurements import load_measurements
from dipddpm_jax.commands.restoration_files import measurement_of
from dipddpm_jax.config import saved
from dipddpm_jax.config.dip import DipConfig
from dipddpm_jax.errors import UserError
from dipddpm_jax.inverse.cut_off import without_cut_off
from dipddpm_jax.inverse.measurement import Cost, Restoration
from dipddpm_jax.inverse.noises import Poisson


def test_the_command_line_knows_every_restorer():
    named = typing.get_args(typing.get_type_hints(cli_fits.DipCommand)["method"])
    assert named == ("dip", "auto", *restorers.RESTORERS)


def test_pictures_share_a_restorer_and_so_its_compiled_program():
    config = DipConfig(image="camera", size=32)
    measurement = measurement_of(load_measurements(config), 0, config)
    first, second = (restorers.restorer_for("cross-fit", measurement, None) for _ in range(2))
    assert first is second


def test_what_is_written_is_what_the_restorer_made(tmp_path, capsys):
    words = ["--image", "camera", "--size", "32", "--peak", "60", "--method", "non-local-means"]
    cli_fits.dip_main([*words, "--workdir", str(tmp_path / "run")])
    config = DipConfig(image="camera", size=32, peak=60.0)
    given = load_measurements(config)
    measurement = measurement_of(given, 0, config)
    assert isinstance(measurement.noise, Poisson)
    means = classical.non_local_means()(measurement, jax.random.key(0)).picture
    wanted = without_cut_off(means, measurement.y, measurement.noise)  # at white, as the command does with all methods
    assert np.any(wanted != means)
    report = json.loads((tmp_path / "run" / "results.json").read_text())
    error = np.mean((np.clip(wanted, 0, 1) - given.clean[0]) ** 2)
    np.testing.assert_allclose(report["pictures"][0]["restored"]["psnr"], -10 * np.log10(error), atol=1e-3)
    assert report["pictures"][0]["restored"]["psnr"] > report["pictures"][0]["measurement"]["psnr"] + 1
    assert report["method"] == "non-local-means" and "--peak 60" in report["command"]
    assert (tmp_path / "run" / "restored.png").is_file() and (tmp_path / "run" / "comparison.png").is_file()
    assert "non-local-means; " in capsys.readouterr().out
    with pytest.raises(SystemExit):  # a directory that holds something is not written into
        cli_fits.dip_main([*words, "--workdir", str(tmp_path / "run")])


def test_an_average_says_of_what(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(restorers, "DENOISERS", ("non-local-means", "nothing"))
    monkeypatch.setitem(restorers.RESTORERS, "nothing", lambda channels: lambda m, key: Restoration(m.y))
    cli_fits.dip_main(["--image", "camera", "--size", "32", "--method", "auto", "--workdir", str(tmp_path / "run")])
    row = json.loads((tmp_path / "run" / "results.json").read_text())["pictures"][0]
    assert sum(row["weights"].values()) == pytest.approx(1) and row["weights"]["non-local-means"] > 0.5
    assert "average of non-local-means" in capsys.readouterr().out


def test_a_restorer_that_estimates_its_error_is_quoted(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(restorers.RESTORERS, "wavelets", lambda channels: lambda m, key: Restoration(
        m.y, None, Cost(steps=7, error=0.01)))
    cli_fits.dip_main(["--image", "camera", "--size", "32", "--method", "wavelets", "--workdir", str(tmp_path / "run")])
    row = json.loads((tmp_path / "run" / "results.json").read_text())["pictures"][0]
    assert row["estimated_psnr"] == pytest.approx(20) and row["steps"] == 7 and "calls" not in row
    assert "20.0 dB estimated without the clean picture" in capsys.readouterr().out


@pytest.mark.parametrize("words, said", [
    (["--method", "auto", "--num-steps", "30", "--folds", "3"], "does not take --folds, --num-steps"),
    (["--method", "non-local-means", "--task", "superres"], "knows no operator"),
])
def test_what_it_refuses(tmp_path, capsys, words, said):
    with pytest.raises(SystemExit) as end:
        cli_fits.dip_main(["--image", "camera", "--size", "32", "--workdir", str(tmp_path / "run"), *words])
    assert end.value.code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "run" / "restored.png").exists()


def test_what_is_refused_leaves_no_run(tmp_path, monkeypatch, capsys):
    """Neither in a directory that was named, which the mended command may use, nor a numbered one."""
    monkeypatch.chdir(tmp_path)
    words = ["--image", "camera", "--size", "32", "--method", "non-local-means"]
    for place in (["--workdir", "out"], []):
        with pytest.raises(SystemExit):
            cli_fits.dip_main([*words, "--task", "superres", *place])
    assert not list(tmp_path.glob("runs/*"))
    cli_fits.dip_main([*words, "--workdir", "out"])
    cli_fits.dip_main(words)
    with pytest.raises(UserError, match="no run in"):  # to draw from
        saved.newest_run()


def test_a_folder_keeps_what_was_restored_before_a_picture_that_cannot_be(tmp_path, monkeypatch, capsys):
    (tmp_path / "in").mkdir()
    for i in range(2):
        noise = np.random.default_rng(i).integers(0, 256, (16, 16), np.uint8)
        Image.fromarray(noise).save(tmp_path / "in" / f"{i}.png")
    traced = []

    def once(measurement, key):
        traced.append(measurement.operator)
        if len(traced) > 1:
            raise UserError("enough")
        return Restoration(measurement.y)

    monkeypatch.setitem(restorers.RESTORERS, "wavelets", lambda channels: once)
    with pytest.raises(SystemExit, match="2"):
        cli_fits.dip_main(["--image", str(tmp_path / "in"), "--task", "deblur", "--method", "wavelets", "--workdir",
                           str(tmp_path / "out")])
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(report["pictures"]) == 1 and "ended at 1: enough" in report["notes"]
    assert (tmp_path / "out" / "0" / "restored.png").is_file()
    assert traced[0] is traced[1]  # one operator, for which restorers are compiled once


def test_a_level_that_does_nothing_is_refused(tmp_path, capsys):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(SystemExit, match="2"):
        cli_fits.dip_main(["--image", str(tmp_path / "a.png"), "--method", "pixel-pairs", "--sigma", "9"])
    assert "makes no use of sigma" in capsys.readouterr().err
