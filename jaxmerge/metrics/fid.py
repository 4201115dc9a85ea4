"""FID, by that name only where it is one (Heusel et al. 2017, Eq. 6).

FID is the Fréchet distance (`frechet.frechet_distance`, float64, unbiased covariances) between samples and a named
reference in the 2048 pool features of the Inception network of 2015, with the published weights. Everything
else is called a "Fréchet distance" with the features' name, so that no table can mix the two.

2048 features have a covariance of full rank only from 2049 images on, and FID is too large by about a
constant over the number of images: fewer than `FEWEST` images are refused unless asked for, and the number is
part of the result's definition.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jaxmerge.metrics.extractor import BLOCKS, Activations
from jaxmerge.metrics.frechet import frechet_distance
from jaxmerge.metrics.references import Reference

FEWEST = 2048


class FID(NamedTuple):
    """A distance and what it is of.

    Attributes:
        value: the distance, at least 0.
        name: "FID", or "Fréchet distance, ..." where it is not.
        count: number of samples.
        reference: the real images.
        reference_count: their number; None where a file does not say.
        weights: hash of the network's weights.
        resize: how images were resized.
        features: layer and number of features.
        seeds: of the samples.
    """

    value: float
    name: str
    count: int
    reference: str
    reference_count: int | None
    weights: str
    resize: str
    features: str
    seeds: tuple[int, ...]

    @property
    def definition(self) -> str:
        """Everything that two numbers must share to be compared."""
        few = f" (fewer than {FEWEST}: much too large)" if self.count < FEWEST else ""
        return (
            f"{self.name} of {self.count} samples{few} to {self.reference}; {self.features}, weights "
            f"{self.weights[:12]}, {self.resize}; float64, unbiased covariances"
        )


def name_of(samples: Activations) -> str:
    """The name that a Fréchet distance of these features may have."""
    size = len(samples.statistics.mean)
    if samples.block == "pool" and size == BLOCKS["pool"] and samples.published:
        return "FID"
    other = "" if samples.published else " with other weights"
    return f"Fréchet distance, Inception{other}, {samples.block} {size}"


def check_comparable(samples: Activations, reference: Reference) -> None:
    """Refuses features of two networks, layers or resizings.

    Raises:
        ValueError: says in what they differ.
    """
    if not reference.name:
        raise ValueError("the reference must have a name, got none; say which real images it was made from.")
    for key in ("block", "weights", "resize"):
        ours, theirs = getattr(samples, key), getattr(reference, key)
        if theirs is not None and ours != theirs:
            raise ValueError(
                f"samples and reference must have the same {key}, got {ours!r} and {theirs!r}; measure both "
                "with one extractor."
            )


def fid(
    samples: Activations, reference: Reference, *, seeds: Sequence[int] = (), allow_few: bool = False
) -> FID:
    """The FID of samples, or a Fréchet distance of another name (see `name_of`).

    Args:
        samples: from `extractor.activations`.
        reference: from `references`; a file of others is taken to be of the same network.
        seeds: of the samples, for the record.
        allow_few: take fewer than 2048 samples.

    Raises:
        ValueError: too few samples, or features that do not belong together.
    """
    if samples.count < FEWEST and not allow_few:
        raise ValueError(
            f"FID needs at least {FEWEST} images, got {samples.count}; generate more, take KID, which is unbiased at "
            "small numbers, or pass allow_few=True."
        )
    check_comparable(samples, reference)
    return FID(
        frechet_distance(samples.statistics, reference.statistics),
        name_of(samples),
        samples.count,
        reference.name,
        reference.statistics.count,
        samples.weights,
        samples.resize,
        f"Inception {samples.block} {len(samples.statistics.mean)}",
        tuple(int(seed) for seed in seeds),
    )
