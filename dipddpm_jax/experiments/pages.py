"""Pages about the tables: one a report, and the report card of all, written from results.jsonl and the code alone."""
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dipddpm_jax import plots, records
from dipddpm_jax.experiments.ledger import results_of
from dipddpm_jax.experiments.tables import (
    BUDGETS,
    Budget,
    Claim,
    Line,
    NotMeasured,
    Report,
    Results,
    Row,
    Table,
    Verdict,
)
from dipddpm_jax.files import write_text

COMMAND = "python -m dipddpm_jax.experiments"


def shown_budget(report: Report, table: Table, lines: Sequence[Line]) -> Budget:
    """The budget with most rows of a table; of equal ones the largest."""
    return max(BUDGETS, key=lambda b: (len(results_of(report, table, b, lines).lines), BUDGETS.index(b)))


def verdict(claim: Claim, results: Results, budget: Budget) -> Verdict:
    """A claim's verdict, with "cannot be told" where a row is missing or the budget proves nothing."""
    try:
        found = claim.judge(results)
    except NotMeasured as missing:
        return Verdict("cannot be told", f"not measured yet: {missing}")
    if budget == "smoke":
        return Verdict("cannot be told", "a smoke run only shows that the code works")
    return found


def _cell(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    text = f"{np.mean(known):.{digits}f}"
    return f"{text} ± {np.std(known, ddof=1):.{digits}f}" if len(known) > 1 else text


def _printed(value: float | str, digits: int) -> str:
    return value if isinstance(value, str) else f"{value:.{digits}f}"


def table_text(table: Table, results: Results) -> list[str]:
    """The Markdown table: beside each column that the report has numbers for, what it printed."""
    head, printed = ["setting"], {key for row in table.rows for key in row.paper}
    for column in table.columns:
        head += [f"{column.title}, **printed**"] * (column.key in printed) + [f"{column.title}, *{column.kind}*"]
    text = ["| " + " | ".join([*head, "runs", "seconds"]) + " |", "|---" * (len(head) + 2) + "|"]
    for row in table.rows:
        lines = list(results.lines.get(row.name, {}).values())
        cells = [row.name + (f" ({row.note})" if row.note else "")]
        for column in table.columns:
            if column.key in printed:
                cells.append(_printed(row.paper[column.key], column.digits) if column.key in row.paper else "")
            cells.append(_cell([line["numbers"].get(column.key) for line in lines], column.digits))
        seconds = f"{np.median([line['seconds'] for line in lines]):.1f}" if lines else "not measured"
        text.append("| " + " | ".join([*cells, str(len(lines)), seconds]) + " |")
    return [*text, ""]


def _claims_text(table: Table, results: Results, budget: Budget) -> list[str]:
    if not table.claims:
        return []
    text = ["| the report says | verdict | why | rule |", "|---|---|---|---|"]
    for claim in table.claims:
        found = verdict(claim, results, budget)
        text.append(f"| {claim.text} | **{found.answer}** | {found.why} | {claim.rule} |")
    return [*text, ""]


def _pictures_text(rows: Sequence[Row], results: Results) -> list[str]:
    found = [(row.name, caption, path) for row in rows for line in [results.lines.get(row.name, {}).get(0)] if line
             for caption, path in line["pictures"].items()]
    if not found:
        return []
    captions = {caption for _, caption, _ in found}
    if len(captions) == 1:
        return [f"Pictures of seed 0, {captions.pop()}:", "", "| setting | |", "|---|---|",
                *(f"| {name} | ![{caption}]({path}) |" for name, caption, path in found), ""]
    return ["| setting | picture of seed 0 | |", "|---|---|---|",
            *(f"| {name} | ![{caption}]({path}) | {caption} |" for name, caption, path in found), ""]


def _plots_text(report: Report, table: Table, results: Results, budget: Budget, out: Path) -> list[str]:
    text = []
    for plot in table.plots:
        try:
            x, curves = plot.curves(results)
        except NotMeasured:
            continue
        path = f"{report.name}/{budget}-{table.name}-{plot.name}.png"
        (out / report.name).mkdir(parents=True, exist_ok=True)
        plots.save_curves(x, curves, out / path, plot.x_label, plot.y_label, plot.log)
        text += [f"![{plot.caption}]({path})", "", f"*{plot.caption}*", ""]
    return text


def _made(lines: Sequence[Line]) -> str:
    machines = ", ".join(sorted({line["machine"] for line in lines}))
    versions = ", ".join(sorted({f"{name} {number}" for line in lines for name, number in line["versions"].items()}))
    dates = sorted({line["date"] for line in lines})
    seeds = sorted({line["seed"] for line in lines})
    return (f"{len(lines)} measurements, seeds {seeds[0]} to {seeds[-1]}, on {machines}; {versions}; {dates[0]}"
            + (f" to {dates[-1]}" if len(dates) > 1 else "") +
            f"; {math.fsum(line['seconds'] for line in lines) / 60:.0f} minutes in all, compilation included."
            + "".join(f" {note}" for note in sorted({line["note"] for line in lines if "note" in line})))


def report_page(report: Report, lines: Sequence[Line], out: Path) -> str:
    """The page of one report; its diagrams are written beside it."""
    printed = any(row.paper for table in report.tables for row in table.rows)
    legend = ("*printed*: the number in the report. *as reported*: ours by the report's own protocol, its mistakes "
              "included. " if printed else "")
    text = [f"# Report {report.name}: {report.title}" if printed else f"# {report.title}", "", report.intro, "",
            f"{legend}*sound*: ours by a protocol that can answer the question. *control*: what one gets without the "
            "method. ± is the standard deviation over runs that differ in their seeds only; verdicts are computed by "
            "the rules beside them, from 95 % intervals (Student's t) over seeds of differences within a seed. "
            "*seconds*: median of a run, compilation included (of the processor where there is no accelerator); runs "
            "of one program share its time.", ""]
    shown = [(table, budget := shown_budget(report, table, lines), results_of(report, table, budget, lines))
             for table in report.tables]
    used = [line for _, _, results in shown for row in results.lines.values() for line in row.values()]
    budgets = [b for b in BUDGETS if any(line["budget"] == b for line in used)]
    if len(budgets) == 1:
        text += [f"Budget {budgets[0]}: {report.sized[budgets[0]]}", ""]
    for table, budget, results in shown:
        text += [f"## {table.title}", "", table.intro, ""]
        if len(budgets) > 1 and results.lines:
            text += [f"Budget {budget}: {report.sized[budget]}", ""]
        text += [*_claims_text(table, results, budget), *table_text(table, results),
                 *_plots_text(report, table, results, budget, out), *_pictures_text(table.rows, results)]
    if used:
        text += ["## How this page was made", "", _made(used), ""]
    sizes = " ".join(f"`{dataclasses.asdict(report.sizes[b])}` ({b})." for b in budgets)
    return "\n".join([*text, f"Rebuilt by `{COMMAND} {report.name} --budget quick` (or `full`), from `results.jsonl`; "
                      f"rows that are there are not computed again. {sizes}".rstrip(), ""])


def card(reports: Sequence[Report], lines: Sequence[Line]) -> str:
    """The report card: one line a claim."""
    rows, counts = [], {"holds": 0, "does not hold": 0, "cannot be told": 0}
    measured = {line["report"] for line in lines}
    for report in (report for report in reports if report.name in measured):
        for table in report.tables:
            budget = shown_budget(report, table, lines)
            results = results_of(report, table, budget, lines)
            for claim in table.claims:
                found = verdict(claim, results, budget)
                counts[found.answer] += 1
                rows.append(f"| [{report.name}]({report.name}.md) | {claim.text} | **{found.answer}** | {found.why} |")
    titles = [f"* [{report.name}]({report.name}.md): {report.title}" if report.name in measured else
              f"* {report.name}: {report.title} (not measured yet)" for report in reports]
    plural = {"holds": "hold", "does not hold": "do not hold", "cannot be told": "cannot be told"}
    total = ", ".join(f"{count} {answer if count == 1 else plural[answer]}" for answer, count in counts.items())
    return "\n".join([
        "# Report card", "", "This library reimplements five project reports that put deep image priors and diffusion "
        "models together. Each was measured again: by its own protocol, and by a sound one with controls.", "",
        *titles, "", f"Of {sum(counts.values())} claims: {total}.", "", "| report | claim | verdict | evidence |",
        "|---|---|---|---|", *rows, "", "The pages behind the numbers have the rules of the verdicts, all "
        f"rows, pictures, machines and seeds. Rebuilt by `{COMMAND} all`, from `results.jsonl`.", ""])


def write_pages(reports: Sequence[Report], out: Path) -> None:
    """Writes REPORT.md of every report with results, and README.md."""
    lines = records.read_lines(out / "results.jsonl")
    for report in reports:
        if any(line["report"] == report.name for line in lines):
            write_text(out / f"{report.name}.md", report_page(report, lines, out))
    write_text(out / "README.md", card(reports, lines))
