"""`python -m dipddpm_jax.experiments`: makes the tables of the reports, and the pages that show them."""
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dipddpm_jax import experiments
from dipddpm_jax.commands.ends import guarded
from dipddpm_jax.errors import UserError
from dipddpm_jax.files import check_writable, writing


@dataclass(frozen=True)
class Experiments:
    """Measures the rows of the reports that are not in OUT/results.jsonl yet, then what claims that are not told wait
    for, and writes OUT/REPORT.md and OUT/README.md from all that is there. Says before how long it may take."""

    report: Annotated[Literal["000", "001", "002", "003", "004", "scenes", "all"], tyro.conf.Positional] = "all"
    budget: Literal["smoke", "quick", "full"] = "quick"
    """smoke: every row in seconds, nearly all compilation, proves nothing; quick: smaller pictures, networks and runs,
    for two cores; full: the report's own sizes, for an accelerator."""
    rows: tuple[str, ...] = ()
    """Only the rows whose "table/row" matches one of these, with * and ?; default: all."""
    seeds: int | None = None
    """Runs of each row; default: as many as the first look at its claims needs, and more until they are told or have
    the most that are planned."""
    minutes: float = math.inf
    """No measurement begins after so many minutes; 0 only says how long it would take and writes the pages. Call again
    to go on."""
    out: Path | None = None
    """Directory of results.jsonl, the pages and their pictures; default: docs/results, for smoke (whose numbers mean
    nothing) runs/experiments-smoke."""


def measure_reports(command: Experiments) -> str:
    """Measures and writes; returns what to tell the user. Raises UserError."""
    out = command.out or Path("runs/experiments-smoke" if command.budget == "smoke" else "docs/results")
    if command.seeds is not None and command.seeds < 1:
        raise UserError(f"--seeds must be at least 1; got {command.seeds}")
    if not command.minutes >= 0:
        raise UserError(f"--minutes must not be negative; got {command.minutes}")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a directory")
    check_writable(out)

    import jax

    from dipddpm_jax import devices
    from dipddpm_jax.experiments import ledger, pages

    devices.set_up()
    if command.budget == "smoke":  # which compiles far longer than it computes
        jax.config.update("jax_disable_most_optimizations", True)
    reports = [experiments.load_report(name) for name in experiments.MODULES]
    chosen = [report for report in reports if command.report in (report.name, "all")
              and ledger.chosen_rows(report, command.rows)]
    if not chosen:
        names = [f"{table.name}/{row.name}" for report in reports if command.report in (report.name, "all")
                 for table, row in ledger.chosen_rows(report, ())]
        raise UserError(f"--rows: no row is called {' or '.join(command.rows)}; there are {', '.join(names)}")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        complete = [ledger.complete(report, command.budget, out, command.rows, command.seeds, command.minutes)
                    for report in chosen]
        pages.write_pages(reports, out)
    return f"{out / 'README.md'}" + ("" if all(complete) else "; rows are missing: call again to go on")


def experiments_main(argv: Sequence[str] | None = None) -> None:
    """`dipddpm-jax experiments [REPORT] ...`: a user's mistake is one line on stderr and exit status 2."""
    with guarded("interrupted; what was measured is kept"):
        words = sys.argv[1:] if argv is None else list(argv)
        print(measure_reports(tyro.cli(Experiments, args=words, prog="dipddpm-jax experiments")))


if __name__ == "__main__":
    experiments_main()
