"""Report 001: a deep image prior applied k times to the noise that a DDPM begins with, and fewer steps.

Controls: chains without it, a constant, blurred noise of the same brightness and contrast, the right amount of noise
with and without a picture in it, and DDIM with as many calls of the network.
"""
import numpy as np

from dipddpm_jax.experiments.filtered_chains import (
    EPOCHS,
    STEPS,
    Length,
    Size,
    Start,
    measure_length,
    measure_starts,
    measure_time,
)
from dipddpm_jax.experiments.tables import (
    Claim,
    Column,
    Plot,
    Report,
    Results,
    Row,
    Table,
    Together,
    Verdict,
    interval,
    verdict_above,
    verdict_all,
)

PASSES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 50)
NONE, CHOSEN = "no DIP: N(0, 1)", "DIP, k = 2"
CONTROLS = {
    "the DIP's mean as a constant": "constant", "blurred noise, mean and deviation of the DIP's": "blurred",
    "noise of the right deviation": "scaled", "the mean digit, noised rightly": "mean digit",
    "the DIP's picture, noised rightly": "noised DIP", "DDIM from N(0, 1) at time 1000, as many calls": "DDIM"}
BLURRED, MEAN, DDIM = (name for name, kind in CONTROLS.items() if kind in ("blurred", "mean digit", "DDIM"))
STARTS = (Row(NONE, Start("noise")), *(Row(f"DIP, k = {k}", Start("DIP", k)) for k in PASSES),
          *(Row(name, Start(kind), note="control") for name, kind in CONTROLS.items()))
START_COLUMNS = (
    *(Column(f"fd{steps}", f"FD(digits), {steps} steps", "sound", 1) for steps in STEPS),
    Column(f"floor{STEPS[0]}", "FD of real digits, as many", "control", 1),
    *(Column(f"fd_shown{steps}", f"FD as the report shows pictures, {steps} steps", "as reported", 1)
      for steps in (200, 500)),
    *(Column(f"confidence{steps}", f"the judge's confidence, {steps} steps", "sound") for steps in (200, 500)),
    Column("sd", "standard deviation of the start", "control"),
    Column("fine_noise", "fine noise in the start, estimated", "control"))
OLD_KEYS = {"sure": "confidence", "rough": "fine_noise", **{f"sure{steps}": f"confidence{steps}" for steps in STEPS}}

SECONDS = {
    "plain": (0.644, 1.246, 1.846, 2.487, 3.152, 4.570, 4.311, 5.400, 6.053, 6.450),
    "filtered": (0.743, 1.252, 2.743, 2.639, 3.106, 3.680, 5.233, 4.948, 6.431, 6.148)}
TIMES = tuple(Row(f"{100 * (i + 1)} steps", Length(100 * (i + 1)), {name: s[i] for name, s in SECONDS.items()})
              for i in range(10))
INSIDE, ORDINARY = "DIP inside training", "ordinary training, as long"
LENGTHS = (*(Row(f"{epochs} epochs, k = 3, 500 steps", Length(500, epochs)) for epochs in EPOCHS),
           Row(INSIDE, Length(1000, EPOCHS[0], True), note="k = 2, 1000 steps"),
           Row(ORDINARY, Length(1000, EPOCHS[0]), note="k = 2, 1000 steps"))


def _fewer(results: Results, a: str, b: str, steps: int, least: float = 0.0) -> Verdict:
    """The verdict on a's Frechet distance being below b's."""
    what = f"FD of \"{b}\" less FD of \"{a}\", {steps} steps"
    return verdict_above(what, results.difference(b, a, f"fd{steps}"), least)


def _quality(steps: int):
    def judge(results: Results) -> Verdict:
        answer, why = _fewer(results, CHOSEN, NONE, steps)
        shown = results.difference(NONE, CHOSEN, f"fd_shown{steps}")
        real, chosen = results.mean(NONE, f"floor{steps}"), results.mean(CHOSEN, f"fd{steps}")
        return Verdict(answer, f"{why}; pictures stretched as the report shows them: {shown}; real digits have "
                       f"{real:.0f}, {CHOSEN} has {chosen:.0f}")

    return judge


