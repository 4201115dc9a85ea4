"""The Inception score (Salimans et al. 2016, Sec. 4), over splits as usual.

    IS = exp( mean KL(p(y|x) || p(y)) )

with p(y|x) the softmax of Inception's logits **without their bias**, as TensorFlow's graph of 2015 has them, and p(y)
the mean within one split. Published numbers are mean and standard deviation over ten splits of 50 000 images.
The score of few images is too low (p(y) follows the images), so splits of 5 000 are part of the number. Splits are
cut in the images' order: samples that are sorted by class have to be shuffled first.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxmerge.metrics.classifier import score_of_logits
from jaxmerge.metrics.extractor import Activations

SPLITS = 10
FEWEST = 2048


class InceptionScore(NamedTuple):
    """A score and what it is of.

    Attributes:
        value: mean over the splits, 1 to 1008.
        std: standard deviation over the splits (divisor: their number, as published); no standard error.
        name: "Inception score", or another where the weights are not the published ones.
        count: number of images.
        splits: parts that they were cut into.
        weights: hash of the network's weights.
        resize: how images were resized.
        seeds: of the samples.
    """

    value: float
    std: float
    name: str
    count: int
    splits: int
    weights: str
    resize: str
    seeds: tuple[int, ...]

    @property
    def definition(self) -> str:
        """Everything that two numbers must share to be compared."""
        return (
            f"{self.name} of {self.count} samples in {self.splits} splits, mean over splits; logits without bias, "
            f"weights {self.weights[:12]}, {self.resize}; float64"
        )


def split_scores(logits: np.ndarray, splits: int = SPLITS) -> np.ndarray:
    """The score of every split: split i has the images floor(i N / S) to floor((i + 1) N / S) - 1.

    Args:
        logits: [N, K].
        splits: S, 1 to N.

    Raises:
        ValueError: fewer images than splits, or logits that are not finite.
    """
    if not 1 <= splits <= len(logits):
        raise ValueError(
            f"splits must be from 1 to the {len(logits)} images, got {splits}; 10 splits of 50 000 images are usual."
        )
    edges = [i * len(logits) // splits for i in range(splits + 1)]
    return np.asarray([score_of_logits(logits[a:b]) for a, b in itertools.pairwise(edges)])


def name_of(published: bool) -> str:
    """The name that the score may have, by whether the weights are the published ones."""
    return "Inception score" if published else "score of Inception with other weights"


def inception_score(
    samples: Activations, *, splits: int = SPLITS, seeds: Sequence[int] = (), allow_few: bool = False
) -> InceptionScore:
    """Mean and standard deviation of the score over splits.

    Args:
        samples: from `extractor.activations`, in an order that is no order of classes.
        splits: parts, 10 in published numbers.
        seeds: of the samples, for the record.
        allow_few: take fewer than 2048 samples.

    Raises:
        ValueError: too few samples, fewer than splits, or logits that were not kept.
    """
    if samples.logits is None:
        raise ValueError("the Inception score needs logits, but they were not kept; pass keep_logits=True.")
    if samples.count < FEWEST and not allow_few:
        raise ValueError(
            f"the Inception score needs at least {FEWEST} images, got {samples.count}; generate more, or pass "
            "allow_few=True."
        )
    scores = split_scores(samples.logits, splits)
    return InceptionScore(
        float(scores.mean()),
        float(scores.std()),
        name_of(samples.published),
        samples.count,
        splits,
        samples.weights,
        samples.resize,
        tuple(int(seed) for seed in seeds),
    )
