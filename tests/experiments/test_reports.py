"""Rows of every kind of every report run, give their columns, let every claim be judged and the page be built (smoke
sizes prove no more)."""
from dataclasses import replace

import jax
import numpy as np
import pytest

from dipddpm_jax import experiments, records
from dipddpm_jax.config import presets
from dipddpm_jax.data import scenes
from dipddpm_jax.diffusion import schedules
from dipddpm_jax.experiments import (
    autoencoder_runs,
    conditional_runs,
    filtered_chains,
    ledger,
    pages,
    single_image_runs,
    tables,
    verdicts,
)
from dipddpm_jax.networks import residual_denoiser

ALL = list(experiments.MODULES)
# One row for each way of measuring; those that differ from these in numbers only are written down as copies of them.
KINDS = {
    "000": ("runs/N1*", "runs/C*"),
    "001": ("starts/no DIP*", "starts/DIP, k = 2", "starts/*mean as a constant", "starts/blurred*", "starts/*right*",
            "starts/DDIM*", "lengths/5 epochs*", "lengths/DIP inside*", "time/100 steps", "networks/DIP, k = 2",
            "networks/*, 5 epochs", "epochs/*, 5 epochs", "epochs/*before 15", "inside/DIP*", "passes/*"),
    "002": ("depth/traditional, 3*", "depth/modified, 5*", "levels/fast, 500*", "failures/3*", "restoration/*"),
    "003": ("runs/DDPM alone*", "runs/DIP+DDPM, 10*"),
    "004": ("training/GELU, linear betas, guidance 2", "learned/*", "digits/w = 2", "printed/*"),
    "scenes": ("checkpoints/*", "guidance/w = 0", "chosen guidance/*", "longer/*", "steps/10 steps",
               "composition/composed, w = 1", "unseen pairs/composed*"),
}


def copied(report, lines):
    """Lines of all rows: those of rows that were not measured are another's of their table."""
    for table in report.tables:
        known = [line for line in lines if line["table"] == table.name]
        for row in table.rows:
            mine = [line for line in known if line["row"] == row.name]
            yield (mine or known)[0] | {"row": row.name,
                                        "setting": tables.fingerprint(row.setting, report.sizes["smoke"])}


@pytest.mark.parametrize("name", ALL)
def test_smoke(name, tmp_path, monkeypatch, fast_compilation):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(scenes, "NUM_PICTURES", {"train": 60, "test": 24})
    words, config = presets.PRESETS["scenes"]  # one resolution, at which pixels attend
    monkeypatch.setitem(presets.PRESETS, "scenes", (words, replace(
        config, network=replace(config.network, multipliers=(1,)))))
    report = experiments.load_report(name)
    assert ledger.complete(report, "smoke", tmp_path, KINDS[name])
    lines = list(copied(report, records.read_lines(tmp_path / "results.jsonl")))
    records.write_lines(tmp_path / "results.jsonl", lines)
    for table in report.tables:
        for line in (line for line in lines if line["table"] == table.name):
            assert {column.key for column in table.columns} <= set(line["numbers"]), line["row"]
        results = ledger.results_of(report, table, "smoke", lines)
        for plot in table.plots:
            x, curves = plot.curves(results)
            assert curves and all(len(curve) == len(x) for curve in curves.values())
    judged = verdicts.judge_report(report, lines, "smoke")
    assert [one.claim for one in judged] == [claim for table in report.tables for claim in table.claims]
    assert all("not measured yet" not in one.verdict.why or "died" in one.verdict.why for one in judged)
    pages.write_pages([report], tmp_path)
    page = (tmp_path / f"{name}.md").read_text()
    assert all(claim.text in page for table in report.tables for claim in table.claims)


