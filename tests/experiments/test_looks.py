"""Runs are made until claims are told, how long that takes is said before, and old measurements are known as such."""
from dataclasses import dataclass, replace

import numpy as np
import pytest

from dipddpm_jax import records
from dipddpm_jax.experiments import freshness, ledger, pages, staged_fits, tables, verdicts
from dipddpm_jax.experiments.rules import above
from dipddpm_jax.experiments.tables import Claim, Column, Finding, Measured, Report, Results, Row, Table, Together


@dataclass(frozen=True)
class Shift:
    value: float


@dataclass(frozen=True)
class Side:
    side: int = 64


def report_of(looks, effect=0.05, first=2):
    """A report whose second row is better by an effect that scatters from seed to seed, by 0.2; the margin is 0.1."""
    noise, calls = np.random.default_rng(0).standard_normal(40), []

    def measure(setting, size, seed):
        calls.append((setting.value, seed))
        return Measured({"psnr": (effect + 0.2 * noise[seed]) * setting.value})

    claim = Claim("it is better", "margin 0.1 dB", lambda found: Finding(
        (above("b less a", found.difference("b", "a", "psnr"), 0.1, "dB"),), "and a note"), "a worse b")
    table = Table("only", "Only table", "Two rows.", (Row("a", Shift(0.0)), Row("b", Shift(1.0))),
                  (Column("psnr", "PSNR, dB", "sound"),), measure, (claim,), looks=looks)
    sizes, words = (dict.fromkeys(tables.BUDGETS, of) for of in (Side(), "a size"))
    return Report("009", "a test", "What it is.", (table,), sizes, words, dict.fromkeys(sizes, first),
                  "For a reader who knows nothing.", ("only", "b"), (("side", "512", "64"),)), calls


def lines(path):
    return records.read_lines(path / "results.jsonl")


def made(tmp_path, *arguments, **options):
    report, calls = report_of(*arguments)
    tmp_path.mkdir(exist_ok=True)
    assert ledger.complete(report, "quick", tmp_path, **options)
    return verdicts.judge_report(report, lines(tmp_path))[0], calls


def test_runs_are_made_until_a_claim_is_told_or_has_the_most_that_are_planned(tmp_path):
    clear, calls = made(tmp_path / "a", (4, 8, 12), 1.0)
    assert (clear.verdict.answer, clear.runs, clear.most, clear.due) == ("holds", 4, 12, ()) and len(calls) == 8
    between, calls = made(tmp_path / "b", (2, 4, 6))  # in the middle of nothing and the margin
    assert between.verdict.answer == "cannot be told" and between.due == () and len(calls) == 12
    assert between.needed[0] > 6
    fixed, calls = made(tmp_path / "c", (2, 4, 6), seeds=3)  # no further than was asked for
    assert len(calls) == 6 and fixed.due == (("a", 3), ("b", 3))


def test_an_unfinished_look_is_no_look():
    report, _ = report_of((4, 8))
    worse = {seed: {"numbers": {"psnr": float(seed)}} for seed in range(5)}
    better = {seed: {"numbers": {"psnr": seed + 3.0 + 0.01 * seed}} for seed in (0, 1, 3, 4)}
    rows = Results({"a": worse, "b": better})
    (judged,) = verdicts.judge_tables(report, [(report.tables[0], "quick", rows)])
    assert judged.runs == 2 and judged.verdict.answer == "cannot be told" and judged.due == (("b", 2),)
    rows.lines["b"][2] = {"numbers": {"psnr": 5.0}}
    (judged,) = verdicts.judge_tables(report, [(report.tables[0], "quick", rows)])
    assert judged.verdict.answer == "holds"


def test_a_claim_asked_anew_counts_later_seeds_only():
    report, _ = report_of((2, 4))
    (table,) = report.tables
    anew = replace(table.claims[0], begins=3)
    table = replace(table, claims=(anew,))
    first = {name: {seed: {"numbers": {"psnr": value * seed}} for seed in range(3)} for name, value in (
        ("a", 9.0), ("b", 0.0))}  # against the claim
    (judged,) = verdicts.judge_tables(report, [(table, "quick", Results(first))])
    assert judged.verdict.answer == "cannot be told" and judged.runs == 0
    assert judged.due == (("a", 3), ("a", 4), ("b", 3), ("b", 4))
    later = {name: of | {seed: {"numbers": {"psnr": value + 0.01 * seed * value}} for seed in (3, 4)}
             for (name, of), value in zip(first.items(), (1.0, 5.0), strict=True)}
    (judged,) = verdicts.judge_tables(report, [(table, "quick", Results(later))])
    assert judged.verdict.answer == "holds" and (judged.runs, judged.most, judged.told_at) == (2, 4, 2)
    assert "+4.1" in judged.verdict.why


