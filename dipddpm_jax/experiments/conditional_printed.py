"""The checkpoints that report 004 prints, all of one run each: what they say without any computing."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from dipddpm_jax.experiments.tables import Column, Measured, Plot, Results, Row, Table

# Objects found of 72 (test list) and of 84 (new-test list) by epoch, from accuracies printed with four digits.
GELU = {305: (37, 50), 310: (35, 54), 315: (45, 52), 320: (41, 52), 325: (42, 51), 330: (37, 47), 335: (37, 47),
        340: (41, 47), 345: (37, 49), 350: (38, 50), 355: (36, 52), 360: (40, 49), 365: (40, 51), 370: (39, 43),
        375: (40, 52), 380: (39, 56), 385: (43, 48), 390: (39, 45), 395: (39, 54)}
RELU = {295: (32, 47), 300: (37, 52), 305: (44, 48), 310: (37, 50), 315: (41, 55), 320: (38, 50), 325: (41, 53),
        330: (37, 51), 335: (35, 48), 340: (33, 49), 345: (39, 48), 360: (39, 52), 370: (42, 44), 375: (38, 49),
        380: (41, 51), 385: (39, 49), 390: (35, 45), 395: (35, 55)}
COSINE = {310: (35, 38), 315: (36, 40), 320: (36, 43), 325: (34, 44), 330: (34, 37), 335: (31, 41), 340: (38, 42),
          345: (38, 45), 350: (40, 47), 355: (34, 47), 360: (37, 44), 365: (37, 43), 370: (38, 41), 375: (40, 45),
          380: (37, 49), 385: (30, 46), 390: (33, 46), 395: (34, 47)}
RUNS = {"GELU, linear betas": GELU, "ReLU, linear betas": RELU, "GELU, cosine betas and lr decay": COSINE}


@dataclass(frozen=True)
class Printed:
    """A run of the report whose checkpoints it prints."""

    run: str


def printed_accuracies(run: str) -> np.ndarray:
    """Accuracy on both lists (columns) of every checkpoint (rows) of a run."""
    return np.array(list(RUNS[run].values())) / (72, 84)


def between(a: str, b: str) -> str:
    """Run a less run b, mean of both lists, and Welch's 95 % interval over checkpoints as if they were independent."""
    ours, theirs = (printed_accuracies(run).mean(1) for run in (a, b))
    test = stats.ttest_ind(ours, theirs, equal_var=False)
    low, high = test.confidence_interval(0.95)
    return f"{ours.mean() - theirs.mean():+.3f} [{low:+.3f}, {high:+.3f}]"


def measure_printed(setting: Printed, size: object, seed: int) -> Measured:
    """Means, and the score on each list of the checkpoint that is best on it, or on the other list (the mean of several
    that are)."""
    found = printed_accuracies(setting.run)
    test, new = found.T
    numbers = {"test": test.mean(), "new": new.mean(), "sd": found.mean(1).std(ddof=1), "checkpoints": len(found),
               "test_best": test.max(), "test_chosen": test[new == new.max()].mean(), "new_best": new.max(),
               "new_chosen": new[test == test.max()].mean()}
    curves = {"epoch": list(map(float, RUNS[setting.run])), "mean": found.mean(1).tolist()}
    return Measured(numbers, curves)


def _by_epoch(results: Results):
    epochs = sorted(set().union(*RUNS.values()))
    curves = {}
    for run in RUNS:
        known = dict(zip(results.curve(run, "epoch"), results.curve(run, "mean"), strict=True))
        curves[run] = [known.get(epoch) for epoch in epochs]
    return epochs, curves


TABLE = Table(
    "printed", "The report's own checkpoints", "All checkpoints that the report prints; nothing was computed but "
    f"means. GELU less ReLU: {between(*list(RUNS)[:2])}; linear less cosine betas (with a falling rate, which is a "
    f"second change): {between(list(RUNS)[0], list(RUNS)[2])}; mean of both lists, 95 % intervals over checkpoints. "
    "Checkpoints of one run are no independent runs: the intervals say whether these runs differ, not whether others "
    "would. A checkpoint is *chosen* where it is best on the other list, as one would have to: its score is what the "
    "quoted best can be compared with. One object more or less is 0.014 and 0.012.",
    tuple(Row(run, Printed(run)) for run in RUNS),
    (Column("test", "test list, mean of checkpoints", "as reported", 3),
     Column("new", "new-test list, mean", "as reported", 3),
     Column("sd", "standard deviation from checkpoint to checkpoint, both lists", "sound", 3),
     Column("checkpoints", "checkpoints", "as reported", 0),
     Column("test_best", "test list, best on it", "as reported", 3),
     Column("test_chosen", "test list, chosen on the new-test list", "sound", 3),
     Column("new_best", "new-test list, best on it", "as reported", 3),
     Column("new_chosen", "new-test list, chosen on the test list", "sound", 3)),
    measure_printed,
    plots=(Plot("checkpoints", "Accuracy (mean of both lists) of the report's printed checkpoints: ups and downs "
                "within a run are as large as the difference between GELU and ReLU; the cosine run lies "
                "below.", _by_epoch,
                "epoch", "label accuracy"),), seeds={"quick": 1, "full": 1})
