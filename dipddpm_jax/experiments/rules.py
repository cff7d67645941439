"""Rules by which a claim is judged: tests against a margin, equivalence, how many runs are looked at when, Holm.

A claim is about an effect: a number that every independent run gives once, in its own unit, or a share of runs. Its
`margin` is the smallest effect that anybody would care for. Two one-sided tests face each other (TOST, Schuirmann
1987): `supports` is the p-value of "there is no such effect", `refutes` of "the effect is as large as the margin".
Whatever the effect is, at most one of these two hypotheses is true, so a verdict is false with probability alpha at
most; and since the two are a margin apart, enough runs always tell. `first` says which verdict an effect gets that is
shown to be above nothing and below the margin.

Tests: Student's t for means; the sign test for medians, which no diverging run can sway and no shape of distribution
invalidates; Barnard's exact test for shares. Runs are looked at when there are `looks[0]`, `looks[1]`, ... of them, and
no more are made once the claim is told; each look may spend its part of alpha (proportional to the runs it adds, Lan
and DeMets 1983; summed by the union bound, so that it is valid for every test and few runs). Claims of one report
share alpha by Holm's method (1979), with care for the two hypotheses of each; one that is asked anew, of later runs
only, has its share each time, which the pages say.
"""
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from scipy import special, stats

ALPHA, POWER, MOST_RUNS = 0.05, 0.8, 9999
Answer = Literal["holds", "does not hold", "cannot be told"]
Runs = Sequence[float] | np.ndarray  # what each independent run gives


class Verdict(NamedTuple):
    """Whether a claim holds, and the figures that say so, in one line."""

    answer: Answer
    why: str


@dataclass(frozen=True)
class RunEvidence:
    """What the runs say about one effect: an estimate with its 95 % interval, p-values for and against the claim,
    and `spread`, from which the number of runs is computed that the margin needs (nan: of a sign test,
    which needs the `shares` of runs beyond what is to be rejected: if the median were the margin, and as seen)."""

    what: str
    unit: str
    estimate: float
    low: float
    high: float
    margin: float
    supports: float
    refutes: float
    count: int
    spread: float
    first: Answer = "does not hold"
    two_sided: bool = False
    shares: tuple[float, float] = (math.nan, math.nan)

    def __str__(self) -> str:
        digits = max(0, 1 - math.floor(math.log10(max(abs(self.margin), 1e-9))))
        ends = "" if self.count < 2 else f" [{self.low:+.{digits}f}, {self.high:+.{digits}f}]"
        return f"{self.what}: {self.estimate:+.{digits}f}{ends} {self.unit}".rstrip()

    def needed(self, level: float, effect: float | None = None) -> int:
        """Independent runs with which a true effect (default: of the margin) is told from none with a probability of
        80 % at this level: of a t-test (Guenther 1981), or of a sign test."""
        if math.isnan(self.spread):
            return _sign_runs(level, self.shares[0])
        if math.isinf(self.spread):  # of a single run
            return MOST_RUNS
        z, distance = special.ndtri(1 - level), max(abs(effect or self.margin), self.margin / 2)
        return min(MOST_RUNS, math.ceil(((z + special.ndtri(POWER)) * self.spread / distance) ** 2 + z**2 / 2))

    def needed_as_seen(self, level: float) -> int:
        """The same if the true effect is as it was estimated, from the farther of the two that it is told from."""
        if math.isnan(self.spread):
            return _sign_runs(level, self.shares[1])
        if self.two_sided:
            return self.needed(level, abs(abs(self.estimate) - self.margin))
        ends = {"holds": (-self.margin, 0.0), "does not hold": (0.0, self.margin)}[self.first]
        return self.needed(level, max(abs(self.estimate - end) for end in ends))


def _t_below(values: np.ndarray, bound: float) -> float:
    """P-value of "the mean is at most `bound`"; by the sign test where all values are equal."""
    n = len(values)
    if n < 2 or not np.isfinite(values).all():
        return 1.0
    sd = np.std(values, ddof=1)
    if sd <= 1e-12 * max(1.0, np.max(np.abs(values))):
        return _sign_below(values, bound)
    return float(special.stdtr(n - 1, (bound - np.mean(values)) / (sd / math.sqrt(n))))


def _sign_below(values: np.ndarray, bound: float) -> float:
    """P-value of "the median is at most `bound`"; values equal to it count for that."""
    return float(special.bdtrc(np.sum(values > bound) - 1.0, len(values), 0.5)) if np.any(values > bound) else 1.0


