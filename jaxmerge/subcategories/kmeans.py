"""K centroids of features that lie on disk, and the nearest of them."""

from collections.abc import Iterator

import numpy as np
import sklearn
from jaxtyping import Float, Int
from sklearn.cluster import MiniBatchKMeans

STARTS, BATCH = 10, 4096
METHOD = f"MiniBatchKMeans of scikit-learn {sklearn.__version__}, {STARTS} starts, batches of {BATCH}"
# Rows that are held in memory at once, in float64.
CHUNK = 1024

Rows = Float[np.ndarray, "N F"]


def _chunks(rows: Rows) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, len(rows), CHUNK))


def moments(rows: Rows) -> tuple[Float[np.ndarray, " F"], Float[np.ndarray, " F"]]:
    """Mean and standard deviation of every dimension, read in parts; 1 in place of a standard deviation of 0."""
    mean = sum(rows[part].sum(0, dtype=np.float64) for part in _chunks(rows)) / len(rows)
    variance = sum(((rows[part] - mean) ** 2).sum(0) for part in _chunks(rows)) / len(rows)
    return mean, np.where(np.ptp(rows, axis=0) > 0, np.sqrt(variance), 1.0)


def standardise(rows: Rows, mean: Float[np.ndarray, " F"], scale: Float[np.ndarray, " F"]) -> None:
    """Turns rows f into (f - mean) / scale where they lie, in parts."""
    for part in _chunks(rows):
        rows[part] = (rows[part] - mean) / scale


def fit(rows: Rows, count: int, seed: int) -> Float[np.ndarray, "K F"]:
    """Centroids by mini-batch k-means, that with the most rows first; the rows are read batch by batch.

    Args:
        rows: features, float32; may be a memory map.
        count: K, between 1 and the number of rows.
        seed: of starts and batches; the same one gives the same centroids.

    Raises:
        ValueError: fewer different rows than K.
    """
    model = MiniBatchKMeans(count, n_init=STARTS, batch_size=BATCH, random_state=seed, compute_labels=False)
    centroids = model.fit(rows).cluster_centers_
    sizes = np.bincount(nearest(rows, centroids)[0], minlength=count)
    if not sizes.all():
        raise ValueError(
            f"{len(rows)} training images must fall into {count} groups, but in these features only "
            f"{np.count_nonzero(sizes)} have images; ask for fewer."
        )
    return centroids[np.argsort(-sizes, kind="stable")]


def nearest(
    rows: Rows, centroids: Float[np.ndarray, "K F"]
) -> tuple[Int[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Number of the nearest centroid, and the squared distance to it, of every row.

    Distances are summed row by row in float64, so that a row's does not depend on the rows around it.
    """
    numbers, distances = np.empty(len(rows), np.int64), np.empty(len(rows))
    for part in _chunks(rows):
        values = rows[part].astype(np.float64)
        squared = np.stack([((values - centroid) ** 2).sum(-1) for centroid in centroids], axis=-1)
        numbers[part], distances[part] = squared.argmin(-1), squared.min(-1)
    return numbers, distances
