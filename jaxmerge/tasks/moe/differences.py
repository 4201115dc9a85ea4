"""Paired differences of methods, their errors, and when they count.

Methods share test images, the seeds of their samples, and the seeds that their models were trained with (batches,
noise, initial weights), so they are compared pair by pair. With the values a_sn, b_sn of model s on image n,
d_sn = a_sn - b_sn, d_n its mean over the S models and d_s its mean over the N images,

    d = mean_n d_n,   se^2 = sd(d_n)^2 / N + sd(d_s)^2 / S                                              (1)

A method of one model is compared with each model of the other; with one model each there is no second term. Scores of
samples are paired over seeds: N seeds, no further term. A difference is *clear* where |d| > t se, t being Student's
97.5 % quantile for N - 1 degrees of freedom, or with both terms V_1, V_2 of (1) the quantiles' mean, weighted as
Cochran does,

    t = (t_{N-1} V_1 + t_{S-1} V_2) / (V_1 + V_2),                                                      (2)

near 1.96 where images decide, 4.3 where three models do. Equal methods are called different in at most 5 % of cases
(Welch and Satterthwaite's degrees of freedom: in up to 8 %, with three models).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxmerge.likelihood import Likelihood
from jaxmerge.metrics.seeds import student
from jaxmerge.tasks.moe.models import Method

Measured = dict[str, dict[str, Any]]
PER_IMAGE = ("bpd", "vlb")
# Level of the interval that a clear difference excludes zero from.
LEVEL = 0.95


class Difference(NamedTuple):
    """A paired difference a minus b.

    Attributes:
        value: in the quantity's unit.
        error: standard error of it.
        count: pairs: images, or seeds.
        quantile: half the width of the interval at `LEVEL` in units of the error.
    """

    value: float
    error: float
    count: int
    quantile: float

    @property
    def reach(self) -> float:
        """Half the width of the interval at `LEVEL`, in the quantity's unit."""
        return self.quantile * self.error

    @property
    def side(self) -> int:
        """-1 where a is clearly below b, 1 where it is clearly above, else 0."""
        return 0 if abs(self.value) <= self.reach else int(math.copysign(1, self.value))


def per_image(found: dict[str, Any], quantity: str) -> Float[np.ndarray, "S N"] | None:
    """bpd or bound of every model on every test image, NaN where a solve failed; None where it was not measured."""
    if quantity == "vlb":
        parts = [np.asarray(m["bound"]).sum(-1) for m in found["models"] if "bound" in m]
    else:
        parts = [np.where(s.ok, s.bpd, np.nan) for s in solves(found)]
    return np.stack(parts).astype(np.float64) if parts else None


def solves(found: dict[str, Any]) -> list[Likelihood]:
    """Exact likelihoods, one entry per model."""
    return [Likelihood(**m["likelihood"]) for m in found["models"] if "likelihood" in m]


def scores(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Scores of samples by the seed of their noise."""
    return {seed: s for model in found["models"] for seed, s in model.get("samples", {}).items()}


def over_models(values: Float[np.ndarray, "S N"]) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " S"]]:
    """Mean over the models of each image, and each model's mean distance from it.

    Distances are taken image by image, so that an image which one model failed on does not set that model apart.
    """
    mean = np.nanmean(values, axis=0)
    return mean, np.nanmean(values - mean, axis=1)


def contrast(ours: Float[np.ndarray, "S N"], theirs: Float[np.ndarray, "T N"]) -> Difference | None:
    """Equations (1) and (2) for values on the same N pairs; None with fewer than two pairs that both have.

    Args:
        ours, theirs: S = T models with the same seeds in the same order, or one model on either side.
    """
    apart = ours - theirs
    both = np.isfinite(apart).any(axis=0)
    if both.sum() < 2:
        return None
    by_image, by_model = over_models(apart[:, both])
    groups = [by_image, *([by_model] if len(by_model) > 1 else [])]
    variances = np.array([np.var(group, ddof=1) / len(group) for group in groups])
    quantiles = np.array([student(len(group) - 1, LEVEL) for group in groups])
    total = variances.sum()
    quantile = quantiles @ variances / total if total > 0 else quantiles.max()
    return Difference(float(by_image.mean()), math.sqrt(total), len(by_image), float(quantile))


def pairs(
    measured: Measured,
    a: Method,
    b: Method,
    quantity: str,
    images: Bool[np.ndarray, " N"] | None = None,
) -> tuple[Float[np.ndarray, "S P"], Float[np.ndarray, "T P"]] | None:
    """Values of two methods on the same pairs; None where one of them has none.

    Args:
        measured: by the methods' keys.
        a, b: the methods.
        quantity: "bpd" or "vlb", models by images; or a score of samples, one line over the seeds that both have.
        images: which test images; all by default.
    """
    if quantity in PER_IMAGE:
        values = [per_image(measured[m.key], quantity) for m in (a, b)]
        if any(v is None for v in values):
            return None
        return tuple(v if images is None else v[:, images[: v.shape[1]]] for v in values)
    ours, theirs = scores(measured[a.key]), scores(measured[b.key])
    seeds = [s for s in ours if s in theirs and quantity in ours[s] and quantity in theirs[s]]
    return tuple(np.array([[found[s][quantity] for s in seeds]], np.float64) for found in (ours, theirs))


def difference(
    measured: Measured,
    a: Method,
    b: Method,
    quantity: str,
    images: Bool[np.ndarray, " N"] | None = None,
) -> Difference | None:
    """a minus b in bpd, bound or a score of samples; None without two pairs. Arguments as of `pairs`."""
    values = pairs(measured, a, b, quantity, images)
    return None if values is None else contrast(*values)


def paired(
    measured: Measured, compared: Sequence[tuple[Method, Method]], quantities: Sequence[str]
) -> list[dict[str, Any]]:
    """Differences of pairs of methods, as the report lists them."""
    found = []
    for a, b in compared:
        for quantity in quantities:
            apart = difference(measured, a, b, quantity)
            if apart is None:
                continue
            unit = "n_images" if quantity in PER_IMAGE else "n_seeds"
            found.append(
                {"model_a": a.name, "model_b": b.name, "quantity": quantity}
                | {"difference": apart.value, "se": apart.error, unit: apart.count}
                | {"quantile": apart.quantile, "clear": apart.side != 0}
            )
    return found


def gain(measured: Measured, a: Method, reference: Method, quantity: str) -> tuple[float, float] | None:
    """Relative gain of a over a reference in percent, positive where a is lower, and its standard error.

    g = 100 (1 - m), m = mean a / mean b. To first order g varies as -100 (a - m b) / mean b with m held fixed, so its
    error is that of a paired difference between a and m b: the reference's own error is in it.

    Returns:
        (gain, error); None without two pairs, or with a reference of mean zero.
    """
    values = pairs(measured, a, reference, quantity)
    if values is None or contrast(*values) is None:
        return None
    ours, theirs = values
    both = np.isfinite(ours - theirs).any(axis=0)
    top, bottom = (over_models(v[:, both])[0].mean() for v in (ours, theirs))
    if bottom == 0:
        return None
    return 100 * float(1 - top / bottom), 100 * contrast(ours, top / bottom * theirs).error / abs(
        float(bottom)
    )
