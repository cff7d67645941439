"""Pages about the tables: one a report, and the report card of all, written from results.jsonl and the code alone."""
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dipddpm_jax import plots, records
from dipddpm_jax.experiments import freshness
from dipddpm_jax.experiments.rules import ALPHA
from dipddpm_jax.experiments.tables import (
    BUDGETS,
    Budget,
    Line,
    NotMeasured,
    Plot,
    Report,
    Results,
    Row,
    Table,
    results_of,
)
from dipddpm_jax.experiments.verdicts import Judged, judge_report, judge_tables, shown_budget
from dipddpm_jax.files import write_text

COMMAND = "python -m dipddpm_jax.experiments"


RULES = (
    "**How verdicts are made.** A claim is about an effect with a *margin*: the smallest effect that anybody would "
    "care for, in its own unit. It *holds* when the runs rule out that there is no effect (or one the other way), and "
    "*does not hold* when they rule out an effect as large as the margin; one that is shown to lie between is too "
    "small to matter. A claim of equality holds when a difference as large as the margin is ruled out. Tests are "
    "one-sided (Student's t, the"
    " sign test for medians, Barnard's exact test for shares), over independent runs only, paired by seed; brackets "
    "are 95 % intervals of one effect by itself. Runs are looked at when the planned numbers are reached, and no "
    "more are made once a claim is told or has the most runs that are planned for it. Where these could not tell, a "
    "claim may be asked again, of later seeds only, by a rule written before they were made. All claims of a "
    f"report and all looks together give a false verdict with a probability of {100 * ALPHA:.0f} % at most, more by a "
    "claim's share of it for each time that one was asked anew (BOUND here), so that an interval may exclude an effect "
    "and the verdict still be open. *Needed*: runs that tell a true effect of the margin from none, or "
    "the effect as it was seen, with a probability of 80 %, at the scatter seen; not where the runs cannot answer. "
    "*Told at*: the look at which the verdict was given, where more runs were made for other "
    "claims. Runs differ in weights and noise; what they share (one photograph in 002, the data and the DIP's digit in "
    "001) the verdict does not reach beyond. The rules were written on 2026-11-26, when the first runs of most tables "
    "had been seen, and those of claims asked anew on 2026-11-27 to 29: the 5 % are those of rules that are fixed "
    "beforehand, and of one report.")


def _rules(of_reports: Sequence[Sequence[Judged]]) -> str:
    """RULES with the probability of a false verdict in a report, the largest of several."""
    bound = max((ALPHA * (1 + sum(one.claim.asked - 1 for one in judged) / len(judged)) for judged in of_reports
                 if judged), default=ALPHA)
    return RULES.replace("BOUND", f"{100 * bound:.1f} %")


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


def _runs(judged: Judged) -> str:
    if judged.needed is None:
        return f"{judged.runs} of {judged.most}"
    margin, seen = judged.needed
    told = f"; told at {judged.told_at}" if judged.told_at not in (None, judged.runs) else ""
    return f"{judged.runs} of {judged.most}{told}; needed: {margin} for the margin, {seen} for the effect as seen"


def _claims_text(judged: Sequence[Judged]) -> list[str]:
    if not judged:
        return []
    text = ["| the report says | verdict | why | rule | runs of the most planned | would be overturned by |",
            "|---|---|---|---|---|---|"]
    for one in judged:
        text.append(f"| {one.claim.text} | **{one.verdict.answer}** | {one.verdict.why} | {one.claim.rule} | "
                    f"{_runs(one)} | {one.claim.overturn} |")
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


def _plots_text(
    report: Report, chosen: Sequence[Plot], table: Table, results: Results, budget: Budget, out: Path
) -> list[str]:
    text = []
    for plot in chosen:
        try:
            x, curves = plot.curves(results)
        except NotMeasured:
            continue
        path = f"{report.name}/{budget}-{table.name}-{plot.name}.png"
        (out / report.name).mkdir(parents=True, exist_ok=True)
        plots.save_curves(x, curves, out / path, plot.x_label, plot.y_label, plot.log)
        text += [f"![{plot.caption}]({path})", "", f"*{plot.caption}*", ""]
    return text


def _age(report: Report, shown: Sequence[tuple[Table, Budget, Results]], out: Path) -> str:
    """Which measurements are older than the code that would make them today."""
    found = {}
    for table, _, results in shown:
        lines = [line for of in results.lines.values() for line in of.values()]
        if changed := freshness.changes(table.measure, lines, out):
            most = max(changed.values())
            names = ", ".join(sorted(f"`{name.removeprefix('dipddpm_jax.')}`" for name in changed))
            found[table.title] = f"{table.title}: {most} of {len(lines)}, in {names}"
    if not found:
        return "No module that they depend on has changed since its hash was written down with them."
    return ("**Stale**: measured by code that has changed since, by table, with the modules that changed (which may "
            f"change no number): {'; '.join(found.values())}.")


def _noted(lines: Sequence[Line]) -> str:
    count = sum(freshness.UNKNOWN == line.get("code_note") for line in lines)
    return (f" Of {count} nobody wrote down the code at the time: they got the hash of {freshness.FIRST_HASHES}, and "
            "what changed between is not known." if count else "")


