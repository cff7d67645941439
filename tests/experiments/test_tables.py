"""Tables: what is measured once stays, verdicts follow their rules, pages need the results alone."""
import subprocess
import sys
from dataclasses import dataclass, replace

import jax
import numpy as np
import pytest

from dipddpm_jax import records
from dipddpm_jax.commands import ends
from dipddpm_jax.config.presets import PRESETS
from dipddpm_jax.experiments import labelled_runs, ledger, pages, tables
from dipddpm_jax.experiments.__main__ import Experiments, experiments_main, measure_reports
from dipddpm_jax.experiments.rules import above
from dipddpm_jax.experiments.tables import (
    Claim,
    Column,
    Finding,
    Measured,
    Plot,
    Report,
    Results,
    Row,
    Table,
    Together,
)


@dataclass(frozen=True)
class Setting:
    value: float


@dataclass(frozen=True)
class Size:
    factor: float = 1.0


def make(values=(1.0, 3.0), fail_at=None, size=1.0, looks=(2,)):
    calls = []

    def measure(setting, size, seed):
        if fail_at is not None and len(calls) == fail_at:
            raise KeyboardInterrupt
        calls.append((setting.value, seed))
        number = size.factor * setting.value + 0.1 * seed
        return Measured({"psnr": number, "none": np.nan}, {"loss": [number, number / 2]},
                        {"a square": np.full((4, 4, 1), 255, np.uint8)})

    rows = tuple(Row(f"row {i}", Setting(value), {"psnr": 7.25} if i == 0 else {}) for i, value in enumerate(values))
    claim = Claim("row 1 is better", "PSNR of row 1 is above that of row 0",
                  lambda r: Finding((above("row 1 less row 0", r.difference("row 1", "row 0", "psnr"), 0.1, "dB"),)),
                  "a worse row 1", looks)
    plot = Plot("loss", "falling", lambda r: ([1, 2], {"row 0": r.curve("row 0", "loss")}))
    table = Table("first", "First table", "What it is.", rows,
                  (Column("psnr", "PSNR, dB", "as reported"), Column("none", "nothing", "control")), measure, (claim,),
                  (plot,))
    budgets = {budget: Size(size) for budget in tables.BUDGETS}
    return Report("009", "a test", "An introduction.", (table,), budgets, dict.fromkeys(budgets, "tiny."),
                  dict.fromkeys(budgets, 2)), calls


def lines(path):
    return records.read_lines(path / "results.jsonl")


def test_nothing_is_measured_twice_and_an_interruption_loses_nothing(tmp_path):
    report, calls = make(fail_at=3)
    with pytest.raises(KeyboardInterrupt):
        ledger.complete(report, "quick", tmp_path)
    assert calls == [(1.0, 0), (3.0, 0), (1.0, 1)]  # a whole table of seed 0 before seed 1
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"report": "009", "tab')  # cut short
    report, calls = make()
    assert ledger.complete(report, "quick", tmp_path)
    assert calls == [(3.0, 1)]
    assert ledger.complete(report, "quick", tmp_path, seeds=3)
    assert calls == [(3.0, 1), (1.0, 2), (3.0, 2)]
    known = ledger.results_of(report, report.tables[0], "quick", records.read_lines(tmp_path / "results.jsonl"))
    assert known.of("row 1", "psnr") == {0: 3.0, 1: 3.1, 2: 3.2}
    assert {"machine", "date", "versions", "seconds"} <= set(lines(tmp_path)[0])


def test_cells_of_one_program_are_measured_together(tmp_path):
    report, _ = make((1.0, 3.0, -2.0))
    alone, groups = report.tables[0].measure, []

    def measure(settings, size, seeds):
        groups.append([(setting.value, seed) for setting, seed in zip(settings, seeds)])
        return [alone(setting, size, seed) for setting, seed in zip(settings, seeds)]

    table = replace(report.tables[0], measure=Together(measure, lambda setting: setting.value > 0, 3))
    assert ledger.complete(replace(report, tables=(table,)), "quick", tmp_path)
    assert groups == [[(1.0, 0), (3.0, 0), (1.0, 1)], [(-2.0, 0), (-2.0, 1)], [(3.0, 1)]]
    found = {(line["row"], line["seed"]): line["numbers"]["psnr"] for line in lines(tmp_path)}
    assert found == {(f"row {i}", seed): value + 0.1 * seed
                     for i, value in enumerate((1.0, 3.0, -2.0)) for seed in (0, 1)}


def test_changed_settings_and_sizes_are_measured_again(tmp_path):
    ledger.complete(make()[0], "quick", tmp_path)
    report, calls = make(values=(1.0, 4.0))
    ledger.complete(report, "quick", tmp_path)
    assert calls == [(4.0, 0), (4.0, 1)]
    report, calls = make(values=(1.0, 4.0), size=2.0)
    ledger.complete(report, "quick", tmp_path)
    assert len(calls) == 4
    known = ledger.results_of(report, report.tables[0], "quick", records.read_lines(tmp_path / "results.jsonl"))
    assert known.mean("row 0", "psnr") == pytest.approx(2.05)


