r"""Fréchet distance between the Gaussian summaries of two sets of features.

    d = ||mu - mu'||^2 + tr(S + S' - 2 (S S')^{1/2})                                         (1)

(Dowson and Landau 1982; Heusel et al. 2017, Eq. 6, on another network's features). It is a squared
Wasserstein-2 distance between two Gaussians; no root is taken, as usual for generated images.

Rank-deficient covariances are the rule here: fewer images than features, or a feature that is constant.
`scipy.linalg.sqrtm(S @ S')`, the public way, takes the root of a singular matrix that is not symmetric,
which loses digits and may return complex values. With S = L L^T and S' = L' L'^T (factors of full column
rank from symmetric eigendecompositions), the eigenvalues of S S' are those of the symmetric S^{1/2} S'
S^{1/2}, and their square roots are the singular values of L^T L', so

    tr (S S')^{1/2} = sum of the singular values of L^T L',                                  (2)

which takes no root of rounding noise. Everything is float64 on the host.

The number of images. A covariance estimated from n images makes (1) too large by about a constant over
n (Chong and Forsyth 2020): with F = 64 features that term is not small at a few hundred images. Distances
are therefore compared **at the same number of images** (`subset_distances`), and the floor is what real,
held-out images reach (`frechet_floor`).
"""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Gaussian summary of a set of features; make it with `statistics`.

    Attributes:
        mean: [F], float64.
        covariance: unbiased covariance [F, F], float64.
        count: the number N of images behind it; None where a file does not say.
        name: where the features come from; used in messages.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None
    name: str = "features"

    @functools.cached_property
    def factor(self) -> Float[np.ndarray, "F R"]:
        """`factor` of the covariance; kept, as one reference serves many sets of samples."""
        return factor(self.covariance)


class Moments(NamedTuple):
    """Sums over a set of features from which `Statistics` follow; sets are joined by `combine`.

    Attributes:
        count: the number N of images.
        mean: [F], float64.
        scatter: sum of (f - mean) (f - mean)^T over the images [F, F], float64.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    def statistics(self, name: str = "features") -> Statistics:
        """Mean and unbiased covariance (divisor N - 1).

        Raises:
            ValueError: fewer than 2 images.
        """
        if self.count < 2:
            raise ValueError(
                f"{name} needs at least 2 images for a covariance, got {self.count}; pass more images."
            )
        return Statistics(self.mean, self.scatter / (self.count - 1), self.count, name)


def combine(a: Moments, b: Moments) -> Moments:
    """Moments of the union of two sets (Chan, Golub and LeVeque 1979), without cancellation for large means.

    The scatter is S_a + S_b + n_a n_b / (n_a + n_b) (m_a - m_b) (m_a - m_b)^T.
    """
    count = a.count + b.count
    shift = b.mean - a.mean
    scatter = a.scatter + b.scatter + np.outer(shift, shift) * (a.count * b.count / count)
    return Moments(count, a.mean + shift * (b.count / count), scatter)


def moments(features: np.ndarray | Array, *, name: str = "features") -> Moments:
    """Moments of one batch of features, in float64.

    Args:
        features: one row per image [N, F], any floating dtype; N at least 1.
        name: what the features are, for error messages.

    Raises:
        ValueError: another rank, no rows, or a NaN or infinite value.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or features.shape[1] == 0:
        raise ValueError(
            f"{name} must be an array [N, F] with one row per image, got the shape {list(features.shape)}; "
            "reshape it to one row of features per image."
        )
    if not len(features):
        raise ValueError(f"{name} needs at least 2 images for a covariance, got 0; pass more images.")
    bad = int(np.sum(~np.isfinite(features).all(axis=1)))
    if bad:
        raise ValueError(
            f"{name} must be finite, got NaN or infinite values in {bad} of {features.shape[0]} rows; "
            "look for failed samples before measuring them."
        )
    mean = features.mean(axis=0)
    centred = features - mean
    return Moments(len(features), mean, centred.T @ centred)


def statistics(features: np.ndarray | Array, *, name: str = "features") -> Statistics:
    """Mean and unbiased covariance (divisor N - 1) of features, in float64.

    Args:
        features: one row per image [N, F], any floating dtype.
        name: what the features are, for error messages.

    Returns:
        The `Statistics` of the rows.

    Raises:
        ValueError: another rank, fewer than 2 rows, or a NaN or infinite value.
    """
    return moments(features, name=name).statistics(name)


