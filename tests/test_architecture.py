"""The layering of the package, as one list of rooms: a module imports its own room and those listed before it."""
import ast
import builtins
import graphlib
import symtable
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dipddpm_jax"
PURE = ["errors", "types", "convolution", "networks", "diffusion", "inverse", "dip", "hybrids"]
# `config` is plain Python and imports only errors; what writes, reads or talks to other libraries may ask for it.
SIDE_EFFECTS = ["files", "config", "memory", "records", "data", "checkpoints", "torch_weights", "torch_files",
                "environment", "cluster", "devices", "plots", "classical", "pretrained", "judging", "commands",
                "experiments", "__main__"]
ORDER = PURE + SIDE_EFFECTS
NUMERIC = {"collections", "contextlib", "dataclasses", "difflib", "flax", "functools", "itertools", "jax",
           "jaxtyping", "math", "numpy", "optax", "os", "types", "typing", "zlib"}
MAX_FUNCTION, MAX_MODULE = 60, 300
# What every module of a room answers to, as a report answers to `measure`; a configuration is called as its network.
ROLES = {"data": {"load", "find", "describe"}, "experiments": {"Setting", "Size", "measure", "program"}}
CONFIGURED = {"UNet", "SmallUNet", "AttentionUNet", "ContextUnet", "ResidualDenoiser"}
STILL_TWICE = set()


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(layer: str, source: str) -> list[str]:
    """What a module of this layer does that it may not."""
    tree, found = ast.parse(source), []
    for name in imports(tree):
        top, *rest = name.split(".")
        if top == "dipddpm_jax":
            if rest[0] == "__version__" or name == "dipddpm_jax.import_module":
                continue
            if rest[0] not in ORDER or ORDER.index(rest[0]) > ORDER.index(layer):
                found.append(f"imports {name}, which stands below it")
        elif layer in PURE and top not in NUMERIC:
            found.append(f"imports {name}, which is not numerics")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= MAX_FUNCTION:
            found.append(f"{node.name} has {node.end_lineno - node.lineno + 1} lines")
        if layer in PURE and isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("print", "open"):
            found.append(f"calls {node.func.id}")
    if len(source.splitlines()) > MAX_MODULE:
        found.append(f"has {len(source.splitlines())} lines")
    if not (ast.get_docstring(tree) or "").strip():
        found.append("has no docstring")
    return found


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
LIGHT = [PACKAGE / f"{name}.py" for name in ("__init__", "errors", "files", "pretrained", "__main__",
                                             "commands/__init__", "commands/cli", "commands/cli_fits", "commands/ends",
                                             "commands/evaluate", "commands/export", "commands/export_program",
                                             "commands/judge")]
LIGHT += sorted((PACKAGE / "config").glob("*.py"))  # read before the command line is parsed


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_keeps_its_layer(path):
    layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert layer in ORDER, f"{layer} has no place in the list of layers"
    assert violations(layer, path.read_text()) == []


@pytest.mark.parametrize("layer, line", [
    ("diffusion", "from dipddpm_jax.hybrids import passes"),
    ("diffusion", "import dipddpm_jax.dip.fit"),
    ("networks", "from pathlib import Path"),
    ("dip", "import matplotlib"),
    ("inverse", "print('psnr')"),
    ("diffusion", "def load(): return open('file')"),
    ("commands", "def long():\n" + "    x = 1\n" * MAX_FUNCTION),
    ("commands", "x = 1\n" * (MAX_MODULE + 1)),
])
def test_planted_violations_are_caught(layer, line):
    assert violations(layer, '"""A docstring."""\n' + line)


def test_modules_of_a_room_do_not_import_in_circles():
    names = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in MODULES}
    graph = {}
    for path in MODULES:
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        body = ast.parse(path.read_text()).body
        tree = ast.Module([node for node in body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        graph[name] = {i if i in names else i.rpartition(".")[0] for i in imports(tree)} & names - {name}
    for circle in iter(graphlib.TopologicalSorter(graph).static_order()):
        assert circle in names  # static_order raises CycleError


def test_the_command_line_is_parsed_without_heavy_imports():
    for path in LIGHT:
        names = {i for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)
                 for i in imports(ast.Module([node], []))}
        heavy = []
        for name in names:
            top, *rest = name.split(".")
            module = PACKAGE.joinpath(*rest).with_suffix(".py")
            module = module if module.is_file() else PACKAGE.joinpath(*rest[:-1]).with_suffix(".py")
            if top in ("jax", "flax", "optax", "orbax", "numpy", "matplotlib"):
                heavy.append(name)
            elif top == "dipddpm_jax" and rest[0] not in ("config", "__version__") and module not in LIGHT:
                heavy.append(name)
        assert heavy == [], f"{path.relative_to(PACKAGE)} imports {heavy} before the command line is parsed"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_docstrings_name_their_subject(path):
    """No docstring begins with "Of ...", which leaves out what it is about."""
    texts = [node.value.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Expr)
             and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)]
    assert [text for text in texts if text.startswith("Of ")] == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_name_is_defined(path):
    """Ruff's own check of this stumbles over the axes in shapes, so that it is off."""
    def tables(table):
        yield table
        for inner in table.get_children():
            yield from tables(inner)

    whole = symtable.symtable(path.read_text(), str(path), "exec")
    known = {symbol.get_name() for symbol in whole.get_symbols() if symbol.is_assigned() or symbol.is_imported()
             or symbol.is_namespace()} | set(dir(builtins)) | {"__file__"}
    used = {symbol.get_name() for table in tables(whole) for symbol in table.get_symbols()
            if symbol.is_referenced() and symbol.is_global()}
    assert used - known == set()


def test_no_public_name_is_defined_twice():
    """One name means one thing in the whole package."""
    places = {}
    for path in MODULES:
        room = path.relative_to(PACKAGE).parts[0]
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                if node.name not in ROLES.get(room, ()) and not (room == "config" and node.name in CONFIGURED):
                    places.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert {name: found for name, found in twice.items() if name not in STILL_TWICE} == {}
    assert STILL_TWICE - set(twice) == set()  # off the list once mended
