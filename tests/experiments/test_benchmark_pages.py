"""What benchmarks write about their own rows."""
from benchmarks import default_run, few_steps, places
from dipddpm_jax import records

ROW = {"steps": 10, "seconds": 3, "held_out_loss": 0.5, "best_held_out_loss": 0.4, "read": 0.8, "real_read": 0.96,
       "seed": 0, "picture": "a.png", "machine": "a machine", "date": "2026-01-02", "source": "0123abcd"}


def test_rows_of_several_versions_of_the_code_are_said_to_be():
    same = default_run.table([ROW, {**ROW, "steps": 20, "date": "2026-01-03"}])
    assert "versions of the code" not in same and "2026-01-02" in same and "2026-01-03" in same and "0123abcd" in same
    old = {key: value for key, value in ROW.items() if key != "source"}
    for other in ({**ROW, "source": "ffffffff"}, {**old, "date": "2025-12-31"}):
        assert "**These rows are of 2 versions of the code**" in default_run.table([ROW, other])


def test_the_page_of_longer_runs_is_that_of_its_lines():
    lines = records.read_lines(places.REPO / "docs" / "results" / "default_run.jsonl")
    assert (places.REPO / "docs" / "longer_runs.md").read_text() == default_run.table(lines)


def test_the_page_of_few_steps_is_that_of_its_lines():
    assert few_steps.PAGE.read_text() == few_steps.page(records.read_lines(few_steps.LINES))