def factor(covariance: Float[np.ndarray, "F F"]) -> Float[np.ndarray, "F R"]:
    """L with L L^T = covariance and full column rank R, for a positive semidefinite matrix.

    Eigenvalues below F times the rounding error of the largest are zero in exact arithmetic or
    indistinguishable from it, and are dropped: the root of one would be 1e-8, not 1e-16.
    """
    values, vectors = scipy.linalg.eigh((covariance + covariance.T) / 2.0)
    keep = values > len(values) * np.finfo(np.float64).eps * max(float(values[-1]), 0.0)
    return vectors[:, keep] * np.sqrt(values[keep])


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """The Fréchet distance (1) between two Gaussian summaries.

    Args:
        a: statistics of one set, F features.
        b: statistics of the other, the same features.

    Returns:
        ||mu - mu'||^2 + tr(S + S' - 2 (S S')^{1/2}), at least 0.

    Raises:
        ValueError: different numbers of features, or statistics that are not finite.

    Example:
        >>> a = Statistics(np.zeros(2), np.eye(2), 10)
        >>> round(frechet_distance(a, Statistics(np.ones(2), 4.0 * np.eye(2), 10)), 6)
        4.0
    """
    for s in (a, b):
        features = s.mean.shape[0]
        if s.covariance.shape != (features, features):
            raise ValueError(
                f"{s.name} has a mean of {features} features but a covariance of shape "
                f"{list(s.covariance.shape)}; make both with statistics(features)."
            )
        if not (np.isfinite(s.mean).all() and np.isfinite(s.covariance).all()):
            raise ValueError(
                f"{s.name} has a NaN or infinite mean or covariance; make it with statistics(features)."
            )
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"both sets must have the same features, got {a.mean.shape[0]} in {a.name} and "
            f"{b.mean.shape[0]} in {b.name}; use one classifier for both."
        )
    shift = a.mean - b.mean
    cross = scipy.linalg.svdvals(a.factor.T @ b.factor).sum()
    distance = shift @ shift + np.trace(a.covariance) + np.trace(b.covariance) - 2.0 * cross
    return max(float(distance), 0.0)


def mean_and_se(distances) -> tuple[float, float]:
    """Mean of independent runs (seeds) and its standard error, sqrt(variance / number of runs).

    Args:
        distances: one distance per seed; at least one.

    Returns:
        (mean, standard error); the error is NaN for a single run, whose spread is unknown.

    Raises:
        ValueError: no distances, or one that is not finite.
    """
    values = np.asarray(list(distances), np.float64)
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError(
            f"distances must be at least one finite number, got {values.tolist()}; measure every seed first."
        )
    if values.size == 1:
        return float(values[0]), float("nan")
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(values.size))


