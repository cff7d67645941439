"""The restoration command: its files, resumption bit for bit, and every kind of bad input refused in one line."""
import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image

from dipddpm_jax.commands import dip, fits, measurements, outcome
from dipddpm_jax.commands.beside import means_beside
from dipddpm_jax.commands.cli import train_main
from dipddpm_jax.commands.tiles import join_tiles, tile_boxes
from dipddpm_jax.config import dip_ranges
from dipddpm_jax.config.dip import (
    CROSS_FIT,
    CROSS_FITTED,
    MUON_FIT,
    QUIET,
    DipConfig,
    DipRun,
    load_dip_config,
    recommended,
    save_dip_config,
)
from dipddpm_jax.convolution import bands
from dipddpm_jax.dip import crossfit
from dipddpm_jax.errors import UserError

QUICK = ["--network", "conv", "--folds", "1", "--num-steps", "20", "--chunk", "10", "--save-every", "10"]


def a_picture(height=16, width=16, seed=0):
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([x * 15, y * 15, 128 + 100 * np.sin((x + seed) / 3)], -1)
    return np.clip(rgb, 0, 255).astype(np.uint8)


@pytest.fixture
def clean(tmp_path):
    path = tmp_path / "clean.png"
    Image.fromarray(a_picture()).save(path)
    return path


def run(*args):
    train_main(["dip", *QUICK, *map(str, args)])


def scores_of(workdir):
    return json.loads((workdir / "results.json").read_text(), parse_constant=strict)["pictures"]


def strict(name):
    raise AssertionError(f"{name} is not JSON")


