"""TFDS builders of our own, which need no TensorFlow; one module per data set.

`NAMES` and `find` know them all; a module is imported when its set is wanted.
"""

import importlib
from typing import NamedTuple

from jaxmerge.data.published import Published


class Entry(NamedTuple):
    """A builder's class and what its publisher says."""

    builder: type
    published: Published


_PLACES = {
    "cifar10": ("cifar10", "JaxmergeCifar10", "PUBLISHED"),
    "imagenet32_old": ("imagenet32", "JaxmergeImagenet32Old", "OLD"),
    "imagenet32_new": ("imagenet32", "JaxmergeImagenet32New", "NEW"),
    "celeba_hq_256": ("celeba_hq", "JaxmergeCelebaHq256", "PUBLISHED_256"),
    "celeba_hq_1024": ("celeba_hq", "JaxmergeCelebaHq1024", "PUBLISHED_1024"),
    "lsun_church_256": ("lsun_church", "JaxmergeLsunChurch256", "PUBLISHED"),
}
NAMES = tuple(_PLACES)


def find(name: str) -> Entry:
    """The builder of a data set in `NAMES`."""
    module, builder, published = _PLACES[name]
    module = importlib.import_module(f"{__name__}.{module}")
    return Entry(getattr(module, builder), getattr(module, published))
