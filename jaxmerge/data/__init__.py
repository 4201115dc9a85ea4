"""Data sets as frozen `Dataset`s of uint8 grey levels."""

from jaxmerge.data import digits
from jaxmerge.data.digits import Dataset

_SETS = {digits.NAME: digits.load}


def load(name: str, split: str) -> Dataset:
    """One split of a data set by name.

    Raises:
        ValueError: an unknown data set or split; names those that there are.
    """
    if name not in _SETS:
        raise ValueError(f"data.name must be one of {', '.join(_SETS)}, got {name!r}.")
    return _SETS[name](split)


__all__ = ["Dataset", "load"]
