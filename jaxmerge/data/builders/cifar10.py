"""CIFAR-10 (Krizhevsky, 2009) from its original archive, binary or python version.

A record of the binary version is a label byte and 3 072 pixel bytes, plane by plane (red, green, blue), each
row by row. The python version holds the same rows in pickled dictionaries; no pickle is executed
(`jaxmerge.data.pickled`). Both give the same images in the same order.
"""

import tarfile
from collections.abc import Iterator

import numpy as np

from jaxmerge.data import pickled
from jaxmerge.data.builders import archives, base
from jaxmerge.data.published import File, Published

_PLACE = "https://www.cs.toronto.edu/~kriz"
BINARY, PYTHON = "cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"
PUBLISHED = Published(
    counts={"train": 50_000, "test": 10_000},
    files={
        "archive": (
            File(
                BINARY,
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                f"{_PLACE}/{BINARY}",
            ),
            File(
                PYTHON,
                "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
                f"{_PLACE}/{PYTHON}",
            ),
        )
    },
    held_out=5_000,
    shape=(32, 32, 3),
    how_to_get=f"fetch {_PLACE}/{BINARY} (162 MB) and put it there.",
)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PIXELS = 3 * 32 * 32
_BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}


class JaxmergeCifar10(base.Images):
    """CIFAR-10."""

    name = "jaxmerge_cifar10"

    def examples(self, split: str) -> Iterator[base.Example]:
        path = self.files["archive"]
        with archives.telling_damage(path), tarfile.open(path) as archive:
            python = any(name.endswith("/test_batch") for name in archive.getnames())
            folder, suffix = ("cifar-10-batches-py", "") if python else ("cifar-10-batches-bin", ".bin")
            for name in _BATCHES[split]:
                data = archive.extractfile(f"{folder}/{name}{suffix}").read()
                labels, rows = (_python if python else _binary)(data, f"{name} of {path}")
                images = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
                yield from (
                    base.Example(image, int(label)) for image, label in zip(images, labels, strict=True)
                )


def _binary(data: bytes, what: str) -> tuple[np.ndarray, np.ndarray]:
    if len(data) % (1 + PIXELS):
        raise ValueError(
            f"{what} must hold whole records of {1 + PIXELS} bytes, got {len(data)}; fetch the archive again."
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, 1 + PIXELS)
    return _checked(records[:, 0], records[:, 1:], what)


def _python(data: bytes, what: str) -> tuple[np.ndarray, np.ndarray]:
    content = pickled.read(data, what)
    return _checked(np.asarray(content.get("labels", ())), np.asarray(content.get("data", ())), what)


def _checked(labels: np.ndarray, rows: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray]:
    good = rows.dtype == np.uint8 and rows.shape == (len(labels), PIXELS) and labels.size
    if not good or labels.min() < 0 or labels.max() > 9:
        raise ValueError(
            f"{what} must hold rows of {PIXELS} bytes with labels 0 to 9, got {len(labels)} labels and {rows.shape} "
            f"{rows.dtype}; fetch the archive again."
        )
    return labels, rows
