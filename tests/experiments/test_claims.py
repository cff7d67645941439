"""Every claim of every report, with made-up rows: it holds where it is true, fails where it is false, else is open."""
import numpy as np
import pytest

from dipddpm_jax import experiments
from dipddpm_jax.experiments import autoencoder as a003
from dipddpm_jax.experiments import conditional as a004
from dipddpm_jax.experiments import conditional_printed, verdicts
from dipddpm_jax.experiments import filtered_start as a001
from dipddpm_jax.experiments import single_image as a000
from dipddpm_jax.experiments import staged_dip as a002
from dipddpm_jax.experiments.rules import judge_together
from dipddpm_jax.experiments.tables import NotMeasured, Results

UNTOLD = {"failed": 0.0, "shuffled": 0.0}  # every other number of every row is 1 unless said otherwise


def cells(rows, keys, value):
    return {(row, key): value for row in rows for key in keys}


def dip(*passes):
    return [f"DIP, k = {k}" for k in passes]


EPOCHS = [a001._shorter(5), a001._shorter(10), a001._last_epochs(15)]
FAST, GRADUAL, SLOW = (f"{levels}, 3 x 1000" for levels in ("fast", "gradual", "slow"))
STAGED, REAL = "staged, towards the noisy picture", "a real DIP, stopped by held-out pixels"
COSINE = "cosine sigma"
WORSE = ("DDPM's lr 0.01", "both lr 0.01", "exponential sigma", COSINE, "batch 128")
# (report, its number): numbers by which the claim is true, and numbers by which it is false
CASES = {
    ("000", 0): ({(a000.A, "samples"): 5.0}, {}), ("000", 1): ({(a000.A, "samples"): 5.0}, {}),
    ("000", 2): ({}, {(a000.A, "loss"): 3.0}), ("000", 3): ({}, {(a000.A, "noised_start"): 9.0}),
    ("000", 4): ({(a000.C, "samples"): -3.0, (a000.C, "loss_variation"): 3.0}, {(a000.C, "samples"): -3.0}),
    ("000", 5): ({}, {(a000.N1, "samples"): 5.0}),
    ("001", 0): ({(a001.NONE, "fd_shown200"): 60.0}, {}), ("001", 1): ({(a001.NONE, "fd_shown500"): 60.0}, {}),
    ("001", 2): (cells((a001.BLURRED, a001.CONSTANT), ["fd_shown200"], 60.0), {(a001.CONSTANT, "fd_shown200"): 60.0}),
    ("001", 3): (cells(dip(5, 7, 10), ["fd_shown100", "fd_shown500", "fd_shown900"], 60.0),
                 cells(dip(5, 7, 10), ["fd_shown100", "fd_shown500"], 60.0)),
    ("001", 4): (cells(dip(20, 50), ["fd_shown100", "fd_shown500"], 60.0), cells(dip(50), ["fd_shown100"], 60.0)),
    ("001", 5): ({}, {(a001.CHOSEN, "fd_shown500"): 60.0}),
    ("001", 6): (cells(EPOCHS, ["fd_shown500"], 60.0), cells(EPOCHS[:2], ["fd_shown500"], 60.0)),
    ("001", 7): ({(a001.INSIDE, "loss"): 2.0}, {}), ("001", 8): ({}, {(a001.ALONE, "saved"): -5.0}),
    **{("002", i): ({(f"modified, {n} layers", "psnr"): 5.0, (f"modified, {n} layers", "fresh"): 5.0},
                    {(f"modified, {n} layers", "fresh"): 5.0}) for i, n in enumerate((3, 4, 5))},
    ("002", 3): ({("traditional, 3 layers", "fresh"): 9.0, ("traditional, 4 layers", "fresh"): 5.0},
                 {("traditional, 3 layers", "fresh"): 9.0}),
    ("002", 4): (cells([row.name for row in a002.DEPTHS], ["share"], 0.5), {}),
    ("002", 5): ({(FAST, "fresh"): 9.0, (GRADUAL, "fresh"): 5.0}, {(FAST, "fresh"): 9.0}),
    ("002", 6): ({(FAST, "psnr"): 5.0}, {}), ("002", 7): ({(FAST, "mean_psnr"): 5.0}, {}),
    ("002", 8): ({("5 layers", "failed"): 1.0}, {}), ("002", 9): ({(STAGED, "psnr"): 5.0}, {}),
    ("003", 0): (cells([a003.BASE], ["ten_passes", "single"], 5.0), {(a003.BASE, "ten_passes"): 5.0}),
    ("003", 1): ({("20+20 epochs", "single"): 30.0}, {("20+20 epochs", "ten_passes"): 30.0}),
    **{("003", 2 + i): ({(a003.BASE, "single"): 30.0, (row, "single"): -400.0}, {(row, "single"): 30.0})
       for i, row in enumerate(WORSE) if row != COSINE},
    ("003", 2 + WORSE.index(COSINE)): ({(COSINE, "ten_passes"): -400.0}, {(COSINE, "ten_passes"): 9.0}),
    ("003", 7): ({(a003.BASE, "denoised"): 5.0}, {}),
    ("004", 0): ({(a004.BASE, "mean"): 1.5}, {}), ("004", 1): ({(a004.BASE, "mean"): 1.5}, {}),
    ("004", 2): ({(a004.BASE, "mean"): 1.5, (a004.BASE, "loss"): 2.0}, {(a004.BASE, "loss"): 2.0}),
    ("004", 3): ({}, {(a004.BASE, "test_best"): 1.5}),
}
ASKED = [(name, i, table, claim) for name in experiments.MODULES for i, (table, claim) in enumerate(
    (table, claim) for table in experiments.load_report(name).tables for claim in table.claims)]


