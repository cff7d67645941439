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

from dipddpm_jax.data import originals


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
        parts = {split: originals.read(self.SET, split, folder) for split in ("train", "test")}
        return {split: self._generate_examples(*pictures) for split, pictures in parts.items()}

    def _generate_examples(self, images: UInt8[np.ndarray, "n h w c"], labels: Int32[np.ndarray, "n"]):
        bar = tqdm(zip(images, labels), total=len(labels), desc=f"preparing {self.SET}", unit=" pictures", disable=None)
        for i, (image, label) in enumerate(bar):
            png = io.BytesIO()
            Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(png, "PNG", compress_level=1)
            yield i, {"image": png.getvalue(), "label": int(label)}


class DipddpmMnist(Published):
    """LeCun et al., The MNIST database of handwritten digits."""

    SET = "mnist"


class DipddpmFashionMnist(Published):
    """Xiao et al. 2017, Fashion-MNIST."""

    SET = "fashion_mnist"


class DipddpmCifar10(Published):
    """Krizhevsky 2009, Learning multiple layers of features from tiny images."""

    SET = "cifar10"


BUILDERS = {builder.SET: builder for builder in (DipddpmMnist, DipddpmFashionMnist, DipddpmCifar10)}
