"""Batches of a set on disk, read ahead by threads while the accelerator works."""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Int, UInt8

from jaxmerge.data.dataset import Dataset

Batch = tuple[UInt8[np.ndarray, "B H W C"], Int[np.ndarray, " B"]]


def feed(
    dataset: Dataset,
    places: Callable[[int], Int[np.ndarray, " B"]],
    *,
    start: int,
    stop: int,
    threads: int = 8,
    ahead: int = 4,
) -> Iterator[Batch]:
    """Images and labels of the steps `start` to `stop` - 1.

    Which images a step gets follows from its number alone, so that a training that begins again at step k
    sees what it would have seen; threads only read ahead.

    Args:
        dataset: where the images come from.
        places: from a step's number to the places of its images in the split.
        start, stop: the steps.
        threads: readers.
        ahead: batches that are kept ready.

    Returns:
        An iterator over (images [B, H, W, C], labels [B]).
    """
    import grain  # takes a second, so only where images are fed

    def batch(step: int) -> Batch:
        wanted = np.asarray(places(int(step)))
        return dataset.read(wanted), dataset.labels[wanted]

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    return iter(grain.MapDataset.range(start, stop).map(batch).to_iter_dataset(options))
