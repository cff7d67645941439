"""What is restored, what is said about it, and what the files hold: from fits whose end is known, so none is run."""
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dipddpm_jax.commands import dip, dip_report, fit_cost, fits, outcome
from dipddpm_jax.commands.measurements import Measurements, load_measurements
from dipddpm_jax.config.dip import DipConfig, DipRun, save_dip_config
from dipddpm_jax.data.pictures import read_float
from dipddpm_jax.dip.fit import Kept
from dipddpm_jax.errors import UserError
from dipddpm_jax.inverse.measurement import Measurement
from dipddpm_jax.inverse.noises import Gaussian
from dipddpm_jax.inverse.nonlocal_bayes import refine_by_patches
from dipddpm_jax.inverse.operators import identity, masked

CLEAN = np.broadcast_to(np.linspace(0.2, 0.8, 32, dtype=np.float32)[None, :, None], (32, 32, 1))


def ended(output, average, config=None, sigma=0.1, clean=None, white=255.0, step=9, stopped=False,
          known=None):
    """(config, given, Outcome) of a fit of CLEAN + noise that ended with these pictures."""
    config = DipConfig(network="conv", num_steps=10) if config is None else config
    noise = sigma * np.random.default_rng(0).normal(size=CLEAN.shape)
    y = (CLEAN + noise).astype(np.float32) * (1 if known is None else known)
    given = Measurements(("p",), y[None], clean, None if known is None else known[None], np.float32([sigma]), (32, 32),
                         whites=(white,))
    fit, batch = fits.make_fit(config, 1, (32, 32)), fits.make_fits(config, given)
    states = fits.start_fits(config, fit, batch)
    kept = Kept(jnp.float32(output)[None], jnp.float32(average)[None], jnp.int32([step]))
    states = states._replace(kept=kept, stopped=jnp.array([stopped]))
    return config, given, outcome.outcome(config, given, fit, batch, states)


def test_of_output_and_average_the_one_nearer_to_held_out_pixels_is_restored():
    """After 50 steps the average still remembers the first outputs; later it is the better one."""
    grey = np.full_like(CLEAN, 0.5)
    assert ended(CLEAN, 0.5 * CLEAN + 0.5 * grey)[2].chosen == ("output",)
    rough = CLEAN + 0.05 * np.random.default_rng(1).normal(size=CLEAN.shape)
    assert ended(rough, CLEAN)[2].chosen == ("average",)
    for rule in ("wmv", "discrepancy", "never"):  # those that judge outputs keep an output
        assert ended(rough, CLEAN, DipConfig(network="conv", stop=rule))[2].chosen == ("output",)


def test_the_estimated_error_is_the_true_one():
    """E |f - y|^2 on pixels that the fit has not seen is the error to the clean picture plus sigma^2."""
    wrong = CLEAN + 0.1
    errors = []
    for seed in range(5):
        config = DipConfig(network="conv", seed=seed)
        errors.append(float(ended(wrong, wrong, config, sigma=0.02)[2].error[0]))
    assert abs(np.mean(errors) - 0.01) < 0.001


def test_without_noise_a_fit_is_as_right_as_it_looks_where_it_has_seen():
    """And where it has not, as wrong as it is on the pixels that judge."""
    config = DipConfig(network="conv", num_steps=10, task="inpaint")
    known = np.float32(np.random.default_rng(0).uniform(size=CLEAN.shape) < 0.5)
    given = Measurements(("p",), (known * CLEAN)[None], None, known[None], np.float32([0.0]), (32, 32), whites=(255.0,))
    fit, batch = fits.make_fit(config, 1, (32, 32)), fits.make_fits(config, given)
    unseen = 1 - known * (1 - np.asarray(batch.problems.held_out[0]))
    wrong = jnp.float32(CLEAN + 0.1 * unseen)[None]
    states = fits.start_fits(config, fit, batch)._replace(kept=Kept(wrong, wrong, jnp.int32([9])))
    result = outcome.outcome(config, given, fit, batch, states)
    np.testing.assert_allclose(result.error, 0.01 * unseen.mean(), rtol=1e-4)


@pytest.mark.parametrize("peak", [30.0, 3000.0])
def test_penalties_weigh_against_photons_as_against_squared_errors(peak):
    """Whatever the peak, an error of a grey pixel costs what its square does."""
    misfit = fits.make_fit(DipConfig(network="conv", peak=peak), 1, (8, 8)).misfit
    wrong, grey = jnp.float32(0.55), jnp.float32(0.5)  # (f - y)^2 / (2 y) to second order
    np.testing.assert_allclose(misfit(wrong, grey), (wrong - grey) ** 2, rtol=0.1)


