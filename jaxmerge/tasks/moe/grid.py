"""Everything that the table of mixtures trains, each part once and in a folder of its own.

Phase 1 makes specialists of the base expert, phase 2 trains gates over them; in joint training each row and
seed does both with experts of its own. See ``rows.py`` for the rows.
"""

import functools
import math
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxmerge import thresholds, vlb
from jaxmerge.gate import cost
from jaxmerge.gate.gated import Gated
from jaxmerge.gate.network import offset_logits
from jaxmerge.merge import Switch
from jaxmerge.run import Run
from jaxmerge.tasks import bounds, quality
from jaxmerge.tasks.moe import diagnose, models, train
from jaxmerge.tasks.moe.models import Method
from jaxmerge.tasks.moe.rows import REFERENCE, Variant, variants
from jaxmerge.tasks.setup import Setup, open_split


def fresh_setup(config: ConfigDict, run: Run) -> Setup:
    """What every stage needs, where no expert exists yet: a fresh network stands for both."""
    splits = {"train": config.data.train_split, "validation": config.data.validation_split}
    data = {
        part: open_split(config, split) for part, split in (splits | {"test": config.data.test_split}).items()
    }
    if config.data.n_validation:
        data["validation"] = data["validation"].take(config.data.n_validation)
    judge = quality.judge(config, data["train"], run.progress)
    quality.check_counts(judge, config.sampling)
    expert = models.fresh_expert(config, data["train"], config.seed)
    key = jax.random.key(config.seed)
    uses = ("proposal", "grid", "likelihood", "bound", "sampling")
    keys = {use: jax.random.fold_in(key, i) for i, use in enumerate(uses)}
    return Setup(expert, expert, **data, keys=keys, candidates=[], fixed_etas=[], judge=judge, records={})


