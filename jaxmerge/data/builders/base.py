"""What the TFDS builders share: counting, checking and storing images. No TensorFlow.

Images are stored as PNG, without loss, in array_record files in their published order, which TFDS would
otherwise shuffle.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from jaxmerge.data import pixels
from jaxmerge.data.published import Published

LEVELS = 256


class Example(NamedTuple):
    """An image [H, W, C], uint8; its class, -1 where there is none; further numbers by name."""

    image: np.ndarray
    label: int = -1
    attributes: Mapping[str, float] = MappingProxyType({})


class Images(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A set of images; a subclass says how `examples` come out of its files.

    Args:
        files: a path for every part of `Published.files`.
        published: what the publisher says of it.
        data_dir: where the prepared set goes.
    """

    VERSION = tfds.core.Version("1.0.0")
    # Names of an example's further numbers.
    ATTRIBUTES: tuple[str, ...] = ()

    def __init__(self, files: dict[str, Path], published: Published, *, data_dir: Path):
        self.files, self.published = files, published
        # What preparing has to tell about the set, such as the number of duplicates left out.
        self.notes: dict[str, Any] = {}
        super().__init__(data_dir=data_dir, file_format="array_record")

    def examples(self, split: str) -> Iterator[Example]:
        """The images of a published split in their order.

        Raises:
            ValueError: a file is damaged or not what it should be; names it.
        """
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=self.published.shape, encoding_format="png"),
            "label": np.int64,
            **dict.fromkeys(self.ATTRIBUTES, np.float32),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # the files are at hand
        return {split: self._generate_examples(split) for split in self.published.counts}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        count = 0
        for example in self.examples(split):
            assert example.image.dtype == np.uint8, example.image.dtype
            if example.image.shape != tuple(self.published.shape):
                raise ValueError(
                    f"image {count} of {self.name}'s {split} split must have the shape {self.published.shape}, got "
                    f"{example.image.shape}; the archive is not the published one."
                )
            yield count, {"image": pixels.png(example.image), "label": example.label, **example.attributes}
            count += 1
        self.check_count(split, count + self.notes.get(f"duplicates left out of {split}", 0))

    def check_count(self, split: str, count: int) -> None:
        """Compares the number of images with the published one.

        Raises:
            ValueError: they differ.
        """
        expected = self.published.counts[split]
        if count != expected:
            raise ValueError(
                f"{self.name} must have {expected} images in its {split} split, got {count}; the files in "
                f"{', '.join(sorted({str(path) for path in self.files.values()}))} are incomplete or another data set's."
            )
