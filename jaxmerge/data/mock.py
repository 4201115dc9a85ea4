"""Mock images of CIFAR-10's shape, for runs that only prove that a program runs: smooth random colours.

Nothing that is measured on them says anything about real images, and results name the set "mock32".
"""

import zlib

import numpy as np

from jaxmerge.data.dataset import Dataset, in_memory

NAME = "mock32"
LEVELS = 256
COUNTS = {"train": 32, "validation": 8, "test": 8}
SPLITS = tuple(COUNTS)


def load(split: str) -> Dataset:
    """One split of the mock images.

    Args:
        split: "train" (32 images), "validation" (8) or "test" (8).

    Raises:
        ValueError: another split name.
    """
    if split not in COUNTS:
        raise ValueError(f"split must be one of {', '.join(COUNTS)}, got {split!r}.")
    draw = np.random.RandomState(zlib.crc32(split.encode()))
    count = COUNTS[split]
    waves = np.cos(np.pi * np.outer(np.arange(4), (np.arange(32) + 0.5) / 32))
    smooth = np.einsum("nijc,ih,jw->nhwc", draw.normal(size=(count, 4, 4, 3)), waves, waves)
    pixels = np.clip(np.rint(128 + 30 * smooth), 0, LEVELS - 1).astype(np.uint8)
    places = np.arange(count)
    return in_memory(NAME, split, pixels, places, places % 10, LEVELS)