def test_a_smoke_run_and_runs_that_share_a_network_answer_nothing():
    report, _ = report_of((2,))
    rows = Results({name: {seed: {"numbers": {"psnr": value + 0.01 * seed * value}} for seed in range(4)}
                    for name, value in (("a", 1.0), ("b", 5.0))})
    (table,) = report.tables
    assert verdicts.judge_tables(report, [(table, "quick", rows)])[0].verdict.answer == "holds"
    assert verdicts.judge_tables(report, [(table, "smoke", rows)])[0].verdict.why == verdicts.SMOKE
    claim = table.claims[0]
    barred = tables.Claim(claim.text, claim.rule, lambda found: claim.judge(found)._replace(barred="one network"))
    table = Table(**{**table.__dict__, "claims": (barred,)})
    (judged,) = verdicts.judge_tables(report, [(table, "quick", rows)])
    assert judged.verdict.answer == "cannot be told" and judged.verdict.why.startswith("one network; b less a")


def test_how_long_it_will_take_is_said_before(tmp_path, capsys):
    report, _ = report_of((2, 4))
    assert not ledger.complete(report, "quick", tmp_path, minutes=-1.0)
    assert "009: 4 runs to measure, nobody knows how long" in capsys.readouterr().err
    known = [{"report": "009", "budget": "quick", "row": "a", "seconds": s} for s in (30.0, 90.0, 60.0)]
    cells = [(report.tables[0], row, 5) for row in report.tables[0].rows]
    assert ledger.expected_minutes(report, "quick", cells, known) == 2.0  # a row of its own, and one like the others


@pytest.mark.parametrize("one_seed, groups, minutes", [(True, [[5, 5], [6, 6]], 4.0), (False, [[5, 5, 6, 6]], 3.0)])
def test_rows_that_share_a_network_are_measured_seed_by_seed_and_cost_a_seed_at_most(
        tmp_path, monkeypatch, one_seed, groups, minutes):
    report, _ = report_of((2, 4))
    seen = []

    def measure(settings, size, seeds):
        seen.append(list(seeds))
        return [Measured({"psnr": 1.0}) for _ in settings]

    table = replace(report.tables[0], measure=Together(measure, lambda setting: 0, one_seed=one_seed))
    report, (a, b) = replace(report, tables=(table,)), table.rows
    cells = [(table, row, seed) for seed in (5, 6) for row in (a, b)]
    known = [{"report": "009", "budget": "quick", "row": "a", "seconds": 60.0}]
    assert ledger.expected_minutes(report, "quick", cells[:3], known) == minutes
    monkeypatch.setattr(ledger, "_missing", lambda *_: [] if seen else cells)
    monkeypatch.setattr(ledger.freshness, "remember", lambda *_: "code")
    assert ledger.complete(report, "quick", tmp_path)
    assert seen == groups and [line["seed"] for line in lines(tmp_path)] == [5, 5, 6, 6]


def test_the_page_begins_for_a_reader_who_knows_nothing(tmp_path):
    judged, _ = made(tmp_path, (2, 4, 6))
    pages.write_pages([report_of((2, 4, 6))[0]], tmp_path)
    page = (tmp_path / "009.md").read_text()
    assert page.splitlines()[2] == "For a reader who knows nothing." and "| side | 512 | 64 |" in page
    assert f"needed: {judged.needed[0]} for the margin" in page and "a worse b" in page and "; and a note" in page
    assert page.count("±") - page.count(" ± ") == 0 and "± is the standard deviation over runs" in page
    assert " ± " not in judged.verdict.why and "[" in judged.verdict.why