def test_numbers_keep_counting_when_their_keys_get_other_names(tmp_path):
    report, _ = make()
    ledger.complete(report, "quick", tmp_path)
    table = replace(report.tables[0], old_keys={"psnr": "quality"}, columns=(Column("quality", "dB", "sound"),))
    known = ledger.results_of(report, table, "quick", lines(tmp_path))
    assert known.of("row 1", "quality") == {0: 3.0, 1: 3.1}
    assert "3.05 ± 0.07" in "\n".join(pages.table_text(table, known))
    assert "psnr" in lines(tmp_path)[0]["numbers"]  # the file stays as it was measured


def test_a_line_without_a_number_that_is_needed_is_measured_again(tmp_path):
    report, calls = make()
    assert ledger.complete(report, "quick", tmp_path)
    assert ledger.complete(report, "quick", tmp_path, needed=("psnr",)) and len(calls) == 4
    ledger.complete(report, "quick", tmp_path, ["*/row 0"], 1, needed=("psnr", "none"))  # "none" is never finite
    assert calls[4:] == [(1.0, 0)]


@pytest.mark.parametrize("budget, folder", [("smoke", "runs/experiments-smoke"), ("quick", "docs/results")])
def test_smoke_leaves_the_published_results_alone(tmp_path, monkeypatch, budget, folder):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jax.config, "update", lambda *setting: None)  # smoke compiles without optimizations
    assert measure_reports(Experiments("001", budget, minutes=0.0)).startswith(f"{folder}/README.md")
    assert [path.name for path in tmp_path.iterdir()] == [folder.split("/")[0]]


def test_rows_are_chosen_by_pattern_and_time_is_kept(tmp_path):
    report, calls = make()
    assert not ledger.complete(report, "quick", tmp_path, minutes=-1.0)
    assert ledger.complete(report, "quick", tmp_path, ["*/row 1"], 1)
    assert calls == [(3.0, 0)]
    assert ledger.chosen_rows(report, ["nothing"]) == []


def test_differences_are_paired_by_seed():
    rows = {"a": {0: 5.0, 1: 7.0, 2: 9.0}, "b": {1: 6.0, 2: 8.0, 3: 100.0}}
    results = Results({name: {seed: {"numbers": {"x": value}} for seed, value in row.items()}
                       for name, row in rows.items()})
    assert results.difference("a", "b", "x").tolist() == [1.0, 1.0]
    with pytest.raises(tables.NotMeasured, match="c"):
        results.difference("a", "c", "x")


def test_pages_come_from_results_alone(tmp_path):
    report, _ = make()
    ledger.complete(report, "quick", tmp_path)
    report, calls = make()
    pages.write_pages([report], tmp_path)
    page, card = ((tmp_path / name).read_text() for name in ("009.md", "README.md"))
    assert calls == []
    for part in ("7.25", "**cannot be told**", "1.05 ± 0.07", "3.05 ± 0.07", "An introduction.", "Budget quick: tiny.",
                 ": +2.00 [+2.00, +2.00] dB"):
        assert part in page, part
    assert "row 1 is better | **cannot be told**" in card and "1 cannot be told" in card  # of two equal runs
    for picture in ("009/quick-first-row-0-0.png", "009/quick-first-loss.png"):
        assert (tmp_path / picture).stat().st_size and picture in page


def test_a_page_says_what_is_not_known(tmp_path):
    report, _ = make()
    ledger.complete(report, "quick", tmp_path, ["*row 0"])
    pages.write_pages([report], tmp_path)
    assert "not measured yet: row 1" in (tmp_path / "README.md").read_text()
    ledger.complete(report, "smoke", tmp_path)  # more rows, so that the page is about it
    pages.write_pages([report], tmp_path)
    assert "a smoke run only shows that the code works" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("arguments, message", [
    (["005"], "005"), (["--seeds", "0"], "--seeds must be at least 1"), (["--minutes", "-1"], "--minutes must not be"),
    (["--out", "FILE"], "is a file"), (["003", "--rows", "nowhere/*"], "no row is called nowhere"),
])
def test_mistakes_end_with_status_2(tmp_path, capsys, arguments, message):
    (tmp_path / "FILE").write_text("")
    with pytest.raises(SystemExit) as caught:
        experiments_main([str(tmp_path / a) if a == "FILE" else a for a in arguments])
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert message in captured.err + captured.out


def test_the_command_is_parsed_without_heavy_imports():
    code = "import sys, dipddpm_jax.experiments.__main__; print(sorted({'jax', 'numpy', 'flax'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("number", [2, 15])
def test_an_interrupted_training_ends_an_experiment_with_the_signals_status(tmp_path, monkeypatch, number, capsys):
    """A loop that saves first raises Stopped with 128 + the signal; what `guarded` makes of it must be the same."""
    def stopped(*_):
        raise ends.Stopped("saved step 7", 128 + number)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(labelled_runs.train, "train_model", stopped)
    with pytest.raises(SystemExit) as left, ends.guarded("interrupted; what was measured is kept"):
        labelled_runs.trained_run(PRESETS["scenes"][1], 10)
    assert left.value.code == 128 + number and "what was measured is kept" in capsys.readouterr().err
