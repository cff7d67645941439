"""Judges: small classifiers that say what a picture shows, and in whose features sets of pictures are compared.

Their weights are .safetensors files with PyTorch's names, in half precision; what a file says of itself (data, seed,
accuracy on held-out pictures) was measured with these very weights by the command that wrote it.
"""
import json
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Float64, Int, PyTree, UInt8
from scipy.special import expit, softmax

from dipddpm_jax import records, torch_weights
from dipddpm_jax.diffusion.training import Pixels
from dipddpm_jax.errors import UserError
from dipddpm_jax.judging import metrics, train_judge
from dipddpm_jax.networks.classifier import Classifier
from dipddpm_jax.networks.resnet18 import ResNet18

SHIPPED = ("digits", "crops", "scenes")
NETWORKS = {network.__name__: network for network in (Classifier, ResNet18)}
BATCH = 64  # pictures read at once
KERNEL_ROWS = 2000  # at most so many pictures of a set are compared by the kernel distance


class Judge(NamedTuple):
    """A trained classifier; `accuracy` is that on its held-out pictures, nan where unknown."""

    name: str
    network: nn.Module
    weights: PyTree
    accuracy: float
    image_shape: tuple[int, int, int] = (64, 64, 3)
    label_names: tuple[str, ...] = ()
    several: bool = True  # labels a picture
    record: dict[str, Any] | None = None  # how it was trained


def path_of(name: str) -> Path:
    """Where the weights of a judge belong: inside the package, or for further data sets in the user's cache folder."""
    if name in SHIPPED:
        return Path(__file__).parents[1] / "weights" / f"{name}.safetensors"
    return cache() / f"{name}.safetensors"


def cache() -> Path:
    """The user's cache folder for judges."""
    return records.cache_folder() / "judges"


def load(name: str, path: Path | None = None) -> Judge:
    """The judge of that name, or the one in the file `path`. UserError names the command which builds it."""
    path = path or path_of(name)
    if not path.is_file():
        raise UserError(f"the judge {name!r} has no weights here ({path}); build them: "
                        f"python -m dipddpm_jax judge {name}")
    state, record = torch_weights.read(path), _record(path)
    network = NETWORKS[record["network"]](len(record["label_names"]), tuple(record["widths"]))
    shape = tuple(record["image_shape"])
    weights = torch_weights.import_torch({k: v.astype(np.float32) for k, v in state.items()}, _template(network, shape))
    return Judge(name, network, weights, record["accuracy"], shape, tuple(record["label_names"]), record["several"],
                 record)


def _record(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        metadata = file.metadata() or {}
    if "judge" not in metadata:
        raise UserError(f"{path} holds weights, but no judge: python -m dipddpm_jax judge writes those")
    return json.loads(metadata["judge"])


def _template(network: nn.Module, shape: tuple[int, ...]) -> PyTree:
    return jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, *shape))))


def load_course_checkpoint(path: Path) -> Judge:
    """The evaluator of the iCLEVR course, checkpoint.pth: torchvision's ResNet18 with Linear and Sigmoid, which sees
    64x64 pictures in [-1, 1]. Raises UserError for other files."""
    from dipddpm_jax.data.scenes import OBJECTS

    network = ResNet18(len(OBJECTS))
    try:
        weights = torch_weights.import_torch(torch_weights.read(path), _template(network, (64, 64, 3)))
    except UserError as error:
        raise UserError(f"{path} is not the course's evaluator, a ResNet18 with {len(OBJECTS)} outputs: "
                        f"{str(error)[:300]}") from None
    weights = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), weights)
    return Judge(Path(path).name, network, weights, float("nan"), label_names=OBJECTS)


