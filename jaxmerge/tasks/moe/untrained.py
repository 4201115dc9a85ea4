"""Rows of the grid without training of their own: switches, fixed weights, tables over the noise level, sparse runs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxmerge import thresholds, vlb
from jaxmerge.merge import Switch
from jaxmerge.run import Run
from jaxmerge.tasks import bounds
from jaxmerge.tasks.moe import models
from jaxmerge.tasks.moe.models import Method
from jaxmerge.tasks.setup import Setup

SPARSE = ("B_top2", "B_top2_article")
# What is kept of the best weights.
KEPT = ("gamma", "convex", "affine", "condition")
# Noise draws per validation image and stratum that the tables are fitted to, at least.
DRAWS = 8


def merge(config: ConfigDict, run: Run, setup: Setup) -> tuple[Method, list[float]]:
    """The paper's merge of the config's two experts, and its threshold's noise level."""
    proposal = bounds.propose(config, run, setup)
    cut = setup.gamma(proposal["best"])
    what = (
        "The base expert below and the config's high-noise expert above the proposed threshold; no training."
    )
    switch = Switch(setup.low, setup.high, gamma=cut)
    return Method("switch", f"hard switch, η = {proposal['best']:.3f}", (switch,), what, 2), [cut]


def switch_within(
    pools: Sequence[Sequence[Any]], tables: Sequence[dict[str, np.ndarray]]
) -> tuple[Method, list[float]]:
    """The best merge of two of the experts of B, one per pool, and the thresholds' noise levels."""
    cuts = [float(table["pair_gamma"]) for table in tables]
    found = tuple(
        Switch(pool[int(table["pair_low"])], pool[int(table["pair_high"])], gamma=cut)
        for pool, table, cut in zip(pools, tables, cuts, strict=True)
    )
    what = "Of the experts of B the pair and the threshold with the best bound of the validation images."
    return Method("switch", "hard switch between two experts", found, what, 2), cuts


def sparse(soft: Method, key: str, top_k: int) -> Method:
    """Row B run with the largest weights only, renormalised or, as the article has it, not.

    Args:
        soft: row B.
        key: one of `SPARSE`.
        top_k: weights that are kept; all where there are no more.
    """
    kept, article = min(top_k, soft.experts), key == "B_top2_article"
    found = tuple(m.but(top_k=kept, renormalise=not article) for m in soft.models)
    what = f"The gates and experts of B, run with the {kept} largest weights"
    what += ", which are not renormalised" if article else ""
    name = f"B run as top {kept}" + (", not renormalised" if article else "")
    return Method(key, name, found, f"{what}: no training of its own.", soft.experts, soft.steps)


def fixed(
    pools: Sequence[Sequence[Any]], tables: Sequence[dict[str, np.ndarray]], seeds: Sequence[int]
) -> list[Method]:
    """Mixtures of the experts of B without a trained gate, one per pool; random weights once per seed."""
    count, same = len(pools[0]), "the experts of B"
    fitted = f"on {same}, a table over γ that minimises the bound of the validation images."
    tabled = {
        kind: tuple(models.by_level(list(p), t["gamma"], t[kind]) for p, t in zip(pools, tables, strict=True))
        for kind in ("convex", "affine")
    }
    random = tuple(models.at_random(pools[i % len(pools)], s) for i, s in enumerate(seeds))
    average = tuple(models.uniform(pool) for pool in pools)
    return [
        Method("uniform", "uniform average", average, f"Equal weights on {same}.", count),
        Method("convex", "convex weights per γ", tabled["convex"], f"Weights in [0, 1] {fitted}", count),
        Method("affine", "affine weights per γ", tabled["affine"], f"Weights that sum to 1 {fitted}", count),
        Method("random", "random gating", random, f"Weights on {same} drawn per image and step.", count),
    ]


def tables(
    config: ConfigDict, run: Run, setup: Setup, pools: Sequence[Sequence[Any]]
) -> list[dict[str, np.ndarray]]:
    """Best weights per noise level, and best switch, of every pool of experts; from the validation images."""
    return [
        run.stage(f"weights_{number}", lambda pool=pool: _table(config, setup, list(pool)))
        for number, pool in enumerate(pools)
    ]


def _table(config: ConfigDict, setup: Setup, experts: list) -> dict[str, Any]:
    low, high = models.span_of(experts)
    curves = vlb.error_curves(
        {f"expert {k}": e for k, e in enumerate(experts)},
        setup.validation.images,
        key=setup.keys["proposal"],
        thresholds=np.linspace(low, high, config.moe.strata + 1).tolist(),
        index=setup.validation.index,
        per_interval=1,
        repeats=max(config.bound.repeats, DRAWS),
        batch_size=config.bound.batch_size,
    )
    found, pair = thresholds.best_weights(curves), thresholds.best_pair(curves)
    return {name: getattr(found, name) for name in KEPT} | {
        f"pair_{name}": value for name, value in pair._asdict().items()
    }
