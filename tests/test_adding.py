"""Adding something touches the files that docs/adding.md says, and no others: done here in a copy of the package.

And what a user names as MODULE:FUNCTION touches none.
"""
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from benchmarks.places import REPO

APPENDED, ROW = "at the end", "as the first row of "
ADDITIONS = {
    "schedule": {
        "diffusion/schedules.py": (APPENDED, '''
def square_root(num_steps: int, first_beta: float = 1e-4) -> NoiseSchedule:
    """alpha_bar = (1 - sqrt(t / T)), but for the first beta."""
    alpha_bars = 1 - np.sqrt(np.linspace(first_beta, 1 - 1e-4, num_steps + 1)[1:])
    return from_betas(1 - alpha_bars / np.concatenate([[1.0], alpha_bars[:-1]]))
'''),
        "config/diffusion.py": (ROW + "SCHEDULES", '"square_root": ("first_beta",),'),
    },
    "sampler": {
        "diffusion/samplers.py": (APPENDED, '''
def euler(denoise, schedule, x, grid, noise=None, keep=None):
    """DDIM without its noise, by another name."""
    return ddim(denoise, schedule, x, grid, noise, **({} if keep is None else {"keep": keep}))
'''),
        "config/sampler.py": (ROW + "SAMPLERS", '"euler": Sampler(num_steps=3),'),
    },
    "data set": {
        "data/stripes.py": (APPENDED, '''"""Stripes: a data set made for the test."""
import numpy as np

from dipddpm_jax.data.dataset import Dataset, Description


def load(name, split, data_dir, image_size):
    images = np.zeros((40, 8, 8, 1), np.uint8)
    images[:, ::2] = 255
    return Dataset(images, None, (), name)


def describe(name):
    return Description((8, 8, 1), ())
'''),
        "config/datasets.py": (ROW + "MODULES", '"stripes": "stripes",'),
    },
    "DIP variant": {
        "dip/variants.py": (ROW + "VARIANTS", '"smooth": Variant(total_variation, 0.1),'),
        "config/dip.py": ('"plain", "tv"', '"smooth", "plain", "tv"'),
    },
    "stop rule": {
        "dip/stopping.py": (ROW + "RULES", '"third": lambda window, patience: third(),'),
        "config/dip.py": ('"held-out", "wmv"', '"third", "held-out", "wmv"'),
    },
}
THIRD = '''

def third() -> Stopper:
    """Stops after the third step."""
    def update(count, evidence):
        return count + 1, Decision(jnp.bool_(True), count >= 2, evidence.loss)

    return Stopper(lambda anchor: jnp.int32(0), update)
'''


def add(package, where, how, text):
    path = package / where
    before = path.read_text() if path.exists() else ""
    if how == APPENDED:
        after = before + text
    elif how.startswith(ROW):
        after = re.sub(rf"^({how.removeprefix(ROW)}\b[^\n]*{{[^\n]*\n)", rf"\1    {text}\n", before, flags=re.M)
    else:
        after = before.replace(how, text, 1)
    assert after != before, f"{where} has no place for {text}"
    path.write_text(after)


@pytest.fixture(scope="module")
def enlarged(tmp_path_factory):
    """A copy of the package to which one of each was added."""
    root = tmp_path_factory.mktemp("enlarged")
    package = root / "dipddpm_jax"
    shutil.copytree(REPO / "dipddpm_jax", package, ignore=shutil.ignore_patterns("__pycache__"))
    for places in ADDITIONS.values():
        for where, (how, text) in places.items():
            add(package, where, how, text)
    add(package, "dip/stopping.py", APPENDED, THIRD)
    (root / "mine.py").write_text('''
import numpy as np
from flax import linen as nn
from dipddpm_jax import samplers, schedules


def flat(num_steps):
    return schedules.from_betas(np.full(num_steps, 0.4))


def noiseless(denoise, schedule, x, grid, noise):
    return samplers.ddim(denoise, schedule, x, grid, noise)


class Linear(nn.Module):
    channels: int
    num_classes: int | None
    num_steps: int

    @nn.compact
    def __call__(self, x, t, labels=None, train=False):
        return nn.Dense(self.channels)(x) + nn.Dense(1)(t[:, None, None, None] / self.num_steps)


def pictures(split):
    return np.full((20 if split == "train" else 4, 8, 8), 0.5), None
''')
    return root


def run(root, *words):
    script = "from dipddpm_jax.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", script, *words], cwd=root, capture_output=True, text=True,
                          timeout=300, env={**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu",
                                           "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("kind", ADDITIONS)
def test_the_files_touched_are_those_of_the_page(kind):
    found = re.search(rf"^\| {kind} \| (\d+) \| (.*) \|$", (REPO / "docs" / "adding.md").read_text(), re.M)
    assert int(found[1]) == len(ADDITIONS[kind])
    for path in ADDITIONS[kind]:
        room, _, file = path.partition("/")
        stem = file.removesuffix(".py")
        assert path in found[2] or f"{room}.{stem}" in found[2] or f"{room}/" in found[2], path


TINY = ["--steps", "2", "--batch-size", "4", "--chunk", "2", "--schedule.num-steps", "6"]


def test_what_was_added_trains_and_draws(enlarged):
    run(enlarged, "train", *TINY, "--data", "stripes", "--schedule.name", "square_root", "--sampler.name", "euler",
        "--network.width", "8", "--network.multipliers", "1", "--network.attention-size", "0", "--workdir", "run")
    assert (enlarged / "run" / "samples.png").stat().st_size > 0


def test_what_was_added_restores(enlarged):
    run(enlarged, "dip", "--image", "camera", "--size", "16", "--network", "conv", "--variant", "smooth", "--stop",
        "third", "--num-steps", "8", "--chunk", "8", "--workdir", "dip")
    results = json.loads((enlarged / "dip" / "results.json").read_text())
    assert results["stop"] == "third" and results["pictures"][0]["step"] == [[3]]


def test_a_user_s_own_pieces_need_no_change(enlarged):
    run(enlarged, "train", "own", *TINY, "--network.function", "mine:Linear", "--data", "mine:pictures",
        "--schedule.name", "mine:flat", "--sampler.name", "mine:noiseless", "--workdir", "own")
    run(enlarged, "sample", "own", "--count", "2", "--sampler", "mine:noiseless", "--out", "drawn")
    assert (enlarged / "drawn" / "grid.png").stat().st_size > 0