def subset_distances(
    reference: Statistics,
    features: Float[np.ndarray, "N F"],
    count: int,
    *,
    name: str = "features",
    seed: int = 0,
) -> list[float]:
    """Distances to a reference of disjoint random subsets of `count` images each.

    Args:
        reference: statistics to compare with, usually the training set's.
        features: [N, F] with N >= count.
        count: images per subset, at least 2.
        name: what the features are, for error messages.
        seed: order in which the images are dealt out.

    Returns:
        floor(N / count) distances.

    Raises:
        ValueError: a count below 2 or above N.
    """
    features = np.asarray(features)
    if not 2 <= count <= len(features):
        raise ValueError(
            f"count must be from 2 to the {len(features)} images of {name}, got {count}; "
            "choose smaller subsets or pass more images."
        )
    order = np.random.default_rng(seed).permutation(len(features))
    subsets = [order[i * count : (i + 1) * count] for i in range(len(features) // count)]
    return [frechet_distance(statistics(features[s], name=name), reference) for s in subsets]


@dataclasses.dataclass(frozen=True)
class Floor:
    """What real, held-out images reach, and how it depends on their number.

    Attributes:
        distance: Fréchet distance of all held-out images, as they are, to the training set.
        count: their number N.
        counts: subset sizes [K], descending; the first is N.
        means: mean distance [K] of subsets of those sizes (with every class in equal shares where
            labels were given).
        limit: intercept of the straight line of `means` in 1 / count.
        slope: its slope, in distance times images.
        class_slope: what class shares left to chance add to the slope; 0 without labels.
    """

    distance: float
    count: int
    counts: tuple[int, ...]
    means: tuple[float, ...]
    limit: float
    slope: float
    class_slope: float

    def at(self, count: int) -> float:
        """Expected distance of `count` independent real images, limit + (slope + class_slope) / count.

        This is the floor of a model's `count` samples. Above the N held-out images it is an
        extrapolation and is to be called one.
        """
        return self.limit + (self.slope + self.class_slope) / count


def frechet_floor(
    train_features: Float[np.ndarray, "N F"],
    test_features: Float[np.ndarray, "M F"],
    *,
    test_labels: Int[np.ndarray, " L"] | None = None,
    parts: tuple[int, ...] = (1, 2, 3, 4),
    repeats: int = 20,
    seed: int = 0,
) -> Floor:
    """The distance that real, held-out images have to the training set.

    A perfect model's samples are fresh draws from the data's distribution, so their distance is this
    floor, not 0. What holds it up: the covariance of few images (slope / count), the training set's own
    finite number and a classifier that has seen the training images (the constant limit).

    A test set whose split fixed the share of every class lies **below** the floor of samples, whose
    classes come by chance: the features' variance is mostly between classes. Random subsets of a
    pool of M images with fixed shares regain chance as class_slope (1 / count - 1 / M), the variance of
    shares drawn without replacement. So with labels, limit and slope come from subsets with equal shares,
    class_slope from random subsets of the same sizes, and `Floor.at` adds it back in full.

    Args:
        train_features: [N, F], the reference that the models are compared with.
        test_features: [M, F] of held-out images.
        test_labels: classes of the held-out images [M] if their shares were fixed by the split; None if
            the images are independent draws.
        parts: the held-out images are divided into this many subsets; ascending, from 1.
        repeats: random divisions that are averaged for each number of parts.
        seed: seed of those divisions.

    Returns:
        The `Floor`: `distance` is the test set's own, `at(n)` the one of n independent images.

    Raises:
        ValueError: too few images for the asked parts, labels that do not belong to the images, or not
            ascending parts that start with 1.
    """
    parts, total = tuple(parts), len(test_features)
    if len(parts) < 2 or parts[0] != 1 or any(b <= a for a, b in itertools.pairwise(parts)):
        raise ValueError(
            f"parts must be at least two ascending numbers that start with 1, got {list(parts)}."
        )
    if test_labels is not None and np.shape(test_labels) != (total,):
        raise ValueError(
            f"test_labels must be one class per held-out image [{total}], got the shape "
            f"{list(np.shape(test_labels))}; pass the labels of the same images."
        )
    reference = statistics(train_features, name="training features")

    def subsets_of_equal_shares(labels):
        return [_subset_mean(reference, test_features, labels, p, repeats, seed) for p in parts]

    one_class = np.zeros(total, np.int64)
    sizes = subsets_of_equal_shares(one_class if test_labels is None else test_labels)
    counts, means = (tuple(column) for column in zip(*sizes, strict=True))
    slope, limit = (float(v) for v in np.polyfit(1.0 / np.asarray(counts), means, 1))
    class_slope = 0.0
    if test_labels is not None:
        class_slope = _class_slope(sizes, subsets_of_equal_shares(one_class), slope)
    whole = frechet_distance(statistics(test_features, name="held-out features"), reference)
    return Floor(whole, total, counts, means, limit, slope, class_slope)


def _class_slope(fixed: list[tuple[int, float]], chance: list[tuple[int, float]], slope: float) -> float:
    """Least squares through 0 of what chance adds, against 1 / count - 1 / M; both lists start with all M."""
    total = chance[0][0]
    inverse = np.asarray([1.0 / count - 1.0 / total for count, _ in chance[1:]])
    # Rounding each class down can make the stratified subsets a little smaller: moved to equal counts.
    added = [
        d - (e + slope * (1.0 / n - 1.0 / m)) for (n, d), (m, e) in zip(chance[1:], fixed[1:], strict=True)
    ]
    return max(float(inverse @ np.asarray(added) / (inverse @ inverse)), 0.0)


def _subset_mean(reference, features, labels, parts: int, repeats: int, seed: int) -> tuple[int, float]:
    """(images, mean distance) of `parts` disjoint random subsets that share every class equally."""
    distances = []
    for repeat in range(repeats):
        rng = np.random.default_rng([seed, repeat])
        classes = [rng.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]
        shares = [len(members) // parts for members in classes]
        for k in range(parts):
            taken = [m[k * n : (k + 1) * n] for m, n in zip(classes, shares, strict=True)]
            chosen = features[np.concatenate(taken)]
            distances.append(frechet_distance(statistics(chosen, name="held-out features"), reference))
    return sum(shares), float(np.mean(distances))