def _cause(results: Results) -> Verdict:
    found = verdict_all(_fewer(results, CHOSEN, BLURRED, 200), _fewer(results, CHOSEN, MEAN, 200))
    return Verdict(found.answer, found.why)


def _few_passes(results: Results) -> Verdict:
    def mean(steps: int, passes: tuple[int, ...]) -> np.ndarray:
        rows = [results.of(f"DIP, k = {k}", f"fd{steps}") for k in passes]
        return np.array([np.mean([row[seed] for row in rows]) for seed in sorted(rows[0])])

    return verdict_all(*(verdict_above(f"FD of k = 4 to 10 less FD of k = 1 to 3, {steps} steps", interval(
        mean(steps, PASSES[3:10]) - mean(steps, PASSES[:3]))) for steps in (100, 500, 900)))


def _many_passes(results: Results) -> Verdict:
    return verdict_all(*(_fewer(results, CHOSEN, f"DIP, k = {k}", steps) for k in (20, 50) for steps in (100, 500)))


def _steps(results: Results) -> Verdict:
    answer, why = verdict_above("FD of 900 steps without less FD of 500 steps with a DIP", results.difference(
        NONE, CHOSEN, "fd900", "fd500"))
    ddim = results.difference(NONE, DDIM, "fd900", "fd500")
    return Verdict(answer, f"{why}; DDIM with the calls of 500 steps instead: {ddim}")


def _epochs(results: Results) -> Verdict:
    names = [row.name for row in LENGTHS[: len(EPOCHS)]]
    return verdict_all(*(verdict_above(f"FD after {epochs} less FD after 20 epochs", results.difference(
        name, names[-1], "fd")) for epochs, name in zip(EPOCHS[:-1], names)))


def _inside(results: Results) -> Verdict:
    worse = results.difference(INSIDE, ORDINARY, "fd")
    answer, why = verdict_above("FD of DIP inside less FD of ordinary training", worse)
    return Verdict(answer, f"{why}; their losses are {results.mean(INSIDE, 'loss'):.2f} and "
                   f"{results.mean(ORDINARY, 'loss'):.2f}: eps cannot be read off what two passes leave of it")


def _faster(results: Results) -> Verdict:
    saved = [100 * (1 - results.mean(row.name, "filtered") / results.mean(row.name, "plain")) for row in TIMES]
    printed = np.mean(SECONDS["plain"]) - np.mean(SECONDS["filtered"])
    answer, why = verdict_above("% of the time saved at equal steps, over the ten lengths", interval(saved), 1.0)
    return Verdict(answer, f"{why.replace('seeds', 'lengths')}; the report's own means differ by {printed:+.3f} s")


def _time_curves(results: Results):
    names = {"DDPM": "plain", "DIP and DDPM": "filtered", "DDPM, PyTorch": "torch_plain",
             "DIP and DDPM, PyTorch": "torch_filtered"}
    curves = {text: [results.mean(row.name, key) for row in TIMES] for text, key in names.items()}
    return [row.setting.steps for row in TIMES], {text: s for text, s in curves.items() if np.isfinite(s).all()}


def _pass_curves(results: Results):
    chosen = [k for k in PASSES if k <= 10]
    return chosen, {f"{steps} steps": [results.mean(f"DIP, k = {k}", f"fd{steps}") for k in chosen] for steps in STEPS}


LOWER = "the difference of FD is above 0"
START_CLAIMS = (
    *(Claim(f"With a DIP noise vanishes sooner: {steps} steps are better than without", LOWER, _quality(steps))
      for steps in (200, 500)),
    Claim("It is the prior that makes 200 steps better", "200 steps: FD is below that of blurred noise and of the mean "
          "digit with the right noise", _cause),
    Claim("One to three passes are best", "100, 500 and 900 steps: mean FD of k = 1 to 3 is below that of 4 to 10",
          _few_passes),
    Claim("Many passes give noise that the DDPM dislikes", "100 and 500 steps: FD of k = 20 and of 50 is above that of "
          "2", _many_passes),
    Claim("500 steps with a DIP are as good as the whole chain without", "FD of 500 steps with a DIP is below that of "
          "900 without", _steps),
)
LENGTH_CLAIMS = (
    Claim("20 epochs are better than 5, 10 and 15", LOWER, _epochs),
    Claim("A DIP inside training is not viable: pure noise remains", "FD is above that of ordinary training of the "
          "same length", _inside),
)
LENGTH_COLUMNS = (
    Column("fd", "FD(digits)", "sound", 1), Column("floor", "FD of real digits, as many", "control", 1),
    Column("confidence", "the judge's confidence", "sound"), Column("noise", "noise in the pictures", "sound", 3),
    Column("loss", "loss at the end of training", "as reported", 3))
