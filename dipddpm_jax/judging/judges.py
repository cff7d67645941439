"""Judges: small classifiers that say what a picture shows, and in whose features sets of pictures are compared.

Their weights are .safetensors files with PyTorch's names, in half precision; what a file says of itself (data, seed,
accuracy on held-out pictures) was measured with these very weights by the command that wrote it. `JUDGED` is the one
table of which judge belongs to which data set.
"""
import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Float64, Int, PyTree, UInt8
from scipy.special import expit, softmax

from dipddpm_jax import records, torch_files, torch_weights
from dipddpm_jax.diffusion.training import Pixels
from dipddpm_jax.errors import UserError, closest
from dipddpm_jax.files import writing
from dipddpm_jax.judging import metrics
from dipddpm_jax.networks.classifier import Classifier
from dipddpm_jax.networks.resnet18 import ResNet18

# Data sets that a judge speaks about; it was trained on the first. These judges come with the package.
JUDGED = {"digits": ("mnist5k", "mnist"), "crops": ("photo_crops",), "scenes": ("scenes",)}
SHIPPED = tuple(JUDGED)
TRAINABLE = ("fashion_mnist", "cifar10", "mnist")  # data sets with one class a picture; their judges have their names
NETWORKS = {network.__name__: network for network in (Classifier, ResNet18)}
BATCH = 64  # pictures that a judge sees at once


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
    return judges_folder() / f"{name}.safetensors"


def judges_folder() -> Path:
    """Where judges that a user trains are kept: in the user's cache folder."""
    return records.cache_folder() / "judges"


def judge_name(data_name: str) -> str:
    """The judge that belongs to a data set; other data sets' judges are called as they are."""
    return next((judge for judge, names in JUDGED.items() if data_name in names), data_name)


def judge_for(data_name: str, wanted: str | Path | None = None, option: str = "--judge") -> Judge:
    """The judge that `wanted` names (by name or by file: .safetensors, or the course's .pth), else the one that belongs
    to the data set. Raises UserError when there is none, and says then that `option` names one, and which there are."""
    path = Path(wanted or "")
    if path.suffix in (".pth", ".pt"):
        return load_course_checkpoint(path)
    if path.suffix == ".safetensors":
        return load_judge(path.stem, path)
    known = (*sum(JUDGED.values(), ()), *TRAINABLE)
    if wanted is None and data_name not in known and not path_of(data_name).is_file():
        which = "the iCLEVR course's checkpoint.pth" if data_name == "iclevr" else "another one, or its file"
        raise UserError(f"no judge belongs to {data_name}; {option} names {which}")
    return load_judge(str(wanted) if wanted else judge_name(data_name))


def load_judge(name: str, path: Path | None = None) -> Judge:
    """The judge of that name, or the one in the file `path`. UserError names the command which builds it, or, where
    none could, the judges that there are."""
    path = path or path_of(name)
    if not path.is_file():
        if name in (*SHIPPED, *TRAINABLE):
            raise UserError(f"the judge {name!r} has no weights here ({path}); build them: "
                            f"dipddpm-jax judge {name}")
        if path != path_of(name):
            raise UserError(f"there is no file {path} with a judge's weights")
        known = (*SHIPPED, *TRAINABLE)
        raise UserError(f"unknown judge {name!r}: {closest(judge_name(name), known)}Known are {', '.join(SHIPPED)}, "
                        f"those of the data sets {', '.join(TRAINABLE)}, and a file (.safetensors or .pth)")
    try:
        state, record = torch_files.read_state(path), _record(path)
        network = NETWORKS[record["network"]](len(record["label_names"]), tuple(record["widths"]))
        shape, names = tuple(record["image_shape"]), tuple(record["label_names"])
        accuracy, several = record["accuracy"], record["several"]
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} does not describe its judge ({error}); dipddpm-jax judge writes such files") from None
    weights = torch_weights.import_torch({k: v.astype(np.float32) for k, v in state.items()}, template(network, shape))
    return Judge(name, network, weights, accuracy, shape, names, several, record)


def _record(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        metadata = file.metadata() or {}
    if "judge" not in metadata:
        raise UserError(f"{path} holds weights, but no judge: dipddpm-jax judge writes those")
    return json.loads(metadata["judge"])


def template(network: nn.Module, shape: tuple[int, ...]) -> PyTree:
    """The variables of a judge's network as shapes, for pictures of shape (h, w, c)."""
    return jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, *shape))))


def load_course_checkpoint(path: Path) -> Judge:
    """The evaluator of the iCLEVR course, checkpoint.pth: torchvision's ResNet18 with Linear and Sigmoid, which sees
    64x64 pictures in [-1, 1]. Raises UserError for other files."""
    from dipddpm_jax.data.scenes import OBJECTS

    network = ResNet18(len(OBJECTS))
    try:
        weights = torch_weights.import_torch(torch_files.read_state(path), template(network, (64, 64, 3)))
    except UserError as error:
        raise UserError(f"{path} is not the course's evaluator, a ResNet18 with {len(OBJECTS)} outputs: "
                        f"{str(error)[:300]}") from None
    weights = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), weights)
    return Judge(Path(path).name, network, weights, float("nan"), label_names=OBJECTS)


def probabilities(judge: Judge, images: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n k"]:
    """Probabilities of labels: each for itself where a picture may have several, else they sum to 1."""
    return look(judge, images)[1]


def features(judge: Judge, images: UInt8[np.ndarray, "n h w c"]) -> Float64[np.ndarray, "n d"]:
    """Features of pictures: the inputs of the judge's last layer."""
    return look(judge, images)[0]


def look(
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
    """Classes 0..count-1 as rows with a single 1 (one-hot); labels that are rows already stay as they are."""
    return labels if labels.ndim == 2 else (labels[:, None] == np.arange(count)[None]).astype(np.float32)


def accuracy(judge: Judge, images: UInt8[np.ndarray, "n h w c"], labels: Any) -> float:
    """Share of the labels that the judge finds: of one class a picture, its ordinary accuracy."""
    return metrics.label_accuracy(probabilities(judge, images), one_hot(labels, len(judge.label_names)))


def save_judge(judge: Judge, state: dict[str, np.ndarray], path: Path, record: dict[str, Any]) -> None:
    """Writes what `load_judge` reads. Raises UserError where it cannot."""
    from safetensors import numpy as safetensors

    record = {"network": type(judge.network).__name__, "widths": judge.network.widths, "several": judge.several,
              "image_shape": judge.image_shape, "label_names": judge.label_names, "accuracy": judge.accuracy, **record}
    with writing(f"{path} (--out names another file)"):
        path.parent.mkdir(parents=True, exist_ok=True)
        text = records.json_text(record)
        path.write_bytes(safetensors.save(state, {"judge": text}))  # what save_file writes only its owner may read
