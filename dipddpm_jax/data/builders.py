"""TensorFlow Datasets builders that need no TensorFlow: original files in, array_record out.

Three things make that work: PNG bytes instead of arrays, file_format="array_record", and our own names,
since the names of builders are global and the stock ones are taken. The order of the files is kept.
"""
import io
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int32, UInt8
from PIL import Image
from tqdm import tqdm

from dipddpm_jax.data import iclevr, originals


def _png(image: UInt8[np.ndarray, "h w c"]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG", compress_level=1)
    return file.getvalue()


class Published(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """What the builders below share; SET is a name in ORIGINALS, manual_dir the folder that holds its files."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "manual_dir is the folder with the original files of the set."
    SET: str

    def _info(self) -> tfds.core.DatasetInfo:
        original = originals.ORIGINALS[self.SET]
        features = tfds.features.FeaturesDict({
            "image": tfds.features.Image(shape=original.shape, encoding_format="png"),
            "label": tfds.features.ClassLabel(names=list(original.label_names)),
        })
        return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=("image", "label"),
                                     homepage=original.url, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        folder = Path(dl_manager.manual_dir)
        parts = {split: originals.read_published(self.SET, split, folder) for split in ("train", "test")}
        return {split: self._generate_examples(*pictures) for split, pictures in parts.items()}

    def _generate_examples(self, images: UInt8[np.ndarray, "n h w c"], labels: Int32[np.ndarray, "n"]):
        bar = tqdm(zip(images, labels), total=len(labels), desc=f"preparing {self.SET}", unit=" pictures", disable=None)
        for i, (image, label) in enumerate(bar):
            yield i, {"image": _png(image), "label": int(label)}


class DipddpmMnist(Published):
    """LeCun et al., The MNIST database of handwritten digits."""

    SET = "mnist"


class DipddpmFashionMnist(Published):
    """Xiao et al. 2017, Fashion-MNIST."""

    SET = "fashion_mnist"


class DipddpmCifar10(Published):
    """Krizhevsky 2009, Learning multiple layers of features from tiny images."""

    SET = "cifar10"


class DipddpmIclevr(Published):
    """iCLEVR (El-Nouby et al. 2019, Tell, draw, and repeat) at 64x64; several labels a picture, as zeros and ones."""

    SET = "iclevr"

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({
            "image": tfds.features.Image(shape=(iclevr.SIZE, iclevr.SIZE, 3), encoding_format="png"),
            "label": tfds.features.Tensor(shape=(len(iclevr.OBJECTS),), dtype=np.uint8),
        })
        return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=("image", "label"),
                                     disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(*iclevr.originals(Path(dl_manager.manual_dir)))}

    def _generate_examples(self, files: tuple[Path, ...], labels: Int32[np.ndarray, "n 24"]):
        for i, image in enumerate(iclevr.shrunk(files)):
            yield i, {"image": _png(image), "label": labels[i].astype(np.uint8)}


BUILDERS = {builder.SET: builder for builder in (DipddpmMnist, DipddpmFashionMnist, DipddpmCifar10, DipddpmIclevr)}
