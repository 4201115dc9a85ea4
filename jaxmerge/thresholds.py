"""Choosing the threshold, and the best weights, from error curves.

arXiv 2511.19434 leaves open how to find eta without a search. The error curves answer it:
the bound of every threshold is a cumulative sum over them (``vlb.py``), so one pass over images that are
not test images proposes eta. Two proposals: the best bound's, and the smallest eta within one paired
standard error of it, since sample quality favours a small eta.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxmerge import noise
from jaxmerge.experts.base import Expert
from jaxmerge.merge import eta_range
from jaxmerge.vlb import Curves


def standard_etas(low: Expert, high: Expert) -> list[float]:
    """The thresholds of Tables 1, 2 and 5: eta_min, 0.1, ..., 0.8, eta_max, those that both experts allow."""
    lowest, highest = eta_range(low, high)
    inner = [k / 10 for k in range(1, 9) if lowest < k / 10 < highest]
    return [lowest, *inner, highest]


class Proposal(NamedTuple):
    """Thresholds proposed from error curves.

    Attributes:
        best: eta with the lowest bound.
        cautious: the smallest eta whose bound is within one paired standard error of the best.
        merge: whether the best merge's bound is below both single experts' by more than one paired standard error.
        etas: candidates [E].
        bpd: their bounds [E].
        se: standard error over images [E].
        excess: paired difference to the best bound [E].
        excess_se: its standard error [E].
    """

    best: float
    cautious: float
    merge: bool
    etas: Float[np.ndarray, " E"]
    bpd: Float[np.ndarray, " E"]
    se: Float[np.ndarray, " E"]
    excess: Float[np.ndarray, " E"]
    excess_se: Float[np.ndarray, " E"]


def propose(curves: Curves, etas: Sequence[float], *, low: int = 0, high: int = 1) -> Proposal:
    """Proposes thresholds from the curves of two experts on images that are not test images.

    Args:
        curves: measured with every candidate as an edge.
        etas: candidates, as positions in the merged range.
        low, high: numbers of the low-noise and the high-noise expert.
    """
    span = curves.ranges[low][0], curves.ranges[high][1]
    etas = np.sort(np.asarray(etas, np.float64))
    per_image = np.stack(
        [curves.switch(noise.gamma_of_eta(eta, *span), low, high).sum(-1) for eta in etas], axis=1
    )
    best = int(np.argmin(per_image.mean(0)))
    excess = per_image - per_image[:, [best]]
    excess_se = _se(excess)
    cautious = int(np.argmax(excess.mean(0) <= excess_se))
    singles = np.stack([curves.single(k).sum(-1) for k in (low, high)], axis=1)
    gain = singles - per_image[:, [best]]
    return Proposal(
        best=float(etas[best]),
        cautious=float(etas[cautious]),
        merge=bool(np.all(gain.mean(0) > _se(gain))),
        etas=etas,
        bpd=per_image.mean(0),
        se=_se(per_image),
        excess=excess.mean(0),
        excess_se=excess_se,
    )


class Pair(NamedTuple):
    """The best merge of two among several experts.

    Attributes:
        low, high: numbers of the low-noise and the high-noise expert.
        gamma: threshold.
        bpd: its bound, bits per dimension.
    """

    low: int
    high: int
    gamma: float
    bpd: float


def best_pair(curves: Curves) -> Pair:
    """The ordered pair of experts and the inner edge of the curves at which switching gives the lowest bound.

    Raises:
        ValueError: fewer than two experts, or no edge inside the ranges of any two.
    """
    found = []
    for low, high in itertools.permutations(range(len(curves.names)), 2):
        lowest, highest = curves.ranges[high][0], curves.ranges[low][1]
        inner = [float(g) for g in curves.edges[1:-1] if lowest < g < highest]
        found += [Pair(low, high, g, float(curves.switch(g, low, high).sum(-1).mean())) for g in inner]
    if not found:
        raise ValueError(
            f"a switch needs two experts with an edge inside both ranges, got {len(curves.names)} experts and "
            f"{len(curves.edges)} edges; measure the curves with more thresholds."
        )
    return min(found, key=lambda pair: pair.bpd)


def _se(values: np.ndarray) -> np.ndarray:
    return values.std(axis=0, ddof=1) / math.sqrt(len(values))


class Weights(NamedTuple):
    """Weights per noise level that minimise the bound; optimal for the bound only.

    Attributes:
        gamma: middle of each stratum [S].
        affine: weights that sum to 1 [S, K]; zero for an expert that does not answer.
        convex: the same between 0 and 1.
        affine_bpd, convex_bpd, best_single_bpd: diffusion terms of the three routings, bits per dimension.
        condition: condition number of the second moments [S].
    """

    gamma: Float[np.ndarray, " S"]
    affine: Float[np.ndarray, "S K"]
    convex: Float[np.ndarray, "S K"]
    affine_bpd: float
    convex_bpd: float
    best_single_bpd: float
    condition: Float[np.ndarray, " S"]


def affine_weights(gram: Float[np.ndarray, "K K"]) -> Float[np.ndarray, " K"]:
    """w = M^-1 1 / (1^T M^-1 1), the minimiser of w^T M w with weights that sum to 1.

    A ridge of 1e-12 of the mean diagonal makes it unique where experts are equal: they share their weight.
    """
    size = np.trace(gram) / len(gram)
    ridge = 1e-12 * size if size > 0 else 1.0
    solved = np.linalg.solve(gram + ridge * np.eye(len(gram)), np.ones(len(gram)))
    return solved / solved.sum()


def convex_weights(gram: Float[np.ndarray, "K K"]) -> Float[np.ndarray, " K"]:
    """The minimiser of w^T M w with non-negative weights that sum to 1.

    The optimum is the affine one on its own support, so trying every support is exact; K is small.
    """
    count = len(gram)
    best, weights = math.inf, np.zeros(count)
    for size in range(1, count + 1):
        for support in itertools.combinations(range(count), size):
            w = np.zeros(count)
            w[list(support)] = affine_weights(gram[np.ix_(support, support)])
            value = w @ gram @ w
            if w.min() >= 0 and value < best:
                best, weights = value, w
    return weights


def best_weights(curves: Curves) -> Weights:
    """Weights per stratum from the second moments of the experts' errors."""
    gram, answers = curves.gram(), curves.answers()
    strata, count = len(gram), len(curves.names)
    affine, convex = np.zeros((strata, count)), np.zeros((strata, count))
    condition = np.ones(strata)
    for s in range(strata):
        active = np.flatnonzero(answers[:, s])
        if len(active) == 0:
            continue
        part = gram[s][np.ix_(active, active)]
        affine[s, active], convex[s, active] = affine_weights(part), convex_weights(part)
        condition[s] = np.linalg.cond(part)
    scale = 0.5 * curves.bits * np.diff(curves.edges)

    def total(w):
        return float(np.sum(scale * np.einsum("sk,skl,sl->s", w, gram, w)))

    squared = np.where(answers.T, np.einsum("skk->sk", gram), np.inf)
    single = np.eye(count)[np.argmin(squared, axis=1)] * answers.any(0)[:, None]
    return Weights(curves.centres, affine, convex, total(affine), total(convex), total(single), condition)