def scores(judge: Judge, images: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n k"]:
    """Probabilities of labels: each for itself where a picture may have several, else they sum to 1."""
    return read(judge, images)[1]


def features(judge: Judge, images: UInt8[np.ndarray, "n h w c"]) -> Float64[np.ndarray, "n d"]:
    """What the judge's last layer sees."""
    return read(judge, images)[0]


def read(
    judge: Judge, images: UInt8[np.ndarray, "n h w c"]
) -> tuple[Float64[np.ndarray, "n d"], Float[np.ndarray, "n k"]]:
    """(features, probabilities). Pictures of another size are resized first (bilinear, antialiased).

    Raises UserError for other numbers of channels.
    """
    if images.shape[-1] != judge.image_shape[-1]:
        raise UserError(f"the judge {judge.name} looks at pictures of {judge.image_shape[-1]} channels, and these have "
                        f"{images.shape[-1]}")
    parts, batch = [], min(BATCH, 1 << (len(images) - 1).bit_length())  # powers of two: few programs
    for i in range(0, len(images), batch):
        rows = np.minimum(np.arange(i, i + batch), len(images) - 1)  # the last batch is filled up
        found = _outputs(judge.network, judge.image_shape[:2], judge.weights, images[rows])
        parts.append([np.asarray(array)[: len(images) - i] for array in found])
    seen, logits = (np.concatenate(arrays).astype(np.float64) for arrays in zip(*parts))
    return seen, expit(logits) if judge.several else softmax(logits, axis=1)


@partial(jax.jit, static_argnums=(0, 1))
def _outputs(network: nn.Module, size: tuple[int, int], weights: PyTree, images: UInt8[Array, "n h w c"]) -> Any:
    x = Pixels().encode(images)
    if x.shape[1:3] != size:
        x = jax.image.resize(x, (len(x), *size, x.shape[-1]), "bilinear")
    seen = network.apply(weights, x, method="features")
    return seen, network.apply(weights, seen, method="head")


def one_hot(labels: Int[np.ndarray, "n"] | Float[np.ndarray, "n k"], count: int) -> Float[np.ndarray, "n k"]:
    """Classes as rows of one 1; rows stay as they are."""
    return labels if labels.ndim == 2 else (labels[:, None] == np.arange(count)[None]).astype(np.float32)


def accuracy(judge: Judge, images: UInt8[np.ndarray, "n h w c"], labels: Any) -> float:
    """Share of the labels that the judge finds: of one class a picture, its ordinary accuracy."""
    return metrics.label_accuracy(scores(judge, images), one_hot(labels, len(judge.label_names)))


def compare(
    judge: Judge, samples: UInt8[np.ndarray, "n h w c"], real: UInt8[np.ndarray, "m h w c"], labels: Any = None,
    seed: int = 0, resamples: int = 20,
) -> dict[str, Any]:
    """How far samples are from real pictures in the judge's features; `labels` are those asked of the samples.

    `fd` (Frechet) and `kid` (kernel) compare n samples with `reference` real pictures, `floor` and `kid_floor` n other
    real pictures with the same ones: n is halved if need be. `spread` is the standard deviation over bootstraps.
    """
    n = min(len(samples), len(real) // 2)
    if n < 2:
        raise UserError(f"{len(samples)} samples and {len(real)} real pictures are too few to compare")
    rng = np.random.default_rng(seed)
    seen, found = read(judge, samples)
    real_seen, real_found = read(judge, real)
    order = rng.permutation(len(real))
    probe, reference = real_seen[order[:n]], real_seen[order[n:]]
    chosen = seen[np.sort(rng.permutation(len(seen))[:n])]
    draws = [[a[rng.integers(0, len(a), len(a))] for a in (chosen, reference)] for _ in range(resamples)]
    kid = [metrics.kernel_distance(a[:KERNEL_ROWS], b[:KERNEL_ROWS])
           for a, b in ((chosen, reference), (probe, reference), *draws)]
    result = {
        "judge": judge.name, "judge_accuracy": None if np.isnan(judge.accuracy) else judge.accuracy,
        "n": n, "samples": len(samples), "reference": len(reference), "dimensions": seen.shape[1],
        "fd": metrics.frechet_distance(chosen, reference), "floor": metrics.frechet_distance(probe, reference),
        "spread": float(np.std([metrics.frechet_distance(a, b) for a, b in draws])) if draws else None,
        "kid": kid[0], "kid_floor": kid[1], "kid_spread": float(np.std(kid[2:])) if draws else None,
        "histogram": histogram(judge, found), "real_histogram": histogram(judge, real_found),
        "mean_confidence": confidence(judge, found), "real_mean_confidence": confidence(judge, real_found),
        "seed": seed,
    }
    if labels is not None:
        result["label_accuracy"] = metrics.label_accuracy(found, one_hot(labels, len(judge.label_names)))
    return result


def histogram(judge: Judge, found: Float[np.ndarray, "n k"]) -> dict[str, float]:
    """Share of pictures that the judge takes for each class (or says to show each object: probability over 0.5)."""
    named = found > 0.5 if judge.several else one_hot(found.argmax(1), found.shape[1])
    return {name: float(share) for name, share in zip(judge.label_names, named.mean(0))}


def confidence(judge: Judge, found: Float[np.ndarray, "n k"]) -> float | None:
    """Mean probability of the class chosen (or of the objects said to be shown; None if there are none)."""
    chosen = found[found > 0.5] if judge.several else found.max(1)
    return float(chosen.mean()) if chosen.size else None


def build(command: Any) -> str:
    """python -m dipddpm_jax judge: trains, measures, writes; returns what to tell the user."""
    recipe = train_judge.recipe(command.name, command.data_dir)
    directory, out = cache() / f"{command.name}-{command.seed}", command.out or path_of(command.name)
    began = time.process_time()
    variables = train_judge.fit(recipe, command.seed, directory, command.minutes)
    if variables is None:
        return f"not finished; the same command goes on from {directory}"
    shape = tuple(recipe.held.images.shape[1:])
    state = {k: v.astype(np.float16) for k, v in torch_weights.export_torch(variables).items()
             if not k.endswith(torch_weights.COUNTER)}
    judge = Judge(command.name, recipe.network, torch_weights.import_torch(
        {k: v.astype(np.float32) for k, v in state.items()}, _template(recipe.network, shape)), float("nan"), shape,
        recipe.held.label_names, recipe.held.labels.ndim == 2)
    judge = judge._replace(accuracy=accuracy(judge, recipe.held.images, recipe.held.labels))
    save(judge, state, out, {
        "data": recipe.held.name, "held_out": len(recipe.held.images),
        "pictures": recipe.passes * len(recipe.pool(command.seed, 0)[1]),
        "processor_seconds": round(time.process_time() - began),
        **records.provenance(command.seed)})
    shutil.rmtree(directory, ignore_errors=True)
    return (f"{out}: accuracy {100 * judge.accuracy:.2f} % on {len(recipe.held.images)} held-out pictures of "
            f"{recipe.held.name}, seed {command.seed}")


def save(judge: Judge, state: dict[str, np.ndarray], path: Path, record: dict[str, Any]) -> None:
    """Writes what `load` reads."""
    from safetensors import numpy as safetensors

    record = {"network": type(judge.network).__name__, "widths": judge.network.widths, "several": judge.several,
              "image_shape": judge.image_shape, "label_names": judge.label_names, "accuracy": judge.accuracy, **record}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = records.json_text(record)
        path.write_bytes(safetensors.save(state, {"judge": text}))  # what save_file writes only its owner may read
    except OSError as error:
        raise UserError(f"cannot write {path} ({error}); --out names another file") from None
