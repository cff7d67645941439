"""results.jsonl: one line for every (row, seed) of a report. No line is computed twice, so that a table can be made row
by row, and an interruption loses no line that was written."""
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
from dipddpm_jax.experiments import freshness, verdicts
from dipddpm_jax.experiments.tables import (
    Budget,
    Line,
    Measured,
    Report,
    Row,
    Table,
    Together,
    fingerprint,
    results_of,
)

Cell = tuple[Table, Row, int]  # and a seed


def clock() -> float:
    """Seconds: of processor time on a CPU, so that neighbours on a shared machine do not count, else of the clock."""
    return time.process_time() if jax.default_backend() == "cpu" else time.monotonic()


def _number(value: Any) -> float | None:
    return float(f"{float(value):.6g}") if np.isfinite(value) else None


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _group(cells: Sequence[Cell]) -> list[Cell]:
    """The first cell, and the others that its compiled program can measure at the same time."""
    table, row, seed = cells[0]
    how = table.measure
    if not isinstance(how, Together):
        return [cells[0]]
    wanted = how.program(row.setting)
    return [cell for cell in cells if cell[0] is table and how.program(cell[1].setting) == wanted
            and (cell[2] == seed or not how.one_seed)][: how.most]


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
        "pictures": pictures, "seconds": round(seconds, 2), "code": freshness.remember(table.measure, out),
        **records.provenance(seed)}


def chosen_rows(report: Report, patterns: Sequence[str]) -> list[tuple[Table, Row]]:
    """Rows whose "table/row" matches one of the patterns (with * and ?); all without patterns."""
    return [(table, row) for table in report.tables for row in table.rows
            if not patterns or any(fnmatch(f"{table.name}/{row.name}", pattern) for pattern in patterns)]


def _counts(line: Line | None, needed: Sequence[str]) -> bool:
    return line is not None and all(line["numbers"].get(name) is not None for name in needed)


def _missing(
    report: Report, budget: Budget, lines: Sequence[Line], patterns: Sequence[str], seeds: int | None,
    needed: Sequence[str]
) -> list[Cell]:
    """The cells of the first look; when they are there, those that untold claims wait for (none with `seeds`)."""
    done = {table.name: results_of(report, table, budget, lines).lines for table in report.tables}
    counts = {table.name: seeds or table.seeds.get(budget, report.seeds[budget]) for table in report.tables}
    chosen = chosen_rows(report, patterns)
    cells = [(table, row, seed) for seed in range(max(counts.values())) for table, row in chosen
             if seed < counts[table.name] and not _counts(done[table.name].get(row.name, {}).get(seed), needed)]
    if cells or seeds or budget == "smoke":
        return cells
    due = {(judged.table.name, *cell) for judged in verdicts.judge_report(report, lines, budget)
           for cell in judged.due}
    return [(table, row, seed) for seed in range(max([1 + seed for *_, seed in due], default=0))
            for table, row in chosen if (table.name, row.name, seed) in due]


def expected_minutes(report: Report, budget: Budget, cells: Sequence[Cell], lines: Sequence[Line]) -> float | None:
    """Minutes that cells took when they were measured before: the median of the row, else of the report at this
    budget; None without any. Of rows that share what takes most of the time, a seed counts as all of them: at most."""
    def median(row: str | None) -> float | None:
        found = [line["seconds"] for line in lines if (line["report"], line["budget"]) == (report.name, budget)
                 and row in (None, line["row"])]
        return float(np.median(found)) if found else None

    typical = median(None)
    if typical is None:
        return None
    timed = {(table.name, row.name, seed): row for table, row, seed in cells}
    for table, _, seed in cells:
        if isinstance(table.measure, Together) and table.measure.one_seed:
            timed |= {(table.name, row.name, seed): row for row in table.rows}
    return sum(typical if (own := median(row.name)) is None else own for row in timed.values()) / 60


def _announce(report: Report, budget: Budget, cells: Sequence[Cell], lines: Sequence[Line]) -> None:
    minutes = expected_minutes(report, budget, cells, lines)
    about = "nobody knows how long" if minutes is None else f"about {minutes:.1f} minutes"
    print(f"{report.name}: {len(cells)} runs to measure, {about}", file=sys.stderr)


def complete(
    report: Report, budget: Budget, out: Path, patterns: Sequence[str] = (), seeds: int | None = None,
    minutes: float = np.inf, needed: Sequence[str] = (),
) -> bool:
    """Measures what results.jsonl lacks, seed by seed, what belongs together at once, and says before how long it may
    take; then goes on until every claim is told or has the most runs that are planned for it (with `seeds`: no
    further). Begins nothing after so many minutes. A line that lacks one of the numbers `needed` does not count. True
    when all is there. Raises OSError."""
    file, began = out / "results.jsonl", time.monotonic()
    while cells := _missing(report, budget, records.read_lines(file), patterns, seeds, needed):
        _announce(report, budget, cells, records.read_lines(file))
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
        if needed:  # what is never finite stays missing
            return True
    return True
