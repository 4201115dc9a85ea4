"""Data sets: `load` gives one split of a set as a `Dataset` of uint8 images.

The digits and the photos come with installed packages. The others are prepared once from their archives,
``python -m jaxmerge.data NAME --data-dir DIR``, and then read image by image. Any of them may be divided into
subcategories, ``python -m jaxmerge.subcategories NAME --count 4``; see docs/data.md.
"""

import difflib
import importlib
import os
import types

from jaxmerge.data import subcategories
from jaxmerge.data.builders import NAMES as PREPARED
from jaxmerge.data.check import check_match
from jaxmerge.data.dataset import Dataset

EMBEDDED = {"digits": "digits", "photos": "photos", "mock32": "mock"}
FOLDER = "folder:"


def check_name(name: str) -> None:
    """Refuses names that `load` does not know.

    Raises:
        ValueError: an unknown or ambiguous name; says what there is.
    """
    if name == "imagenet32":
        raise ValueError(
            "imagenet32 could be two data sets that differ in every pixel; ask for 'imagenet32_old' (van den Oord, "
            "49 999 validation images) or 'imagenet32_new' (Chrabaszcz, 50 000), whichever the expert was trained on."
        )
    known = (*EMBEDDED, *PREPARED)
    if name not in known and not name.startswith(FOLDER):
        near = difflib.get_close_matches(name, known, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"data.name must be one of {', '.join(known)} or folder:/path, got {name!r}{hint}.")


def load(name: str, split: str, *, data_dir: str | os.PathLike | None = None) -> Dataset:
    """One split of a data set by name.

    Args:
        name: "digits", "photos" or "mock32"; a set that was prepared, such as "cifar10"; or "folder:/path".
        split: "train", "validation" or "test"; sets whose validation images are held out of the training
            images also have "train_part", the other training images.
        data_dir: where prepared sets and subcategories are; else the environment's JAXMERGE_DATA, else
            ~/jaxmerge_data.

    Returns:
        The split, with the attribute ``subcategory_K`` for every K whose subcategories were made.

    Raises:
        ValueError: an unknown data set or split, one that is not prepared, or subcategories that were made of other
            images; says what to do.
    """
    return subcategories.attached(load_bare(name, split, data_dir=data_dir), data_dir)


def load_bare(name: str, split: str, *, data_dir: str | os.PathLike | None = None) -> Dataset:
    """`load` without subcategories, which are made from it."""
    check_name(name)
    if name in EMBEDDED:
        return _embedded(name).load(split)
    from jaxmerge.data import stored  # reads and writes files on disk, which the embedded sets do not need

    return stored.open_split(name, split, data_dir)


def splits(name: str, data_dir: str | os.PathLike | None = None) -> tuple[str, ...]:
    """The splits that `load` knows of a data set; raises as `load`."""
    check_name(name)
    if name in EMBEDDED:
        return _embedded(name).SPLITS
    from jaxmerge.data import stored

    return stored.splits(name, data_dir)


def _embedded(name: str) -> types.ModuleType:
    return importlib.import_module(f"{__name__}.{EMBEDDED[name]}")


__all__ = ["Dataset", "check_match", "check_name", "load", "load_bare", "splits"]
