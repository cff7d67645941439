"""How good pictures are: drawn or read, judged beside real ones, and compared with those that the model was shown."""
import time
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from dipddpm_jax import data, devices, plots, records
from dipddpm_jax.commands import builders
from dipddpm_jax.commands import model as model_module
from dipddpm_jax.commands.labels import default_labels
from dipddpm_jax.commands.starts import load_prior
from dipddpm_jax.config.diffusion import TrainConfig
from dipddpm_jax.config.sampler import SAMPLERS, SamplerConfig, begins_with_pictures
from dipddpm_jax.errors import UserError
from dipddpm_jax.files import write_text, writing
from dipddpm_jax.judging import comparison, judges

COMPARED = 500  # pictures whose nearest training picture is looked for
SHOWN = 10


class Samples(NamedTuple):
    """Pictures, the labels that were asked for, and how they came about."""

    images: UInt8[np.ndarray, "n h w c"]
    labels: np.ndarray | None
    label_names: tuple[str, ...]
    source: str
    made: dict[str, Any]


def write_evaluation(
    command: Any, workdir: Path | None, config: TrainConfig | None, sampler: SamplerConfig | None, out: Path
) -> str:
    """Writes evaluation.json, evaluation.md, nearest.png and the samples; returns the Markdown. Raises UserError."""
    devices.set_up()
    name, size = command.data or config.data, config.image_size if config and not command.data else None
    train = data.load(name, "train", command.data_dir, size)
    try:
        held = data.load(name, "test", command.data_dir, size)
    except data.MissingSplit:  # a damaged split is an error
        held = train._replace(images=train.images[:0])
    judge = judges.judge_for(name, command.judge)
    samples = read_samples(command.samples) if command.samples else draw_asked(command, workdir, sampler, held)
    if samples.images.shape[-1] != train.images.shape[-1]:
        raise UserError(f"the samples have {samples.images.shape[-1]} channels, the pictures of {name} "
                        f"{train.images.shape[-1]}")
    labels = fitting(samples, judge)
    real_labels = train.labels if train.label_names == judge.label_names else None
    result = {"source": samples.source, "data": name, **comparison.compare(
        judge, samples.images, train.images, labels, command.seed, real_labels=real_labels), **samples.made}
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        if samples.images.shape == (len(samples.images), *train.images.shape[1:]):
            result["nearest"] = compare_nearest(samples.images, train.images, held.images, out / "nearest.png")
        origin = records.provenance(command.seed)
        result |= {**origin, "source": samples.source, "code": origin["source"]}  # of the pictures, and of this package
        records.write_json(result, out / "evaluation.json")
        write_text(out / "evaluation.md", text := page(result))
        write_samples(samples, None if command.samples else out / "samples.npz", command.png_folder)
    return f"{text}\nWritten to {out}"


def read_samples(path: Path) -> Samples:
    """The .npz that sample.py writes, or somebody else's. Raises UserError."""
    try:
        with np.load(path) as file:
            images, labels = file["images"], file["labels"] if "labels" in file.files else None
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"--samples {path} is not an .npz file with `images` ({error})") from None
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) < 2:
        raise UserError(f"--samples {path}: `images` must be uint8 with axes n h w c; it is {images.dtype} "
                        f"{images.shape}")
    if labels is not None and len(labels) != len(images):
        raise UserError(f"--samples {path} has {len(images)} images and {len(labels)} labels")
    return Samples(images, labels, (), str(path), {})


def draw_asked(command: Any, workdir: Path, sampler: SamplerConfig, held: data.Dataset) -> Samples:
    """`count` pictures of a run: of all classes in turn, or of the sets of labels that held-out pictures have."""
    model = load_prior(command.prior) if command.prior else model_module.load_run(workdir, command.step)
    source = f"the prior {command.prior}" if command.prior else f"step {model.step} of {workdir}"
    labels = default_labels(model.facts, command.count, held.labels)
    if sampler.guidance and labels is None:
        raise UserError("--guidance needs a model that was trained with labels, and this one was not")
    began = time.perf_counter()
    pictures = held.images if begins_with_pictures(sampler) else None
    drawn = model_module.draw(model, sampler, command.count, command.seed, labels, 0, command.batch_size, pictures)
    later = command.count - command.batch_size
    made = {"sampler": {k: getattr(sampler, k) for k in sampler.__dataclass_fields__}, "sample_seed": command.seed,
            "network_calls": network_calls(sampler, model.config, labels),
            "seconds": round(time.perf_counter() - began, 2),
            "seconds_a_picture": drawn.seconds / later if later > 0 else None}
    return Samples(drawn.images, labels, model.facts.label_names, source, made)