TABLES = (
    Table("starts", "What a shortened chain begins with", "The report shortens the chain by beginning it later: S "
          "steps are the first S of 1000 times, and the network expects what S steps of noise leave of a digit. The "
          "report begins with noise that a deep image prior (fitted to one digit) was applied to k times: a smooth "
          "picture between 0 and 1. FD(digits) is the Frechet distance to held-out digits in the features of "
          "this library's digit classifier: lower is better; it falls with the number of pictures, hence the column "
          "for as many real ones. *sound* keeps the believed picture within its range at every step; the report does "
          "not, and stretches each picture from its darkest to its lightest value.",
          STARTS, START_COLUMNS, Together(measure_starts, lambda setting: setting.kind == "DDIM", len(STARTS) - 1),
          START_CLAIMS,
          (Plot("passes", "FD against the number of passes.", _pass_curves, "k", "FD(digits)"),), old_keys=OLD_KEYS),
    Table("lengths", "Epochs of the DDPM, and a DIP inside its training", "In the second experiment every noisy "
          "picture passes the DIP twice before the network in training sees it, which still has to name the noise.",
          LENGTHS, LENGTH_COLUMNS, measure_length, LENGTH_CLAIMS, old_keys=OLD_KEYS),
    Table("time", "Seconds for one picture", "All steps are taken here. Printed are single runs on a T4; ours are "
          "medians by the clock, without compilation, and so are those of eager PyTorch, taken in turns with ours on "
          "the same machine (by `python benchmarks/report_001_times.py`). A DIP can only add time "
          "at equal steps. PyTorch compiled, and larger batches: [the speed table](speed.md).", TIMES,
          (Column("plain", "DDPM, s", "as reported", 3), Column("filtered", "DIP and DDPM, s", "as reported", 3),
           Column("torch_plain", "DDPM in PyTorch, s", "as reported", 3),
           Column("torch_filtered", "DIP and DDPM in PyTorch, s", "as reported", 3)),
          measure_time, (Claim("A DIP makes generation faster", "time saved at equal steps, mean over lengths, is "
                               "above 0, and may reach 1 %", _faster),),
          (Plot("time", "Seconds for one picture against steps.", _time_curves, "steps", "seconds"),),
          seeds={"quick": 1, "full": 1}),
)
QUICK = Size((10, 20, 40), 1200, 64, 10, 24, 3)
REPORT = Report(
    "001", "a DIP on the starting noise, and a shortened DDPM",
    "The report trains a small UNet as a DDPM on MNIST, and a deep image prior on a single digit. To draw a picture "
    "with fewer steps, it passes the starting noise through the prior k times and runs only the end of the chain. "
    "It compares single, hand-picked pictures. We count: many samples, judged in the features of a classifier, with "
    "other smooth or rightly scaled starts as controls.", TABLES,
    {"smoke": Size((4, 4, 4), 4, 4, 10, 4, 1, most=20), "quick": QUICK,
     "full": Size((10, 20, 40), 9380, 128, 1, 500, 10, "mnist")},
    {"smoke": "a tiny network, four steps of training, chains of two steps.",
     "quick": f"the 4,500 digits of mnist5k in place of MNIST; {QUICK.steps} steps of {QUICK.batch} pictures stand for "
     f"its 20 epochs (9,380 of 128); chains visit every {QUICK.stride}th time; {QUICK.count} samples a cell; "
     "one DDPM for all seeds, which differ in the DIP and in the noise.",
     "full": "MNIST, 20 epochs, all steps, 500 samples a cell; a DIP inside training for 5 epochs instead of 20."},
    {"smoke": 1, "quick": 3, "full": 3})