def test_pages_say_which_modules_have_changed_since_a_measurement(tmp_path):
    measure = Together(staged_fits.measure, staged_fits.program)
    code, modules = freshness.code_of(measure)
    assert {"dipddpm_jax.dip.staged", "dipddpm_jax.networks.conv_stack"} <= set(modules)
    assert [name for name in modules if ".experiments." in name] == ["dipddpm_jax.experiments.staged_fits"]
    assert not {"dipddpm_jax.networks.unet", "dipddpm_jax.hybrids.passes"} & set(modules)  # what only others import
    assert freshness.remember(measure, tmp_path) == code == freshness.remember(measure, tmp_path)
    assert len(records.read_lines(tmp_path / "code.jsonl")) == 1
    assert freshness.changes(measure, [{"code": code}], tmp_path) == {}
    older = {**modules, "dipddpm_jax.dip.staged": "00000000"}
    records.append_lines(tmp_path / "code.jsonl", [{"code": "other", "modules": older}])
    found = freshness.changes(measure, [{"code": "other"}, {"code": code}, {}], tmp_path)
    assert found == {"dipddpm_jax.dip.staged": 1, freshness.UNKNOWN: 1}
    report, _ = report_of((2,))
    table = Table(**{**report.tables[0].__dict__, "measure": measure})
    rows = Results({"a": {0: {"code": "other", "numbers": {}}}})
    assert "**Stale**" in (text := pages._age(report, [(table, "quick", rows)], tmp_path))
    assert "1 of 1, in `dip.staged`" in text


@pytest.fixture
def small_package(tmp_path, monkeypatch):
    caches = (freshness._file, freshness._tree, freshness.modules_of)
    monkeypatch.setattr(freshness, "PACKAGE", tmp_path / "dipddpm_jax")
    (tmp_path / "dipddpm_jax" / "dip").mkdir(parents=True)

    def hashes():
        for cached in caches:
            cached.cache_clear()
        return freshness.modules_of("dipddpm_jax.use")

    yield tmp_path / "dipddpm_jax", hashes
    for cached in caches:
        cached.cache_clear()


def test_only_code_that_is_used_counts_and_no_comment_does(small_package):
    folder, hashes = small_package
    (folder / "dip" / "__init__.py").write_text("from dipddpm_jax.dip.fit import Dip as Dip\n"
                                                "from dipddpm_jax.dip.other import Other as Other")
    (folder / "dip" / "other.py").write_text("class Other: pass")
    fit = folder / "dip" / "fit.py"
    fit.write_text('"""Fits."""\nclass Dip: pass')
    (folder / "use.py").write_text("from dipddpm_jax import dip\ndef f(): return dip.Dip()")
    first = hashes()
    assert set(first) == {"dipddpm_jax.use", "dipddpm_jax.dip", "dipddpm_jax.dip.fit"}
    fit.write_text('"""Fits better."""\n\nclass Dip:  # a comment\n    pass')
    assert hashes() == first
    fit.write_text("class Dip: x = 1")
    now = hashes()
    assert [name for name in first if now[name] != first[name]] == ["dipddpm_jax.dip.fit"]


def test_published_lines_know_the_code_that_made_them():
    results = records.read_lines(freshness.PACKAGE.parent / "docs" / "results" / "results.jsonl")
    known = {line["code"] for line in records.read_lines(freshness.PACKAGE.parent / "docs" / "results" / "code.jsonl")}
    assert {line["code"] for line in results} <= known


def test_a_hash_is_the_same_by_every_python():
    """Recorded with 3.11: a page that is rebuilt by another Python would else call every line stale."""
    source = '''"""D."""
def f(a: int, *b) -> str:
    """D."""
    # why
    return f"{a!r}: {b}"


class A:
    pass
'''
    assert freshness.hash_of(source) == freshness.hash_of(source.replace('"""D."""', '"""Other."""')) == "d9a2bae7"
    assert freshness.hash_of(source.replace("a!r", "a!s")) != "d9a2bae7"


def test_runs_that_were_made_for_other_claims_are_no_evidence():
    """A later claim of the same rows needs more seeds; the first claim's estimate stays that of its own cap."""
    report, _ = report_of((2, 4))
    (table,) = report.tables
    rows = Results({name: {seed: {"numbers": {"psnr": value + (100.0 * value if seed >= 4 else 0.01 * seed * value)}}
                           for seed in range(9)} for name, value in (("a", 1.0), ("b", 5.0))})
    anew = replace(table.claims[0], begins=6, looks=(2,), asked=2)
    first, later = verdicts.judge_tables(report, [(replace(table, claims=(*table.claims, anew)), "quick", rows)])
    assert (first.runs, first.most, later.runs, later.most) == (4, 4, 2, 2)
    assert "+4.1" in first.verdict.why and "+404" in later.verdict.why
    assert "(5.0 % here)" in pages._rules([[first]]) and "(7.5 % here)" in pages._rules([[first, later]])
