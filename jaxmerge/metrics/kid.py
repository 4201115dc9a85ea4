r"""KID, the kernel distance of Inception features (Bińkowski et al. 2018, Sec. 4).

The unbiased estimate of the squared maximum mean discrepancy (Gretton et al. 2012, Eq. 3) of n samples x and m real
images y,

    MMD^2 = sum_{i != j} k(x_i, x_j) / (n (n - 1)) + sum_{i != j} k(y_i, y_j) / (m (m - 1))
            - 2 sum_{i, j} k(x_i, y_j) / (n m),                                                         (1)
    k(a, b) = (gamma a.b + 1)^3,   gamma = 1 / F.

Unlike FID its expectation does not depend on the number of images, also for a handful, and it may be
negative. Three ways to take the images:

- "complete": all pairs; the standard error is the jackknife's (leave one image out, both sets), which is
  too large, never too small, where the two distributions are equal;
- "blocks": the mean of (1) over disjoint random blocks; the standard error is that of independent blocks;
- "subsets": the published habit, 100 random subsets of 1000 images drawn without replacement. Subsets
  share images, so their spread is no error of the mean, and no standard error is given.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxmerge.metrics.extractor import Activations
from jaxmerge.metrics.fid import check_comparable, name_of
from jaxmerge.metrics.references import Reference

# Rows of a kernel matrix in memory at once.
ROWS = 1024


class Estimate(NamedTuple):
    """MMD^2, its standard error (NaN where none is known), and the spread over subsets (NaN for "complete")."""

    value: float
    se: float
    std: float


class KID(NamedTuple):
    """A kernel distance and what it is of.

    Attributes:
        value: MMD^2, unbiased; times 1000 in many tables.
        se: standard error; NaN for "subsets" and for a single block.
        std: spread over blocks or subsets; NaN for "complete".
        name: "KID", or "kernel distance, ..." where it is not.
        count, reference_count: number of samples and of real images with features.
        reference: the real images, with their number.
        method: the images' pairs, with block size and seed.
        weights: hash of the network's weights.
        resize: how images were resized.
        seeds: of the samples.
    """

    value: float
    se: float
    std: float
    name: str
    count: int
    reference_count: int
    reference: str
    method: str
    weights: str
    resize: str
    seeds: tuple[int, ...]

    @property
    def definition(self) -> str:
        """Everything that two numbers must share to be compared."""
        return (
            f"{self.name} of {self.count} samples to {self.reference}; kernel (a.b / F + 1)^3, unbiased, "
            f"{self.method}; weights {self.weights[:12]}, {self.resize}; float64"
        )


def kernel(a: Float[np.ndarray, "N F"], b: Float[np.ndarray, "M F"]) -> Float[np.ndarray, "N M"]:
    """(a.b / F + 1)^3 for all pairs, float64."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return (a @ b.T / a.shape[1] + 1.0) ** 3


