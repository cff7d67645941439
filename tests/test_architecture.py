"""The layering of the package, as one list: a module may import only modules listed above it."""
import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dipddpm_jax"
PURE = ["errors", "types", "schedules", "process", "denoisers", "samplers", "metrics", "degrade", "stopping",
        "rearranging", "choosing", "row_sharing", "winograd", "convolution", "networks", "dip", "training", "hybrids"]
SIDE_EFFECTS = ["commands", "data", "config", "presets", "dip_config", "checkpoints", "plots", "devices", "builders",
                "sampling", "workdirs", "runs", "torch_weights", "judge_training", "judges", "label_accuracy",
                "drawing", "measuring", "fits", "restoration", "staging", "cli", "evaluation", "evaluate", "tables",
                "completion", "pages", "experiments", "__main__"]
ORDER = PURE + SIDE_EFFECTS
NUMERIC = {"collections", "contextlib", "dataclasses", "flax", "functools", "itertools", "jax", "jaxtyping", "math",
           "numpy", "optax", "os", "types", "typing", "zlib"}
MAX_FUNCTION, MAX_MODULE = 60, 300


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
            if rest[0] == "__version__":
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


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_keeps_its_layer(path):
    layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert layer in ORDER, f"{layer} has no place in the list of layers"
    assert violations(layer, path.read_text()) == []


@pytest.mark.parametrize("layer, line", [
    ("samplers", "from dipddpm_jax import training"),
    ("schedules", "import dipddpm_jax.samplers"),
    ("networks", "from pathlib import Path"),
    ("dip", "import matplotlib"),
    ("metrics", "print('psnr')"),
    ("training", "def load(): return open('file')"),
    ("cli", "def long():\n" + "    x = 1\n" * MAX_FUNCTION),
    ("cli", "x = 1\n" * (MAX_MODULE + 1)),
])
def test_planted_violations_are_caught(layer, line):
    assert violations(layer, '"""A docstring."""\n' + line)


def test_the_command_line_is_parsed_without_heavy_imports():
    light = {"errors", "commands", "config", "presets", "dip_config", "cli", "evaluate", "__main__"}
    for name in light:
        top_level = ast.Module([n for n in ast.parse((PACKAGE / f"{name}.py").read_text()).body], [])
        names = {i for node in top_level.body if isinstance(node, ast.Import | ast.ImportFrom)
                 for i in imports(ast.Module([node], []))}
        heavy = [i for i in names if i.split(".")[0] in ("jax", "flax", "optax", "orbax", "numpy", "matplotlib")
                 or (i.startswith("dipddpm_jax.") and i.split(".")[1] not in light)]
        assert heavy == [], f"{name} imports {heavy} before the command line is parsed"
