"""Report 004: pictures of one to three named objects, from a DDPM whose network is told which.

`training` repeats the report's runs; other tables ask one recommended model for what it did not try.
"""
import functools
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from dipddpm_jax import checkpoints, judges, label_accuracy, plots, runs, sampling
from dipddpm_jax import config as configs
from dipddpm_jax.config import ContextUnet, RunOptions, SamplerConfig, TrainConfig, UNet
from dipddpm_jax.data import scenes
from dipddpm_jax.presets import PRESETS
from dipddpm_jax.tables import Claim, Column, Measured, Plot, Report, Results, Row, Table, Verdict, verdict_above
from dipddpm_jax.workdirs import Stopped

LISTS = ("validation", "test", "new_test")
PAIRS = tuple(",".join(scenes.OBJECTS[i] for i in np.flatnonzero(row)) for row in scenes.unseen_pairs())
REPEATS = 3  # of each pair, in a draw of the lists of pairs


@dataclass(frozen=True)
class Setting:
    """A run of the report."""

    act: Literal["gelu", "relu"] = "gelu"
    schedule: Literal["linear_at_zero", "waves_at_zero"] = "linear_at_zero"
    decay: Literal["constant", "linear"] = "constant"
    epochs: int = 400


@dataclass(frozen=True)
class Ask:
    """What a trained model is asked for."""

    guidance: float = 2.0
    num_steps: int = 50
    compose: bool = False
    of: Literal["lists", "pairs", "digits"] = "lists"


@dataclass(frozen=True)
class Size:
    """Of the report's network: width, side of pictures, batch, steps in 400 epochs, learning rate, checkpoints scored,
    transitions of the sampler. `model` is the recommended one: width, patch, batch, steps. `digits`: width, steps."""

    width: int
    side: int
    batch: int
    steps: int
    rate: float
    scored: int
    num_steps: int
    model: tuple[int, int, int, int]
    digits: tuple[int, int]
    digits_data: str = "mnist5k"