def _sign_runs(level: float, share: float) -> int:
    """Runs with which a sign test at this level rejects with a probability of 80 %, a run with that of `share`."""
    n = np.arange(1, MOST_RUNS)
    enough = stats.binom.sf(stats.binom.isf(level, n, 0.5), n, share) >= POWER
    return int(n[np.argmax(enough)]) if enough.any() else MOST_RUNS


def _shares(found: np.ndarray, margin: float, low: float) -> tuple[float, float]:
    """Shares of runs on the right side: if their median were the margin above what it is told from; and as they are,
    above `low` or below the margin over it, whichever more are."""
    around = np.where(np.isfinite(found), found, -np.inf) - np.median(found)
    return float(np.mean(around > -margin)), float(max(np.mean(found > low), np.mean(found < low + margin)))


def _median_interval(values: np.ndarray) -> tuple[float, float]:
    """Order statistics with a confidence of 95 % or more, infinite where there are too few."""
    ordered, n = np.sort(values), len(values)
    drop = int(stats.binom.ppf(0.025, n, 0.5))  # P(at most drop - 1 below) < 2.5 %
    return (float(ordered[drop - 1]), float(ordered[n - drop])) if drop > 0 else (-math.inf, math.inf)


def _about(what: str, values: Runs, margin: float, unit: str, typical: str) -> tuple[RunEvidence, np.ndarray]:
    """Evidence without p-values, and the values; a run that is not finite is the worst that there can be."""
    if not margin > 0:
        raise ValueError(f"the margin of a claim is above 0, in its own unit; got {margin}")
    found = np.asarray(values, np.float64)
    found = np.where(np.isnan(found), -np.inf, found)
    n = len(found)
    if typical == "median":
        low, high = _median_interval(found)
        return RunEvidence(f"{what}, median", unit, float(np.median(found)), low, high, margin, 1.0, 1.0, n,
                        math.nan), found
    sd = float(np.std(found, ddof=1)) if n > 1 and np.isfinite(found).all() else math.inf
    half = special.stdtrit(n - 1, 0.975) * sd / math.sqrt(n) if n > 1 else math.inf
    mean = float(np.mean(found))
    return RunEvidence(what, unit, mean, float(mean - half), float(mean + half), margin, 1.0, 1.0, n, sd), found


def above(what: str, values: Runs, margin: float, unit: str = "", typical: str = "mean") -> RunEvidence:
    """For "the effect is above 0": supported against effects of 0 and less, refuted against those of the margin and
    more. An effect shown to lie between is too small to be noticed: does not hold."""
    evidence, found = _about(what, values, margin, unit, typical)
    test = _sign_below if typical == "median" else _t_below
    return replace(evidence, supports=test(found, 0.0), refutes=test(-found, -margin),
                   shares=_shares(found, margin, 0.0) if typical == "median" else evidence.shares)


def as_good(what: str, values: Runs, margin: float, unit: str = "", typical: str = "mean") -> RunEvidence:
    """For "it is not worse", values being its advantage (non-inferiority): supported against disadvantages of the
    margin and more, refuted against none. A disadvantage shown to be smaller than the margin: holds."""
    evidence, found = _about(what, values, margin, unit, typical)
    test = _sign_below if typical == "median" else _t_below
    return replace(evidence, supports=test(found, -margin), refutes=test(-found, 0.0), first="holds",
                   shares=_shares(found, margin, -margin) if typical == "median" else evidence.shares)


def alike(what: str, values: Runs, margin: float, unit: str = "") -> RunEvidence:
    """For "there is no difference", which holds within the margin on both sides and does not outside of it (this one
    boundary is the only effect that no number of runs can tell)."""
    evidence, found = _about(what, values, margin, unit, "mean")
    supports = max(_t_below(found, -margin), _t_below(-found, -margin))
    refutes = min(1.0, 2 * min(_t_below(found, margin), _t_below(-found, margin)))
    return replace(evidence, supports=supports, refutes=refutes, first="holds", two_sided=True)


def negated(evidence: RunEvidence) -> RunEvidence:
    """Evidence for the opposite claim."""
    other: dict[Answer, Answer] = {"holds": "does not hold", "does not hold": "holds"}
    return replace(evidence, supports=evidence.refutes, refutes=evidence.supports, first=other[evidence.first])


