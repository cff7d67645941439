"""Pretrained priors: from a run to a file in dipddpm_jax/weights, judged after its rounding, and docs/priors.md.

    python benchmarks/priors.py make digits RUN [RUN ...] --data-dir FOLDER [--count N] [--seed N]
    python benchmarks/priors.py page

Of several runs, each of which started from the one before (train.py --from), the last one's weights are taken. Pictures
are drawn from the very numbers that the file holds (half precision), and compared with the run's training pictures.
"""
import argparse
import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

REPO = Path(__file__).parents[1]
sys.path.insert(0, str(REPO))

import json  # noqa: E402

from benchmarks.few_steps import training_of  # noqa: E402
from dipddpm_jax import classical, data, devices, plots, pretrained, records, torch_files, torch_weights  # noqa: E402
from dipddpm_jax.commands import model as models  # noqa: E402
from dipddpm_jax.commands.evaluation import network_calls  # noqa: E402
from dipddpm_jax.commands.labels import default_labels  # noqa: E402
from dipddpm_jax.config import saved  # noqa: E402
from dipddpm_jax.config.diffusion import TrainConfig  # noqa: E402
from dipddpm_jax.config.presets import PRESETS  # noqa: E402
from dipddpm_jax.hybrids.truncated_reverse import one_step  # noqa: E402
from dipddpm_jax.inverse import operators  # noqa: E402
from dipddpm_jax.inverse.measurement import Measurement  # noqa: E402
from dipddpm_jax.inverse.noises import Gaussian  # noqa: E402
from dipddpm_jax.judging import comparison, judges, metrics  # noqa: E402

SHOWN = 8  # rows of the picture
REFERENCE = 10_000  # real pictures at most, of those trained on, that samples are compared with
FIGURES = ("judge", "judge_accuracy", "n", "reference", "fd", "spread", "floor", "kid", "kid_spread", "kid_floor",
           "sliced_wasserstein", "sliced_wasserstein_floor", "precision", "precision_floor", "recall", "recall_floor",
           "label_accuracy", "label_accuracies", "by_count", "mean_confidence", "real_mean_confidence")


def options(config: Any, base: Any, prefix: str = "--") -> list[str]:
    """The words that a command line needs for a configuration whose default is `base`."""
    words = []
    for field in dataclasses.fields(config):
        new, old = getattr(config, field.name), getattr(base, field.name, None)
        name = f"{prefix}{'from' if field.name == 'start' else field.name.replace('_', '-')}"
        if dataclasses.is_dataclass(new):
            words += options(new, old, f"{name}.")
        elif isinstance(new, bool) and new != old:
            before, _, last = name.rpartition("." if "." in name else "--")
            words.append(name if new else f"{before}.no-{last}" if before else f"--no-{last}")
        elif new != old:
            words += [name, *map(str, new if isinstance(new, tuple) else (new,))]
    return words


def shortened(config: TrainConfig, step: int) -> TrainConfig:
    """The configuration of a run that ended at a step; at a constant rate one that was cut short is a shorter one."""
    if step < config.steps and config.optimizer.decay != "constant":
        raise SystemExit(f"a run of {config.steps} steps with a falling rate, cut at {step}, has no command of its own")
    return dataclasses.replace(config, steps=step)


def command_of(workdir: Path, step: int) -> str:
    """The command line that makes a run up to a step, without its folders."""
    preset, config, _ = saved.load(workdir / "config.json")
    if config.few_step is not None:
        return training_of(workdir)["train"]
    config = shortened(config, step)
    base, words = PRESETS["unet"][1], ["python", "train.py"]
    if config.start is not None:
        base = pretrained.configuration_of_start(config.start)[1]  # what --from takes over
        if config.start not in pretrained.PRIORS:
            config = dataclasses.replace(config, start="RUN")  # the one whose command stands before
    else:
        if preset not in PRESETS:  # of an experiment: the nearest one
            alike = [name for name, (_, of) in PRESETS.items() if type(of.network) is type(config.network)]
            preset = min(alike, key=lambda name: len(options(config, PRESETS[name][1])))
        base, words = PRESETS[preset][1], [*words, *([preset] if preset != "unet" else [])]
    return shlex.join([*words, *options(config, base)])


def hours_of(workdir: Path, step: int) -> float:
    """Hours of computing up to a step, from the speed that the log tells of each chunk."""
    _, config, _ = saved.load(workdir / "config.json")
    seconds, before = 0.0, 0
    for row in records.read_lines(workdir / "metrics.jsonl"):
        if row.get("images_per_s") and row["step"] <= step:
            seconds += (row["step"] - before) * config.batch_size / row["images_per_s"]
            before = row["step"]
    return seconds / 3600


def rounded(model: models.Model) -> tuple[models.Model, dict[str, np.ndarray]]:
    """The model with its weights in half precision, and these as a file holds them."""
    state = {name: value.astype(np.float16) if value.dtype == np.float32 else value
             for name, value in torch_weights.export_torch(model.weights).items()}
    wide = {name: value.astype(np.float32) if value.dtype == np.float16 else value for name, value in state.items()}
    shapes = jax.eval_shape(lambda: model.weights)
    return model._replace(weights=torch_weights.import_torch(wide, shapes)), state


