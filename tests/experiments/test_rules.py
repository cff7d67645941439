"""Rules of verdicts: false verdicts are as rare as promised, both verdicts are reached, Holm and looks keep alpha."""
import numpy as np
import pytest
from scipy import stats

from dipddpm_jax.experiments import rules
from dipddpm_jax.experiments.rules import above, alike, as_good, judge_together, negated, share_above, told

# Three standard errors of a rate of 5 % among simulated reports.
TRIALS = 400
SLACK = 3 * np.sqrt(0.05 * 0.95 / TRIALS)
EFFECTS = {"above": (above, 0.0, 1.0), "as good": (as_good, -1.0, 0.0)}


def answers(ask, effect, runs, trials, level=0.05, sd=1.0, **typical):
    rng = np.random.default_rng(0)
    return [told([ask("", effect + sd * rng.standard_normal(runs), 1.0, **typical)], level)
            for _ in range(trials)]


@pytest.mark.parametrize("typical", ["mean", "median"])
@pytest.mark.parametrize("ask, none, margin", EFFECTS.values(), ids=EFFECTS)
def test_false_verdicts_are_as_rare_as_alpha_at_both_boundaries(ask, none, margin, typical):
    for effect, false in ((none, "holds"), (margin, "does not hold")):
        found = answers(ask, effect, 8, TRIALS, typical=typical)
        assert found.count(false) / TRIALS < 0.05 + SLACK, (effect, false)


@pytest.mark.parametrize("ask, none, margin", EFFECTS.values(), ids=EFFECTS)
def test_enough_runs_tell_every_effect_also_none_at_all(ask, none, margin):
    for effect, right in ((none, "does not hold"), (margin, "holds")):
        runs = ask("", np.random.default_rng(1).standard_normal(8), 1.0).needed(0.05)
        assert answers(ask, effect, 4 * runs, 50).count(right) >= 44  # 5 % are false at the boundary itself
    between = answers(ask, (none + margin) / 2, 400, 50)  # told, though neither 0 nor the margin is true
    assert set(between) == {"does not hold" if ask is above else "holds"}


def test_equivalence_is_two_one_sided_tests():
    assert answers(alike, 1.0, 8, TRIALS).count("holds") / TRIALS < 0.05 + SLACK
    assert answers(alike, -1.0, 8, TRIALS).count("does not hold") / TRIALS < 0.05 + SLACK
    assert answers(alike, 0.0, 60, 50).count("holds") == 50
    assert answers(alike, 2.0, 60, 50).count("does not hold") == 50
    values = np.array([0.1, -0.2, 0.4, 0.3])
    low, high = (stats.ttest_1samp(values, bound, alternative=side).pvalue
                 for bound, side in ((-1, "greater"), (1, "less")))
    assert alike("", values, 1.0).supports == pytest.approx(max(low, high))


def test_tests_are_the_textbooks():
    values = np.array([0.3, 1.2, -0.4, 2.0, 0.9])
    found = above("", values, 1.5)
    assert found.supports == pytest.approx(stats.ttest_1samp(values, 0, alternative="greater").pvalue)
    assert found.refutes == pytest.approx(stats.ttest_1samp(values, 1.5, alternative="less").pvalue)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))
    median = above("", values, 1.5, typical="median")
    assert median.supports == pytest.approx(stats.binomtest(4, 5, 0.5, "greater").pvalue)
    assert (median.estimate, median.low) == (0.9, -np.inf)  # five runs bound no median with 95 %
    six = above("", [*values, 3.0], 1.5, typical="median")
    assert (six.low, six.high) == (-0.4, 3.0)


def test_runs_needed_have_the_power_that_is_promised():
    found = above("", np.random.default_rng(0).standard_normal(6), 1.0)
    for sd in (0.5, 1.0, 2.0):
        runs = rules.RunEvidence(**{**found.__dict__, "spread": sd}).needed(0.01)
        power = answers(above, 1.0, runs, 200, 0.01, sd=sd).count("holds") / 200
        assert 0.7 < power < 0.97, (sd, runs, power)
    assert above("", [1.0, 2.0], 1.0, typical="median").needed(0.01) == 7  # 2^-7 < 1 %, if all runs are above


def test_runs_that_a_sign_test_needs_have_the_power_that_is_promised():
    """Of runs of which three quarters are above 0, a binomial test by scipy rejects four times in five."""
    found = above("", [*[1.0] * 15, *[-1.0] * 5], 0.5, typical="median")
    for level in (0.05, 0.003):
        runs = found.needed_as_seen(level)
        said = [stats.binomtest(int(k), runs, 0.5, "greater").pvalue <= level
                for k in np.random.default_rng(0).binomial(runs, 0.75, 2000)]
        assert 0.77 < np.mean(said) < 0.9
        assert above("", [*[1.0] * 15, *[-1.0] * 5], 3.0, typical="median").needed(level) < runs  # all 20 above 0
    assert above("", [1.0, -1.0], 0.5, typical="median").needed_as_seen(0.05) == rules.MOST_RUNS