@pytest.mark.parametrize("name, table", [("000", 0), ("001", 0), ("002", 0), ("002", 2), ("003", 0)])
def test_together_gives_what_each_alone_gives(name, table, tmp_path, monkeypatch, fast_compilation):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    report = experiments.load_report(name)
    table, size = report.tables[table], report.sizes["smoke"]
    how = table.measure
    first = table.rows[1].setting
    alike = [row.setting for row in table.rows[2:] if how.program(row.setting) == how.program(first)]
    other = alike[2 * (name == "000")] if alike else first  # of 000 one whose chain is the same program, too
    together = how.measure([first, other], size, [0, 1])
    for setting, seed, found in zip((first, other), (0, 1), together):
        alone = how.measure([setting], size, [seed])[0]
        assert alone.numbers.keys() == found.numbers.keys()
        for key, value in alone.numbers.items():
            np.testing.assert_allclose(found.numbers[key], value, rtol=2e-3, atol=2e-3, err_msg=key)


def test_pytorch_is_timed_where_it_is_installed():
    pytest.importorskip("torch")
    from benchmarks import report_001_times

    ways = report_001_times.torch_ways(experiments.load_report("001").sizes["smoke"], 2)
    assert {name: tuple(way().shape) for name, way in ways.items()} == dict.fromkeys(
        filtered_chains.TORCH_COLUMNS, (1, 1, 28, 28))
    table = next(table for table in report_001_times.report_with_torch().tables if table.name == "time")
    assert table.measure.keywords == {"others": report_001_times.torch_ways}


@pytest.mark.parametrize("name", ALL)
def test_names_and_printed_numbers_belong_somewhere(name):
    report = experiments.load_report(name)
    for table in report.tables:
        assert len({row.name for row in table.rows}) == len(table.rows)
        keys = {column.key for column in table.columns}
        assert all(set(row.paper) <= keys for row in table.rows)
    assert set(report.sizes) == set(report.sized) == set(report.seeds) == set(tables.BUDGETS)


def test_runs_of_004_differ_from_its_base_in_what_their_rows_say():
    table = experiments.load_report("004").tables[0]
    size, base = experiments.load_report("004").sizes["full"], conditional_runs.Setting()
    configs = {row.setting: conditional_runs.report_config(row.setting, size, 0) for row in table.rows}
    assert len(set(map(repr, configs.values()))) == len(table.rows)
    for setting, config in configs.items():
        assert (config.network.act, config.schedule.name, config.optimizer.decay) == (
            setting.act, setting.schedule, setting.decay)
        assert config.steps == 140 * setting.epochs and config.label_drop == 0.1 * setting.guided
        assert config.sampler.guidance == 2.0 * setting.guided and config.batch_size == size.batch
    assert base in configs


def test_system_003_without_a_network_scores_what_the_closed_form_says():
    rng, size = np.random.default_rng(0), autoencoder_runs.Size(epoch=16, draws=40, side=8)
    network = autoencoder_runs.ResidualDenoiser()
    x = rng.uniform(-1, 1, (size.draws, 8, 8, 3)).astype(np.float32)
    times = rng.integers(1, 1001, (size.draws, 10))
    variables = autoencoder_runs.initial_variables(network, jax.random.key(0), x[:1], np.ones(1, np.int32))
    nothing = {**variables, "params": jax.tree.map(np.zeros_like, variables["params"])}
    out = np.asarray(autoencoder_runs.noisy_passes(network, nothing, x, times, jax.random.key(1)))
    expected = 10 * np.sum(residual_denoiser.sigma_table("linear")[times - 1] ** 2, 1)
    ratio = np.mean((out - x) ** 2, (1, 2, 3)) / expected
    assert abs(ratio.mean() - 1) < 0.05  # 192 pixels each: a standard error of 1.6 %


def test_the_first_501_entries_of_the_table_are_the_same_process_as_all_1000():
    full, other = single_image_runs.report_schedule("1000"), single_image_runs.report_schedule("501")
    assert np.array_equal(schedules.from_betas(full.betas[:501]).alpha_bars, full.alpha_bars[:502])
    assert np.sqrt(full.alpha_bars[501]) == pytest.approx(0.5237, abs=1e-4)  # by hand, from the report's formula
    assert np.sqrt(other.alpha_bars[501]) == pytest.approx(0.2810, abs=1e-4)
