"""Verdicts on the claims of a report: evidence at every planned look, judged together, and which runs are due next."""
from collections.abc import Sequence
from itertools import count, takewhile
from typing import NamedTuple

from dipddpm_jax.experiments.rules import RunEvidence, Told, Verdict, judge_together
from dipddpm_jax.experiments.tables import (
    BUDGETS,
    Budget,
    Claim,
    Finding,
    Line,
    NotMeasured,
    Report,
    Results,
    Table,
    results_of,
)

SMOKE = "a smoke run only shows that the code works"


class Judged(NamedTuple):
    """A claim and its verdict; runs that there are, the most that will be made, runs that its margin and the effect as
    it was seen need (None: not known), and the (row, seed) that its next look waits for."""

    table: Table
    claim: Claim
    verdict: Verdict
    runs: int
    most: int
    needed: tuple[int, int] | None
    due: tuple[tuple[str, int], ...] = ()
    told_at: int | None = None
    """Runs at the look at which the claim was told."""


class _Heard(NamedTuple):
    finding: Finding | None
    missing: str
    rows: frozenset[str]
    runs: int
    taken: list[tuple[RunEvidence, ...]]


def shown_budget(report: Report, table: Table, lines: Sequence[Line]) -> Budget:
    """The budget with most rows of a table; of equal ones the largest."""
    return max(BUDGETS, key=lambda b: (len(results_of(report, table, b, lines).lines), BUDGETS.index(b)))


def planned(claim: Claim, table: Table) -> tuple[int, ...]:
    """The numbers of runs at which a claim is judged."""
    return claim.looks or table.looks


def _counted(claim: Claim, table: Table, results: Results) -> Results:
    """The runs that a claim may be judged by: others were made for other claims."""
    return results.where(lambda seed: claim.begins <= seed < claim.begins + planned(claim, table)[-1])


def _hear(claim: Claim, table: Table, results: Results) -> _Heard:
    rows: set[str] = set()
    try:
        claim.judge(results._replace(read=rows))  # of all runs, which tells the rows
        first, results = claim.begins, _counted(claim, table, results)
        finding = claim.judge(results)
        runs = sum(1 for _ in takewhile(lambda seed: all(seed in results.lines[row] for row in rows), count(first)))
        looks = [n for n in planned(claim, table) if n <= runs]
        taken = [claim.judge(results.where(lambda seed, n=n: seed < first + n)).parts for n in looks]
    except NotMeasured as missing:
        return _Heard(None, str(missing), frozenset(rows), 0, [])
    return _Heard(finding, "", frozenset(rows), runs, [] if finding.barred else taken)


def _halves(claim: Claim, results: Results, runs: int) -> str:
    """The first estimate from even and from odd seeds, so that a reader sees whether both halves say the same."""
    if runs < 6:
        return ""
    try:
        even, odd = (claim.judge(results.where(lambda seed, r=r: seed % 2 == r)).parts[0] for r in (0, 1))
    except NotMeasured:
        return ""
    return f" (even seeds {even.estimate:+.3g}, odd {odd.estimate:+.3g})"


def _due(claim: Claim, results: Results, heard: _Heard, runs: int) -> tuple[tuple[str, int], ...]:
    """The (row, seed) that a look at so many runs waits for."""
    return tuple((row, seed) for row in sorted(heard.rows) for seed in range(claim.begins, claim.begins + runs)
                 if seed not in results.lines.get(row, {}))


def _judged(table: Table, claim: Claim, results: Results, heard: _Heard, told: Told, budget: Budget) -> Judged:
    looks = planned(claim, table)
    if heard.finding is None:
        why, due = f"not measured yet: {heard.missing}", ()
        if claim.begins:
            why = f"of seeds below {claim.begins} it could not be told; later ones, which count, are still to come"
            due = _due(claim, results, heard, looks[0])
        return Judged(table, claim, Verdict("cannot be told", why), 0, looks[-1], None, due)
    first, *others = map(str, heard.finding.parts)
    halves = _halves(claim, _counted(claim, table, results), heard.runs)
    why = "; ".join([first + halves, *others, *filter(None, [heard.finding.note])])
    parts = heard.finding.parts
    needed = tuple(max(need(part, told.level) for part in parts)
                   for need in (RunEvidence.needed, RunEvidence.needed_as_seen))
    if budget == "smoke":
        return Judged(table, claim, Verdict("cannot be told", SMOKE), heard.runs, looks[-1], needed)
    if heard.finding.barred:
        why = f"{heard.finding.barred}; {why}"
        return Judged(table, claim, Verdict("cannot be told", why), heard.runs, looks[-1], None)
    due: tuple[tuple[str, int], ...] = ()
    if told.answer == "cannot be told" and (later := [n for n in looks if n > heard.runs]):
        due = _due(claim, results, heard, later[0])
    return Judged(table, claim, Verdict(told.answer, why), heard.runs, looks[-1], needed, due, told.look)


def judge_tables(report: Report, shown: Sequence[tuple[Table, Budget, Results]]) -> list[Judged]:
    """Verdicts on all claims of a report, which share alpha; those without evidence do too, since they are asked."""
    asked = [(table, claim, results, budget, _hear(claim, table, results))
             for table, budget, results in shown for claim in table.claims]
    told = judge_together([(planned(claim, table), heard.taken) for table, claim, _, _, heard in asked])
    return [_judged(table, claim, results, heard, answer, budget)
            for (table, claim, results, budget, heard), answer in zip(asked, told, strict=True)]


def judge_report(report: Report, lines: Sequence[Line], budget: Budget | None = None) -> list[Judged]:
    """Verdicts from result lines, at one budget or at that which each table shows."""
    chosen = [(table, budget or shown_budget(report, table, lines)) for table in report.tables]
    return judge_tables(report, [(table, b, results_of(report, table, b, lines)) for table, b in chosen])
