"""Tables of a report: what it printed, what we measure under the same protocol and under a sound one, and a verdict.

A `Report` holds `Table`s, a table `Row`s (a setting and the printed numbers), `Column`s (what is measured) and
`Claim`s. `table.measure(setting, size, seed)` measures one row once: `setting` is the report's own, `size` is
`report.sizes[budget]`, a frozen dataclass that says how far that budget is smaller, `seed` counts from 0. It returns
`Measured`: numbers by the keys of the columns (more are welcome), curves (lists of numbers), pictures (one uint8 sheet
h w c a caption, kept of seed 0 only). Where rows and seeds differ in numbers only, `Together` stands in place of that
function, and measures many of them in one program. `ledger.py` appends one line a (row, seed) to results.jsonl,
and `pages.py` writes Markdown from these lines alone.
A verdict is computed from `Results` by a rule that the claim states in words; `results.difference(a, b, key)` pairs
rows by seed and `verdict_above` turns it into an answer. Reading a row that is not there raises `NotMeasured`.
"""
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

Budget = Literal["smoke", "quick", "full"]
BUDGETS: tuple[Budget, ...] = ("smoke", "quick", "full")
Answer = Literal["holds", "does not hold", "cannot be told"]
Line = dict[str, Any]


class Verdict(NamedTuple):
    """Whether a claim holds, and the figures that say so, in one line."""

    answer: Answer
    why: str


class Measured(NamedTuple):
    """What one measurement of one row gives."""

    numbers: Mapping[str, float]
    curves: Mapping[str, Sequence[float]] = {}
    pictures: Mapping[str, UInt8[np.ndarray, "h w c"]] = {}


@dataclass(frozen=True)
class Row:
    """A setting (a frozen dataclass) and what the report printed for it, by the keys of the columns."""

    name: str
    setting: Any
    paper: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Column:
    """A number that is shown: `kind` says whose protocol it follows; the unit stands in the title."""

    key: str
    title: str
    kind: Literal["as reported", "sound", "control"]
    digits: int = 2


@dataclass(frozen=True)
class Claim:
    """A sentence of the report, the rule by which we judge it (in words), and that rule as a function."""

    text: str
    rule: str
    judge: Callable[["Results"], Verdict]


@dataclass(frozen=True)
class Plot:
    """A diagram made from results: `curves` gives x and one or more named series (None: a gap)."""

    name: str
    caption: str
    curves: Callable[["Results"], tuple[Sequence[float], Mapping[str, Sequence[float | None]]]]
    x_label: str = "step"
    y_label: str = ""
    log: bool = False


class Together(NamedTuple):
    """measure(settings, size, seeds) measures at most `most` (setting, seed) at once, of equal `program(setting)`."""

    measure: Callable[[Sequence[Any], Any, Sequence[int]], Sequence[Measured]]
    program: Callable[[Any], Hashable]
    most: int = 16


@dataclass(frozen=True)
class Table:
    """Rows that are measured alike. `seeds` overrides the report's number of seeds at a budget; `old_keys` are former
    names of numbers, as older result lines have them, with what they are called now."""

    name: str
    title: str
    intro: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    measure: Callable[[Any, Any, int], Measured] | Together
    claims: tuple[Claim, ...] = ()
    plots: tuple[Plot, ...] = ()
    seeds: Mapping[Budget, int] = field(default_factory=dict)
    old_keys: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """All of a reference system's tables. `name` is its number; `sizes` what each budget means, `sized` in words."""

    name: str
    title: str
    intro: str
    tables: tuple[Table, ...]
    sizes: Mapping[Budget, Any]
    sized: Mapping[Budget, str]
    seeds: Mapping[Budget, int]


class NotMeasured(Exception):
    """The row that a verdict or a plot needs is not in the results."""


class Difference(NamedTuple):
    """Mean of differences paired by seed, and half the width of its 95 % interval (Student's t)."""

    mean: float
    margin: float
    count: int

    def __str__(self) -> str:
        margin = f" ± {self.margin:.2g}" if np.isfinite(self.margin) else ""
        return f"{self.mean:+.3g}{margin} ({self.count} seed{'s' * (self.count > 1)})"


def interval(values: Sequence[float] | np.ndarray) -> Difference:
    """Mean and 95 % interval of values that are independent between seeds; one value has an infinite interval."""
    from scipy.stats import t

    n = len(values)
    margin = t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n) if n > 1 else np.inf
    return Difference(float(np.mean(values)), float(margin), n)


class Results(NamedTuple):
    """Lines of one table at one budget, by row and seed."""

    lines: Mapping[str, Mapping[int, Line]]

    def of(self, row: str, key: str) -> dict[int, float]:
        """A number of a row by seed; what could not be measured (None) is nan. Raises NotMeasured."""
        found = {seed: line["numbers"][key] for seed, line in self.lines.get(row, {}).items() if key in line["numbers"]}
        if not found:
            raise NotMeasured(f"{row} ({key})")
        return {seed: np.nan if value is None else value for seed, value in found.items()}

    def mean(self, row: str, key: str) -> float:
        """A number's mean over the seeds of a row. Raises NotMeasured."""
        return float(np.mean(list(self.of(row, key).values())))

    def difference(self, a: str, b: str, key: str, key_b: str | None = None) -> Difference:
        """Row a less row b, seed by seed (or two numbers of one row). Raises NotMeasured when no seed is common."""
        of_a, of_b = self.of(a, key), self.of(b, key_b or key)
        common = sorted(set(of_a) & set(of_b))
        if not common:
            raise NotMeasured(f"{a} and {b} with a common seed")
        return interval([of_a[seed] - of_b[seed] for seed in common])

    def curve(self, row: str, name: str, seed: int = 0) -> list[float]:
        """A curve of a row. Raises NotMeasured."""
        line = self.lines.get(row, {}).get(seed)
        if line is None or name not in line["curves"]:
            raise NotMeasured(f"{row} ({name})")
        return line["curves"][name]


def verdict_above(what: str, difference: Difference, least: float = 0.0) -> Verdict:
    """The verdict on a claim that `difference` is positive. It does not hold when the whole interval is below `least`
    (a difference that nobody would see), holds when the whole interval is above 0, and cannot be told otherwise."""
    low, high = difference.mean - difference.margin, difference.mean + difference.margin
    answer: Answer = "does not hold" if high < least or high <= 0 else "holds" if low > 0 else "cannot be told"
    return Verdict(answer, f"{what}: {difference}")


def verdict_all(*verdicts: Verdict) -> Verdict:
    """The verdict on a claim that holds only if several others do."""
    answers = [found.answer for found in verdicts]
    answer: Answer = next((a for a in ("does not hold", "cannot be told") if a in answers), "holds")
    return Verdict(answer, "; ".join(found.why for found in verdicts))
