"""Report 001: a deep image prior applied k times to the noise that a DDPM begins with, and fewer steps.

Controls: chains without it, a constant, blurred noise of the same brightness and contrast, the right amount of noise
with and without a picture in it, and DDIM with as many calls of the network.
"""
from dataclasses import replace

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
from dipddpm_jax.experiments.filtered_networks import (
    FirstEpoch,
    LastEpochs,
    Trained,
    measure_first_epoch,
    measure_networks,
    measure_passes,
)
from dipddpm_jax.experiments.rules import above, as_good
from dipddpm_jax.experiments.tables import (
    Claim,
    Column,
    Finding,
    Plot,
    Report,
    Results,
    Row,
    Table,
    Together,
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
INSIDE, ORDINARY, ALONE = "DIP inside training", "ordinary training, as long", "two passes"
LENGTHS = (*(Row(f"{epochs} epochs, k = 3, 500 steps", Length(500, epochs)) for epochs in EPOCHS),
           Row(INSIDE, Length(1000, EPOCHS[0], True), note="k = 2, 1000 steps"),
           Row(ORDINARY, Length(1000, EPOCHS[0]), note="k = 2, 1000 steps"))


def _shorter(epochs: int) -> str:
    return f"DIP, k = 3, {epochs} epochs"


def _last_epochs(epochs: int) -> str:
    return f"DIP, k = 3, the two epochs before {epochs}"


FEW, MORE, MANY = (1, 2, 3), (5, 7, 10), (20, 50)
CONSTANT = "the DIP's mean as a constant"
NETWORKS = (Row(NONE, Trained(Start("noise"))),
            *(Row(f"DIP, k = {k}", Trained(Start("DIP", k))) for k in (*FEW, *MORE, *MANY)),
            *(Row(name, Trained(Start(CONTROLS[name])), note="control") for name in (CONSTANT, BLURRED)),
            *(Row(_shorter(epochs), Trained(Start("DIP", 3), epochs)) for epochs in EPOCHS[:-1]))
EPOCH_ROWS = (*(Row(_shorter(epochs), Trained(Start("DIP", 3), epochs)) for epochs in (5, 10, 20)),
              *(Row(_last_epochs(epochs), LastEpochs(epochs), note="mean of eight checkpoints")
                for epochs in EPOCHS[-2:]))
MARGIN = 5.0  # FD; two sets of real digits are 6 to 8 apart


def _nearer(results: Results, a: str, b: str, steps: int):
    """Evidence that a's Frechet distance is below b's."""
    what = f"FD of \"{b}\" less FD of \"{a}\", {steps} steps"
    return above(what, results.difference(b, a, f"fd_shown{steps}"), MARGIN)


def _quality(steps: int):
    def judge(results: Results) -> Finding:
        chosen, real = (results.mean(CHOSEN, f"{name}{steps}") for name in ("fd_shown", "floor"))
        return Finding((_nearer(results, CHOSEN, NONE, steps),),
                       f"{CHOSEN} has {chosen:.0f}, real digits {real:.0f}")

    return judge


def _cause(results: Results) -> Finding:
    return Finding(tuple(_nearer(results, CHOSEN, other, 200) for other in (BLURRED, CONSTANT)),
                   "not among the controls: the same network unfitted, and the DIP's picture with the right noise, "
                   "which does as well on the one network of the first table")


def _few_passes(results: Results) -> Finding:
    parts = []
    for steps in (100, 500, 900):
        found = results.together(*((f"DIP, k = {k}", f"fd_shown{steps}") for k in (*FEW, *MORE)))
        gain = found[:, len(FEW):].mean(1) - found[:, : len(FEW)].mean(1)
        parts.append(above(f"FD of k = 5, 7, 10 less FD of k = 1 to 3, {steps} steps", gain, MARGIN))
    return Finding(tuple(parts))


def _many_passes(results: Results) -> Finding:
    return Finding(tuple(_nearer(results, CHOSEN, f"DIP, k = {k}", steps) for k in MANY for steps in (100, 500)))


def _steps(results: Results) -> Finding:
    whole, short = results.together((NONE, "fd_shown900"), (CHOSEN, "fd_shown500")).T
    return Finding((as_good("logarithm of the FD of 900 steps without, less that of 500 steps with a DIP",
                            np.log(whole / short), 0.1),))


def _epochs(results: Results) -> Finding:
    rows = (_last_epochs(15), _last_epochs(20), _shorter(5), _shorter(10), _shorter(20))
    before_15, before_20, *earlier, after_20 = results.together(*((row, "fd_shown500") for row in rows)).T
    earlier = [above(f"FD after {epochs} less FD after 20 epochs", fd - after_20, MARGIN)
               for epochs, fd in zip(EPOCHS, earlier)]
    last = above("mean FD of the two epochs before 15 less that of the two before 20", before_15 - before_20, MARGIN)
    # what is open is the last one, which alone may refute; the claim holds if the others do too
    all_three = replace(last, supports=max(part.supports for part in (last, *earlier)))
    return Finding((all_three,), "; ".join(map(str, earlier)))


def _inside(results: Results) -> Finding:
    return Finding((above("loss, inside less ordinary", results.difference(INSIDE, ORDINARY, "loss"), 0.2),),
                   "in units of the noise's variance: eps cannot be read off what two passes leave of it")


def _faster(results: Results) -> Finding:
    printed = np.mean(SECONDS["plain"]) - np.mean(SECONDS["filtered"])
    return Finding((above("time saved by the two passes, of a chain of 100 steps", results.values(ALONE, "saved"), 1.0,
                          "%"),), f"the report's own means differ by {printed:+.3f} s; passes can only add time, so "
                   "that this could not have held")


def _time_curves(results: Results):
    names = {"DDPM": "plain", "DIP and DDPM": "filtered", "DDPM, PyTorch": "torch_plain",
             "DIP and DDPM, PyTorch": "torch_filtered"}
    curves = {text: [results.mean(row.name, key) for row in TIMES] for text, key in names.items()}
    return [row.setting.steps for row in TIMES], {text: s for text, s in curves.items() if np.isfinite(s).all()}


def _step_curves(results: Results):
    names = (NONE, CHOSEN, BLURRED, CONSTANT)
    found = results.together(*((name, f"fd_shown{steps}") for name in names for steps in STEPS))  # of the same networks
    return STEPS, dict(zip(names, found.mean(0).reshape(len(names), -1).tolist()))


def _pass_curves(results: Results):
    chosen = [k for k in PASSES if k <= 10]
    return chosen, {f"{steps} steps": [results.mean(f"DIP, k = {k}", f"fd_shown{steps}") for k in chosen]
                    for steps in STEPS}


SHOWN = ("FD of pictures as the report shows them, independent networks; margin 5 (two sets of real digits are 6 to 8 "
         "apart)")
LONG = "the report's training (60,000 digits, 20 epochs) and all times visited"
NETWORK_CLAIMS = (
    *(Claim(f"With a DIP noise vanishes sooner: {steps} steps are better than as many from pure noise without",
            f"{steps} steps: lower " + SHOWN, _quality(steps), LONG) for steps in (200, 500)),
    Claim("It is the prior that makes 200 steps better (than blurred noise and a constant do)",
          "200 steps: lower than that of blurred noise with the mean and deviation of the DIP's pictures, and than "
          "that of their mean as a constant; " + SHOWN, _cause,
          "another smooth start without a prior that does as well"),
    Claim("One to three passes are best", "100, 500 and 900 steps: mean of k = 1 to 3 lower than that of 5, 7 and 10; "
          + SHOWN, _few_passes, "a difference of 5 between few passes and ten"),
    Claim("Many passes give noise that the DDPM dislikes", "100 and 500 steps: that of k = 20 and of 50 above that of "
          "2; " + SHOWN, _many_passes, "a difference of 5 between two passes and fifty"),
    Claim("500 steps with a DIP are as good as the longest chain shown without (900 of 1000 steps)",
          "not above that of 900 without, margin a tenth, as networks differ by factors; FD of pictures as the report "
          "shows them. Of eight networks the difference could not be told; this rule was written then, and counts "
          "later ones only (seeds 8 and up). Pure noise is a poor start there: see the constant after 900 steps",
          _steps, LONG, (8, 16), 8, 2),
)
EPOCHS_CLAIM = Claim(
    "20 epochs are better than 5, 10 and 15", "500 steps, k = 3: the mean over eight checkpoints, a quarter of an "
    "epoch apart, is lower before the end of 20 epochs than of 15 (and, for the claim to hold, that after 20 than "
    "after 5 and 10); " + SHOWN + ". Of eight networks (the table above) 5 and 10 epochs were worse by the last "
    "checkpoint of each, and 15 against 20 could not be told; this rule was written then, and counts later networks "
    "only (seeds 8 and up)", _epochs, LONG, (8, 16), 8, 2)
INSIDE_CLAIM = Claim(
    "A DIP inside training is not viable: pure noise remains", "of the noise's variance the network cannot name more "
    "after an epoch than one that is trained without the DIP; independent networks, margin 0.2", _inside,
    "a network that learns to name noise which two passes have removed")
LENGTH_COLUMNS = (
    Column("fd", "FD(digits)", "sound", 1), Column("floor", "FD of real digits, as many", "control", 1),
    Column("confidence", "the judge's confidence", "sound"), Column("noise", "noise in the pictures", "sound", 3),
    Column("loss", "loss at the end of training", "as reported", 3))
TABLES = (
    Table("starts", "What a shortened chain begins with", "One network for all seeds. The report shortens the chain by "
          "beginning it later: S steps are the first S of 1000 times, and the network expects what S steps of noise "
          "leave of a digit. The report begins with noise that a deep image prior (fitted to one digit) was applied to "
          "k times: a smooth picture between 0 and 1. FD(digits) is the Frechet distance to held-out digits in the "
          "features of this library's digit classifier: lower is better; it falls with the number of pictures, hence "
          "the column for as many real ones. *sound* keeps the believed picture within its range at every step; the "
          "report does not, and stretches each picture from its darkest to its lightest value.",
          STARTS, START_COLUMNS, Together(measure_starts, lambda setting: setting.kind == "DDIM", len(STARTS) - 1),
          (),
          (Plot("passes", "FD of pictures as the report shows them against the number of passes.", _pass_curves, "k",
                "FD(digits)"),), old_keys=OLD_KEYS),
    Table("lengths", "Epochs of the DDPM, and a DIP inside its training", "One network for all seeds. In the second "
          "experiment every noisy picture passes the DIP twice before the network in training sees it, which still has "
          "to name the noise.",
          LENGTHS, LENGTH_COLUMNS, measure_length, old_keys=OLD_KEYS),
    Table("time", "Seconds for one picture", "All steps are taken here. Printed are single runs on a T4; ours are "
          "medians by the clock, without compilation, and so are those of eager PyTorch, taken in turns with ours on "
          "the same machine (by `python benchmarks/report_001_times.py`). A DIP can only add time "
          "at equal steps. PyTorch compiled, and larger batches: [the speed table](speed.md).", TIMES,
          (Column("plain", "DDPM, s", "as reported", 3), Column("filtered", "DIP and DDPM, s", "as reported", 3),
           Column("torch_plain", "DDPM in PyTorch, s", "as reported", 3),
           Column("torch_filtered", "DIP and DDPM in PyTorch, s", "as reported", 3)),
          measure_time, (), (Plot("time", "Seconds for one picture against steps.", _time_curves, "steps", "seconds"),),
          seeds={"quick": 1, "full": 1}),
    Table("networks", "Starts, with a network of its own for each seed", "Here seeds differ in the DDPM's training "
          "too, so that they are independent runs, and pictures are judged as the report shows them: the network "
          "cannot see brightness.", NETWORKS,
          (*(Column(f"fd_shown{steps}", f"FD as shown, {steps} steps", "as reported", 1) for steps in STEPS),
           Column("floor500", "FD of real digits, as many", "control", 1)),
          Together(measure_networks, lambda setting: "networks", len(NETWORKS), True), NETWORK_CLAIMS,
          (Plot("steps", "FD as shown against steps, mean over networks that all rows share.", _step_curves, "steps",
                "FD(digits)"),),
          looks=(4, 8)),
    Table("epochs", "Epochs, with a network of its own for each seed", "One checkpoint is a matter of luck, as the "
          "learning rate does not fall: in the last two rows FD is a mean over eight, of the same starts and noise.",
          EPOCH_ROWS,
          (Column("fd_shown500", "FD as shown, 500 steps", "as reported", 1),
           Column("floor500", "FD of real digits, as many", "control", 1)),
          Together(measure_networks, lambda setting: "networks", len(EPOCH_ROWS), True), (EPOCHS_CLAIM,),
          seeds={"quick": 0}),
    Table("inside", "A DIP inside training, with independent networks", "The first of twenty epochs only, by its loss; "
          "the table of epochs has samples of a longer run.",
          (Row(INSIDE, FirstEpoch(True)), Row(ORDINARY, FirstEpoch(False))),
          (Column("loss", "loss after one epoch", "sound", 3),), measure_first_epoch, (INSIDE_CLAIM,), looks=(4, 8)),
    Table("passes", "The two passes alone", "What a DIP adds to one picture, by the clock.",
          (Row(ALONE, Length(100)),),
          (Column("passes", "two passes, ms", "as reported", 1), Column("chain", "100 steps without, ms", "control", 1),
           Column("saved", "time saved, % of those", "sound", 1)), measure_passes,
          (Claim("A DIP makes generation faster", "time saved at equal steps, of 100; margin 1 %", _faster,
                 "passes that take no time: the report's speed-up is only that it takes fewer steps"),), looks=(4, 8)),
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
     "one DDPM for all seeds in the tables of starts, epochs and seconds, which differ in the DIP and in the noise.",
     "full": "MNIST, 20 epochs, all steps, 500 samples a cell; a DIP inside training for 5 epochs instead of 20."},
    {"smoke": 1, "quick": 4, "full": 4},
    "A diffusion model (DDPM) draws a digit by removing noise in a thousand steps. The report claims that if the noise "
    "first passes through a deep image prior (DIP, a network fitted to one digit), two hundred or five hundred steps "
    "are enough. Our small networks draw poor digits with any number of steps: over the first eight the Frechet "
    "distance (FD, lower is better) of pictures as the report shows them is 50 to 53 after 100, 200, 500 or 900 steps "
    "with a DIP, where real digits have 8. Without one it is 177 after 200 steps, 65 after 500 and 80 after 900. So a "
    "DIP does help a chain that begins late: what it makes of noise is a smooth dark picture with little noise in it. "
    "Blurred noise of the same mean and deviation helps less (92 after 200 steps). How often it is applied changes no "
    "more than another seed does, and it saves no time but that of the steps left out. Of sixteen networks trained "
    "later, 500 steps with a DIP are better than 900 without, and twenty epochs better than fifteen. "
    "The verdicts ask for several networks, each trained anew.",
    ("networks", "steps"),
    (("training pictures", "60,000 of MNIST", "4,500 of mnist5k"),
     ("training", "20 epochs: 9,380 steps of 128", f"{QUICK.steps} steps of {QUICK.batch}"),
     ("times visited", "all", f"every {QUICK.stride}th"),
     ("pictures judged", "one, chosen by hand", f"{QUICK.count} a cell and network")))
