"""What the documents name exists, and the README's examples run."""
import re
from importlib import import_module

import pytest

from benchmarks.places import REPO

MATH = REPO / "docs" / "math.md"
ROOMS = "convolution networks diffusion inverse dip hybrids data judging config commands experiments types".split()


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


@pytest.mark.parametrize("page", [MATH, REPO / "docs" / "adding.md"], ids=lambda path: path.name)
def test_every_name_in_the_documents_exists(page):
    names = re.findall(r"`((?:" + "|".join(ROOMS) + r")(?:\.(?!json|py)\w+)+)`", page.read_text())
    assert len(set(names)) > 10
    for name in set(names):
        assert looked_up(name) is not None, name
