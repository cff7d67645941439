"""Tables of a report: what it printed, what we measure under the same protocol and under a sound one, and claims.

A `Report` holds `Table`s, a table `Row`s (a setting and the printed numbers), `Column`s (what is measured) and
`Claim`s. `table.measure(setting, size, seed)` measures one row once: `setting` is the report's own, `size` is
`report.sizes[budget]`, a frozen dataclass that says how far that budget is smaller, `seed` counts from 0. It returns
`Measured`: numbers by the keys of the columns (more are welcome), curves (lists of numbers), pictures (one uint8 sheet
h w c a caption, kept of seed 0 only). Where rows and seeds differ in numbers only, `Together` stands in place of that
function, and measures many of them in one program. `ledger.py` appends one line a (row, seed) to results.jsonl,
and `pages.py` writes Markdown from these lines alone.
A claim turns `Results` into a `Finding`: evidence from independent runs (`rules.py`), paired by seed
(`results.difference(a, b, key)`). `verdicts.py` makes answers of all evidence of a report together. Reading a row that
is not there raises `NotMeasured`.
"""
import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

from dipddpm_jax.experiments.rules import RunEvidence

Budget = Literal["smoke", "quick", "full"]
BUDGETS: tuple[Budget, ...] = ("smoke", "quick", "full")
Line = dict[str, Any]


class Measured(NamedTuple):
    """What one measurement of one row gives."""

    numbers: Mapping[str, float]
    curves: Mapping[str, Sequence[float]] = {}
    pictures: Mapping[str, UInt8[np.ndarray, "h w c"]] = {}


class Finding(NamedTuple):
    """Evidence about a claim (which holds if all parts do), what else is worth knowing, and why these runs cannot
    answer it, if so: all of them share one trained network, or are no better than chance."""

    parts: tuple[RunEvidence, ...]
    note: str = ""
    barred: str = ""


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
    """A sentence of the report, the rule by which we judge it (in words, with its margin), that rule as a function,
    and what would overturn its verdict. `looks`: numbers of runs at which it is judged; the last is the cap. Default:
    the table's. `begins`: the first seed that counts, where earlier runs only showed how to ask. `asked`: how often
    the claim has been asked, with this rule."""

    text: str
    rule: str
    judge: Callable[["Results"], Finding]
    overturn: str = ""
    looks: tuple[int, ...] = ()
    begins: int = 0
    asked: int = 1


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
    """measure(settings, size, seeds) measures at most `most` (setting, seed) at once, of equal `program(setting)`;
    with `one_seed` of one seed only, whose rows share what takes most of the time, such as a network."""

    measure: Callable[[Sequence[Any], Any, Sequence[int]], Sequence[Measured]]
    program: Callable[[Any], Hashable]
    most: int = 16
    one_seed: bool = False


@dataclass(frozen=True)
class Table:
    """Rows that are measured alike. `seeds` overrides the report's number of seeds at a budget; `old_keys` are former
    names of numbers, as older result lines have them, with what they are called now; `looks`: of its claims."""

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
    looks: tuple[int, ...] = (4, 8)


@dataclass(frozen=True)
class Report:
    """All of a reference system's tables. `name` is its number; `sizes` what each budget means, `sized` in words.

    `story` is for a reader who never saw the report: what was claimed, and what came out. `shows`: the table and the
    plot or row whose picture shows it. `distance`: rows of what, the report's, and ours in the budget quick."""

    name: str
    title: str
    intro: str
    tables: tuple[Table, ...]
    sizes: Mapping[Budget, Any]
    sized: Mapping[Budget, str]
    seeds: Mapping[Budget, int]
    story: str = ""
    shows: tuple[str, str] = ("", "")
    distance: tuple[tuple[str, str, str], ...] = ()


class NotMeasured(Exception):
    """The row that a verdict or a plot needs is not in the results."""


class Results(NamedTuple):
    """Lines of one table at one budget, by row and seed. `read` gathers the names of rows that were asked for."""

    lines: Mapping[str, Mapping[int, Line]]
    read: set[str] | None = None

    def of(self, row: str, key: str) -> dict[int, float]:
        """A number of a row by seed; what could not be measured (None) is nan. Raises NotMeasured."""
        if self.read is not None:
            self.read.add(row)
        found = {seed: line["numbers"][key] for seed, line in self.lines.get(row, {}).items() if key in line["numbers"]}
        if not found:
            raise NotMeasured(f"{row} ({key})")
        return {seed: np.nan if value is None else value for seed, value in sorted(found.items())}

    def mean(self, row: str, key: str) -> float:
        """A number's mean over the seeds of a row. Raises NotMeasured."""
        return float(np.mean(list(self.of(row, key).values())))

    def values(self, row: str, key: str) -> np.ndarray:
        """A number of a row, in the order of seeds. Raises NotMeasured."""
        return np.array(list(self.of(row, key).values()), np.float64)

    def together(self, *cells: tuple[str, str]) -> np.ndarray:
        """Numbers (row, key) in columns, one row a seed that all of them have. Raises NotMeasured."""
        if self.read is not None:
            self.read.update(row for row, _ in cells)  # all, before the first that is not there stops it
        found = [self.of(*cell) for cell in cells]
        common = sorted(set.intersection(*map(set, found)))
        if not common:
            raise NotMeasured(f"{' and '.join(row for row, _ in cells)} with a common seed")
        return np.array([[of[seed] for of in found] for seed in common], np.float64)

    def difference(self, a: str, b: str, key: str, key_b: str | None = None) -> np.ndarray:
        """Row a less row b, seed by seed (or two numbers of one row). Raises NotMeasured when no seed is common."""
        pairs = self.together((a, key), (b, key_b or key))
        return pairs[:, 0] - pairs[:, 1]

    def where(self, wanted: Callable[[int], bool]) -> "Results":
        """The same of some seeds only."""
        return Results({row: {seed: line for seed, line in of.items() if wanted(seed)}
                        for row, of in self.lines.items()}, self.read)

    def curve(self, row: str, name: str, seed: int = 0) -> list[float]:
        """A curve of a row. Raises NotMeasured."""
        line = self.lines.get(row, {}).get(seed)
        if line is None or name not in line["curves"]:
            raise NotMeasured(f"{row} ({name})")
        return line["curves"][name]


def fingerprint(setting: Any, size: Any) -> str:
    """A hash (12 hexadecimal digits) of all that a result line depends on besides its seed and the code."""
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