class Numbers(dict):
    """All numbers of a row of one seed."""

    def __init__(self, row, seed, given, scatter):
        super().__init__()
        self.row, self.seed, self.given, self.scatter = row, seed, given, scatter

    def __contains__(self, key):
        return True

    def __getitem__(self, key):
        value = self.given.get((self.row, key), UNTOLD.get(key, 1.0))
        if key in ("failed", "shuffled", "signal"):
            return value
        noise = np.random.default_rng([self.seed, *map(ord, self.row + key)]).standard_normal()
        return value + self.scatter * noise


def results(table, given, scatter, runs):
    return Results({row.name: {seed: {"numbers": Numbers(row.name, seed, given, scatter), "curves": {}}
                               for seed in range(runs)} for row in table.rows})


def answer(table, claim, given, scatter, runs):
    finding = claim.judge(results(table, given, scatter, runs))
    assert not finding.barred
    return judge_together([((runs,), [finding.parts])])[0].answer


@pytest.mark.parametrize("name, number, table, claim", ASKED, ids=lambda x: x if isinstance(x, str | int) else "")
def test_a_claim_holds_where_it_is_true_and_fails_where_it_is_false(name, number, table, claim):
    true, false = CASES[name, number]
    assert answer(table, claim, true, 1e-3, 24) == "holds"
    assert answer(table, claim, false, 1e-3, 24) == "does not hold"
    assert answer(table, claim, true, 1e-3, 1) == "cannot be told"  # one run tells nothing


def test_epochs_hold_only_where_twenty_are_better_than_all_three():
    table, claim = next((table, claim) for _, _, table, claim in ASKED if claim is a001.EPOCHS_CLAIM)
    last, *earlier = reversed(EPOCHS)
    for missing in earlier:  # better than 15 epochs, and no better than 5 or than 10
        given = cells([row for row in EPOCHS if row != missing], ["fd_shown500"], 60.0)
        assert answer(table, claim, given, 1e-3, 24) == "cannot be told"
    assert answer(table, claim, cells([last], ["fd_shown500"], -60.0), 1e-3, 24) == "does not hold"


def test_rows_that_are_not_there_are_all_named():
    rows = Results({}, set())
    with pytest.raises(NotMeasured):
        rows.together(("a", "psnr"), ("b", "psnr"))
    assert rows.read == {"a", "b"}


def test_every_claim_has_a_margin_looks_and_what_would_overturn_it():
    assert len(ASKED) == len(CASES) == 37
    for _, _, table, claim in ASKED:
        assert any(word in claim.rule for word in ("margin", "within", "less than 3 dB")) and claim.overturn
        assert (claim.asked > 1) == (claim.begins > 0)  # each asking has its share of false verdicts, of fresh runs
        looks = verdicts.planned(claim, table)
        assert list(looks) == sorted(set(looks))
        parts = claim.judge(results(table, CASES[next(key for key in CASES)][0], 0.1, 4)).parts
        assert all(part.margin > 0 and part.needed(0.01) >= part.needed(0.05) > 1 for part in parts)


def test_dead_networks_do_not_count_and_runs_that_diverge_are_bounded():
    table = a002.TABLES[0]
    given = {("modified, 5 layers", "fresh"): 5.0, ("modified, 5 layers", "psnr"): 5.0}
    found = results(table, given, 1e-3, 6)
    found.lines["modified, 5 layers"][0]["numbers"].given = {**given, ("modified, 5 layers", "failed"): 1.0,
                                                             ("modified, 5 layers", "fresh"): -99.0}
    finding = a002._staged(5)(found)
    assert [part.count for part in finding.parts] == [5, 5] and finding.parts[0].supports == pytest.approx(1 / 32)
    assert "1 of 6, 0 of 6, 0 of 6" in finding.note
    (table,) = experiments.load_report("003").tables
    rows = results(table, {("cosine sigma", "ten_passes"): -300.0, (a003.BASE, "ten_passes"): 10.0}, 1e-3, 4)
    (part,) = a003._better(a003.BASE, "cosine sigma")(rows).parts
    assert part.estimate == pytest.approx(10.0, abs=0.01)


def test_accuracies_at_the_floor_answer_nothing():
    table = experiments.load_report("004").tables[0]
    finding = table.claims[0].judge(results(table, {(row.name, "mean"): 0.02 for row in table.rows}, 1e-3, 4))
    assert "one another's labels" in finding.barred


def test_printed_checkpoints_give_the_figures_of_the_fact_sheet():
    gelu, relu, cosine = conditional_printed.RUNS
    assert conditional_printed.printed_accuracies(gelu).mean(0) == pytest.approx([0.5446, 0.5946], abs=1e-4)
    assert conditional_printed.printed_accuracies(relu).mean(0) == pytest.approx([0.5270, 0.5926], abs=1e-4)
    assert conditional_printed.printed_accuracies(cosine).mean(0) == pytest.approx([0.4954, 0.5192], abs=1e-4)
    assert conditional_printed.between(gelu, relu) == "+0.010 [-0.009, +0.029]"
    assert conditional_printed.between(gelu, cosine) == "+0.062 [+0.044, +0.081]"
    found = conditional_printed.measure_printed(conditional_printed.Printed(gelu), None, 0).numbers
    assert (found["test_best"], found["test_chosen"]) == (pytest.approx(0.625), pytest.approx(0.5417, abs=1e-4))
