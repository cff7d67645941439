"""How old a measurement is: a hash of the modules that it was made by, so that a page can say which have changed since.

Followed are the imports of the module that measures: a name that is imported from a room leads to the module that
defines it, a room that is imported whole to those of its names that are used. Comments, docstrings and layout do not
count. code.jsonl, beside results.jsonl, has the hashes of modules behind each hash of a line.
"""
import ast
import functools
import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dipddpm_jax import records

PACKAGE = Path(__file__).parents[1]
ROOT = PACKAGE.name
JUDGES = {f"{ROOT}.experiments.{name}" for name in ("tables", "rules", "verdicts", "ledger", "pages", "freshness")}
UNKNOWN, FIRST_HASHES = "recorded before hashes", "2026-11-26"


@functools.cache
def _file(module: str) -> Path | None:
    path = PACKAGE.parent.joinpath(*module.split("."))
    return next((found for found in (path.with_suffix(".py"), path / "__init__.py") if found.is_file()), None)


@functools.cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_file(module).read_text())


def _imported(module: str) -> Iterator[tuple[str, str, str]]:
    """(module or room, name in it, what it is called here) of all imports from this package."""
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == ROOT:
            yield from ((node.module, alias.name, alias.asname or alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((*alias.name.rpartition(".")[::2], alias.asname or alias.name) for alias in node.names
                        if alias.name.startswith(f"{ROOT}."))


def _resolve(room: str, name: str, user: str, called: str) -> set[str]:
    """The modules behind `from room import name` in `user`."""
    whole = f"{room}.{name}"
    if (file := _file(whole)) is not None:
        if file.name != "__init__.py":
            return {whole}
        used = {node.attr for node in ast.walk(_tree(user)) if isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name) and node.value.id == called}
        return {whole}.union(*(_resolve(whole, attribute, user, attribute) for attribute in used))
    if _file(room).name == "__init__.py":
        for source, original, bound in _imported(room):
            if bound == name and (source, original) != (room, name):
                return _resolve(source, original, user, called)
    return {room}


@functools.cache
def modules_of(module: str) -> Mapping[str, str]:
    """The modules that a module depends on, itself included, with the hash (8 hexadecimal digits) of each."""
    found, waiting = {}, [module]
    while waiting:
        here = waiting.pop()
        if here in found or here in JUDGES:
            continue
        found[here] = _hash(here)
        if _file(here).name != "__init__.py":  # what a room offers is followed by the names that are used
            waiting += [other for use in _imported(here) for other in _resolve(use[0], use[1], here, use[2])]
    return dict(sorted(found.items()))


def _hash(module: str) -> str:
    return hash_of(_file(module).read_text())


def hash_of(source: str) -> str:
    """The hash of a module's text; the same by every supported Python, whose dumps of a syntax tree differ: 3.12 gives
    definitions an empty `type_params`, 3.13 leaves out what is empty."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    dump = ast.dump(tree, show_empty=True) if sys.version_info >= (3, 13) else ast.dump(tree)
    return hashlib.sha256(dump.replace(", type_params=[]", "").encode()).hexdigest()[:8]


def _measuring(measure: Any) -> Callable:
    measure = getattr(measure, "measure", measure)  # of `Together`
    return getattr(measure, "func", measure)  # of a partial


def code_of(measure: Any) -> tuple[str, Mapping[str, str]]:
    """The hash of what a table's function depends on, and of its modules; nothing of code outside this package."""
    module = _measuring(measure).__module__
    modules = modules_of(module) if module.split(".")[0] == ROOT else {}
    return hashlib.sha256(repr(modules).encode()).hexdigest()[:8], modules


def remember(measure: Any, out: Path) -> str:
    """The hash for a line, whose modules are written down where they are not yet."""
    code, modules = code_of(measure)
    if all(line["code"] != code for line in records.read_lines(out / "code.jsonl")):
        records.append_lines(out / "code.jsonl", [{"code": code, "modules": dict(modules)}])
    return code


def changes(measure: Any, lines: Sequence[Mapping[str, Any]], out: Path) -> Counter[str]:
    """How many of these lines were measured before a module changed to what it is now, by module; lines whose code
    nobody wrote down count under `UNKNOWN`."""
    now, modules = code_of(measure)
    known = {line["code"]: line["modules"] for line in records.read_lines(out / "code.jsonl")}
    found: Counter[str] = Counter()
    for line in lines:
        then = known.get(line.get("code"))
        if then is None:
            found[UNKNOWN] += 1
        elif line["code"] != now:
            found.update(name for name in {**then, **modules} if then.get(name) != modules.get(name))
    return found