def network_calls(sampler: SamplerConfig, config: TrainConfig, labels: np.ndarray | None) -> int | None:
    """NFE: how many pictures the network sees for each one drawn. The last call of heun is made, but not used.

    None for a sampler of the user's, which may call the network as often as it likes.
    """
    if sampler.name not in SAMPLERS:
        return None
    row = SAMPLERS[sampler.name]
    if begins_with_pictures(sampler):
        return sampler.num_steps or row.num_steps
    calls = row.calls * (len(builders.sampling_grid(sampler, builders.make_schedule(config.schedule))) - 1)
    if labels is None:
        return calls
    if sampler.compose and labels.ndim == 2:
        return calls * (1 + int(labels.sum(1).max()))
    return calls * (2 if sampler.guidance else 1)


def fitting(samples: Samples, judge: judges.Judge) -> np.ndarray | None:
    """The labels, if the judge speaks of the same ones. Raises UserError for those of a file that cannot be."""
    labels, known = samples.labels, len(judge.label_names)
    if labels is None or samples.label_names not in ((), judge.label_names):
        return None
    rows = labels.ndim == 2 and labels.shape[1] == known and np.isin(labels, (0, 1)).all()
    classes = labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer) and np.isin(labels, np.arange(known)).all()
    if not rows and not classes:
        raise UserError(f"the labels of {samples.source} are not those of the judge {judge.name}, which knows {known}: "
                        f"{', '.join(judge.label_names[:30])}")
    return labels.astype(np.float32 if rows else np.int32)


