"""What the documents name exists, and the README's examples run."""
import re
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest

from benchmarks.places import REPO

MATH = REPO / "docs" / "math.md"
ROOMS = "convolution networks diffusion inverse dip hybrids classical data judging config commands experiments".split()
ROOMS += ["types"]


def looked_up(dotted: str):
    parts, rest = dotted.split("."), []
    while True:
        try:
            value = import_module(".".join(["dipddpm_jax", *parts]))
            break
        except ModuleNotFoundError:
            rest.insert(0, parts.pop())
    for name in rest:
        value = getattr(value, name)
    return value


@pytest.mark.parametrize("page", [MATH, *(REPO / "docs" / f"{name}.md" for name in ("adding", "parity"))],
                         ids=lambda path: path.name)
def test_every_name_in_the_documents_exists(page):
    names = re.findall(r"`((?:" + "|".join(ROOMS) + r")(?:\.(?!json|py)\w+)+)`", page.read_text())
    assert len(set(names)) > 5
    for name in set(names):
        assert looked_up(name) is not None, name


PAGES = [REPO / "README.md", *sorted((REPO / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(REPO)))
def test_links_and_pictures_of_a_page_are_there(page):
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.S))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(REPO)))
def test_rows_of_a_table_have_the_cells_of_its_head(page):
    """A bar inside a cell would end it, in a formula too."""
    cells = 0
    for line in re.sub(r"```.*?```", "", page.read_text(), flags=re.S).splitlines():
        found = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        assert found == cells or not cells or not found, line
        cells = found


def doors() -> list[str]:
    text = (REPO / "README.md").read_text()
    return re.findall(r"<!-- door \d -->\n```python\n(.*?)```", text, re.S)


def test_the_doors_of_the_readme_open(tmp_path, monkeypatch, fast_compilation):
    """As they stand there, but for fewer and smaller steps."""
    from dipddpm_jax.config import presets
    from dipddpm_jax.config.diffusion import UNet

    text, config = presets.PRESETS["unet"]
    monkeypatch.setitem(presets.PRESETS, "unet", (text, replace(config, network=UNet(8, (1,)), batch_size=8)))
    monkeypatch.chdir(tmp_path)
    found = doors()
    assert len(found) == 3 and all(len(door.splitlines()) < 10 for door in found)
    noisy = np.random.default_rng(0).integers(0, 255, (16, 16), np.uint8)
    names = {"noisy": noisy}
    exec(found[0].replace("steps=500", "steps=2"), names)
    exec(found[1].replace("spacings.even_time(model.schedule, 25)", "spacings.even_time(model.schedule, 2)"), names)
    assert names["pictures"].shape == (4, 28, 28, 1) and names["pictures"].dtype == np.uint8
    exec(found[2].replace("progress=True", "num_steps=4, network='conv'"), names)
    assert names["restored"].shape == (16, 16) and names["restored"].dtype == np.uint8


def test_results_name_no_folder_of_the_machine_that_made_them():
    for path in sorted((REPO / "docs" / "results").glob("*.jsonl")):
        found = re.findall(r'"command": "[^"]*[ =](/[^" ]*)', path.read_text())
        assert not found, f"{path.name}: {found[0]}"
