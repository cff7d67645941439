"""The page of the restoration table from made-up result lines."""
import pytest

from benchmarks.restoration_page import END, NOTES, columns_of, interval, render


def lines():
    """Two methods on three pictures; the second lies 1, 2 and 3 dB below the first."""
    for i in range(3):
        for row, psnr in (("BM3D", 30 + i), ("DIP", 29 - 0.0 * i)):
            yield {"row": row, "task": "sigma-25", "picture": f"{i}", "seed": 0, "side": 64, "psnr": float(psnr),
                   "ssim": 0.9, "core_seconds": 2.0, "error": 10**-2.95 if row == "DIP" else None,
                   "origin": {"machine": "a machine", "date": "a day"}}


def test_an_interval_is_students():
    mean, half = interval([-1.0, -2.0, -3.0])
    assert mean == -2 and half == pytest.approx(4.303 / 3**0.5, rel=1e-3)  # t of 2 degrees, deviation 1


def test_rows_are_in_order_and_differences_are_those_of_pictures():
    page = render(list(lines()), {"restoration.png": ["clean", "BM3D"]}, "")
    rows = [line for line in page.splitlines() if line.startswith(("| BM3D", "| DIP"))]
    assert rows == ["| BM3D | 31.00 | 0.900 | +0.00 +- 0.00 |  | 3 x 1 | 2.0 |",
                    "| DIP | 29.00 | 0.900 | -2.00 +- 2.48 | +0.50, 0.50 | 3 x 1 | 2.0 |"]
    assert "Made on a machine, a day." in page


def test_notes_stay_and_rows_of_fewer_pictures_say_so():
    page = render(list(lines()), {}, "")
    noted = page.replace(NOTES + "\n" + END, NOTES + "\nA finding.\n" + END)
    again = render(list(lines())[:-1], {}, noted)
    assert "A finding." in again and "| DIP* | 29.00 |" in again and "| DIP* |" not in noted


def test_colour_stands_in_tables_of_its_own():
    colour = [{**line, "picture": "cbsd68/" + line["picture"], "side": 64, "psnr": line["psnr"] - 10}
              for line in lines()]
    page = render([*lines(), *colour], {}, "")
    grey, later = page.split("## Colour: Gaussian noise, sigma 25 of 255, 64x64 out of the middle")
    assert "| BM3D | 31.00 |" in grey and "| BM3D | 21.00 |" in later and "| BM3D | 31.00 |" not in later


def test_the_gain_of_trained_priors_stands_there_without_a_picture_like_one_of_theirs():
    trained = [{**line, "row": "prior photos", "psnr": line["psnr"] + (9 if line["picture"] == "0" else 1)}
               for line in lines() if line["row"] == "BM3D"]
    named = [{**line, "picture": f"set12/0{1 + int(line['picture'])}"} for line in [*lines(), *trained]]
    assert "less BM3D: prior photos +1.00 +- 0.00." in render(named, {}, "")


def test_pictures_of_another_size_stand_in_tables_of_their_own():
    larger = [{**line, "side": 256, "psnr": line["psnr"] + 1} for line in lines()]
    small, large = render([*larger, *lines()], {}, "").split("## Gaussian noise, sigma 25 of 255, 256x256")
    assert "| BM3D | 31.00 |" in small and "| BM3D | 32.00 |" in large and "| BM3D | 31.00 |" not in large


def test_pairs_are_of_the_pictures_that_both_have_and_fresh_ones_stand_beside():
    def line(row, name, psnr):
        return {**next(lines()), "row": row, "picture": f"set12/{name}", "task": "impulse-30", "psnr": psnr}

    made = [line("nothing", "01", 10.0)] + [line("cross-fit", f"0{i}", 30.0) for i in range(1, 6)]
    made += [line("cross-fit, then prior photos", f"0{i}", 31.0 + (i > 3)) for i in range(1, 7)]
    page = render(made, {}, "")
    assert ("- cross-fit, then prior photos, less cross-fit: +1.40 +- 0.68 dB (n = 5); without those on which the "
            "method was found +2.00 +- 0.00 dB (n = 2)") in page


def test_sheets_whose_pictures_were_not_kept_stay_on_the_page():
    sheets = {"restoration.png": ["clean", "BM3D, told", "DIP"], "restoration_colour.png": ["clean", "DIP"]}
    assert columns_of(render(list(lines()), sheets, "")) == sheets and columns_of("") == {}


def test_a_table_without_its_controls_has_no_differences():
    page = render([{**line, "row": "DIP"} for line in lines()], {}, "")
    assert "| DIP | 30.00 | 0.900 |  | " in page


def test_the_referee_is_judged_on_pictures_that_all_it_chose_from_restored():
    """A method of which one picture is still to be made again, and one of which all are."""
    of_referee = [{**line, "row": f"referee, {kind}", "psnr": line["psnr"] + gain, "weights": {"BM3D": 0.5, "DIP": 0.5}}
                  for line in lines() if line["row"] == "BM3D" for kind, gain in (("best", -0.5), ("average", 0.25))]
    some = [line for line in lines() if (line["row"], line["picture"]) != ("DIP", "0")]
    said = "- referee: its choice lies 0.50 dB (at most 0.50) below the best method of each picture, its average +0.25"
    assert said in render([*some, *of_referee], {}, "")
    none = [line for line in lines() if line["row"] == "BM3D"]
    assert "- referee" not in render([*none, *of_referee], {}, "")