def test_runs_that_diverge_are_the_worst_and_sway_no_median():
    found = above("", [np.nan, 1.0, 2.0, 3.0, 2.0, 1.0, 2.0, 3.0], 1.0, typical="median")
    assert found.estimate == 2.0 and found.supports == pytest.approx(9 / 256)
    assert above("", [2.0] * 3, 1.0).supports == 1 / 8  # equal values are no proof: the sign test speaks
    alone, broken = above("", [2.0], 1.0), above("", [2.0, 2.1, np.nan], 1.0)
    assert alone.supports == broken.supports == broken.refutes == 1.0 and alone.needed(0.05) == rules.MOST_RUNS


def test_shares_are_exact():
    dead = share_above("", [1.0] * 5 + [0.0], [0.0] * 6, 0.25)
    assert dead.supports == pytest.approx(13 / 4096)  # by hand, at p = 1/2
    rng, none, large = np.random.default_rng(0), [], []

    def draw(n, p):
        return (rng.random(n) < p).astype(float)

    for _ in range(200):
        none.append(told([share_above("", draw(12, 0.3), draw(12, 0.3), 0.25)], 0.05))
        large.append(told([share_above("", draw(12, 0.45), draw(12, 0.2), 0.25)], 0.05))
    assert none.count("holds") < 0.1 * 200 and large.count("does not hold") < 0.1 * 200
    many = [told([share_above("", draw(150, p), draw(150, 0.1), 0.25)], 0.05) for p in (0.1, 0.6)]
    assert many == ["does not hold", "holds"]


def test_a_claim_of_several_parts_holds_with_all_and_falls_with_one():
    good, bad = above("", [1.0, 1.2, 0.9, 1.1], 0.5), above("", [-1.0, -1.2, -0.9, -1.1], 0.5)
    unknown = above("", [-1.0, 2.0, 0.5, -0.2], 0.5)
    assert told([good, good], 0.05) == "holds" and told([good, unknown], 0.05) == "cannot be told"
    assert told([good, unknown, bad], 0.05) == "does not hold"
    assert told([negated(bad)], 0.05) == "holds" and told([negated(good)], 0.05) == "does not hold"


def report_of(rng, effects, looks=(4, 8, 12), stop=True):
    claims = []
    for effect in effects:
        values = effect + rng.standard_normal(looks[-1])
        claims.append((looks, [[above("", values[:n], 1.0)] for n in looks]))
    return judge_together(claims)


@pytest.mark.parametrize("effects", [(0.0,), (1.0,), (0.0, 0.0, 1.0, 1.0), (9.0, 0.5, 0.0)])
def test_holm_and_several_looks_keep_alpha_for_a_whole_report(effects):
    rng = np.random.default_rng(3)
    false = 0
    for _ in range(TRIALS):
        found = report_of(rng, effects)
        false += any((effect <= 0 and one.answer == "holds") or (effect >= 1 and one.answer == "does not hold")
                     for effect, one in zip(effects, found, strict=True))
    assert false / (TRIALS) < 0.05 + SLACK


def test_looking_at_every_run_without_spending_alpha_would_not():
    rng, naive = np.random.default_rng(4), 0
    for _ in range(100):
        values = rng.standard_normal(40)
        naive += any(told([above("", values[:n], 1.0)], 0.05) == "holds" for n in range(2, 41, 2))
    assert naive / 100 > 0.1
    assert sum(rules.levels((8, 16, 24), 0.05)) == pytest.approx(0.05)


def test_a_claim_leaves_its_part_to_the_others_when_both_of_its_hypotheses_are_gone():
    small = above("", [0.5, 0.51, 0.49, 0.5, 0.52], 1.0)  # above 0 and below the margin, beyond doubt
    large = above("", [5.0, 5.1, 4.9, 5.0, 5.2], 1.0)  # told too, but "as large as the margin" may be true
    weak = rules.RunEvidence(**{**large.__dict__, "supports": 0.03, "refutes": 1.0})
    looks = (5,)
    for other, expected in ((small, ["does not hold", "holds"]), (large, ["holds", "cannot be told"])):
        assert [one.answer for one in judge_together([(looks, [[other]]), (looks, [[weak]])])] == expected


def test_a_claim_is_told_at_the_first_look_that_tells_and_not_before_one_is_due():
    clear, vague = [above("", [5.0, 5.1, 4.9, 5.2], 1.0)], [above("", [3.0, -2.0, 0.4], 1.0)]
    (one,) = judge_together([((3, 4), [vague, clear])])
    assert (one.answer, one.look, one.level) == ("holds", 4, pytest.approx(0.0125))
    (none,) = judge_together([((3, 4), [])])
    assert none.answer == "cannot be told" and none.look is None


def test_margins_are_above_zero():
    with pytest.raises(ValueError, match="margin"):
        above("", [1.0, 2.0], 0.0)