def nearest(
    pictures: UInt8[np.ndarray, "n h w c"], train: UInt8[np.ndarray, "m h w c"]
) -> tuple[Int[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """For each picture which training picture has the least root mean square difference of pixels, and that."""
    flat = pictures.reshape(len(pictures), -1).astype(np.float32)
    least, which = np.full(len(flat), np.inf, np.float32), np.zeros(len(flat), np.int64)
    for start in range(0, len(train), 1000):
        block = train[start : start + 1000].reshape(-1, flat.shape[1]).astype(np.float32)
        squared = (block**2).sum(1)[None] - 2 * flat @ block.T
        found = squared.argmin(1)
        better = (value := squared[np.arange(len(flat)), found]) < least
        least[better], which[better] = value[better], start + found[better]
    return which, np.sqrt(((flat - train[which].reshape(flat.shape)) ** 2).mean(1, dtype=np.float64))


def compare_nearest(
    samples: UInt8[np.ndarray, "n h w c"], train: UInt8[np.ndarray, "m h w c"], held: UInt8[np.ndarray, "k h w c"],
    path: Path,
) -> dict[str, Any]:
    """Writes nearest.png. A model that repeats its training pictures is nearer to them than held-out pictures are."""
    which, distance = nearest(samples[:COMPARED], train)
    order = np.argsort(distance, kind="stable")[:SHOWN]
    rows = [("the first samples", np.arange(min(SHOWN, len(which)))), ("the samples nearest to any", order)]
    save_pairs([(f"{title}, and below them the nearest training pictures", samples[i], train[which[i]], distance[i])
                for title, i in rows], path)
    held_distance = nearest(held[:COMPARED], train)[1] if len(held) else None
    return {"pictures": len(which), "median": float(np.median(distance)), "least": float(distance.min()),
            "held_out_median": None if held_distance is None else float(np.median(held_distance)),
            "held_out_least": None if held_distance is None else float(held_distance.min())}


def save_pairs(blocks: list[tuple[str, np.ndarray, np.ndarray, np.ndarray]], path: Path) -> None:
    """Writes rows of pictures above those nearest to them, each pair with its distance."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.4), layout="constrained")
    for part, (title, upper, lower, distance) in zip(figure.subfigures(len(blocks), 1), blocks):
        part.suptitle(title, fontsize=9)
        axes = part.subplots(2, len(upper), squeeze=False)
        for column, pair in enumerate(zip(upper, lower)):
            for ax, image in zip(axes[:, column], pair):
                ax.imshow(plots.picture(image), cmap="gray", vmin=0, vmax=255)
                ax.axis("off")
            axes[0, column].set_title(f"{distance[column]:.1f}", fontsize=8)
    figure.savefig(path, dpi=110)


def write_samples(samples: Samples, npz: Path | None, folder: Path | None) -> None:
    """For later, and for other programs."""
    if npz:
        np.savez_compressed(npz, images=samples.images,
                            **({} if samples.labels is None else {"labels": samples.labels}))
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(samples.images):
            plots.picture(image).save(folder / f"{i:06d}.png")


def page(r: dict[str, Any]) -> str:
    """evaluation.md."""
    def row(title: str, *cells: float | None, digits: int = 3) -> str:
        return f"| {title} | " + " | ".join("" if c is None else f"{c:.{digits}f}" for c in cells) + " |"

    name, near = r["judge"], r.get("nearest")
    lines = [f"# Pictures of {r['source']}", "",
             f"| | samples | real pictures of {r['data']} in their place | standard deviation |", "|---|---|---|---|",
             row(f"FD({name}), n = {r['n']}", r["fd"], r["floor"], r["spread"]),
             row(f"KID({name}) x 1000", *(1000 * r[key] for key in ("kid", "kid_floor", "kid_spread")))]
    lines += [row(title, r[key], r[f"{key}_floor"], r[f"{key}_floor_spread"]) for title, key in (
        (f"sliced Wasserstein({name})", "sliced_wasserstein"), ("precision", "precision"), ("recall", "recall"))]
    if "label_accuracy" in r:
        lines.append(row("label accuracy (real: held-out)", r["label_accuracy"], r["judge_accuracy"], None))
    lines.append(row("mean confidence", r["mean_confidence"], r["real_mean_confidence"], None))
    if near:
        lines.append(row("nearest training picture, median (real: held-out)", near["median"], near["held_out_median"],
                         None, digits=1))
        lines.append(row("the same, least", near["least"], near["held_out_least"], None, digits=1))
    lines += ["", "| share of pictures taken for | " + " | ".join(r["histogram"]) + " |",
              "|---" * (1 + len(r["histogram"])) + "|"]
    lines += [row(title, *r[key].values()) for title, key in (("samples", "histogram"), ("real", "real_histogram"))]
    if "label_accuracies" in r:
        lines.append(row("label accuracy of those asked for it", *map(r["label_accuracies"].get, r["histogram"])))
    fewer = f" (of {r['samples']}: there are too few real pictures for more)" if r["samples"] > r["n"] else ""
    same = "with the classes of the samples" if r["floor_classes"] == "as asked" else "drawn at random"
    lines += ["", f"FD and KID compare {r['n']} samples{fewer} with {r['reference']} real pictures in the "
              f"{r['dimensions']} features of the classifier `{name}`; the second column has {r['n']} real pictures "
              f"in the samples' place, {same}, and is the mean of {r['splits']} splits of the real ones: it is the "
              "floor. The third column is the standard deviation over draws of as many samples and real pictures, of "
              "the sliced Wasserstein distance, precision and recall that of the floor. Precision is the share of "
              "samples that real pictures surround, recall that of real pictures that samples surround (3 nearest "
              f"neighbours, at most {comparison.MANIFOLD_ROWS} of each)."
              + (f" Distances to training pictures are root mean squares of pixels 0..255, of {near['pictures']} "
                 "pictures (nearest.png)." if near else "")]
    if "sampler" in r:
        s, calls = r["sampler"], r["network_calls"] or "an unknown number of"
        lines += ["", f"Sampler {s['name']}, guidance {s['guidance']:g}, {calls} network calls a picture, "
                  f"{r['seconds']:.1f} s with compilation for {r['samples']} pictures, seed {r['sample_seed']}."]
    versions = ", ".join(f"{k} {v}" for k, v in r["versions"].items())
    lines += ["", f"{r['machine']}; {versions}; {r['date']}; seed {r['seed']}."]
    return "\n".join(lines) + "\n"
