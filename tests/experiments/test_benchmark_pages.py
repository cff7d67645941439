"""What benchmarks write about their own rows."""
import numpy as np

from benchmarks import cifar10, default_run, few_steps, places, recipe, speed_page
from dipddpm_jax import data, records

ROW = {"steps": 10, "seconds": 3, "held_out_loss": 0.5, "best_held_out_loss": 0.4, "read": 0.8, "real_read": 0.96,
       "fd": 1.5, "floor": 0.1, "label_accuracy": 0.9, "worst_class": 0.85,
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


def test_the_page_of_the_recipe_is_that_of_its_lines_and_says_gains_on_common_seeds():
    lines = records.read_lines(recipe.LINES)
    assert recipe.PAGE.read_text() == recipe.page(lines)
    some = {**lines[0], "length": 1, "cost": 1.0, "label_accuracy": 0.9, "worst_class": 0.8, "recall": 0.7}
    made = recipe.page([{**some, "row": row, "seed": seed, "fd": fd} for row, seed, fd in (
        ("base", 0, 4.0), ("base", 1, 5.0), ("muon", 0, 1.0), ("muon", 2, 2.0))])
    assert f"| Muon at 5e-3 | 1.00 | {some['steps']} | 2 | 1.50 ± 0.71 | 3.00 |" in made


def test_the_page_of_cifar10_is_that_of_its_lines_and_held_out_pictures_are_not_mirrored(tmp_path, monkeypatch):
    assert (cifar10.RESULTS / "cifar10.md").read_text() == cifar10.page(records.read_lines(cifar10.LOG))
    monkeypatch.setattr(cifar10, "FOLDER", tmp_path)
    monkeypatch.setattr(data, "load", lambda name, split, data_dir: data.Dataset(
        np.full((3, 2, 2, 1), len(split), np.uint8), np.arange(3, dtype=np.int32), ("a", "b", "c"), name))
    assert cifar10.put_aside("any", None) == 3
    images, labels, names = cifar10.mirrored("train")
    assert images.shape == (6, 2, 2, 1) and labels.tolist() == [0, 1, 2, 0, 1, 2] and names == ["a", "b", "c"]
    assert len(cifar10.mirrored("test")[0]) == 3 and cifar10.pictures("test")[0].max() == 4


def test_the_pages_of_speed_are_written_and_the_readme_keeps_the_rest(tmp_path, monkeypatch):
    lines = records.read_lines(places.REPO / "docs" / "results" / "speed.jsonl")
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- speed -->\nold\n<!-- end of speed -->\nafter\n")
    monkeypatch.setattr(speed_page, "REPO", tmp_path)
    monkeypatch.setattr(speed_page, "RESULTS", tmp_path / "results")
    speed_page.write(lines, tmp_path / "results")
    assert records.read_lines(tmp_path / "results" / "speed.jsonl") == lines
    assert (tmp_path / "results" / "speed.png").stat().st_size > 1000
    assert (tmp_path / "results" / "speed.md").read_text() == speed_page.page(lines)
    text = readme.read_text()
    assert text.startswith("before\n<!-- speed -->\n| job |") and text.endswith("<!-- end of speed -->\nafter\n")
    assert "old" not in text


def test_the_readme_has_the_speed_of_the_newest_jax_and_the_page_that_of_all():
    newest = speed_page.of_newest(records.read_lines(places.REPO / "docs" / "results" / "speed.jsonl"))
    older = [{**line, "where": "2 cores; jax 0.9.11, torch 2.1; 2025-01-01"} for line in newest]
    assert speed_page.version(older[0]) == (0, 9, 11) and speed_page.of_newest(newest + older) == newest
    assert "jax 0.9.11" in speed_page.page(newest + older)
