"""What k-means sees of an image: Inception's features, or the colours of 8x8 cells.

`pixels` needs no network and knows nothing of what an image shows: its parts are images alike in colour and layout.
`inception` are the 2048 features that FID compares.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from jaxmerge.data import Dataset

GRID = 8
# Images that pass through a network at once.
IMAGES = 500


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of images.

    Attributes:
        of: a data set's images to their features [n, F], float32.
        record: what they are; has "kind" and "definition".
        standardised: whether k-means takes them with mean 0 and standard deviation 1 over the training images.
        batch: images that are read at once.
    """

    of: Callable[[Dataset], Float[np.ndarray, "n F"]]
    record: dict[str, Any]
    standardised: bool
    batch: int


def pixels(data: Dataset) -> Features:
    """Mean grey levels of 8x8 cells per channel, for images of this data set's size."""
    definition = (
        f"mean grey level of {GRID}x{GRID} cells of equal area per channel, standardised per dimension"
    )
    return Features(
        lambda part: cells(part.images, part.levels),
        {"kind": "pixels", "definition": definition},
        standardised=True,
        batch=data.part_size,
    )


def cells(images: UInt8[np.ndarray, "n H W C"], levels: int) -> Float[np.ndarray, "n F"]:
    """Means over 8x8 cells of equal area, F = 64 C, in [0, 1]: grey levels divided by V - 1.

    A pixel that lies in several cells counts in each with its part. The sums are whole numbers and hence exact.
    """
    count, height, width, channels = images.shape
    # einsum without BLAS, whose threads wait for each other on matrices this narrow.
    across = np.einsum("ih,nhx->nix", _overlaps(height), images.reshape(count, height, -1).astype(np.float64))
    sums = np.einsum("jw,niwc->nijc", _overlaps(width), across.reshape(count, GRID, width, channels))
    return (sums / (height * width * (levels - 1))).reshape(count, -1).astype(np.float32)


def _overlaps(size: int) -> Float[np.ndarray, "8 n"]:
    """How much of pixel p lies in cell i, in eighths of a pixel; every row sums to `size`."""
    cell, pixel = np.arange(GRID)[:, None] * size, np.arange(size) * GRID
    overlap = np.minimum(cell + size, pixel + GRID) - np.maximum(cell, pixel)
    return np.maximum(0, overlap).astype(np.float64)


def inception(network: str, data: Dataset) -> Features:
    """Inception's pool features, for images of this data set's form.

    Args:
        network: folder of the converted network.
        data: what has such images.

    Raises:
        ValueError: images that are not RGB with 256 grey levels; or a missing or damaged network, or another one.
    """
    if data.levels != 256 or data.shape[-1] != 3:
        raise ValueError(
            f"Inception's features need RGB images with 256 grey levels, {data.name} has {data.levels} in "
            f"{data.shape[-1]} channel(s); take --features pixels."
        )
    from jaxmerge import checkpoint  # imports JAX, which the pixels do not need
    from jaxmerge.metrics import extractor

    if not checkpoint.exists(network):
        raise ValueError(
            f"Inception's features need the converted network, but {network} has none; make it with python -m "
            f"checkpoints_convert fid-inception {network}, or take --features pixels."
        )
    net = extractor.load(network)
    record = {
        "kind": "inception",
        "definition": "pool features of Inception-v3 as FID takes them, not standardised",
        "weights": net.weights,
        "published": net.published,
        "resize": net.resize,
    }
    return Features(
        lambda part: np.array(net.features(part.images).pool, np.float32),
        record,
        standardised=False,
        batch=IMAGES,
    )