def denoised(model: models.Model, held: np.ndarray, count: int, seed: int) -> tuple[dict[str, Any], np.ndarray]:
    """How a prior without labels denoises held-out pictures in one call and in eight, with non-local means beside it:
    mean PSNR in dB at three levels; and eight of them at the middle one, noisy, restored and clean."""
    clean = held[np.random.default_rng(seed).permutation(len(held))[:count]].astype(np.float32) / 255
    methods = {"restored": one_step(model.prior()), "turned": one_step(model.prior(), turned=True),
               "non-local means": classical.non_local_means()}
    table, shown = {}, clean[:8]
    for sigma in (15, 25, 50):
        noisy = np.asarray(Gaussian(sigma / 255).draw(jax.random.key(seed), clean))
        found = {"noisy": noisy} | {
            method: np.stack([np.asarray(restore(Measurement(y, operators.identity, Gaussian(sigma / 255)),
                                                 jax.random.key(seed)).picture) for y in noisy])
            for method, restore in methods.items()}
        table[str(sigma)] = {method: float(np.mean(metrics.psnr(clean, np.clip(x, 0, 1), 1.0)))
                             for method, x in found.items()}
        if sigma == 25:
            shown = np.concatenate([found["noisy"][:8], found["turned"][:8], clean[:8]])
    return {"n": len(clean), "denoised": table}, np.rint(255 * np.clip(shown, 0, 1)).astype(np.uint8)


def drawn_and_judged(
    model: models.Model, data_dir: Path | None, count: int, seed: int
) -> tuple[dict[str, Any], np.ndarray, int]:
    """How a judge finds pictures drawn by label, some of them, and the network calls of each."""
    sampler, facts = model.config.sampler, model.facts
    real = data.load(model.config.data, "train", data_dir, model.config.image_size)
    labels = default_labels(facts, count, real.labels if facts.multi_hot else None)
    drawn = models.draw(model, sampler, count, seed, labels)
    some = np.random.default_rng(seed).permutation(len(real.images))[:REFERENCE]
    judged = comparison.compare(judges.judge_for(model.config.data), drawn.images, real.images[some], labels, seed,
                                real_labels=real.labels[some])
    if facts.multi_hot:
        asked, judge = np.asarray(labels).sum(1).astype(int), judges.judge_for(model.config.data)
        judged["by_count"] = {str(k): judges.accuracy(judge, drawn.images[asked == k], labels[asked == k])
                              for k in np.unique(asked)}
    return ({key: judged[key] for key in FIGURES if key in judged}, drawn.images,
            network_calls(sampler, model.config, labels))


def make(name: str, runs: list[Path], data_dir: Path | None, count: int, seed: int) -> None:
    """Writes the prior's file with its card, and its picture."""
    model, state = rounded(models.load_run(runs[-1]))
    sampler, facts = model.config.sampler, model.facts
    if facts.label_names:
        judged, pictures, calls = drawn_and_judged(model, data_dir, count, seed)
    else:
        held = data.load(model.config.data, "test", data_dir, model.config.image_size).images
        judged, pictures = denoised(model, held, count, seed)
        calls = 1
    steps = [saved.load(run / "config.json")[1].steps for run in runs[:-1]] + [model.step]
    card = {"name": name, "commands": list(map(command_of, runs, steps)), "steps": steps,
            "hours": sum(map(hours_of, runs, steps)), "data": model.config.data, "pictures": facts.count,
            "parameters": sum(v.size for v in state.values()),
            "sampler": dataclasses.asdict(sampler), "network_calls": calls,
            "judged": judged,
            **records.provenance(seed, shlex.join(["python", "benchmarks/priors.py", "make", name, "RUN"]))}
    record = saved.to_record(dataclasses.replace(shortened(model.config, model.step), start=None), name, facts)
    path = pretrained.path_of_prior(name)
    torch_files.write_state(state, path, {saved.EXPORTED: json.dumps(record),
                                          pretrained.CARD: records.json_text(card)})
    path.chmod(0o644)
    if path.stat().st_size > pretrained.MOST_BYTES:
        raise SystemExit(f"{path} has {path.stat().st_size} bytes; a prior has at most {pretrained.MOST_BYTES}")
    columns = min(len(facts.label_names), 10) or 8
    (REPO / "docs" / "priors").mkdir(exist_ok=True)
    plots.save_grid(pictures[: SHOWN * columns], REPO / "docs" / "priors" / f"{name}.png", columns)


