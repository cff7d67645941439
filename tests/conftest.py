"""Shapes are checked at run time in tests, at no cost outside them; pictures need no screen."""
import os
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
# Where the user keeps compiled programs, all of them: every module and process compiles the same thousand small ones.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax  # noqa: E402
import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

from benchmarks.places import GOLDEN  # noqa: E402

install_import_hook("dipddpm_jax", "beartype.beartype")
jax.config.update("jax_numpy_rank_promotion", "raise")

ACCOUNT = pytest.StashKey()


def pytest_addoption(parser):
    parser.addoption("--golden", type=Path, help="folder of recordings of the PyTorch originals (see golden/README.md)")
    parser.addoption("--write-parity", type=Path, help="file whose table of worst errors is replaced (docs/parity.md)")


def pytest_configure(config):
    if config.getoption("write_parity") and config.getoption("numprocesses", 0):
        raise pytest.UsageError("--write-parity needs all tests in one process: add -n 0")


def pytest_generate_tests(metafunc):
    if "golden_file" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("golden")
        folders = [chosen] if chosen else reversed(GOLDEN)  # of two files of one name, the committed one
        files = {file.stem: file for folder in folders for file in folder.glob("*.npz")}
        assert files, f"{chosen} holds no .npz files"
        metafunc.parametrize("golden_file", [files[name] for name in sorted(files)], ids=sorted(files))


# The files that take minutes, the longest first: begun last, one of them would keep a single process busy at the end.
LONGEST = ("test_reports.py", "test_presets.py", "test_train.py", "test_evaluate.py", "test_dip.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """A compiled program holds about ten mappings of memory; Linux ends a process that asks for more than 65,530."""
    yield
    jax.clear_caches()


def _hardly_optimized():
    """For runs of a few steps, which compile far longer than they compute."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


# Until the end of the module, or of one test where others of its module compute for long.
fast_compilation = pytest.fixture(_hardly_optimized, scope="module")
fast_compilation_of_one = pytest.fixture(_hardly_optimized)


@pytest.fixture
def golden_dir():
    return GOLDEN[0]


@pytest.fixture(scope="session")
def account(request):
    from parity.files import Account

    return request.config.stash.setdefault(ACCOUNT, Account())


def pytest_terminal_summary(terminalreporter, config):
    account = config.stash.get(ACCOUNT, None)
    if account is None or not account.rows:
        return
    terminalreporter.section("parity with PyTorch")
    terminalreporter.write_line(account.table())
    if path := config.getoption("write_parity"):
        before, _, rest = path.read_text().partition("<!-- measured -->")
        _, _, after = rest.partition("<!-- end -->")
        path.write_text(f"{before}<!-- measured -->\n{account.table()}\n<!-- end -->{after}")
