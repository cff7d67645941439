"""results.jsonl: one line for every (row, seed) of a report. No line is computed twice, so that a table can be made row
by row, and an interruption loses no line that was written."""
import hashlib
import re
import sys
import time
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dipddpm_jax import plots, records
from dipddpm_jax.experiments.tables import Budget, Line, Measured, Report, Results, Row, Table, Together

Cell = tuple[Table, Row, int]  # and a seed


def clock() -> float:
    """Seconds: of processor time on a CPU, so that neighbours on a shared machine do not count, else of the clock."""
    return time.process_time() if jax.default_backend() == "cpu" else time.monotonic()


def fingerprint(setting: Any, size: Any) -> str:
    """A hash (12 hexadecimal digits) of all that a result line depends on besides its seed."""
    return hashlib.sha256(f"{setting!r} {size!r}".encode()).hexdigest()[:12]


def results_of(report: Report, table: Table, budget: Budget, lines: Sequence[Line]) -> Results:
    """The lines that belong to the settings as they are now; of several of one seed, the last."""
    found: dict[str, dict[int, Line]] = {}
    wanted = {row.name: fingerprint(row.setting, report.sizes[budget]) for row in table.rows}
    for line in lines:
        if (line["report"], line["table"], line["budget"]) == (report.name, table.name, budget) and \
                wanted.get(line["row"]) == line["setting"]:
            numbers = {table.old_keys.get(key, key): value for key, value in line["numbers"].items()}
            found.setdefault(line["row"], {})[line["seed"]] = {**line, "numbers": numbers}
    return Results(found)


def _number(value: Any) -> float | None:
    return float(f"{float(value):.6g}") if np.isfinite(value) else None


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _group(cells: Sequence[Cell]) -> list[Cell]:
    """The first cell, and the others that its compiled program can measure at the same time."""
    table, row, _ = cells[0]
    how = table.measure
    if not isinstance(how, Together):
        return [cells[0]]
    wanted = how.program(row.setting)
    return [cell for cell in cells if cell[0] is table and how.program(cell[1].setting) == wanted][: how.most]


def _measure(report: Report, cells: Sequence[Cell], budget: Budget, out: Path) -> list[Line]:
    """Lines of a group of cells, which share the seconds."""
    began, how, size = clock(), cells[0][0].measure, report.sizes[budget]
    if isinstance(how, Together):
        found = how.measure([row.setting for _, row, _ in cells], size, [seed for *_, seed in cells])
    else:
        found = [how(row.setting, size, seed) for _, row, seed in cells]
    seconds = (clock() - began) / len(cells)
    return [_line(report, cell, budget, measured, seconds, out) for cell, measured in zip(cells, found, strict=True)]


def _line(report: Report, cell: Cell, budget: Budget, measured: Measured, seconds: float, out: Path) -> Line:
    table, row, seed = cell
    pictures = {}
    for i, (caption, sheet) in enumerate(measured.pictures.items() if seed == 0 else ()):
        pictures[caption] = f"{report.name}/{budget}-{_slug(table.name)}-{_slug(row.name)}-{i}.png"
        (out / report.name).mkdir(parents=True, exist_ok=True)
        plots.picture(sheet, plots.fit_scale(sheet.shape[1], 640)).save(out / pictures[caption], optimize=True)
    return {
        "report": report.name, "table": table.name, "row": row.name, "budget": budget, "seed": seed,
        "setting": fingerprint(row.setting, report.sizes[budget]),
        "numbers": {key: _number(value) for key, value in measured.numbers.items()},
        "curves": {name: [_number(value) for value in curve] for name, curve in measured.curves.items()},
        "pictures": pictures, "seconds": round(seconds, 2), **records.provenance(seed)}


def chosen_rows(report: Report, patterns: Sequence[str]) -> list[tuple[Table, Row]]:
    """Rows whose "table/row" matches one of the patterns (with * and ?); all without patterns."""
    return [(table, row) for table in report.tables for row in table.rows
            if not patterns or any(fnmatch(f"{table.name}/{row.name}", pattern) for pattern in patterns)]


def _counts(line: Line | None, needed: Sequence[str]) -> bool:
    return line is not None and all(line["numbers"].get(name) is not None for name in needed)


def complete(
    report: Report, budget: Budget, out: Path, patterns: Sequence[str] = (), seeds: int | None = None,
    minutes: float = np.inf, needed: Sequence[str] = (),
) -> bool:
    """Measures what results.jsonl lacks, seed by seed, what belongs together at once; begins nothing after so many
    minutes. A line that lacks one of the numbers `needed` does not count. True when all is there. Raises OSError."""
    file, began = out / "results.jsonl", time.monotonic()
    lines = records.read_lines(file)
    done = {table.name: results_of(report, table, budget, lines).lines for table in report.tables}
    counts = {table.name: seeds or table.seeds.get(budget, report.seeds[budget]) for table in report.tables}
    cells = [(table, row, seed) for seed in range(max(counts.values())) for table, row in chosen_rows(report, patterns)
             if seed < counts[table.name] and not _counts(done[table.name].get(row.name, {}).get(seed), needed)]
    while cells:
        if time.monotonic() - began > 60 * minutes:
            return False
        group = _group(cells)
        cells = [cell for cell in cells if cell not in group]
        found = _measure(report, group, budget, out)
        records.append_lines(file, found)
        for line in found:
            print(f"{report.name} {line['table']}/{line['row']}, seed {line['seed']}: {line['seconds']:.1f} s",
                  file=sys.stderr)
    return True
