"""What generated images are compared with: Inception's statistics of a data set.

They come from a file of others, EDM's format with the arrays ``mu`` and ``sigma``, or are measured here
and kept in a checkpoint that names the data set's identity and the weights. A kept reference is used only for
exactly what it was made from.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Float, Int, UInt8

from jaxmerge import checkpoint
from jaxmerge.metrics.extractor import BLOCKS, Activations, Extractor, activations
from jaxmerge.metrics.frechet import Statistics

# Features of at most so many images are kept for KID, 8 kB each; mean and covariance are of all images.
KEPT = 50_000


@dataclasses.dataclass(frozen=True)
class Reference:
    """A named set of real images, as features.

    Attributes:
        statistics: of the features; their ``count`` is None where a file does not say.
        name: of the set, with what identifies it; goes into every result.
        block: the features' layer.
        weights: hash of the network's weights; None for a file of others.
        resize: how the images were resized; None for a file of others.
        features: [n, F] of all images or of some, where KID is wanted.
    """

    statistics: Statistics
    name: str
    block: str = "pool"
    weights: str | None = None
    resize: str | None = None
    features: Float[np.ndarray, "n F"] | None = None

    @property
    def images_with_features(self) -> str:
        """How many images have features, and of which set."""
        kept, count = len(self.features), self.statistics.count
        spread = "" if count in (None, kept) else f", spread evenly over its {count}"
        return f"{kept} images of {self.name}{spread}"


def evenly_spread(count: int, most: int) -> Int[np.ndarray, " n"]:
    """Places of at most `most` of `count` images, at equal distances, ascending."""
    number = min(count, most)
    return np.arange(number) * count // max(number, 1)


def read_npz(path: str | os.PathLike, *, name: str = "") -> Reference:
    """A reference from an npz file with ``mu`` [2048] and ``sigma`` [2048, 2048] (EDM's fid-refs).

    Args:
        path: the file.
        name: of the data set, by default what a converted file records; the original file's name and
            the start of its checksum are added.

    Raises:
        ValueError: no such file, another format, other shapes, values that are not finite, or a covariance
            that is not symmetric with a diagonal of at least 0.
    """
    path = pathlib.Path(path).expanduser()
    try:
        with open(path, "rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        with np.load(path, allow_pickle=False) as stored:
            mu, sigma = (np.asarray(stored[key], np.float64) for key in ("mu", "sigma"))
            record = json.loads(str(stored["source"])) if "source" in stored else {}
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = str(error).strip("'\"").splitlines()[0].rstrip(".")
        raise ValueError(
            f"{path} is no file of FID statistics with the arrays mu and sigma ({reason}); give EDM's npz "
            "for this data set, or leave it out to measure the data set here."
        ) from None
    size = BLOCKS["pool"]
    if mu.shape != (size,) or sigma.shape != (size, size):
        raise ValueError(
            f"{path} must have mu [{size}] and sigma [{size}, {size}], got {list(mu.shape)} and "
            f"{list(sigma.shape)}; statistics of another network cannot be used."
        )
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError(f"{path} has NaN or infinite values in mu or sigma; get the file again.")
    largest = float(np.abs(sigma).max())
    if np.abs(sigma - sigma.T).max() > 1e-6 * largest or sigma.diagonal().min() < -1e-6 * largest:
        raise ValueError(
            f"{path} has a sigma that is no covariance (symmetric, diagonal >= 0); get the file again."
        )
    # A converted file says what it was converted from.
    source = {"file": path.name, "sha256": checksum} | record.get("source", {})
    whole = f"{name or record.get('data_set', path.stem)} ({source['file']}, SHA-256 {source['sha256'][:12]})"
    return Reference(Statistics(mu, sigma, None, whole), whole)


def of_activations(real: Activations, *, name: str, identity: str) -> Reference:
    """A reference from features measured here; `identity` is the data set's own checksum."""
    if not name or not identity:
        raise ValueError(
            "a reference needs the data set's name and identity, got none; results have to name them."
        )
    whole = f"{name} (identity {identity[:12]})"
    found = dataclasses.replace(real.statistics, name=whole)
    return Reference(found, whole, real.block, real.weights, real.resize, real.features)


def cached(
    path: str | os.PathLike,
    extractor: Extractor,
    images: Callable[[], Iterable[UInt8[np.ndarray, "B H W 3"]]],
    *,
    name: str,
    identity: str,
    block: str = "pool",
    keep_features: bool = False,
    count: int | None = None,
    advance: Callable[[int], None] = lambda n: None,
) -> Reference:
    """The reference kept at `path`; measured and kept there first where there is none.

    Args:
        path: folder of the kept reference, which appears whole or not at all.
        extractor: the network.
        images: called for the data set's images in batches, only if they have to be measured.
        name: of the data set and its split ("CIFAR-10 train").
        identity: checksum of exactly these images.
        block: see `activations`.
        keep_features: keep images' features too, for KID.
        count: the number of images, where it is known; then features of at most `KEPT` are kept, evenly spread.
        advance: called with the number of images done.

    Raises:
        ValueError: what is kept there was made from another data set, by another network or in another way.
    """
    wanted = {
        "name": name,
        "identity": identity,
        "weights": extractor.weights,
        "resize": extractor.resize,
        "block": block,
        "features kept": keep_features,
    }
    if checkpoint.exists(path):
        return _kept(path, wanted)
    real = activations(
        extractor,
        images(),
        name=name,
        block=block,
        keep_features=evenly_spread(count, KEPT) if keep_features and count else keep_features,
        keep_logits=False,
        advance=advance,
    )
    tree = {"mean": real.statistics.mean, "covariance": real.statistics.covariance}
    record = wanted | {"images": real.count, "size": len(real.statistics.mean)}
    if keep_features:
        tree["features"] = real.features
        record["images with features"] = len(real.features)
    checkpoint.save(path, tree, {"fid_reference": record})
    return of_activations(real, name=name, identity=identity)


def _kept(path, wanted: dict) -> Reference:
    record = checkpoint.load_metadata(path).get("fid_reference", {})
    other = [
        f"{key} {record.get(key)!r} instead of {value!r}"
        for key, value in wanted.items()
        if record.get(key) != value
    ]
    if other:
        raise ValueError(
            f"the reference kept at {path} was made from something else ({'; '.join(other)}); give another "
            "folder, or delete this one to measure anew."
        )
    count, size = record["images"], record["size"]
    shapes = {"mean": ((size,), np.float64), "covariance": ((size, size), np.float64)}
    if record["features kept"]:
        shapes["features"] = ((record.get("images with features", count), size), np.float32)
    tree = checkpoint.load(path, {key: np.empty(shape, dtype) for key, (shape, dtype) in shapes.items()})
    whole = f"{record['name']} (identity {record['identity'][:12]})"
    statistics = Statistics(tree["mean"], tree["covariance"], count, whole)
    return Reference(
        statistics, whole, record["block"], record["weights"], record["resize"], tree.get("features")
    )
