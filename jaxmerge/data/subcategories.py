"""Subcategories: K parts of a data set that k-means finds in features of its training images.

``python -m jaxmerge.subcategories`` makes them. For every K there is one file beside the prepared sets,
``prepared/subcategories/NAME/K.npz``, with the arrays

    centroids     [K, F], in units of the standardised features
    mean, scale   [F]: a feature f counts as (f - mean) / scale
    assigned/S    the nearest centroid of every image of split S [N], for every split; 0 is the largest part
    record        JSON: what it was made of and how (see `jaxmerge.subcategories.make`)

Here they are only read: `load` gives every split the attribute ``subcategory_K`` for each K there is.
"""

import contextlib
import dataclasses
import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxmerge.data.dataset import Dataset
from jaxmerge.data.published import data_folder

ASSIGNED = "assigned/"


@dataclasses.dataclass(frozen=True, eq=False)
class Subcategories:
    """One file's content.

    Attributes:
        centroids: [K, F], of standardised features.
        mean, scale: what standardises a feature [F].
        assigned: for every split, each image's nearest centroid [N].
        record: what they were made of and how; plain JSON.
    """

    centroids: Float[np.ndarray, "K F"]
    mean: Float[np.ndarray, " F"]
    scale: Float[np.ndarray, " F"]
    assigned: dict[str, Int[np.ndarray, " N"]]
    record: dict[str, Any]

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What the file holds."""
        found = {name: getattr(self, name) for name in ("centroids", "mean", "scale")}
        found |= {ASSIGNED + split: values.astype(np.int32) for split, values in self.assigned.items()}
        return found | {"record": np.array(json.dumps(self.record))}


def attribute(count: int) -> str:
    """Name of the attribute that says which of `count` subcategories an image belongs to."""
    return f"subcategory_{count}"


def folder(name: str, data_dir: str | os.PathLike | None = None) -> Path:
    """Where a data set's subcategories are."""
    if name.startswith("folder:"):
        from jaxmerge.data.builders import folder as of_files  # imports TFDS, which embedded sets do not need

        name = of_files.parse(name).key
    return data_folder(data_dir) / "prepared" / "subcategories" / name


def command(name: str, count: int, data_dir: str | os.PathLike | None = None) -> str:
    """The command line that makes K subcategories."""
    place = f" --data-dir {data_dir}" if data_dir else ""
    return f"python -m jaxmerge.subcategories {name} --count {count}{place}"


def read(path: Path) -> Subcategories:
    """The subcategories in a file.

    Raises:
        ValueError: it is damaged, or holds something else than its name says.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
        record = json.loads(str(arrays.pop("record")))
        assigned = {
            key.removeprefix(ASSIGNED): arrays.pop(key).astype(np.int64)
            for key in list(arrays)
            if key.startswith(ASSIGNED)
        }
        found = Subcategories(**arrays, assigned=assigned, record=record)
        _check(found, int(path.stem))
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path} must hold {path.stem} subcategories, but {' '.join(str(error).split()).rstrip('.')}; delete it "
            "and make them again with python -m jaxmerge.subcategories."
        ) from error
    return found


def _check(found: Subcategories, count: int) -> None:
    if found.centroids.ndim != 2 or len(found.centroids) != count:
        raise ValueError(f"has centroids of the shape {list(found.centroids.shape)}")
    for split, values in found.assigned.items():
        if values.size and not 0 <= values.min() <= values.max() < count:
            raise ValueError(f"numbers the {split} images' from {values.min()} to {values.max()}")


def _files(name: str, data_dir: str | os.PathLike | None) -> list[Path]:
    with contextlib.suppress(RuntimeError):  # a user without a home has no data folder
        return sorted(folder(name, data_dir).glob("*.npz"))
    return []


def attached(data: Dataset, data_dir: str | os.PathLike | None = None) -> Dataset:
    """A whole split with the attribute ``subcategory_K`` for every K that is there.

    Raises:
        ValueError: they are damaged, or were made of other images.
    """
    columns = {}
    for path in _files(data.name, data_dir):
        found = read(path)
        made_of = found.record["splits"].get(data.split, "none")
        if made_of != data.identity:
            again = command(data.name, len(found.centroids), data_dir)
            raise ValueError(
                f"{path} was made of a {data.name} whose {data.split} split has the SHA-256 {made_of[:16]}..., this one "
                f"has {data.identity[:16]}...; delete it, or make it anew with: {again}"
            )
        columns[attribute(len(found.centroids))] = found.assigned[data.split]
    if not columns:
        return data
    return dataclasses.replace(data, attributes={**data.attributes, **columns}, recorded=data.identity)
