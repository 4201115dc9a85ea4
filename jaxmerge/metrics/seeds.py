"""One number per seed, and what several say together; the same summary for every metric.

With values v_1 ... v_n of n independent seeds, mean m and standard deviation s (divisor n - 1), the confidence
interval is Student's,

    m +- t_{n-1, (1 + c)/2} s / sqrt(n),

wide for three seeds (4.3 s / sqrt(3) at c = 0.95). The minimum is what many papers print as "the" FID, the best of
three; it is biased downwards and is never to be compared with a mean.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

FEWEST = 3


class SeedSummary(NamedTuple):
    """Several seeds' values of one metric.

    Attributes:
        mean: over the seeds.
        std: standard deviation, divisor n - 1; NaN for one seed.
        minimum, maximum: smallest and largest value.
        low, high: ends of the confidence interval of the mean (Student's t); NaN for one seed.
        confidence: its level.
        values: one per seed.
        seeds: the seeds, or () where they were not named.
        definition: of each value.
    """

    mean: float
    std: float
    minimum: float
    maximum: float
    low: float
    high: float
    confidence: float
    values: tuple[float, ...]
    seeds: tuple[int, ...]
    definition: str


def student(freedom: float, confidence: float = 0.95) -> float:
    """Half the width of Student's interval in units of the standard error.

    Args:
        freedom: degrees of freedom.
        confidence: level of the interval, in (0, 1).

    Example:
        >>> round(student(2), 2)
        4.3
    """
    return float(stats.t.ppf(0.5 + confidence / 2, freedom))


def over_seeds(
    results: Sequence[Any] | Float[np.ndarray, " n"],
    *,
    seeds: Sequence[int] = (),
    confidence: float = 0.95,
    allow_few: bool = False,
) -> SeedSummary:
    """Mean, spread, minimum and confidence interval over seeds.

    Args:
        results: one per seed: numbers, or a metric's results with a ``value`` and a ``definition`` (`fid.FID`,
            `kid.KID`, `inception_score.InceptionScore`).
        seeds: the seeds themselves, for the record.
        confidence: level of the interval, in (0, 1).
        allow_few: take fewer than three seeds.

    Raises:
        ValueError: fewer than three results without `allow_few`, a value that is not finite, results that were
            measured differently, or another number of seeds than of results.

    Example:
        >>> s = over_seeds([2.0, 2.1, 1.9])
        >>> round(s.mean, 3), round(s.std, 3), s.minimum
        (2.0, 0.1, 1.9)
    """
    values = np.asarray([getattr(result, "value", result) for result in results], np.float64)
    definitions = sorted({getattr(result, "definition", "") for result in results})
    fewest = 1 if allow_few else FEWEST
    if values.ndim != 1 or len(values) < fewest:
        raise ValueError(
            f"a summary over seeds needs at least {fewest} values, got {values.size}; measure more seeds"
            + ("." if allow_few else ", or pass allow_few=True.")
        )
    if not np.isfinite(values).all():
        raise ValueError(
            f"every seed's value must be finite, got {values.tolist()}; look for failed samples."
        )
    if len(definitions) > 1:
        raise ValueError(
            f"the seeds were measured in {len(definitions)} ways ({'; '.join(definitions)}); measure all alike."
        )
    seeds = tuple(int(seed) for seed in seeds)
    if (seeds and len(seeds) != len(values)) or len(set(seeds)) < len(seeds):
        raise ValueError(
            f"every value needs a seed of its own, got {len(values)} values of the seeds {list(seeds)}."
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}; 0.95 is usual.")
    count, mean, std = len(values), float(values.mean()), float("nan")
    half = float("nan")
    if count > 1:
        std = float(values.std(ddof=1))
        half = student(count - 1, confidence) * std / count**0.5
    ends = (float(values.min()), float(values.max()), mean - half, mean + half)
    return SeedSummary(mean, std, *ends, confidence, tuple(values.tolist()), seeds, definitions[0])