def _worst(n: int, m: int, gap: float, wanted: np.ndarray) -> float:
    """Largest probability of the pairs `wanted` (n + 1, m + 1) of counts, over shares p + gap and p."""
    p = np.linspace(0, 1 - gap, 201)
    a = stats.binom.pmf(np.arange(n + 1)[:, None], n, np.minimum(p + gap, 1))
    b = stats.binom.pmf(np.arange(m + 1)[:, None], m, p)
    return float(min(1.0, np.einsum("ip,jp,ij->p", a, b, wanted).max()))


def share_above(what: str, ours: Runs, others: Runs, margin: float) -> RunEvidence:
    """For "more of our runs do so than of the others": exact for two binomial shares that are independent (Barnard
    1947), whose difference is the effect. Runs are 0 or 1."""
    n, m = len(ours), len(others)
    share = np.arange(n + 1)[:, None] / n - np.arange(m + 1) / m
    found = float(np.mean(ours) - np.mean(others))
    both = np.array([np.mean(ours), np.mean(others)])
    half = 1.96 * math.sqrt(sum((p * k + 2) / (k + 4) * (1 - (p * k + 2) / (k + 4)) / (k + 4)
                                for p, k in zip(both, (n, m), strict=True)))  # Agresti and Caffo 2000
    middle = float((both[0] * n + 1) / (n + 2) - (both[1] * m + 1) / (m + 2))
    return RunEvidence(what, "of all runs", found, max(-1.0, middle - half), min(1.0, middle + half), margin,
                    _worst(n, m, 0.0, share >= found - 1e-9), _worst(n, m, margin, share <= found + 1e-9), min(n, m),
                    math.sqrt(0.5))


def told(parts: Sequence[RunEvidence], level: float) -> Answer:
    """The answer at a level: a claim holds if every part of it is supported, does not hold if one is refuted (of
    several, each at its share of the level)."""
    holds = max(part.supports for part in parts) <= level
    fails = len(parts) * min(part.refutes for part in parts) <= level
    if holds and fails:
        return "holds" if all(part.first == "holds" for part in parts) else "does not hold"
    return "holds" if holds else "does not hold" if fails else "cannot be told"


def levels(looks: Sequence[int], alpha: float) -> list[float]:
    """What each look may spend: alpha by the share of the runs that it adds to those before."""
    return [alpha * (b - a) / looks[-1] for a, b in pairwise((0, *looks))]


class Told(NamedTuple):
    """An answer, the look at which it was given (None: not yet), and the level of the last look, after Holm."""

    answer: Answer
    look: int | None
    level: float


def judge_together(
    claims: Sequence[tuple[Sequence[int], Sequence[Sequence[RunEvidence]]]], alpha: float = ALPHA
) -> list[Told]:
    """Answers to claims that share alpha: for each its planned looks, and the parts as they were at every look taken.

    A claim stands for two hypotheses, of which one may be true as long as not both are rejected: of m such claims each
    is told at alpha / m, at any of its looks (Holm's method for hypotheses that exclude each other: Shaffer 1986; with
    looks: Ye et al. 2013). To let every told claim leave, whichever way, would be false: where both hypotheses are
    near, the claims that go are those that were in no danger. Returns a `Told` each.
    """
    waiting = len(claims)
    while waiting:
        level = alpha / waiting
        settled = sum(any(_both(parts, spent) for parts, spent in zip(taken, levels(looks, level), strict=False))
                      for looks, taken in claims)
        if settled <= len(claims) - waiting:
            break
        waiting = len(claims) - settled
    level = alpha / max(waiting, 1)
    return [_told_at(looks, taken, level) for looks, taken in claims]


def _both(parts: Sequence[RunEvidence], level: float) -> bool:
    """True if both hypotheses of a claim are rejected: there is an effect, and it is below the margin."""
    return (max(part.supports for part in parts) <= level
            and len(parts) * min(part.refutes for part in parts) <= level)


def _told_at(looks: Sequence[int], taken: Sequence[Sequence[RunEvidence]], level: float) -> Told:
    spent = levels(looks, level)
    for look, part_of_level, parts in zip(looks, spent, taken, strict=False):
        if (answer := told(parts, part_of_level)) != "cannot be told":
            return Told(answer, look, part_of_level)
    return Told("cannot be told", None, spent[max(0, min(len(taken), len(spent)) - 1)])