INTRO = """# Pretrained models that come with the package

    python sample.py --prior digits --labels 3 7          draws from one; no training, no download
    python train.py --from digits --data mine.npz         goes on with its weights on other pictures
    python sample.py --prior digits-fast --labels 3 7     draws in two network calls (results/few_steps.md)
    python train.py few-step --from digits                a model that draws in two calls, as digits-fast; also of a run
    python sample.py --prior scenes --labels "red cube,blue sphere"     draws a scene of these objects
    python sample.py --prior photos --restore a.jpg       restores a photograph in colour, of any size
    python sample.py --prior photos-grey --restore b.png  the same in grey
    python -m dipddpm_jax evaluate --prior digits         judges it again (its data set must be at hand)
    model = dipddpm_jax.load_prior("digits")              the same as a value: network, weights, schedule, denoiser

`--from` also takes a run's directory and a file by `dipddpm-jax export`. From Python:
`dipddpm_jax.train(images, labels, preset=dataclasses.replace(model.config, start="digits"))`. Without a preset the new
run has the prior's configuration; what is typed beside it changes that, but for the network, whose shapes are those of
the weights.

The figures below are of pictures drawn from the weights as the file holds them, in half precision. FD and its like are
distances in a small classifier's features (see [the judges](results/judges.md)); they are no FID.
"""


def page() -> str:
    """docs/priors.md, from the cards alone."""
    lines = [INTRO]
    for name, prior in pretrained.PRIORS.items():
        card, kilobytes = pretrained.card_of_prior(name), round(pretrained.path_of_prior(name).stat().st_size / 1000)
        j, sampler = card["judged"], card["sampler"]
        hours = f"{card['hours']:.1f} hours" if card["hours"] >= 1 else f"{60 * card['hours']:.0f} minutes"
        lines += [f"## {name}", "", f"{prior.what[0].upper()}{prior.what[1:]}. {card['parameters']:,} parameters, "
                  f"{kilobytes} kB; trained on {card['pictures']:,} pictures of `{card['data']}` for "
                  f"{' + '.join(map(str, card['steps']))} steps, {hours} while other programs shared the machine "
                  f"({card['machine']}, {card['date']}):", "",
                  *(f"    {command}" for command in card["commands"]), "",
                  f"![{name}](priors/{name}.png)", ""]
        versions = f"{', '.join(f'{k} {v}' for k, v in card['versions'].items())}."
        if "denoised" in j:
            lines += [f"Above, from top: held-out crops with noise of sigma 25, after eight calls, clean. Mean PSNR "
                      f"in dB of {j['n']} held-out crops; the level of the noise is told:", "",
                      "| sigma of 255 | noisy | non-local means | after one call | mean of eight, turned |",
                      "|---" * 5 + "|",
                      *(f"| {sigma} | {row['noisy']:.2f} | {row['non-local means']:.2f} | {row['restored']:.2f} | "
                        f"{row['turned']:.2f} |"
                        for sigma, row in j["denoised"].items()), "", f"Seed {card['seed']}; {versions}", ""]
            continue
        lines += [f"| n = {j['n']}, beside {j['reference']:,} real pictures | samples | real pictures in their place |",
                  "|---" * 3 + "|"]
        for title, key, floor, digits, scale in (
                (f"FD({j['judge']})", "fd", "floor", 3, 1), (f"KID({j['judge']}) x 1000", "kid", "kid_floor", 3, 1000),
                ("sliced Wasserstein", "sliced_wasserstein", "sliced_wasserstein_floor", 3, 1),
                ("precision", "precision", "precision_floor", 3, 1), ("recall", "recall", "recall_floor", 3, 1),
                ("label accuracy (real: held-out)", "label_accuracy", "judge_accuracy", 4, 1),
                ("mean confidence", "mean_confidence", "real_mean_confidence", 3, 1)):
            if key in j:
                spread = {"fd": "spread", "kid": "kid_spread"}.get(key)
                more = f" ± {scale * j[spread]:.{digits}f}" if spread else ""
                lines.append(f"| {title} | {scale * j[key]:.{digits}f}{more} | {scale * j[floor]:.{digits}f} |")
        accuracies, asked = ((j["by_count"], "objects asked for") if "by_count" in j
                             else (j["label_accuracies"], "asked for"))
        lines += ["", f"| {asked} | " + " | ".join(accuracies) + " |", "|---" * (1 + len(accuracies)) + "|",
                  "| label accuracy | " + " | ".join(f"{value:.3f}" for value in accuracies.values()) + " |", "",
                  f"Sampler {sampler['name']}, guidance {sampler['guidance']:g}, {card['network_calls']} network calls "
                  f"a picture, seed {card['seed']}; {versions}", ""]
    return "\n".join([*lines, "Rebuilt by `python benchmarks/priors.py page` from the cards in the files.", ""])


def main() -> None:
    """Makes a prior, or the page of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "page"))
    parser.add_argument("name", nargs="?", choices=tuple(pretrained.PRIORS))
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.what == "make":
        if not args.runs:
            parser.error("make needs a name and the directory of a run")
        devices.set_up()
        make(args.name, args.runs, args.data_dir, args.count, args.seed)
    (REPO / "docs" / "priors.md").write_text(page())


if __name__ == "__main__":
    main()
