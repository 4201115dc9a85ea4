"""Makes subcategories of a data set, by k-means on features of its training images.

Held-out validation images have no part in the centroids: where a set has the split "train_part", that is what
they are fitted on, else "train". Its features go to a file without a name in the data folder, which is gone when
the program ends however it ends, and from there batch by batch to k-means; images of other splits are only
compared with the centroids. What is made is read by `jaxmerge.data.load` (`jaxmerge/data/subcategories.py`).
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxmerge import data, files
from jaxmerge.data import Dataset
from jaxmerge.data.subcategories import Subcategories, folder
from jaxmerge.progress import Progress, on_stderr
from jaxmerge.subcategories import kmeans
from jaxmerge.subcategories.features import Features

Rows = Float[np.ndarray, "n F"]
Centroids = Float[np.ndarray, "K F"]
Advance = Callable[[int], None]


def make(
    name: str,
    counts: list[int],
    features: Callable[[Dataset], Features],
    *,
    seed: int = 0,
    data_dir: str | os.PathLike | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Makes and keeps K subcategories for every K, replacing those of the same K.

    Args:
        name: a data set that `data.load` knows.
        counts: the K, each from 1 to the number of training images; features are computed once for all of them.
        features: from the training images to what describes images like them: `features.pixels`, or
            `features.inception` of a network.
        seed: of k-means, 0 to 2^32 - 1.
        data_dir: the data folder.
        progress: shows how many images are done; on stderr by default.

    Returns:
        A record per K: "name", "split" and "images" of what the centroids were fitted on, the SHA-256 of all
        "splits", "features", "count", "seed", "method", "inertia" (squared distances of those images to their
        centroids, summed) and "sizes" per split.

    Raises:
        ValueError: an unknown data set or one that is not prepared, a K or seed outside its range, images that have
            no such features, or fewer different ones than K.
    """
    parts = {split: data.load_bare(name, split, data_dir=data_dir) for split in data.splits(name, data_dir)}
    fitted = "train_part" if "train_part" in parts else "train"
    _check(counts, seed, parts[fitted])
    described = features(parts[fitted])
    place = folder(name, data_dir)
    files.make_folder(place)
    # "train" is put together from its two parts, so that no image's features are computed twice.
    own = {split: parts[split] for split in (fitted, "validation", "test")}
    total = sum(map(len, own.values()))
    with (progress or on_stderr()).task(total, f"features of {name}", "images") as advance:
        rows = _on_disk(described, parts[fitted], place, advance)
        scaling = _standardise(rows, described.standardised)
        centroids = {count: kmeans.fit(rows, count, seed) for count in counts}
        found = {fitted: _nearest([rows], centroids)}
        for split in ("validation", "test"):
            found[split] = _nearest(_rows(described, own[split], scaling, advance), centroids)
    records = []
    for count in counts:
        assigned = _every_split(parts, {split: found[split][count].numbers for split in own})
        record = _record(parts, fitted, assigned, count) | {"seed": seed, "features": described.record}
        record["inertia"] = found[fitted][count].inertia
        kept = Subcategories(centroids[count], *scaling, assigned, record)
        files.write_npz(place / f"{count}.npz", kept.arrays)
        records.append(record)
    return records


def _check(counts: list[int], seed: int, train: Dataset) -> None:
    for count in counts:
        if not 1 <= count <= len(train):
            raise ValueError(
                f"the number of subcategories must be from 1 to the {len(train)} images of {train.name}'s "
                f"{train.split} split, got {count}."
            )
    if not 0 <= seed < 2**32:
        raise ValueError(f"the seed of k-means must be from 0 to {2**32 - 1}, got {seed}.")


class Scaling(NamedTuple):
    """A feature f counts as (f - mean) / scale; [F] each."""

    mean: Float[np.ndarray, " F"]
    scale: Float[np.ndarray, " F"]


class Nearest(NamedTuple):
    """The nearest centroid of every image [N], and the sum of squared distances to them."""

    numbers: Int[np.ndarray, " N"]
    inertia: float


def _on_disk(features: Features, part: Dataset, place: Path, advance: Advance) -> Rows:
    """Features of a split, mapped from a file that has no name."""
    with tempfile.TemporaryFile(dir=place) as file:
        size = 0
        for batch in part.batches(features.batch):
            rows = features.of(batch)
            file.write(rows.tobytes())
            size = rows.shape[1]
            advance(len(batch))
        file.flush()
        return np.memmap(file, np.float32, "r+", shape=(len(part), size))


def _standardise(rows: Rows, wanted: bool) -> Scaling:
    """Standardises the training images' features where they lie, if that is wanted."""
    if not wanted:
        return Scaling(np.zeros(rows.shape[1]), np.ones(rows.shape[1]))
    scaling = Scaling(*kmeans.moments(rows))
    kmeans.standardise(rows, *scaling)
    return scaling


def _rows(features: Features, part: Dataset, scaling: Scaling, advance: Advance) -> Iterator[Rows]:
    for batch in part.batches(features.batch):
        rows = features.of(batch)
        kmeans.standardise(rows, *scaling)
        yield rows
        advance(len(batch))


def _nearest(batches: Iterator[Rows] | list[Rows], centroids: Mapping[int, Centroids]) -> dict[int, Nearest]:
    """For every K, where the images of a split belong."""
    parts = [{count: kmeans.nearest(rows, of) for count, of in centroids.items()} for rows in batches]
    return {
        count: Nearest(
            np.concatenate([part[count][0] for part in parts]),
            float(sum(part[count][1].sum() for part in parts)),
        )
        for count in centroids
    }


def _every_split(
    parts: Mapping[str, Dataset], own: Mapping[str, Int[np.ndarray, " n"]]
) -> dict[str, Int[np.ndarray, " N"]]:
    """`own`, and "train" put together from "train_part" and "validation" where those are its parts."""
    if "train_part" not in own:
        return dict(own)
    held = ("train_part", "validation")
    index = np.concatenate([parts[split].index for split in held])
    numbers = np.concatenate([own[split] for split in held])
    order = np.argsort(index)
    return {**own, "train": numbers[order][np.searchsorted(index[order], parts["train"].index)]}


def _record(
    parts: Mapping[str, Dataset], fitted: str, assigned: Mapping[str, np.ndarray], count: int
) -> dict[str, Any]:
    return {
        "name": parts[fitted].name,
        "split": fitted,
        "images": len(parts[fitted]),
        "splits": {split: part.identity for split, part in parts.items()},
        "count": count,
        "method": kmeans.METHOD,
        "sizes": {split: np.bincount(n, minlength=count).tolist() for split, n in assigned.items()},
    }
