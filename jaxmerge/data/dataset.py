"""`Dataset`: one split of a data set, in memory or read image by image from disk."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int, UInt8

# The largest split that `Dataset.images` reads into memory: CIFAR-10 (154 MB) passes, ImageNet32 does not.
MAX_BYTES = 512 * 2**20
# Values that are read at once where a whole split is walked through: 2700 images of CIFAR-10, 2 of 1024x1024.
PART = 2**23


class Source(Protocol):
    """Where images come from: `shape` [H, W, C], `len`, and `read(positions)`."""

    shape: tuple[int, int, int]

    def __len__(self) -> int: ...

    def read(self, positions: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n H W C"]:
        """The images at these positions, in this order."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class InMemory:
    """A source that holds its images [N, H, W, C]."""

    pixels: UInt8[np.ndarray, "N H W C"]

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.pixels.shape[1:]

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, positions: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n H W C"]:
        return self.pixels[positions]


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a data set.

    Attributes:
        name: the data set's name.
        split: "train", "validation", "test", or another that the set has (see docs/data.md).
        source: where the images are read from.
        positions: this split's images in the source [N].
        labels: class of each image [N], -1 where the set has none.
        levels: the number V of grey levels; pixels are 0 to levels - 1.
        index: each image's position in the whole data set [N]; its noise is drawn from this number.
        attributes: further facts, an array [N] each, such as a crop's coordinates.
        recorded: the identity that was computed when the set was prepared, if it was.
    """

    name: str
    split: str
    source: Source
    positions: Int[np.ndarray, " N"]
    labels: Int[np.ndarray, " N"]
    levels: int
    index: Int[np.ndarray, " N"]
    attributes: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    recorded: str | None = None

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        return tuple(self.source.shape)

    def read(self, places: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n H W C"]:
        """The images at these places of the split, in this order; nothing else is read."""
        return self.source.read(self.positions[places])

    @functools.cached_property
    def images(self) -> UInt8[np.ndarray, "N H W C"]:
        """All images of a split that fits into memory, read-only.

        Raises:
            ValueError: they take more than `MAX_BYTES`.
        """
        size = len(self) * int(np.prod(self.shape))
        if size > MAX_BYTES:
            raise ValueError(
                f"the {len(self)} images of {self.name}'s {self.split} split take {size / 2**20:.0f} MiB, more than "
                f"the {MAX_BYTES // 2**20} MiB that are read into memory at once; use take(n).images, read(places) "
                "or batches(size)."
            )
        images = np.array(self.read(np.arange(len(self))))
        images.flags.writeable = False
        return images

    def select(self, places: Int[np.ndarray, " n"]) -> "Dataset":
        """The part with these places of the split, in this order."""
        part = {name: getattr(self, name)[places] for name in ("positions", "labels", "index")}
        attributes = {name: values[places] for name, values in self.attributes.items()}
        return dataclasses.replace(self, **part, attributes=attributes, recorded=None)

    def take(self, count: int | None) -> "Dataset":
        """The first `count` images; all of them for None. Nothing is read.

        Raises:
            ValueError: `count` is not between 1 and the number of images.
        """
        if count is None:
            return self
        if not 1 <= count <= len(self):
            raise ValueError(
                f"the {self.split} split of {self.name} has {len(self)} images, {count} were asked for; "
                f"ask for 1 to {len(self)}."
            )
        return self if count == len(self) else self.select(np.arange(count))

    def batches(self, size: int) -> Iterator["Dataset"]:
        """Parts of `size` images in order, the last one smaller; each is read when its `images` are asked for.

        Raises:
            ValueError: a size below 1.
        """
        if size < 1:
            raise ValueError(f"a batch must hold at least 1 image, got {size}.")
        return (self.select(np.arange(i, min(i + size, len(self)))) for i in range(0, len(self), size))

    def parts(self) -> Iterator["Dataset"]:
        """All images in order, `part_size` at once."""
        return self.batches(self.part_size)

    @property
    def part_size(self) -> int:
        """Images that are held in memory at once where a whole split is walked through."""
        return max(1, PART // int(np.prod(self.shape)))

    @functools.cached_property
    def identity(self) -> str:
        """SHA-256 of pixels and index: two equal values are the same images in the same order."""
        if self.recorded is not None:
            return self.recorded
        fingerprint = Fingerprint()
        for part in self.parts():
            fingerprint.add(part.images)
        return fingerprint.value(self.index)

    @property
    def record(self) -> dict[str, Any]:
        """What results quote of the data: name, split, number and shape of the images, levels, SHA-256."""
        return {
            "name": self.name,
            "split": self.split,
            "images": len(self),
            "shape": list(self.shape),
            "levels": self.levels,
            "sha256": self.identity,
        }


class Fingerprint:
    """`Dataset.identity`, computed while images pass by."""

    def __init__(self):
        self._digest = hashlib.sha256()

    def add(self, images: UInt8[np.ndarray, "n H W C"]) -> None:
        """Takes the next images of a split."""
        self._digest.update(np.ascontiguousarray(images).tobytes())

    def value(self, index: Int[np.ndarray, " N"]) -> str:
        """The identity, once all images were added."""
        digest = self._digest.copy()
        digest.update(index.astype("<i8").tobytes())
        return digest.hexdigest()


def in_memory(
    name: str,
    split: str,
    pixels: UInt8[np.ndarray, "M H W C"],
    positions: Int[np.ndarray, " N"],
    labels: Int[np.ndarray, " N"],
    levels: int,
    attributes: Mapping[str, np.ndarray] | None = None,
) -> Dataset:
    """A split of a set that is in memory as a whole; its index are its positions there."""
    positions = np.asarray(positions, np.int64)
    for array in (positions, labels):
        array.flags.writeable = False
    return Dataset(name, split, InMemory(pixels), positions, labels, levels, positions, attributes or {})
