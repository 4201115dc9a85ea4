"""Everything that the table of mixtures trains, each part once and in a folder of its own.

Phase 1 makes specialists of the base expert, phase 2 trains gates over them; in joint training each row and
seed does both with experts of its own. See ``rows.py`` for the rows, ``sources.py`` for the experts.
"""

import functools
import math
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxmerge.gate import cost
from jaxmerge.gate.gated import Gated
from jaxmerge.gate.network import offset_logits
from jaxmerge.run import Run
from jaxmerge.tasks.moe import models, train, untrained
from jaxmerge.tasks.moe.models import Method
from jaxmerge.tasks.moe.rows import REFERENCE, Variant, variants
from jaxmerge.tasks.moe.sources import Sources
from jaxmerge.tasks.setup import Setup


class Grid:
    """The rows that a config asks for.

    Attributes:
        sources: experts before any gate, and slices.
        cuts: noise levels at which a row's field jumps.
        joint: whether experts are trained with the gates.
    """

    def __init__(self, config: ConfigDict, run: Run, setup: Setup):
        self.config, self.run, self.setup = config, run, setup
        self.asked, self.seeds = config.moe, models.seeds(config)
        self.sources = Sources(config, run, setup)
        self.data = (setup.train, setup.validation)
        self.cuts: list[float] = []
        self.joint = config.moe.parts == "all"
        # A pool's experts are taken as they are.
        self.warm_steps = 0 if config.moe.pool else config.moe.warm_steps

    def methods(self, rows: set[str]) -> tuple[list[Method], list[Method]]:
        """(all rows, those with a trained gate)."""
        asked = [v for v in variants(self.asked) if v.key in rows]
        self.cuts += self.sources.levels
        self.check(asked)
        self.sources.pin()
        gated = [self.trained(v) for v in asked]
        soft = next((m for m in gated if m.key == "B"), None)
        below = [m for m in self.baselines(rows) if m.key in rows]
        sparse = [untrained.sparse(soft, k, self.asked.top_k) for k in untrained.SPARSE if k in rows]
        gated[1:1] = sparse
        mixed = [m for m in self.unlearned(soft) if m.key in rows]
        return [*below, *gated, *mixed], gated

    def check(self, asked: list[Variant]) -> None:
        """Builds the mixtures of the asked-for rows as shapes, and makes their slices, before any training.

        Raises:
            ValueError: a rank, a gate or a number of experts that a row cannot have.
        """

        def build(count: int, kind: str) -> Gated:
            return models.fresh(self.asked, self.sources.starting(count, kind, 0), seed=0)

        for shape in dict.fromkeys(map(self.shape, asked)):
            jax.eval_shape(functools.partial(build, *shape))
        for variant in asked:
            self.sources.sets(self.shape(variant)[0])

    def steps(self) -> int:
        """Steps of both phases together."""
        return self.warm_steps + self.asked.steps

    def shape(self, variant: Variant) -> tuple[int, str]:
        """Number and kind of a row's experts."""
        return variant.count or self.asked.count, variant.experts or self.asked.experts

    def train(self, variant: Variant, seed: int, experts, **changes: Any) -> tuple[Gated, dict[str, Any]]:
        """One mixture of a row; over the given frozen experts, or with its own from the start."""
        count, kind = self.shape(variant)
        settings: dict[str, Any] = dict(
            members=self.sources.members(count),
            penalties=train.penalties(
                self.asked, load=variant.load, entropy=variant.entropy, align=variant.align
            ),
            # With as few experts as are kept there is no choice to balance.
            bias_rate=self.asked.bias_rate if variant.balance and count > self.asked.top_k else 0.0,
        )
        if self.joint:
            experts = self.sources.starting(count, kind, seed)
            settings |= dict(
                parts=train.expert_parts(self.asked, kind),
                steps=self.steps(),
                warm_fraction=self.warm_steps / self.steps(),
            )
        top_k = min(self.asked.top_k, count) if variant.sparse else None
        gated = models.fresh(self.asked, experts, seed=seed, top_k=top_k)
        change = changes.pop("change", lambda gated: gated)
        name = changes.pop("name", f"{variant.key}_{seed}")
        settings |= changes
        return train.train(self.config, self.run, name, change(gated), self.data, seed=seed, **settings)

    def trained(self, variant: Variant) -> Method:
        """A row of `VARIANTS`, with every seed."""
        count, kind = self.shape(variant)
        experts = None if self.joint else self.sources.specialists(count, kind)
        trained = tuple(self.train(variant, seed, experts)[0] for seed in self.seeds)
        return Method(variant.key, variant.name, trained, variant.what, count, self.steps())

    def equal_compute(self) -> int:
        """Steps of a single expert with the FLOPs of both phases of B: 3 calls per image where weights are trained."""
        asked = self.asked
        gated = models.fresh(asked, self.sources.starting(asked.count, asked.experts, 0), seed=0)
        spent = cost.costs(gated, asked.batch_size)
        one = cost.costs(models.uniform(models.copies(self.sources.base(0), 1)), asked.batch_size)
        experts = (3.0 if self.joint else 1.0) * float(spent.dense.sum())
        per_step = (experts + 3 * spent.gate) / (3 * float(one.dense[0]))
        return self.warm_steps + math.ceil(asked.steps * per_step)

    def baselines(self, rows: set[str]) -> list[Method]:
        """Single experts: the base as it is, and going on for equal steps and equal compute; the paper's merge."""
        found = []
        if self.asked.base == "checkpoint":
            what = "The expert that all methods start from."
            found.append(Method("vdm", "base expert, as it is", (self.sources.base(0),), what, 1))
        if "A_steps" in rows:
            words = "as many steps as both phases of B"
            found.append(self.single("A_steps", "A, equal steps", self.steps(), words))
        if "A_compute" in rows:
            words = "the floating-point operations of both phases of B"
            found.append(self.single("A_compute", REFERENCE, self.equal_compute(), words))
        if "switch" in rows and self.has_merge:
            method, cuts = untrained.merge(self.config, self.run, self.setup)
            self.cuts += cuts
            found.append(method)
        return found

    @property
    def has_merge(self) -> bool:
        """Whether the config's two experts are those that the paper merges."""
        return self.asked.base == "checkpoint" and not self.asked.pool

    def single(self, key: str, name: str, steps: int, words: str) -> Method:
        """Baseline A: the base expert trained on for so many steps, with every seed."""
        trained = tuple(
            train.single(
                self.config, self.run, self.sources.base(s), f"{key}_{s}", self.data, steps=steps, seed=s
            )[0]
            for s in self.seeds
        )
        return Method(key, name, trained, f"The base expert alone, trained on for {words}.", 1, steps)

    def unlearned(self, soft: Method | None) -> list[Method]:
        """Mixtures without a trained gate, of the frozen experts, or in joint training of those of B, seed by seed."""
        if self.joint:
            pools = [m.experts for m in soft.models] if soft is not None else []
        else:
            pools = [self.sources.specialists(self.asked.count, self.asked.experts)]
        if not pools:
            return []
        tables = untrained.tables(self.config, self.run, self.setup, pools)
        found = untrained.fixed(pools, tables, self.seeds)
        if not self.has_merge:
            method, cuts = untrained.switch_within(pools, tables)
            self.cuts += cuts
            found.insert(0, method)
        return found

    def collapse(self) -> dict[str, Any]:
        """Usage during training from a gate that prefers the first expert, with and without the load penalty."""
        offset = np.zeros(self.asked.count)
        offset[0] = self.asked.collapse_offset
        experts = self.sources.specialists(self.asked.count, self.asked.experts)
        return {
            "offset": self.asked.collapse_offset,
            "arms": {
                f"{'with' if load else 'without'} L_load": self.arm(load, offset, experts)
                for load in (True, False)
            },
        }

    def arm(self, load: bool, offset: np.ndarray, experts) -> list[dict[str, np.ndarray]]:
        """Usage curves of one arm of the collapse study, one per seed."""
        key = f"collapse_{'with' if load else 'without'}"
        variant = Variant(key, "", "", load=load, entropy=False)
        train_one = functools.partial(
            self.train,
            variant,
            experts=experts,
            parts="gate",
            steps=self.asked.collapse_steps,
            warm_fraction=0.0,
            change=lambda gated: gated.but(experts=experts, gate=offset_logits(gated.gate, offset)),
        )
        records = [train_one(seed=seed)[1] for seed in self.seeds]
        return [{name: record[name] for name in ("usage_step", "usage")} for record in records]
