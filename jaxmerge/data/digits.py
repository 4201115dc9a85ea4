"""scikit-learn's handwritten digits: 1 797 real 8x8 images with 17 grey levels, embedded, no download.

The split is stratified by class and fixed: in each class the images are permuted by the legacy
``numpy.random.RandomState(2511)`` (whose stream numpy guarantees never to change; newer generators
may change theirs), the first 36 are test, the next 18 validation, the rest training images. Within a
split the classes take turns, so that every prefix is nearly balanced. What the split does and does not
guarantee is written in ``docs/data.md``.
"""

import functools
import hashlib

import numpy as np
from jaxtyping import Int, UInt8

from jaxmerge.data.dataset import Dataset, in_memory

NAME = "digits"
LEVELS = 17
SPLITS = ("train", "validation", "test")
SPLIT_SEED = 2511
TEST_PER_CLASS, VALIDATION_PER_CLASS = 36, 18
PIXELS_SHA256 = "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3"
LABELS_SHA256 = "8ba4f891220f5e4c9c819638d1602d74b83618f167043c6da52a2a247841ddf0"


def load(split: str) -> Dataset:
    """One split of the digits.

    Args:
        split: "train" (1 257 images), "validation" (180) or "test" (360).

    Returns:
        The split; its arrays are read-only.

    Raises:
        ValueError: another split name, or an installed scikit-learn whose digits are not the known ones.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")
    images, labels = _all_digits()
    index = split_indices(labels)[split]
    return in_memory(NAME, split, images, index, labels[index], LEVELS)


def split_indices(labels: Int[np.ndarray, " N"]) -> dict[str, Int[np.ndarray, " n"]]:
    """Positions of each split's images in the whole set, the classes taking turns."""
    shuffle = np.random.RandomState(SPLIT_SEED)
    parts = {split: [] for split in SPLITS}
    for digit in range(10):
        members = shuffle.permutation(np.flatnonzero(labels == digit))
        parts["test"].append(members[:TEST_PER_CLASS])
        parts["validation"].append(members[TEST_PER_CLASS:][:VALIDATION_PER_CLASS])
        parts["train"].append(members[TEST_PER_CLASS + VALIDATION_PER_CLASS :])
    return {split: _take_turns(classes) for split, classes in parts.items()}


def _take_turns(classes: list[np.ndarray]) -> np.ndarray:
    turn = np.concatenate([np.arange(len(members)) for members in classes])
    return np.concatenate(classes)[np.argsort(turn, kind="stable")].astype(np.int64)


@functools.cache
def _all_digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits  # takes a second, so only where the digits are wanted

    bunch = load_digits()
    images, labels = bunch.images.astype(np.uint8)[..., None], bunch.target.astype(np.int64)
    verify(images, labels)
    return images, labels


def verify(images: UInt8[np.ndarray, "N 8 8 1"], labels: Int[np.ndarray, " N"]) -> None:
    """Checks that pixels and labels are the ones that the experts and figures were made from.

    Raises:
        ValueError: another SHA-256.
    """
    for what, array, expected in (("pixels", images, PIXELS_SHA256), ("labels", labels, LABELS_SHA256)):
        found = hashlib.sha256(np.ascontiguousarray(array, np.uint8).tobytes()).hexdigest()
        if found != expected:
            raise ValueError(
                f"the {what} of scikit-learn's digits must have the SHA-256 {expected[:16]}..., got "
                f"{found[:16]}...; install a scikit-learn with the original 1 797 images (1.9 has them)."
            )