def test_a_share_of_the_measurement_is_mixed_back_in_and_its_error_is_not_guessed():
    config, given, result = ended(CLEAN, CLEAN, DipConfig(network="conv", num_steps=10, blend=0.25))
    np.testing.assert_allclose(result.restored[0, 0], 0.75 * CLEAN + 0.25 * given.measurements[0], atol=1e-6)
    np.testing.assert_allclose(result.other[0, 0], CLEAN, atol=1e-6)
    assert np.isnan(result.error[0]) and outcome.decibels(result.error[0]) is None
    assert not any("no better" in line for line in outcome.warnings(config, given, result, ""))


@pytest.mark.parametrize("off, better", [(0.05, True), (0.2, False)])
def test_a_picture_that_is_no_better_than_the_measurement_is_said_to_be(off, better):
    config, given, result = ended(CLEAN + off, CLEAN + off, stopped=True)
    lines = outcome.warnings(config, given, result, "")
    assert bool(lines) != better
    if lines:
        assert "no better than the measurement" in lines[0] and "20.0 dB by its noise" in lines[0]


def test_a_rule_that_did_not_fire_is_said():
    for rule, step, words in (("held-out", 9, "the last step was the best"), ("held-out", 4, "best so far was step 5"),
                              ("discrepancy", 9, "has not come down to the noise")):
        config = DipConfig(network="conv", stop=rule, num_steps=10)
        lines = outcome.warnings(*ended(CLEAN, CLEAN, config, step=step)[:2],
                                 ended(CLEAN, CLEAN, config, step=step)[2], "go on so")
        assert words in lines[0] and f"--stop {rule}" in lines[0] and lines[0].endswith("go on so")
    assert outcome.warnings(*ended(CLEAN, CLEAN, stopped=True), "") == []
    assert outcome.warnings(*ended(CLEAN, CLEAN, DipConfig(network="conv", stop="never")), "") == []


def test_a_fit_near_a_constant_is_said():
    constant = np.full_like(CLEAN, 0.5)
    lines = outcome.warnings(*ended(constant, constant, sigma=0.02, stopped=True), "")
    assert "near a constant" in lines[0] and "--seed" in lines[0] and "no better" in lines[1]
    assert not ended(CLEAN, CLEAN)[2].stuck.any()


def test_files_have_the_depth_of_the_measurement_and_strict_json(tmp_path):
    """A restored picture that equals the clean one has infinite PSNR, which no JSON holds."""
    config, given, result = ended(CLEAN, CLEAN, clean=CLEAN[None], white=4095.0, stopped=True)
    report = dip_report.write_report(tmp_path, config, given, result, ["a note"], 1.0)
    assert report["pictures"][0]["restored"]["psnr"] == np.inf

    def strict(name):
        raise AssertionError(name)

    stored = json.loads((tmp_path / "results.json").read_text(), parse_constant=strict)
    assert stored["pictures"][0]["restored"]["psnr"] is None and stored["notes"] == ["a note"]
    restored = read_float(tmp_path / "restored.png")
    assert (restored.white, restored.kind) == (4095.0, "uint16")
    assert np.abs(restored.values - CLEAN).max() <= 0.5 / 4095 + 1e-6
    assert "note: a note" in dip_report.describe(stored | {"pictures": []}, given, tmp_path)


def test_curves_are_thin_and_the_first_fit_is_shown_well():
    rows = [[step for step in range(1, 3001) if dip.is_shown(step, fit)] for fit in (0, 1, 99)]
    assert len(rows[0]) + 99 * len(rows[1]) < 10_000  # of 300,000 for a folder of 100 pictures
    assert len(rows[0]) > 500 and rows[0][:100] == list(range(1, 101))
    assert max(np.diff(rows[0])) <= 0.01 * 3000 and all(len(row) > 50 for row in rows)


def test_resuming_with_another_picture_is_refused(tmp_path):
    path, run = tmp_path / "a.png", tmp_path / "run"
    Image.fromarray(np.full((16, 16), 90, np.uint8)).save(path)
    config = DipConfig(image=str(path))
    run.mkdir()
    save_dip_config(config, run / "config.json", load_measurements(config).checksums)
    Image.fromarray(np.full((16, 16), 91, np.uint8)).save(path)
    before = (run / "config.json").read_bytes()
    with pytest.raises(UserError, match="--image holds other pixels than when the run in .* began"):
        dip.restore_pictures(config, DipRun(run, resume=True))
    assert (run / "config.json").read_bytes() == before and not (run / "checkpoints").exists()


def test_fits_that_no_machine_holds_are_refused_by_what_they_would_need():
    for changes, words in (({"tile": 2**14}, "1000 fits of 16384x16384 pixels"), ({}, "fits of 768x768 pixels")):
        config = DipConfig(network="skip-001", **changes)
        boxes = fit_cost.fit_boxes(config, (2**14, 2**14))
        fit = fits.make_fit(config, 3, boxes[0][2:])
        with pytest.raises(UserError, match=rf"{words}.*would need about .*B of memory; there are .*--crop"):
            fit_cost.check_fit_memory(config, fit, boxes, 3, 1000)


