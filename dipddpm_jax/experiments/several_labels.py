"""What report 004 did not try, asked of the recommended model for several labels: guidance, steps, labels one by one,
pairs that no training picture shows."""
from dipddpm_jax.experiments.labelled_runs import LISTS, MINUTES, REAL, REPEATS, SHUFFLED, Ask
from dipddpm_jax.experiments.several_labels_runs import (
    ChosenGuidance,
    Size,
    measure_checkpoints,
    measure_chosen,
    measure_longer,
    measure_model,
)
from dipddpm_jax.experiments.tables import Column, Plot, Report, Row, Table

MODEL = "recommended model"
BOTH_LISTS = (Column("test", "test list", "sound", 3), Column("new_test", "new-test list", "sound", 3), SHUFFLED)
TABLES = (
    Table("checkpoints", "The recommended model while it trains", "Each tenth of the run (averaged parameters), "
          "guidance 1, 25 steps. The checkpoint is chosen by the validation list alone; guidance 1 was taken from an "
          "earlier model's scores on the two test lists. Seeds: of training and "
          "noise.",
          (Row(MODEL, Ask(1.0, 25)),),
          (Column("step", "chosen step", "sound", 0), Column("validation", "validation list", "sound", 3),
           *BOTH_LISTS[:2], REAL, MINUTES), measure_checkpoints,
          plots=(Plot("accuracy", "Label accuracy while training, seed 0.", lambda results: (
              results.curve(MODEL, "step"), {name: results.curve(MODEL, name) for name in LISTS}), "step",
              "label accuracy"),), seeds={"quick": 1}),
    Table("guidance", "Guidance", "Weight w of classifier-free guidance; 50 steps of DPM-Solver++(2M). Here and below: "
          "the last checkpoint of the run of seed 0, not the one chosen above; seeds are those of the noise, which is "
          "the same in every row.",
          tuple(Row(f"w = {w:g}", Ask(guidance=w)) for w in (0.0, 1.0, 2.0, 4.0)), BOTH_LISTS, measure_model),
    Table("chosen guidance", "Guidance that the validation list chooses", "At the end of the run, 50 steps: of these "
          "weights the one whose pictures of the validation list are best, and what it gives on the two other lists.",
          (Row("w of 0.5, 1, 1.5, 2, 3", ChosenGuidance()),),
          (Column("guidance", "w", "sound", 2), Column("validation", "validation list", "sound", 3), *BOTH_LISTS),
          measure_chosen),
    Table("longer", "Twice as long", "A second run of as many steps goes on from the end of the first, at half its "
          "learning rate (falling to 0 again); guidance chosen as before.",
          (Row("w of 0.5, 1, 1.5, 2, 3", ChosenGuidance()),),
          (Column("guidance", "w", "sound", 2), Column("validation", "validation list", "sound", 3), *BOTH_LISTS,
           MINUTES), measure_longer),
    Table("steps", "Number of steps", "Transitions of the sampler with guidance 1; each evaluates the network twice a "
          "picture.", tuple(Row(f"{n} steps", Ask(1.0, n)) for n in (10, 25, 50, 400)), BOTH_LISTS, measure_model),
    Table("composition", "All labels at once, or each by itself", "Composed: eps_0 + sum_i (1 + w) (eps_i - eps_0), "
          "four evaluations a picture and step; 25 steps.",
          tuple(Row(f"{'composed' if each else 'at once'}, w = {w:g}", Ask(guidance=w, num_steps=25, compose=each))
                for each in (False, True) for w in (0.0, 1.0, 2.0)), BOTH_LISTS, measure_model),
    Table("unseen pairs", "Pairs that no training picture shows", "Twelve pairs (every object once) were held out of "
          f"training, alone and in threes; twelve others of the same make-up are the control. {REPEATS} pictures a "
          "pair and seed, 25 steps.",
          (Row("at once, w = 0", Ask(0.0, 25, of="pairs")), Row("at once, w = 1", Ask(1.0, 25, of="pairs")),
           Row("composed, w = 1", Ask(1.0, 25, True, "pairs"))),
          (Column("unseen", "pairs held out", "sound", 3), Column("seen", "other pairs", "control", 3),
           BOTH_LISTS[2]), measure_model),
)
QUICK = Size(48, 2, 32, 32, 12_000)
REPORT = Report(
    "scenes", "Several labels a picture: the recommended model on rendered scenes",
    "A modern UNet trained on rendered scenes of one to three of 24 objects, with a tenth of the labels dropped, and "
    "what can be asked of it. Labels are the objects; a ResNet18 that was trained on other scenes looks for those that "
    "were asked for: of each picture as many of its highest outputs as it has labels; hits over labels. Report "
    "[004](004.md) measures accuracy only, with its own network. With iCLEVR: `python train.py iclevr --data-dir DIR "
    "--keep-every 700`, then `python -m dipddpm_jax label-accuracy RUN --data-dir DIR --evaluator checkpoint.pth`.",
    TABLES,
    {"smoke": Size(8, 4, 32, 4, 2, 2), "quick": QUICK, "full": Size(128, 2, 64, 128, 60_000)},
    {"smoke": "a few steps.",
     "quick": f"pictures of {QUICK.side}x{QUICK.side}, width {QUICK.width}, patches of {QUICK.patch}, {QUICK.steps} "
     f"steps of {QUICK.batch}: over an hour.",
     "full": "64x64, width 128, patches of 2, 60,000 steps of 128."},
    {"smoke": 1, "quick": 2, "full": 3})
