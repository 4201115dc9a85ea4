"""A few random images in the form of a data set, for runs that only prove that a program runs."""

import numpy as np

from jaxmerge.data import EMBEDDED, check_name, load
from jaxmerge.data.builders import NAMES, find
from jaxmerge.data.dataset import Dataset, in_memory

LEVELS = 256


def of(name: str, count: int) -> Dataset:
    """`count` images of a set's shape and grey levels; of those that are prepared from archives, none is needed.

    Raises:
        ValueError: an unknown data set, or a folder that is not prepared.
    """
    check_name(name)
    shape, levels = (None, LEVELS)
    if name in NAMES:
        shape = find(name).published.shape
    else:
        data = load(name, "train")
        shape, levels = data.shape, data.levels if name in EMBEDDED else LEVELS
    images = np.random.RandomState(0).randint(0, levels, size=(count, *shape)).astype(np.uint8)
    return in_memory(
        f"miniature {name}", "train", images, np.arange(count), np.zeros(count, np.int64), levels
    )