def _made(lines: Sequence[Line]) -> str:
    machines = ", ".join(sorted({line["machine"] for line in lines}))
    versions = ", ".join(sorted({f"{name} {number}" for line in lines for name, number in line["versions"].items()}))
    dates = sorted({line["date"] for line in lines})
    seeds = sorted({line["seed"] for line in lines})
    return (f"{len(lines)} measurements, seeds {seeds[0]} to {seeds[-1]}, on {machines}; {versions}; {dates[0]}"
            + (f" to {dates[-1]}" if len(dates) > 1 else "") +
            f"; {math.fsum(line['seconds'] for line in lines) / 60:.0f} minutes in all, compilation included."
            + "".join(f" {note}" for note in sorted({line["note"] for line in lines if "note" in line})))


def _head(report: Report, shown: Sequence[tuple[Table, Budget, Results]], out: Path) -> list[str]:
    """What a reader who never saw the report should know: the story, the picture that shows it, sizes."""
    text = [report.story, ""] * bool(report.story)
    for table, budget, results in shown:
        if table.name == report.shows[0]:
            plots_of = [plot for plot in table.plots if plot.name == report.shows[1]]
            rows = [row for row in table.rows if row.name == report.shows[1]]
            text += _plots_text(report, plots_of, table, results, budget, out) + _pictures_text(rows, results)
    if report.distance:
        text += ["| | the report | here (budget quick) |", "|---|---|---|",
                 *(f"| {what} | {theirs} | {ours} |" for what, theirs, ours in report.distance), ""]
    return text


def report_page(report: Report, lines: Sequence[Line], out: Path) -> str:
    """The page of one report; its diagrams are written beside it."""
    printed = any(row.paper for table in report.tables for row in table.rows)
    legend = ("*printed*: the number in the report. *as reported*: ours by the report's own protocol, its mistakes "
              "included. " if printed else "")
    shown = [(table, budget := shown_budget(report, table, lines), results_of(report, table, budget, lines))
             for table in report.tables]
    judged = judge_tables(report, shown)
    text = [f"# Report {report.name}: {report.title}" if printed else f"# {report.title}", "",
            *_head(report, shown, out), report.intro, "",
            f"{legend}*sound*: ours by a protocol that can answer the question. *control*: what one gets without the "
            "method. ± is the standard deviation over runs that differ in their seeds only, everywhere on this page. "
            "*seconds*: median of a run, compilation included (of the processor where there is no accelerator); runs "
            "of one program share its time.", "", *([_rules([judged]), ""] if judged else [])]
    used = [line for _, _, results in shown for row in results.lines.values() for line in row.values()]
    budgets = [b for b in BUDGETS if any(line["budget"] == b for line in used)]
    if len(budgets) == 1:
        text += [f"Budget {budgets[0]}: {report.sized[budgets[0]]}", ""]
    for table, budget, results in shown:
        text += [f"## {table.title}", "", table.intro, ""]
        if len(budgets) > 1 and results.lines:
            text += [f"Budget {budget}: {report.sized[budget]}", ""]
        text += [*_claims_text([one for one in judged if one.table is table]), *table_text(table, results),
                 *_plots_text(report, table.plots, table, results, budget, out), *_pictures_text(table.rows, results)]
    if used:
        text += ["## How this page was made", "", _made(used) + " " + _age(report, shown, out) + _noted(used), ""]
    sizes = " ".join(f"`{dataclasses.asdict(report.sizes[b])}` ({b})." for b in budgets)
    return "\n".join([*text, f"Rebuilt by `{COMMAND} {report.name} --budget quick` (or `full`), from `results.jsonl`; "
                      f"rows that are there are not computed again. {sizes}".rstrip(), ""])


def card(reports: Sequence[Report], lines: Sequence[Line]) -> str:
    """The report card: one line a claim."""
    rows, counts, of_reports = [], {"holds": 0, "does not hold": 0, "cannot be told": 0}, []
    measured = {line["report"] for line in lines}
    for report in (report for report in reports if report.name in measured):
        of_reports.append(judge_report(report, lines))
        for one in of_reports[-1]:
            counts[one.verdict.answer] += 1
            rows.append(f"| [{report.name}]({report.name}.md) | {one.claim.text} | **{one.verdict.answer}** | "
                        f"{one.verdict.why} | {_runs(one)} |")
    titles = [f"* [{report.name}]({report.name}.md): {report.title}" if report.name in measured else
              f"* {report.name}: {report.title} (not measured yet)" for report in reports]
    plural = {"holds": "hold", "does not hold": "do not hold", "cannot be told": "cannot be told"}
    total = ", ".join(f"{count} {answer if count == 1 else plural[answer]}" for answer, count in counts.items())
    return "\n".join([
        "# Report card", "", "This library reimplements five project reports that put deep image priors and diffusion "
        "models together. Each was measured again, by its own protocol and by a sound one with controls, at a reduced "
        "size: smaller pictures, networks and runs, which each page lists beside the report's (budget quick).", "",
        *titles, "", f"Of {sum(counts.values())} claims: {total}.", "", _rules(of_reports), "",
        "| report | claim | verdict | evidence | runs of the most planned; needed "
        "|", "|---|---|---|---|---|", *rows, "", "The pages behind the numbers have the rules of the verdicts, all "
        f"rows, pictures, machines and seeds. Rebuilt by `{COMMAND} all`, from `results.jsonl`.", ""])


def write_pages(reports: Sequence[Report], out: Path) -> None:
    """Writes REPORT.md of every report with results, and README.md."""
    lines = records.read_lines(out / "results.jsonl")
    for report in reports:
        if any(line["report"] == report.name for line in lines):
            write_text(out / f"{report.name}.md", report_page(report, lines, out))
    write_text(out / "README.md", card(reports, lines))