def report_config(setting: Setting, size: Size, seed: int) -> TrainConfig:
    """The report's run, without label dropout as it was."""
    base = PRESETS["context-unet"][1]
    return replace(
        base, network=ContextUnet(size.width, setting.act), schedule=replace(base.schedule, name=setting.schedule),
        optimizer=replace(base.optimizer, learning_rate=size.rate, decay=setting.decay), label_drop=0.0, seed=seed,
        image_size=size.side, batch_size=size.batch, steps=max(size.steps * setting.epochs // 400, 4 * size.scored))


def model_config(size: Size) -> TrainConfig:
    """The recommended model, which never sees the pairs."""
    base, (width, patch, batch, steps) = PRESETS["scenes"][1], size.model
    return replace(base, network=UNet(width=width, patch_size=patch), batch_size=batch, steps=steps, without=PAIRS)


def digits_config(size: Size) -> TrainConfig:
    """TeaPearce's guided digits."""
    base, (width, steps) = PRESETS["teapearce"][1], size.digits
    batch, rate = (256, 1e-4) if size.digits_data == "mnist" else (64, size.rate)
    return replace(base, network=replace(base.network, width=width), data=size.digits_data, steps=steps,
                   batch_size=batch, optimizer=replace(base.optimizer, learning_rate=rate))


def trained(config: TrainConfig, keep_every: int) -> Path:
    """The run of a configuration in the user's cache folder: found there, gone on with, or begun."""
    config = replace(config, keep_every=keep_every)
    name = hashlib.sha256(json.dumps(configs.to_json(config)).encode()).hexdigest()[:12]
    workdir = judges.cache().parent / "runs" / name
    options = RunOptions(workdir, resume=(workdir / "config.json").exists(), sample_every=0)
    if checkpoints.latest_step(workdir / "checkpoints") != config.steps:
        try:
            runs.train(config, options, "report-004")
        except Stopped as stopped:  # it is saved, and goes on when called again
            raise KeyboardInterrupt(str(stopped)) from None
    return workdir


@functools.lru_cache(2)
def model_of(workdir: Path, step: int) -> tuple[sampling.Model, judges.Judge]:
    """The model of a checkpoint, and who says what its pictures show."""
    model, _ = runs.load_run(workdir, step)
    return model, label_accuracy.judge_for(model.config, model.facts, None)


def accuracies(
    workdir: Path, step: int, sampler: SamplerConfig, lists: dict[str, np.ndarray], seed: int
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Label accuracy of each list, "shuffled" (of the last list's pictures, for one another's labels); pictures."""
    model, judge = model_of(workdir, step)
    images = {name: sampling.draw(model, sampler, len(rows), seed, rows, batch_size=32).images
              for name, rows in lists.items()}
    found = {name: judges.accuracy(judge, images[name], rows) for name, rows in lists.items()}
    name, rows = list(lists.items())[-1]
    return found | {"shuffled": judges.accuracy(judge, images[name], np.roll(rows, len(rows) // 3, 0))}, images


def scored_steps(steps: int, count: int) -> tuple[int, list[int]]:
    """`count` checkpoints spread over the last quarter of a run, and the distance between those that are kept."""
    every = max(steps // (4 * count), 1)
    return every, [step for step in range(every, steps + 1, every)][-count:]


def lists_for(workdir: Path) -> dict[str, np.ndarray]:
    """The lists of labels that a run can be asked for."""
    _, config, facts = configs.load(workdir / "config.json")
    return label_accuracy.lists_of(config, facts, None)


def followed(
    workdir: Path, steps: list[int], sampler: SamplerConfig, seed: int
) -> tuple[dict[str, list[float]], int, dict[str, np.ndarray]]:
    """Accuracies by checkpoint, which one the validation list chooses, and that one's pictures."""
    known = lists_for(workdir)
    scores = [accuracies(workdir, step, sampler, {name: known[name] for name in LISTS}, seed) for step in steps]
    curves = {name: [found[name] for found, _ in scores] for name in (*LISTS, "shuffled")}
    chosen = int(np.argmax(curves["validation"]))
    return curves | {"step": [float(step) for step in steps]}, chosen, scores[chosen][1]


def measure_run(setting: Setting, size: Size, seed: int) -> Measured:
    """Trains as the report did, and scores the last checkpoints without guidance."""
    config = report_config(setting, size, seed)
    every, steps = scored_steps(config.steps, size.scored)
    workdir, sampler = trained(config, every), replace(config.sampler, num_steps=size.num_steps)
    curves, chosen, images = followed(workdir, steps, sampler, seed)
    losses = label_accuracy.training_losses(workdir)
    numbers = {
        "loss": np.mean([loss for step, loss in losses.items() if step > 0.95 * config.steps]),
        "test": curves["test"][-1], "new": curves["new_test"][-1], "test_mean": np.mean(curves["test"]),
        "new_mean": np.mean(curves["new_test"]), "mean": np.mean([curves["test"], curves["new_test"]]),
        "test_best": max(curves["test"]), "test_chosen": curves["test"][chosen],
        "new_chosen": curves["new_test"][chosen], "shuffled": np.mean(curves["shuffled"]),
        "real": label_accuracy.of_real(model_of(workdir, steps[-1])[1], config),
        "minutes": label_accuracy.training_minutes(workdir)}
    return Measured(numbers, curves | {"loss": list(losses.values())[::10]},
                    {"eight of the test list, checkpoint chosen": plots.tile(images["test"][24:32], 8)})


def measure_asked(ask: Ask, size: Size, seed: int) -> Measured:
    """One trained model; `seed` is that of the noise."""
    config = digits_config(size) if ask.of == "digits" else model_config(size)
    workdir = trained(config, max(config.steps // 10, 1))
    sampler = replace(config.sampler, guidance=ask.guidance, compose=ask.compose,
                      num_steps=min(ask.num_steps, config.schedule.num_steps))
    known = lists_for(workdir)
    names = {"lists": ("test", "new_test"), "pairs": ("unseen", "seen"), "digits": ("classes",)}[ask.of]
    lists = {name: np.repeat(known[name], REPEATS, 0) if ask.of == "pairs" else known[name] for name in names}
    numbers, images = accuracies(workdir, config.steps, sampler, lists, seed)
    first = {"lists": slice(18, 26), "pairs": slice(0, 24, REPEATS), "digits": slice(0, 100, 10)}[ask.of]
    caption = "one of each class" if ask.of == "digits" else f"eight of the list {names[0]}"
    return Measured(numbers, {}, {caption: plots.tile(images[names[0]][first], 10)})


def measure_checkpoints(ask: Ask, size: Size, seed: int) -> Measured:
    """Every kept checkpoint of the recommended model."""
    config = model_config(size)
    every = max(config.steps // 10, 1)
    workdir = trained(config, every)
    steps = [step for step in checkpoints.steps(workdir / "checkpoints") if step % every == 0]
    sampler = replace(config.sampler, guidance=ask.guidance, num_steps=min(ask.num_steps, config.schedule.num_steps))
    curves, chosen, images = followed(workdir, steps, sampler, seed)
    return Measured({name: curves[name][chosen] for name in ("step", *LISTS)}
                    | {"minutes": label_accuracy.training_minutes(workdir)}, curves,
                    {"the test list, checkpoint chosen": plots.tile(images["test"], 8)})


MODEL, BASE, RELU, WAVES = "recommended model", "GELU, linear betas", "ReLU, linear betas", "GELU, cosine betas"
DECAY, BOTH = "GELU, linear betas, lr decay", "GELU, cosine betas, lr decay"
RUNS = (
    Row(BASE, Setting(), {"loss": 0.0014459396, "test": 40 / 72, "new": 52 / 84, "test_mean": 0.5446,
                          "new_mean": 0.5946}, note="the report's base"),
    Row(RELU, Setting(act="relu"), {"loss": 0.0014182666, "test": 39 / 72, "new": 52 / 84, "test_mean": 0.5270,
                                    "new_mean": 0.5926}),
    Row(WAVES, Setting(schedule="waves_at_zero"), note="not in the report"),
    Row(DECAY, Setting(decay="linear"), note="not in the report"),
    Row(BOTH, Setting(schedule="waves_at_zero", decay="linear"),
        {"loss": 0.0005258197, "test": 35 / 72, "new": 41 / 84, "test_mean": 0.4950, "new_mean": 0.5192},
        note="the report's cosine run, two changes"),
    Row("GELU, linear betas, 600 epochs", Setting(epochs=600),
        {"loss": 0.0013609619, "test": 45 / 72, "new": 58 / 84}, note="the report's final model"),
)
MINUTES = Column("minutes", "minutes of training, pauses included", "sound", 1)
RUN_COLUMNS = (
    Column("test", "test list, last checkpoint", "as reported", 3),
    Column("new", "new-test list, last checkpoint", "as reported", 3),
    Column("test_mean", "test, mean of checkpoints", "as reported", 3),
    Column("new_mean", "new test, mean of checkpoints", "as reported", 3),
    Column("loss", "training loss", "as reported", 5),
    Column("test_chosen", "test, checkpoint chosen on the validation list", "sound", 3),
    Column("new_chosen", "new test, the same", "sound", 3),
    Column("test_best", "test, checkpoint chosen on that list", "control", 3),
    Column("shuffled", "the pictures, for one another's labels", "control", 3),
    Column("real", "real pictures of this size", "control", 3), MINUTES)


def _above(a: str, b: str):
    return lambda results: verdict_above("mean of both lists over checkpoints", results.difference(a, b, "mean"))


def _lower_loss(results: Results) -> Verdict:
    both = loss, accuracy = [results.difference(BASE, BOTH, key) for key in ("loss", "mean")]
    agree = all(difference.mean - difference.margin > 0 for difference in both)
    return Verdict("holds" if agree else "cannot be told", f"loss: {loss}; accuracy: {accuracy}")


def _chosen(results: Results) -> Verdict:
    gap = results.difference(BASE, BASE, "test_best", "test_chosen")
    return Verdict("does not hold" if gap.mean - gap.margin > 0 else "cannot be told",
                   f"best on the test list less chosen on the validation list: {gap}")


RULE = "difference of the mean accuracy (both lists, all checkpoints scored), paired by seed"
CLAIMS = (
    Claim("GELU trains better than ReLU", RULE + ", is above 0", _above(BASE, RELU)),
    Claim("Linear betas are clearly better than cosine betas", RULE + ", is above 0; nothing else differs",
          _above(BASE, WAVES)),
    Claim("A smaller loss does not imply a better accuracy", "the cosine run with decay has the smaller loss and the "
          "smaller accuracy (two beta tables weigh noise levels differently, so losses say little)", _lower_loss),
    Claim("The best checkpoint's score on the test list is the model's accuracy", "the checkpoint that a validation "
          "list chooses scores as much", _chosen),
)
BOTH_LISTS = (Column("test", "test list", "sound", 3), Column("new_test", "new-test list", "sound", 3),
              Column("shuffled", "the pictures, for one another's labels", "control", 3))
MODEL_TABLES = (
    Table("checkpoints", "The recommended model while it trains", "Each tenth of the run (averaged parameters), "
          "guidance 2, 25 steps. The checkpoint is chosen by the validation list alone.",
          (Row(MODEL, Ask(num_steps=25)),),
          (Column("step", "chosen step", "sound", 0), Column("validation", "validation list", "sound", 3),
           *BOTH_LISTS[:2], MINUTES), measure_checkpoints,
          plots=(Plot("accuracy", "Label accuracy while training, seed 0.", lambda results: (
              results.curve(MODEL, "step"), {name: results.curve(MODEL, name) for name in LISTS}), "step",
              "label accuracy"),), seeds={"smoke": 1, "quick": 1}),
    Table("guidance", "Guidance", "Weight w of classifier-free guidance; 50 steps of DPM-Solver++(2M). One model; "
          "seeds are those of the noise, which is the same in every row.",
          tuple(Row(f"w = {w:g}", Ask(guidance=w)) for w in (0.0, 1.0, 2.0, 4.0)), BOTH_LISTS, measure_asked),
    Table("steps", "Number of steps", "Transitions of the sampler with guidance 2; each evaluates the network twice a "
          "picture.", tuple(Row(f"{n} steps", Ask(num_steps=n)) for n in (10, 25, 50, 400)), BOTH_LISTS, measure_asked,
          seeds={"quick": 2}),
    Table("composition", "All labels at once, or each by itself", "Composed: eps_0 + sum_i (1 + w) (eps_i - eps_0), "
          "four evaluations a picture and step; 25 steps.",
          tuple(Row(f"{'composed' if each else 'at once'}, w = {w:g}", Ask(guidance=w, num_steps=25, compose=each))
                for each in (False, True) for w in (0.0, 1.0, 2.0)), BOTH_LISTS, measure_asked, seeds={"quick": 2}),
    Table("unseen pairs", "Pairs that no training picture shows", "Twelve pairs (every object once) were held out of "
          f"training, alone and in threes; twelve others of the same make-up are the control. {REPEATS} pictures a "
          "pair and seed, 25 steps.",
          (Row("at once, w = 0", Ask(0.0, 25, of="pairs")), Row("at once, w = 2", Ask(2.0, 25, of="pairs")),
           Row("composed, w = 1", Ask(1.0, 25, True, "pairs"))),
          (Column("unseen", "pairs held out", "sound", 3), Column("seen", "other pairs", "control", 3),
           BOTH_LISTS[2]), measure_asked),
    Table("digits", "Guided digits, as in the script that the report grew from", "TeaPearce's network and weights; "
          "ten pictures of each class a seed. Accuracy is that of the judge of digits.",
          tuple(Row(f"w = {w:g}", Ask(w, 100, of="digits")) for w in (0.0, 0.5, 2.0)),
          (Column("classes", "accuracy", "sound", 3), BOTH_LISTS[2]), measure_asked, seeds={"quick": 2}),
)
QUICK = Size(16, 28, 32, steps=800, rate=1e-3, scored=2, num_steps=50, model=(48, 4, 32, 2500), digits=(16, 400))
REPORT = Report(
    "004", "several labels a picture: a conditional DDPM for iCLEVR",
    "The report trains TeaPearce's ContextUnet on iCLEVR (64x64, 24 objects, up to three in a picture) and has the "
    "course's evaluator look for the objects that were asked for: of each picture as many of its highest outputs as it "
    "has labels; hits over labels. It compares GELU with ReLU and linear with cosine betas, without guidance. "
    "iCLEVR's pictures and that evaluator cannot be had here: **the printed numbers belong to another data set and "
    "another judge than ours**, so compare rows, not columns. Ours are rendered scenes of the same objects, made up in "
    "the same way, and a ResNet18 trained on them. With iCLEVR: `python train.py context-unet --data iclevr --data-dir "
    "DIR --keep-every 700`, then `python -m dipddpm_jax label-accuracy RUN --evaluator checkpoint.pth`.",
    (Table("training", "The report's runs, one change at a time", "Drawn by all steps of DDPM without guidance, as the "
           "report did. Its choice of checkpoint looked at the test lists; ours looks at a validation list.", RUNS,
           RUN_COLUMNS, measure_run, CLAIMS, seeds={"quick": 1}), *MODEL_TABLES),
    {"smoke": Size(8, 32, 4, 4, 1e-3, 1, 2, (8, 4, 4, 10), (8, 2)), "quick": QUICK,
     "full": Size(128, 64, 128, 56_000, 1e-4, 19, 400, (128, 2, 128, 60_000), (128, 4680), "mnist")},
    {"smoke": "a few steps.",
     "quick": f"pictures of {QUICK.side}x{QUICK.side}, width {QUICK.width}, {QUICK.steps} steps of {QUICK.batch} at "
     "rate 1e-3 in place of 64x64, 128, 400 epochs (56,000 steps of 128 at 1e-4); "
     f"{QUICK.scored} checkpoints of the last quarter, not 19; {QUICK.num_steps} of 400 steps when drawing. "
     f"Recommended model: 64x64, width 48, patches of 4, {QUICK.model[3]} steps of 32. Digits: mnist5k, width "
     f"{QUICK.digits[0]}, {QUICK.digits[1]} steps of 64.",
     "full": "as in the report; the recommended model with width 128, patches of 2, 60,000 steps of 128."},
    {"smoke": 1, "quick": 2, "full": 3})