class Grid:
    """Everything that is trained, each part once."""

    def __init__(self, config: ConfigDict, run: Run, setup: Setup):
        self.config, self.run, self.setup = config, run, setup
        self.asked, self.seeds = config.moe, models.seeds(config)
        self.data = (setup.train, setup.validation)
        self.cuts: list[float] = []
        self.joint = config.moe.parts == "all"

    def base(self, seed: int):
        """What the experts of one seed start from: the config's low-noise expert, or a fresh network."""
        if self.asked.base == "checkpoint":
            return self.setup.low
        return models.fresh_expert(self.config, self.setup.train, seed)

    @functools.cache  # noqa: B019 - one grid per process
    def sets(self, count: int):
        """The config's kinds of slices, one slice per expert."""
        return diagnose.slice_sets(self.run, self.asked, count, self.setup.train)

    @functools.cache  # noqa: B019 - one grid per process
    def members(self, count: int):
        """Slices of training and validation images of the specialists' kind."""
        chosen = self.sets(count)[0]
        return chosen.members(self.setup.train), chosen.members(self.setup.validation)

    @functools.cache  # noqa: B019 - one grid per process
    def specialists(self, count: int, kind: str):
        """Frozen experts, one per slice."""
        members = self.members(count)
        return train.specialists(
            self.config, self.run, self.base(self.config.seed), count, kind, self.data, members
        )[0]

    def steps(self) -> int:
        """Steps of both phases together."""
        return self.asked.warm_steps + self.asked.steps

    def train(self, variant: Variant, seed: int, experts, **changes: Any) -> tuple[Gated, dict[str, Any]]:
        """One mixture of a row; over the given frozen experts, or with its own from the start."""
        count = variant.count or self.asked.count
        kind = variant.experts or self.asked.experts
        settings: dict[str, Any] = dict(
            members=self.members(count),
            penalties=train.penalties(
                self.asked, load=variant.load, entropy=variant.entropy, align=variant.align
            ),
            # With as few experts as are kept there is no choice to balance.
            bias_rate=self.asked.bias_rate if variant.balance and count > self.asked.top_k else 0.0,
        )
        if self.joint:
            experts = train.starting(self.asked, self.base(seed), count, kind, seed)
            settings |= dict(
                parts=train.expert_parts(self.asked, kind),
                steps=self.steps(),
                warm_fraction=self.asked.warm_steps / self.steps(),
                learning_rate=self.asked.experts_learning_rate,
            )
        top_k = min(self.asked.top_k, count) if variant.sparse else None
        gated = models.fresh(self.asked, experts, seed=seed, top_k=top_k)
        change = changes.pop("change", lambda gated: gated)
        name = changes.pop("name", f"{variant.key}_{seed}")
        settings |= changes
        return train.train(self.config, self.run, name, change(gated), self.data, seed=seed, **settings)

    def trained(self, variant: Variant) -> Method:
        """A row of `VARIANTS`, with every seed."""
        count = variant.count or self.asked.count
        kind = variant.experts or self.asked.experts
        experts = None if self.joint else self.specialists(count, kind)
        trained = tuple(self.train(variant, seed, experts)[0] for seed in self.seeds)
        return Method(variant.key, variant.name, trained, variant.what, count, self.steps())

    def methods(self, rows: set[str]) -> tuple[list[Method], list[Method]]:
        """(all rows, those with a trained gate)."""
        asked = [v for v in variants(self.asked) if v.key in rows]
        for variant in asked:
            self.sets(
                variant.count or self.asked.count
            )  # refuses what the images do not allow before any training
        gated = [self.trained(v) for v in asked]
        by_key = {m.key: m for m in gated}
        below = [m for m in self.baselines(rows) if m.key in rows]
        for key in ("B_top2_article", "B_top2"):
            if key in rows:
                gated.insert(1, self.sparse(by_key["B"], key))
        mixed = [m for m in self.unlearned(by_key.get("B")) if m.key in rows]
        return [*below, *gated, *mixed], gated

    def sparse(self, soft: Method, key: str) -> Method:
        """Row B run with the largest weights only, renormalised or, as the article has it, not."""
        kept, article = min(self.asked.top_k, soft.experts), key == "B_top2_article"
        found = tuple(m.but(top_k=kept, renormalise=not article) for m in soft.models)
        what = f"The gates and experts of B, run with the {kept} largest weights"
        what += ", which are not renormalised" if article else ""
        name = f"B run as top {kept}" + (", not renormalised" if article else "")
        return Method(key, name, found, f"{what}: no training of its own.", soft.experts, soft.steps)

    def equal_compute(self) -> int:
        """Steps of a single expert with the FLOPs of both phases of B: 3 calls per image where weights are trained."""
        asked, count = self.asked, self.asked.count
        gated = models.fresh(asked, models.copies(self.base(0), count), seed=0)
        spent = cost.costs(gated, asked.batch_size)
        one = float(spent.dense[0])
        experts = (3.0 if self.joint else 1.0) * float(spent.dense.sum())
        return asked.warm_steps + math.ceil(asked.steps * (experts + 3 * spent.gate) / (3 * one))

    def baselines(self, rows: set[str]) -> list[Method]:
        """Single experts: the base as it is, and going on for equal steps and equal compute; the hard switch."""
        found = []
        if self.asked.base == "checkpoint":
            what = "The expert that all methods start from."
            found.append(Method("vdm", "base expert, as it is", (self.base(0),), what, 1))
        lengths = {
            "A_steps": ("A, equal steps", self.steps(), "as many steps as both phases of B"),
            "A_compute": (
                REFERENCE,
                self.equal_compute(),
                "the floating-point operations of both phases of B",
            ),
        }
        for key, (name, steps, words) in lengths.items():
            if key not in rows:
                continue
            trained = tuple(
                train.single(
                    self.config, self.run, self.base(s), f"{key}_{s}", self.data, steps=steps, seed=s
                )[0]
                for s in self.seeds
            )
            found.append(
                Method(key, name, trained, f"The base expert alone, trained on for {words}.", 1, steps)
            )
        if "switch" in rows and self.asked.base == "checkpoint":
            found.append(self.merge())
        return found

    def merge(self) -> Method:
        """The paper's merge of the config's two experts."""
        proposal = bounds.propose(self.config, self.run, self.setup)
        cut = self.setup.gamma(proposal["best"])
        self.cuts.append(cut)
        switch = Switch(self.setup.low, self.setup.high, gamma=cut)
        what = "The base expert below and the config's high-noise expert above the proposed threshold; no training."
        return Method("switch", f"hard switch, η = {proposal['best']:.3f}", (switch,), what, 2)

    def switch_within(self, pools: list, tables: list[dict[str, np.ndarray]]) -> Method:
        """The best merge of two of the experts of B, for experts that do not come from a checkpoint."""
        found = []
        for pool, table in zip(pools, tables, strict=True):
            low, high = (pool[int(table[f"pair_{part}"])] for part in ("low", "high"))
            found.append(Switch(low, high, gamma=float(table["pair_gamma"])))
            self.cuts.append(float(table["pair_gamma"]))
        what = "Of the experts of B the pair and the threshold with the best bound of the validation images."
        return Method("switch", "hard switch between two experts", tuple(found), what, 2)

    def unlearned(self, soft: Method | None) -> list[Method]:
        """Mixtures of the specialists without a trained gate; in joint training those of B, seed by seed."""
        if self.joint:
            pools = [m.experts for m in soft.models] if soft is not None else []
        else:
            pools = [self.specialists(self.asked.count, self.asked.experts)]
        if not pools:
            return []
        tables = [self.weights(list(pool), i) for i, pool in enumerate(pools)]
        count, same = self.asked.count, "the experts of B"
        fitted = f"on {same}, a table over γ that minimises the bound of the validation images."
        tabled = {
            kind: tuple(
                models.by_level(list(p), t["gamma"], t[kind]) for p, t in zip(pools, tables, strict=True)
            )
            for kind in ("convex", "affine")
        }
        random = tuple(models.at_random(pools[i % len(pools)], s) for i, s in enumerate(self.seeds))
        average = tuple(models.uniform(pool) for pool in pools)
        switch = [] if self.asked.base == "checkpoint" else [self.switch_within(pools, tables)]
        return [
            *switch,
            Method("uniform", "uniform average", average, f"Equal weights on {same}.", count),
            Method("convex", "convex weights per γ", tabled["convex"], f"Weights in [0, 1] {fitted}", count),
            Method(
                "affine", "affine weights per γ", tabled["affine"], f"Weights that sum to 1 {fitted}", count
            ),
            Method("random", "random gating", random, f"Weights on {same} drawn per image and step.", count),
        ]

    def weights(self, experts: list, number: int) -> dict[str, np.ndarray]:
        """Best weights per noise level of some experts, from the validation images."""

        def compute():
            low, high = models.span_of(experts)
            curves = vlb.error_curves(
                {f"expert {k}": e for k, e in enumerate(experts)},
                self.setup.validation.images,
                key=self.setup.keys["proposal"],
                thresholds=np.linspace(low, high, self.asked.strata + 1).tolist(),
                index=self.setup.validation.index,
                per_interval=1,
                repeats=self.config.bound.repeats,
                batch_size=self.config.bound.batch_size,
            )
            found = thresholds.best_weights(curves)
            pair = thresholds.best_pair(curves)._asdict()
            chosen = {name: getattr(found, name) for name in ("gamma", "convex", "affine", "condition")}
            return chosen | {f"pair_{name}": value for name, value in pair.items()}

        return self.run.stage(f"weights_{number}", compute)

    def collapse(self) -> dict[str, Any]:
        """Usage during training from a gate that prefers the first expert, with and without the load penalty."""
        offset = np.zeros(self.asked.count)
        offset[0] = self.asked.collapse_offset
        experts = self.specialists(self.asked.count, self.asked.experts)
        arms = {}
        for load in (True, False):
            variant = Variant(f"collapse_{'with' if load else 'without'}", "", "", load=load, entropy=False)
            curves = []
            for seed in self.seeds:
                _, record = self.train(
                    variant,
                    seed,
                    experts,
                    parts="gate",
                    steps=self.asked.collapse_steps,
                    warm_fraction=0.0,
                    learning_rate=self.asked.learning_rate,
                    change=lambda gated: gated.but(experts=experts, gate=offset_logits(gated.gate, offset)),
                )
                curves.append({name: record[name] for name in ("usage_step", "usage")})
            arms[f"{'with' if load else 'without'} L_load"] = curves
        return {"offset": self.asked.collapse_offset, "arms": arms}
