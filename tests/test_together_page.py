"""The page of docs/results/together.md from made-up lines, and which lines of the study still count."""
import pytest

from benchmarks.together_page import SEEN_FIRST, SHAPED, from_each_part, gain, table, write

RECIPE = {"denoiser": "exact", "deviation": 0.1, "calls": 50, "samples": 19}


def lines(**psnr):
    """One line for each picture of a method: PSNR by picture; the exact mean has 20 dB."""
    return [{"set": "prior", "task": "x4", "method": method.replace("_", " "), "picture": i, "seed": 0, "psnr": value,
             "exact": 20.0, "calls": 1, "seconds": 0.5, "where": "here", "recipe": RECIPE}
            for method, values in psnr.items() for i, value in enumerate(values)]


def both(union, fit, diffusion):
    return lines(**{"start: cross-fit, rule": union, "cross-fit": fit, "PiGDM, matched": diffusion})


def test_a_union_is_compared_with_its_better_part_picture_by_picture():
    found = gain(both([21.0, 23.0, 25.0], [20.0, 21.0, 22.0], [19.0, 19.0, 19.0]), "start: cross-fit, rule")
    assert found == "2.00 ± 2.48 (cross-fit; n = 3)"  # t of 2 degrees 4.303, deviation 1
    found = gain(both([21.0, 23.0], [20.0, 21.0], [29.0, 31.0]), "start: cross-fit, rule")
    assert found == "-8.00 ± 0.00 (PiGDM, matched; n = 2)"


def test_pictures_without_one_of_the_parts_do_not_count():
    made = both([21.0, 23.0], [20.0, 21.0], [19.0])
    assert gain(made, "start: cross-fit, rule") == "1.00 (cross-fit; n = 1)"
    made += lines(**{"one step": [22.0, 22.0, 22.0]})  # a part with all pictures, beside one with fewer
    assert gain(made, "start: cross-fit, rule") == "0.00 ± 12.71 (one step; n = 2)"
    assert gain([line for line in made if line["method"] != "cross-fit"], "start: cross-fit, rule") is None


def test_a_cell_is_the_gap_to_the_exact_mean_and_says_where_it_has_fewer_pictures():
    rows = table(both([21.0, 23.0, 25.0], [20.0, 21.0, 22.0], [19.0]))
    assert rows[2].startswith("| *exact posterior mean, dB* | 20.00, n = 3 |")
    assert "| cross-fit | 1.00 ± 2.48 | 1 | 0.50 |" in rows
    assert "| PiGDM, matched | -1.00 (n = 1) | 1 | 0.50 |" in rows


def test_later_pictures_are_also_compared_by_themselves():
    first, later = [9.0] * SEEN_FIRST, [3.0, 5.0]
    made = lines(**{SHAPED: [*first, *later], "cross-fit": [2.0] * (SEEN_FIRST + 2), "one step": [1.0]})
    rows = from_each_part(made)
    assert rows[2] == "| less | x4 |" and len(rows) == 6  # one picture is no comparison
    assert rows[4].startswith("| cross-fit | 5.33 ± ") and rows[4].endswith(f"(n = {SEEN_FIRST + 2}; 2.00 ± 12.71) |")
    assert from_each_part([line for line in made if line["method"] != SHAPED]) == []


def test_only_what_stands_between_the_marks_is_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- measured -->\nold\n<!-- end -->\nafter\n")
    write(both([21.0, 23.0, 25.0], [20.0, 21.0, 22.0], [19.0, 19.0, 19.0]), page)
    text = page.read_text()
    assert text.startswith("before\n<!-- measured -->") and text.endswith("<!-- end -->\nafter\n") and "old" not in text
    assert "| start: cross-fit, rule | 2.00 ± 2.48 (cross-fit; n = 3) |" in text


def test_lines_that_were_made_before_a_field_was_added_still_count():
    from benchmarks.together import Study, recipe_of

    assert recipe_of("exact", Study()) == RECIPE
    assert recipe_of("exact", Study(spacing="even_time")) == RECIPE | {"spacing": "even_time"}


def test_what_several_rows_need_is_made_once_and_charged_to_each(tmp_path):
    import jax
    import jax.numpy as jnp

    from benchmarks.together_rows import Shared
    from dipddpm_jax.inverse import noises, operators
    from dipddpm_jax.inverse.measurement import Cost, Measurement, Restoration

    made = []

    def slow(measurement, key):
        made.append(key)
        return Restoration(measurement.y / 2, None, Cost(steps=7, error=0.25))

    measurement = Measurement(jnp.ones((4, 4, 1)), operators.identity, noises.Gaussian(0.1))
    for _ in range(2):  # the second one reads what the first wrote
        shared = Shared(tmp_path)
        restore = shared("slow", slow, on_disk=True)
        found = [restore(measurement, jax.random.key(i)) for i in range(2)]
        assert found[0].picture.tolist() == found[1].picture.tolist() == (measurement.y / 2).tolist()
        assert found[1].evidence == Cost(0, 7, 0.25)
        shared.found["slow", *[mark for _, mark in shared.found]] = found[0], 3.0
        shared.settle()
        restore(measurement, jax.random.key(2)), restore(measurement, jax.random.key(3))
        assert shared.settle() == pytest.approx(3.0, abs=0.5)  # once, whatever it waited
    assert len(made) == 2  # the first one compiles