def _sums(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and column sums of the kernel matrix, without holding it."""
    rows, columns = np.empty(len(a)), np.zeros(len(b))
    for start in range(0, len(a), ROWS):
        part = kernel(a[start : start + ROWS], b)
        rows[start : start + ROWS] = part.sum(axis=1)
        columns += part.sum(axis=0)
    return rows, columns


def _own_sums(a: np.ndarray) -> np.ndarray:
    """Sums over the other images, sum_{j != i} k(a_i, a_j)."""
    diagonal = (np.einsum("nf,nf->n", a, a) / a.shape[1] + 1.0) ** 3
    return _sums(a, a)[0] - diagonal


def mmd2(x: Float[np.ndarray, "N F"], y: Float[np.ndarray, "M F"]) -> tuple[float, float]:
    """Equation (1) over all pairs, and its jackknife standard error.

    Args:
        x: features of the samples, at least 2 rows.
        y: features of the real images, at least 2 rows.

    Returns:
        (MMD^2, standard error); the error is NaN where a set has fewer than 3 rows.

    Raises:
        ValueError: other shapes, fewer rows, or values that are not finite.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1:] != y.shape[1:] or min(len(x), len(y)) < 2:
        raise ValueError(
            "a kernel distance needs two sets of at least 2 rows [N, F] with the same features, got "
            f"{list(x.shape)} and {list(y.shape)}; measure both with one network."
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError(
            "the features must be finite, got NaN or infinite values; look for failed samples first."
        )
    n, m = len(x), len(y)
    own_x, own_y = _own_sums(x), _own_sums(y)
    cross_x, cross_y = _sums(x, y)
    within_x, within_y = own_x.sum() / (n * (n - 1)), own_y.sum() / (m * (m - 1))
    between = cross_x.sum()
    value = float(within_x + within_y - 2 * between / (n * m))
    if min(n, m) < 3:
        return value, float("nan")
    without_x = (
        (own_x.sum() - 2 * own_x) / ((n - 1) * (n - 2)) + within_y - 2 * (between - cross_x) / ((n - 1) * m)
    )
    without_y = (
        within_x + (own_y.sum() - 2 * own_y) / ((m - 1) * (m - 2)) - 2 * (between - cross_y) / (n * (m - 1))
    )
    variance = (n - 1) * without_x.var() + (m - 1) * without_y.var()
    return value, float(np.sqrt(variance))


def estimate(
    x: Float[np.ndarray, "N F"],
    y: Float[np.ndarray, "M F"],
    *,
    method: str = "blocks",
    size: int = 1000,
    subsets: int = 100,
    seed: int = 0,
) -> Estimate:
    """MMD^2 in one of the three ways of the module's head.

    Args:
        x, y: features of samples and of real images.
        method: "complete", "blocks" or "subsets".
        size: images of each set per block or subset.
        subsets: number of subsets (of blocks there are as many as the smaller set has).
        seed: of the random division.

    Raises:
        ValueError: another method, or more images per block than there are.
    """
    if method == "complete":
        value, se = mmd2(x, y)
        return Estimate(value, se, float("nan"))
    if method not in ("blocks", "subsets"):
        raise ValueError(f"method must be 'complete', 'blocks' or 'subsets', got {method!r}.")
    fewest = min(len(x), len(y))
    if not 2 <= size <= fewest or subsets < 1:
        raise ValueError(
            f"size must be from 2 to the {fewest} images of the smaller set and subsets at least 1, got {size} and "
            f"{subsets}; choose smaller blocks, or method='complete'."
        )
    rng = np.random.default_rng(seed)
    if method == "blocks":
        chosen = [rng.permutation(len(f))[: fewest // size * size].reshape(-1, size) for f in (x, y)]
        pairs = list(zip(*chosen, strict=True))
    else:
        pairs = [[rng.choice(len(f), size, replace=False) for f in (x, y)] for _ in range(subsets)]
    values = np.asarray([mmd2(x[rows], y[columns])[0] for rows, columns in pairs])
    std = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
    se = std / len(values) ** 0.5 if method == "blocks" else float("nan")
    return Estimate(float(values.mean()), se, std)


def kernel_name(distance: str) -> str:
    """The kernel distance's name, from that of the Fréchet distance of the same features."""
    return "KID" if distance == "FID" else distance.replace("Fréchet distance", "kernel distance")


def kid(
    samples: Activations,
    reference: Reference,
    *,
    method: str = "blocks",
    size: int = 1000,
    subsets: int = 100,
    seed: int = 0,
    seeds: Sequence[int] = (),
) -> KID:
    """KID of samples; both sides need their features (``keep_features=True``).

    Args:
        samples: from `extractor.activations`.
        reference: from `references.cached` or `references.of_activations`.
        method, size, subsets, seed: see `estimate`.
        seeds: of the samples, for the record.

    Raises:
        ValueError: features that were not kept or do not belong together, or as `estimate`.
    """
    check_comparable(samples, reference)
    if samples.features is None or reference.features is None:
        which = "samples" if samples.features is None else "reference"
        raise ValueError(
            f"KID needs the features of every image, but those of the {which} were not kept; measure with "
            "keep_features=True (files with mu and sigma alone serve FID only)."
        )
    found = estimate(
        samples.features, reference.features, method=method, size=size, subsets=subsets, seed=seed
    )
    how = {
        "complete": "all pairs, jackknife standard error",
        "blocks": f"disjoint blocks of {size} (seed {seed}), standard error over blocks",
        "subsets": f"{subsets} overlapping subsets of {size} (seed {seed}), no standard error",
    }[method]
    return KID(
        *found,
        kernel_name(name_of(samples)),
        samples.count,
        len(reference.features),
        reference.images_with_features,
        how,
        samples.weights,
        samples.resize,
        tuple(int(s) for s in seeds),
    )
