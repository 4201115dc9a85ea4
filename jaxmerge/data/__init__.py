"""Data sets as frozen `Dataset`s of uint8 grey levels."""

from jaxmerge.data.digits import Dataset

__all__ = ["Dataset"]
