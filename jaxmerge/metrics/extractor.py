"""Inception's features of many images, in one pass that serves FID, KID and the Inception score.

The pass goes batch by batch, sharded over all local devices; mean and covariance are accumulated in float64 on
the host, so that images need no more memory than their logits and features, where those are kept; a reference
keeps no logits, and the features of some images only.

What an extractor says of itself goes into every result: the hash of its weights, how it resizes, and whether its
weights are those of every published FID (`PUBLISHED_SHA256`). With other weights a number is named otherwise.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from jaxmerge import checkpoint
from jaxmerge.metrics import frechet, inception
from jaxmerge.metrics.weights import weights_hash

# pt_inception-2015-12-05-6726825d.pth, TensorFlow's graph of 2015 in the file that most FID programs read.
PUBLISHED_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
RESIZE = "bilinear to 299 x 299 as in TensorFlow 1 (no half-pixel centres, no antialiasing), (x - 128) / 128"
BLOCKS = {"block_64": 64, "block_192": 192, "block_768": 768, "pool": 2048}


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A network as the metrics see it; make it with `of_network` or `load`.

    Attributes:
        features: uint8 RGB images [N, H, W, 3] to `inception.Features`.
        weights: hash of its arrays.
        published: whether they came from the file of the published metrics.
        resize: what happens to images first.
    """

    features: Callable[[np.ndarray], inception.Features]
    weights: str
    published: bool = False
    resize: str = RESIZE


def of_network(net: inception.Inception, *, published: bool = False, batch_size: int = 50) -> Extractor:
    """An extractor of a network in memory; `batch_size` is per device and call."""
    features = functools.partial(inception.features, net, batch_size=batch_size)
    return Extractor(features, weights_hash(inception.parameters(net)), published)


def load(path: str, *, batch_size: int = 50) -> Extractor:
    """The extractor of a converted checkpoint, published if its record names the published file's checksum.

    Raises:
        ValueError: a missing or damaged checkpoint, or one of another network.
    """
    net = inception.load(path)
    published = PUBLISHED_SHA256 in _strings(checkpoint.load_metadata(path))
    return of_network(net, published=published, batch_size=batch_size)


def _strings(record: Any) -> set[str]:
    """All strings in a JSON record."""
    if isinstance(record, dict):
        record = list(record.values())
    if isinstance(record, list):
        return set().union(*map(_strings, record))
    return {record} if isinstance(record, str) else set()


@dataclasses.dataclass(frozen=True)
class Activations:
    """What one pass over a set of images leaves.

    Attributes:
        statistics: of the features, over all images.
        logits: without bias [N, 1008], in the images' order; None where they were not kept.
        features: [n, F] float32 of all images or of those asked for; None where none were kept (KID needs them).
        block: name of the features' layer.
        weights, published, resize: the extractor's.
    """

    statistics: frechet.Statistics
    logits: Float[np.ndarray, "N K"] | None
    features: Float[np.ndarray, "n F"] | None
    block: str
    weights: str
    published: bool
    resize: str

    @property
    def count(self) -> int:
        """Number of images."""
        return self.statistics.count


def _batches(images, chunk: int) -> Iterable[UInt8[np.ndarray, "B H W 3"]]:
    """The batches that are not empty; one array is cut into parts of `chunk` images."""
    if isinstance(images, np.ndarray):
        return (images[i : i + chunk] for i in range(0, len(images), chunk))
    return (batch for batch in images if len(batch))


class Kept:
    """Features that are kept while batches pass by: of no image, of every image, or of those at given places."""

    def __init__(self, wanted: bool | Int[np.ndarray, " n"]):
        self._places = None if isinstance(wanted, bool) else np.asarray(wanted)
        self._everything, self._seen, self._parts = wanted is True, 0, []

    def add(self, features: Float[np.ndarray, "B F"]) -> None:
        """Takes the next images' features."""
        first, self._seen = self._seen, self._seen + len(features)
        if self._places is not None:
            start, end = np.searchsorted(self._places, (first, self._seen))
            features = features[self._places[start:end] - first]
        if self._everything or self._places is not None:
            self._parts.append(np.array(features, np.float32))

    def features(self, name: str) -> Float[np.ndarray, "n F"] | None:
        """What was kept, once all images were added; `name` says of what.

        Raises:
            ValueError: fewer images than the places say.
        """
        if self._places is not None and len(self._places) and self._places[-1] >= self._seen:
            raise ValueError(
                f"features of image {self._places[-1]} of {name} were asked for, but it has {self._seen}; name "
                "places that there are."
            )
        return np.concatenate(self._parts) if self._parts else None


def activations(
    extractor: Extractor,
    images: UInt8[np.ndarray, "N H W 3"] | Iterable[UInt8[np.ndarray, "B H W 3"]],
    *,
    name: str = "samples",
    block: str = "pool",
    keep_features: bool | Int[np.ndarray, " n"] = False,
    keep_logits: bool = True,
    chunk: int = 2048,
    advance: Callable[[int], None] = lambda n: None,
) -> Activations:
    """One pass of the network over any number of images.

    Args:
        extractor: from `load`.
        images: uint8 RGB grey levels 0 to 255, one array or batches of any sizes (shards from disk).
        name: what the images are, for messages.
        block: "pool" (2048 features, FID's), "block_768", "block_192" or "block_64".
        keep_features: keep the features of every image, 8 kB each at 2048; or the places of those images whose
            features are kept, ascending.
        keep_logits: keep the logits of every image, for the Inception score.
        chunk: images per accumulated batch where one array is given.
        advance: called with the number of images done.

    Raises:
        ValueError: fewer than 2 images, an unknown block, images of another form, features that are not
            finite, or fewer images than the places say.
    """
    if block not in BLOCKS:
        raise ValueError(f"block must be one of {', '.join(BLOCKS)}, got {block!r}; FID takes 'pool'.")
    total, logits, kept = None, [], Kept(keep_features)
    for batch in _batches(images, chunk):
        out = extractor.features(batch)
        features = np.asarray(getattr(out, block))
        found = frechet.moments(features, name=name)
        total = found if total is None else frechet.combine(total, found)
        if keep_logits:
            logits.append(np.asarray(out.logits, np.float32))
        kept.add(features)
        advance(len(batch))
    if total is None:
        raise ValueError(f"{name} has no images; pass uint8 RGB images [N, H, W, 3].")
    return Activations(
        total.statistics(name),
        np.concatenate(logits) if keep_logits else None,
        kept.features(name),
        block,
        extractor.weights,
        extractor.published,
        extractor.resize,
    )