def test_memory_is_estimated_from_what_a_fit_holds():
    config = DipConfig(network="conv")
    fit = fits.make_fit(config, 3, (64, 64))
    held, work = fit_cost.fit_bytes(config, fit, (64, 64), 3, 2)
    states = fits.start_fits(config, fit, fits.make_fits(config, Measurements(
        ("p",), np.zeros((1, 64, 64, 3), np.float32), None, None, np.float32([0]), (64, 64))))
    one = sum(leaf.nbytes for leaf in jax.tree.leaves(states._replace(key=None)))
    assert abs(held - 2 * (2 * one + 4 * 64 * 64 * (32 + 3 + 3 + 1 + 1) + 4)) < 100
    outputs = 4 * 64 * 64 * (64 + 64)  # the two hidden maps, before and after their activations at most
    assert outputs <= work / min(2, jax.local_device_count()) <= 8 * outputs


def test_a_long_fit_says_once_what_it_will_take(monkeypatch):
    times = iter([40.0, 50.0, 60.0])  # the first chunk, which was compiled, does not count
    monkeypatch.setattr(fit_cost.time, "monotonic", lambda: next(times))
    clock = fit_cost.Clock(1000)
    told = [clock.tick(step) for step in (50, 100, 150)]
    assert told == [None, "0.2 s a step: at most 3 min more", None]


@pytest.mark.parametrize("whole, side, wanted", [(500, 64, 10), (1500, 64, 15), (499, 64, 16), (500, 8, 50)])
def test_chunks_divide_the_steps_between_saves(monkeypatch, whole, side, wanted):
    """What is left over would be compiled once more."""
    config = DipConfig(network="skip-small", folds=10)
    monkeypatch.setattr(fit_cost, "SHORT", 16 * 64**2 * 10 * fit_cost.STEP_SECONDS.get("skip-small", 3e-6))
    assert fit_cost.short_chunk(config, [(0, 0, side, side)], 1, whole) == wanted


def test_nonlocal_bayes_comes_after_the_fits_but_not_where_neighbours_share_noise():
    """It moves all candidates alike; errors are those of before, and what was not chosen stays."""
    wrong = CLEAN + 0.02 * np.random.default_rng(1).normal(size=CLEAN.shape)
    settings = [DipConfig(network="conv", num_steps=10, nonlocal_bayes=after) for after in (False, True)]
    (_, given, plain), (_, _, after) = (ended(wrong, wrong, config) for config in settings)
    measurement = Measurement(jnp.asarray(given.measurements[0]), identity, Gaussian(float(given.sigma[0])))
    wanted = refine_by_patches(measurement, jnp.asarray(plain.restored[0, 0]))
    np.testing.assert_allclose(after.restored[0, 0], wanted, atol=1e-5)
    assert np.mean((after.restored - CLEAN) ** 2) < 0.5 * np.mean((plain.restored - CLEAN) ** 2)
    np.testing.assert_array_equal(after.error, plain.error)
    np.testing.assert_array_equal(after.other, plain.other)
    kept = Kept(jnp.float32(wrong)[None], jnp.float32(wrong)[None], jnp.int32([9]))
    for config, shared in ((settings[1], given._replace(correlated=True)),
                           (replace(settings[1], hold_out="blocks"), given)):
        fit, batch = fits.make_fit(config, 1, (32, 32)), fits.make_fits(config, shared)
        states = fits.start_fits(config, fit, batch)
        left = outcome.outcome(config, shared, fit, batch, states._replace(kept=kept))
        np.testing.assert_allclose(left.restored[0, 0], wrong, atol=1e-5)
        assert any("nonlocal Bayes was left out" in line for line in outcome.warnings(config, shared, left, ""))
    assert not any("nonlocal" in line for line in outcome.warnings(settings[1], given, after, ""))


def test_nonlocal_bayes_goes_on_where_pixels_are_missing():
    """And gives back those that are known, which have no noise here."""
    known = (np.random.default_rng(2).random((32, 32, 1)) < 0.5).astype(np.float32)
    wrong = CLEAN + 0.02 * np.random.default_rng(1).normal(size=CLEAN.shape)
    config = DipConfig(task="inpaint", network="conv", num_steps=10, nonlocal_bayes=True)
    _, given, after = ended(wrong, wrong, config, sigma=0.0, known=known)
    measurement = Measurement(jnp.asarray(given.measurements[0]), masked(jnp.asarray(known)), Gaussian(0.0))
    wanted = refine_by_patches(measurement, jnp.asarray(wrong, jnp.float32))
    np.testing.assert_allclose(after.restored[0, 0], wanted, atol=1e-5)
    np.testing.assert_allclose(known * after.restored[0, 0], known * CLEAN, atol=1e-5)
    assert np.mean((after.restored - CLEAN) ** 2) < 0.5 * np.mean((wrong - CLEAN) ** 2)