def test_a_clean_picture_is_degraded_restored_and_scored(clean, tmp_path, capsys, fast_compilation_of_one):
    run("--clean", clean, "--sigma", 25, "--seeds", 2, "--gif", "--workdir", tmp_path / "out")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written >= {"restored.png", "average.png", "measurement.png", "comparison.png", "uncertainty.png",
                       "clean.png", "curves.jsonl", "curves.png", "fit.gif", "results.json", "config.json"}
    rows = [json.loads(line) for line in (tmp_path / "out" / "curves.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["fit"] == 1] == list(range(1, 1 + sum(row["fit"] for row in rows)))
    result = scores_of(tmp_path / "out")[0]
    restored = np.asarray(Image.open(tmp_path / "out" / "restored.png")) / 255.0
    error = np.mean((restored - a_picture() / 255.0) ** 2)
    assert abs(-10 * np.log10(error) - result["restored"]["psnr"]) < 0.05  # the file is rounded to bytes
    assert result["restored_is"] == "output"  # after 20 steps the average still remembers the first ones
    assert 15 < result["measurement"]["psnr"] < 25 and len(result["step"]) == 2
    assert "sigma 25.0" in capsys.readouterr().out


def test_a_noisy_picture_is_restored_without_a_clean_one(clean, tmp_path):
    run("--image", clean, "--workdir", tmp_path / "out")
    assert "restored" not in scores_of(tmp_path / "out")[0] and not (tmp_path / "out" / "clean.png").exists()
    assert "psnr" not in (tmp_path / "out" / "curves.jsonl").read_text()


@pytest.mark.parametrize("large, folds", [(bands.LARGE, 1), (1, 1), (bands.LARGE, 3)],
                         ids=["", "rows shared", "cross-fitted"])
def test_interrupted_and_resumed_equals_uninterrupted(clean, tmp_path, large, folds, monkeypatch):
    monkeypatch.setattr(bands, "LARGE", large)
    config = DipConfig(clean=clean, network="conv", num_steps=20, window=4, folds=folds)
    run = DipRun(chunk=5, save_every=10, gif=True)
    given = measurements.load_measurements(config)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = dip.DipJob(config, run, given, tmp_path / "whole")
    rows = whole.run_to_end()
    dip.DipJob(replace(config, num_steps=10), run, given, tmp_path / "parts").run_to_end()  # made longer afterwards
    parts = dip.DipJob(config, run, given, tmp_path / "parts")
    assert parts.step == 10 and parts.run_to_end() == rows
    states = [job.batch.states()._replace(key=None) for job in (whole, parts)]
    jax.tree.map(np.testing.assert_array_equal, *states)
    pictures = [{file.name: file.read_bytes() for file in (job.workdir / "frames").iterdir()} for job in (whole, parts)]
    assert len(pictures[0]) == 4 and pictures[0] == pictures[1]  # of the animation


def test_a_budget_of_minutes_ends_with_the_best_so_far_and_more_time_goes_on_from_there(clean, tmp_path):
    run("--clean", clean, "--sigma", 25, "--workdir", tmp_path / "whole")
    run("--clean", clean, "--sigma", 25, "--minutes", 0.001, "--workdir", tmp_path / "cut")  # over with the first chunk
    report = json.loads((tmp_path / "cut" / "results.json").read_text())
    assert report["pictures"][0]["step"][0][0] <= 10 and (tmp_path / "cut" / "restored.png").exists()
    assert any("ended at step 10 before" in note and "more time: python train.py dip --resume" in note
               for note in report["notes"])
    train_main(["dip", "--resume", "--workdir", str(tmp_path / "cut")])
    restored = [(tmp_path / name / "restored.png").read_bytes() for name in ("whole", "cut")]
    assert restored[0] == restored[1]


def test_a_budget_of_minutes_is_said_whatever_the_rule(clean, tmp_path):
    run("--clean", clean, "--sigma", 25, "--minutes", 0.001, "--stop", "never", "--workdir", tmp_path / "cut")
    notes = json.loads((tmp_path / "cut" / "results.json").read_text())["notes"]
    (note,) = (note for note in notes if note.startswith("ended at step 10 of "))
    assert "more time: python train.py dip --resume" in note


def test_a_weight_without_a_penalty_is_refused(clean, tmp_path, capsys):
    """Of one fit; whether there is one is known when the size of the picture is."""
    with pytest.raises(SystemExit, match="2"):
        train_main(["dip", "--clean", str(clean), "--folds", "1", "--weight", "0.1", "--workdir",
                    str(tmp_path / "out")])
    assert "--weight does nothing here: --variant plain" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_error_is_estimated_of_a_picture_that_was_not_measured_itself(clean, tmp_path, capsys):
    """Of a blurred one only its blurred values are known, and their error is far smaller."""
    run("--clean", clean, "--task", "deblur", "--folds", 1, "--workdir", tmp_path / "out")
    said = capsys.readouterr()
    assert scores_of(tmp_path / "out")[0]["estimated_psnr"] is None and "estimated without" not in said.out
    shown = [line for line in said.err.split("\r") if "loss" in line]
    assert shown and "estimated" not in "".join(shown)


def test_a_picture_is_cross_fitted(clean, tmp_path, capsys, fast_compilation_of_one):
    run("--clean", clean, "--folds", 3, "--seeds", 2, "--workdir", tmp_path / "out")
    result = scores_of(tmp_path / "out")[0]
    assert len(result["step"]) == 6 and (tmp_path / "out" / "uncertainty.png").exists()
    said = capsys.readouterr().out
    assert f"{result['estimated_of']} {result['estimated_psnr']:.2f} dB" in said and "to non-local means" in said
    # An estimate by Stein's formula knows the energy of the noise on 256 pixels to sqrt(2 / 256) of sigma^2.
    estimated, true = (10 ** (-result["non_local_means"][name] / 10) for name in ("estimated_psnr", "psnr"))
    assert abs(estimated - true) < 4 * (25 / 255) ** 2 * np.sqrt(2 / 256)


def test_folds_of_a_seed_hold_out_every_known_pixel_once_and_nothing_else_is_shared(clean):
    config = DipConfig(clean=clean, network="conv", folds=4, seeds=2, task="inpaint", keep=0.7)
    given = measurements.load_measurements(config)
    problems = fits.make_fits(config, given).problems
    held = np.asarray(problems.held_out).reshape(2, 4, 16, 16, 1)
    for seed in held:
        np.testing.assert_array_equal(seed.sum(0), given.known[0])
    assert not np.array_equal(held[0], held[1])
    assert len(np.unique(np.asarray(problems.code).reshape(8, -1)[:, 0])) == 8


def test_one_fold_is_the_fit_of_before(clean):
    """Codes, weights and held-out pixels of runs that know nothing of folds, and of the first fold."""
    given = measurements.load_measurements(DipConfig(clean=clean))
    one, three = (fits.make_fits(DipConfig(clean=clean, folds=folds), given).problems for folds in (1, 3))
    np.testing.assert_array_equal(one.code[0], three.code[0])


def test_a_large_picture_is_fitted_as_by_the_restorer_of_that_name():
    """`train.py dip` and `--method cross-fit` have one network and one optimiser for a size."""
    other = crossfit.recommended_fit(1, (80, 80))
    params = {"kernel": np.ones((3, 3, 2, 8), np.float32)}
    for decay in ("constant", "cosine"):
        fit = fits.make_fit(replace(DipConfig(**MUON_FIT), fall_back=0.0, decay=decay), 1, (80, 80))
        assert fit.network == other.network
        moved = [one.optimizer.update(params, one.optimizer.init(params), params)[0]["kernel"] for one in (fit, other)]
        np.testing.assert_allclose(*moved, rtol=1e-5)


def test_cross_fitting_is_the_default_where_it_is_cheap_and_not_of_old_runs(tmp_path):
    few, many = 64 * 64, 65 * 64
    assert CROSS_FITTED == crossfit.FEW_PIXELS and QUIET / 255 == crossfit.QUIET
    assert recommended(DipConfig(), (), few) == DipConfig(**CROSS_FIT)
    assert recommended(DipConfig(network="conv"), ("network", "image"), few) == DipConfig(
        **{**CROSS_FIT, "network": "conv"})
    for same in (DipConfig(stop="wmv"), DipConfig(task="inpaint", sigma=10.0), DipConfig(task="superres")):
        assert recommended(same, (), few) == same
    assert recommended(DipConfig(), (), few, 2) == recommended(DipConfig(), ("folds",), few) == DipConfig()
    assert recommended(DipConfig(folds=3), ("folds",), few, 2).network == "skip-small"
    assert recommended(DipConfig(), (), many) == DipConfig(nonlocal_bayes=True, **MUON_FIT)
    assert recommended(DipConfig(folds=3), ("folds",), many) == DipConfig(folds=3, nonlocal_bayes=True, **MUON_FIT)
    for pixels in (few, many):
        assert not recommended(DipConfig(), ("nonlocal_bayes",), pixels).nonlocal_bayes
    for quiet in (dict(task="inpaint"), dict(impulse=0.3), dict(impulse=0.1, folds=4)):
        assert recommended(DipConfig(**quiet), tuple(quiet), few) == DipConfig(**quiet, nonlocal_bayes=True, **MUON_FIT)
    blurred = dict(task="deblur", sigma=1.4)
    assert recommended(DipConfig(**blurred), tuple(blurred), few) == DipConfig(**blurred, **MUON_FIT)
    noisy = DipConfig(impulse=0.3, sigma=10.0)
    assert recommended(noisy, (), few) == noisy
    for same in (DipConfig(network="conv"), DipConfig(learning_rate=0.1)):
        assert recommended(same, ("network", "learning_rate"), many) == same
    save_dip_config(DipConfig(), tmp_path / "config.json")
    record = json.loads((tmp_path / "config.json").read_text())
    del record["dip"]["folds"]
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert load_dip_config(tmp_path / "config.json")[0] == DipConfig()
    for task in ("superres", "deblur"):
        with pytest.raises(UserError, match="--method nonlocal-bayes, without them"):
            dip_ranges.check_dip(DipConfig(nonlocal_bayes=True, task=task))
    for bad in (dict(folds=2), dict(folds=3, stop="emv"), dict(folds=0)):
        with pytest.raises(UserError, match="--folds"):
            dip_ranges.check_dip(DipConfig(**bad))


def test_non_local_means_are_judged_without_the_clean_picture():
    clean = np.float32(0.5 + 0.3 * np.sin(np.mgrid[:48, :48].sum(0) / 6))[..., None]
    true, said = [], []
    for seed in range(3):
        y = (clean + 0.1 * np.random.default_rng(seed).normal(size=clean.shape)).astype(np.float32)
        simple = means_beside(y, float(np.sqrt(np.mean((y - clean) ** 2))))
        true.append(np.mean((simple.picture - clean) ** 2))
        said.append(simple.error)
    assert np.mean(true) < 0.1**2 / 4 and abs(10 * np.log10(np.mean(said) / np.mean(true))) < 1


def test_a_folder_is_one_batch_and_each_picture_keeps_its_result(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(2):
        Image.fromarray(a_picture(seed=i)).save(folder / f"p{i}.png")
    run("--clean", folder, "--workdir", tmp_path / "both")
    Image.fromarray(a_picture(seed=0)).save(tmp_path / "p0.png")
    run("--clean", tmp_path / "p0.png", "--workdir", tmp_path / "one")
    both, one = scores_of(tmp_path / "both"), scores_of(tmp_path / "one")
    assert [result["picture"] for result in both] == ["p0", "p1"]
    assert abs(both[0]["restored"]["psnr"] - one[0]["restored"]["psnr"]) < 0.01
    assert (tmp_path / "both" / "p1" / "restored.png").exists()


def test_a_compacted_batch_ends_as_a_whole_one(clean):
    config = DipConfig(clean=clean, network="conv", num_steps=30, seeds=3, stop="discrepancy", fall_back=0.0)
    given = measurements.load_measurements(config)
    batch = fits.make_fits(config, given)
    sigmas = np.float32([9, 0, 9])  # the first and the last stop at once
    batch = batch._replace(problems=batch.problems._replace(sigma=sigmas))
    fit = fits.make_fit(config, 3, given.size)
    ends = []
    for compacts in (False, True):
        job = dip.Batch(fit, batch.problems, fits.start_fits(config, fit, batch), compacts)
        for _ in range(3):
            job.advance(10)
            job.compact()
        assert len(job.rows) == (1 if compacts else 3)
        ends.append(job.states())
    assert ends[0].step.tolist() == ends[1].step.tolist() == [1, 30, 1]
    np.testing.assert_allclose(ends[0].kept.output, ends[1].kept.output, atol=1e-4)


def test_tiles_cover_a_picture_and_join_to_it():
    picture = np.random.default_rng(0).uniform(size=(53, 70, 3)).astype(np.float32)
    for tile, multiple in ((32, 1), (24, 4), (100, 1)):
        size = (53 - 53 % multiple, 70 - 70 % multiple)
        boxes = tile_boxes(size, tile, 8, multiple)
        tiles = np.stack([picture[top : top + h, left : left + w] for top, left, h, w in boxes])
        np.testing.assert_allclose(join_tiles(tiles, boxes, size), picture[: size[0], : size[1]], atol=1e-6)
        assert all(value % multiple == 0 for box in boxes for value in box)


def test_a_large_picture_is_fitted_in_tiles(tmp_path, fast_compilation_of_one):
    Image.fromarray(a_picture(132, 130)).save(tmp_path / "large.png")
    config = DipConfig(clean=tmp_path / "large.png", network="conv", num_steps=4, tile=128, task="superres", factor=2)
    job = dip.DipJob(config, DipRun(chunk=2), measurements.load_measurements(config), tmp_path)
    job.run_to_end()
    assert len(job.fits.boxes) == 4 and job.fits.problems.measurement.shape == (4, 64, 64, 3)
    result = outcome.outcome(config, job.given, job.fit, job.fits, job.batch.states())
    assert result.restored.shape == (1, 1, 132, 130, 3) and result.steps.tolist() == [[[4] * 4]]


@pytest.mark.parametrize("task, extra, shape", [
    ("inpaint", {"keep": 0.5}, (16, 24, 3)), ("superres", {"factor": 2}, (8, 12, 3)), ("deblur", {}, (16, 24, 3)),
    ("denoise", {"peak": 30.0}, (16, 24, 3))])
def test_tasks_measure_what_they_say(tmp_path, task, extra, shape):
    Image.fromarray(a_picture(16, 24)).save(tmp_path / "clean.png")
    given = measurements.load_measurements(DipConfig(clean=tmp_path / "clean.png", task=task, **extra))
    assert given.measurements.shape == (1, *shape) and given.size == (16, 24)
    assert not np.array_equal(given.measurements, given.clean)
    if task == "inpaint":
        np.testing.assert_array_equal(given.measurements, given.clean * given.known)


def test_impulses_count_as_missing_and_read_out_noise_adds_to_that_of_photons(tmp_path):
    picture = np.clip(a_picture(48, 48), 60, 190)
    Image.fromarray(picture).save(tmp_path / "clean.png")
    given = measurements.load_measurements(DipConfig(clean=tmp_path / "clean.png", impulse=0.3))
    assert abs(given.known.mean() - 0.7) < 0.05 and given.sigma[0] == 0
    assert f"count as missing: clean {100 * (1 - given.known.mean()):.1f} %" in given.notes[-1]
    np.testing.assert_array_equal(given.measurements, given.clean * given.known)
    black_or_white = 255 * (np.indices((48, 48)).sum(0) % 2)[..., None]
    struck = np.where(given.known[0] == 1, picture, black_or_white).astype(np.uint8)
    Image.fromarray(struck).save(tmp_path / "struck.png")
    again = measurements.load_measurements(DipConfig(image=str(tmp_path / "struck.png"), impulse=0.1))
    np.testing.assert_array_equal(again.known, given.known)
    dim, bright = (measurements.load_measurements(DipConfig(clean=tmp_path / "clean.png", peak=1000.0, sigma=sigma))
                   for sigma in (25.5, None))
    assert dim.sigma[0] ** 2 == pytest.approx(bright.sigma[0] ** 2 + 0.01, rel=1e-4)
    for one in (dim, bright):
        assert np.std(one.measurements - one.clean) == pytest.approx(one.sigma[0], rel=0.1)
    config = DipConfig(peak=1000.0, sigma=25.5)
    assert measurements.counts(config) == (1000.0, 0.1)


def bad(tmp_path, kind):
    """(arguments, words of the message)"""
    path = tmp_path / "bad.png"
    good = tmp_path / "good.png"
    Image.fromarray(a_picture()).save(good)
    match kind:
        case "unreadable":
            path.write_text("not a picture")
        case "empty":
            path.touch()
        case "one pixel":
            Image.fromarray(a_picture(1, 1)).save(path)
        case "floating point":
            path = tmp_path / "bad.tif"
            Image.fromarray(np.full((16, 16), np.nan, np.float32)).save(path)
        case "folder of sizes":
            path = tmp_path / "folder"
            path.mkdir()
            for side in (16, 20):
                Image.fromarray(a_picture(side, side)).save(path / f"{side}.png")
        case "mask size":
            Image.fromarray(a_picture(8, 8)).save(path)
            return ["--image", good, "--task", "inpaint", "--mask", path]
        case "clean size":
            Image.fromarray(a_picture(20, 20)).save(path)
            return ["--image", good, "--clean", path]
        case "no mask":
            return ["--image", good, "--task", "inpaint"]
        case "sigma":
            return ["--image", good, "--sigma", -1]
        case "nan sigma":
            return ["--image", good, "--sigma", "nan"]
        case "oracle":
            return ["--image", good, "--stop", "oracle"]
        case "nothing":
            return []
        case "unknown name":
            return ["--image", "cammera"]
    return ["--image", path]


@pytest.mark.parametrize("kind, words", [
    ("unreadable", "cannot be read"), ("empty", "cannot be read"), ("one pixel", "1x1 pixels"),
    ("floating point", "not finite"), ("folder of sizes", "--size N"), ("mask size", "--mask has 8x8"),
    ("clean size", "20x20"), ("no mask", "--mask FILE"), ("sigma", "--sigma"), ("nan sigma", "--sigma"),
    ("oracle", "clean picture"), ("nothing", "--image"), ("unknown name", "photograph")])
def test_bad_input_is_refused_in_one_line(tmp_path, capsys, kind, words):
    with pytest.raises(SystemExit) as stop:
        run(*bad(tmp_path, kind), "--workdir", tmp_path / "out")
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and words in error and "\n" not in error and not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode", ["I;16", "LA", "P", "CMYK", "L", "1", "RGBA"])
def test_unusual_kinds_of_pictures_are_read(tmp_path, mode):
    path = tmp_path / ("picture.jpg" if mode == "CMYK" else "picture.png")
    if mode == "I;16":
        Image.fromarray(a_picture()[..., 0].astype(np.uint16) * 257).save(path)
    else:
        Image.fromarray(a_picture()).convert(mode).save(path)
    given = measurements.load_measurements(DipConfig(image=str(path)))
    assert given.measurements.shape[1:3] == (16, 16) and 0 <= given.measurements.min() <= given.measurements.max() <= 1
    if mode == "I;16":
        np.testing.assert_allclose(given.measurements[0, ..., 0], a_picture()[..., 0] / 255, atol=1e-6)


def test_a_configuration_survives_its_file(tmp_path, clean):
    config = DipConfig(image="camera", clean=clean, sigma=12.5, seeds=3)
    save_dip_config(config, tmp_path / "config.json")
    assert load_dip_config(tmp_path / "config.json") == (config, {})
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="not the configuration"):
        load_dip_config(tmp_path / "config.json")


@pytest.mark.parametrize("changes", [
    {"network": "skip"}, {"network": "skip-001", "stop": "emv"}, {"network": "decoder", "stop": "discrepancy"},
    {"variant": "tv", "code": "meshgrid"}, {"variant": "self-guided", "task": "superres"}, {"variant": "aseqdip"},
    {"peak": 40.0, "decay": "cosine"}, {"stop": "oracle", "code": "image"}, {"task": "inpaint", "stop": "patience"},
    {"task": "deblur", "stop": "wmv"}, {"network": "skip-small", "variant": "tv", "folds": 3}], ids=str)
def test_every_configuration_makes_a_fit(tmp_path, changes):
    Image.fromarray(a_picture(64, 72)).save(tmp_path / "clean.png")
    config = DipConfig(clean=tmp_path / "clean.png", **{"network": "skip-001", **changes})
    dip_ranges.check_dip(config)
    given = measurements.load_measurements(config)
    batch = fits.make_fits(config, given)
    fit, problem, key = fits.make_fit(config, 3, given.size), fits.take(batch.problems, 0), jax.random.key(0)

    def two_steps(variables):
        return fit.advance(problem, fit.start(problem, variables, key), 2)

    state, curves = jax.eval_shape(two_steps, jax.eval_shape(lambda: fit.network.init(key, problem.code[None])))
    assert state.kept.output.shape == (*given.size, 3) and curves["psnr"].shape == (2,)
