"""The experts that the rows of the grid start from, and the slices that specialists are made for.

Either all of them come from one base, a checkpoint or a fresh network: K copies, which phase 1 turns into
specialists of slices, or one trunk with adapters. Or they are a pool of K pretrained experts (`moe.pool`),
taken as they are.
"""

import functools
from typing import Any

from ml_collections import ConfigDict

from jaxmerge.run import Run
from jaxmerge.tasks import experts, quality
from jaxmerge.tasks.moe import diagnose, models, train
from jaxmerge.tasks.setup import Setup, check_experts, keys_of, open_splits, prepare


def setup_of(config: ConfigDict, run: Run) -> Setup:
    """Images, keys, judge and base of a grid.

    Raises:
        ValueError: see `prepare`; or a pool with an expert of another data set.
    """
    if config.moe.base != "checkpoint":
        return fresh_setup(config, run)
    setup = prepare(config, run.progress)
    pool = {f"expert {k + 1}": experts.record_of(name) for k, name in enumerate(config.moe.pool)}
    check_experts(config, pool, setup.train)
    setup.records.update(pool)
    return setup


def fresh_setup(config: ConfigDict, run: Run) -> Setup:
    """What every stage needs, where no expert exists yet: a fresh network stands for both."""
    data = open_splits(config)
    judge = quality.judge(config, data["train"], run.progress)
    quality.check_counts(judge, config.sampling)
    expert = models.fresh_expert(config, data["train"], config.seed)
    keys = keys_of(config.seed)
    return Setup(expert, expert, **data, keys=keys, candidates=[], fixed_etas=[], judge=judge, records={})


class Sources:
    """Experts before any gate."""

    def __init__(self, config: ConfigDict, run: Run, setup: Setup):
        self.config, self.run, self.setup, self.asked = config, run, setup, config.moe
        self.data = (setup.train, setup.validation)

    def base(self, seed: int):
        """What the experts of one seed start from: the config's low-noise expert, or a fresh network."""
        if self.asked.base == "checkpoint":
            return self.setup.low
        return models.fresh_expert(self.config, self.setup.train, seed)

    def pin(self) -> None:
        """Keeps to the weights that the run began with, where experts are not made by it; see `experts.pin`."""
        if self.asked.base == "checkpoint":
            loaded = {"VDM": self.setup.low, "EDM": self.setup.high}
            loaded |= {f"expert {k + 1}": expert for k, expert in enumerate(self.pool)}
            experts.pin(self.run, loaded, self.setup.records)

    @functools.cached_property
    def pool(self) -> tuple[Any, ...]:
        """The pretrained experts of the config; none where all come from one base."""
        return tuple(experts.load_expert(name) for name in self.asked.pool)

    @property
    def levels(self) -> list[float]:
        """Noise levels at which an expert of the pool begins or ceases to answer."""
        return [g for expert in self.pool for g in expert.gamma_range]

    @functools.cache  # noqa: B019 - one object per process
    def sets(self, count: int):
        """The config's kinds of slices, one slice per expert."""
        return diagnose.slice_sets(self.run, self.asked, count, self.setup.train)

    @functools.cache  # noqa: B019 - one object per process
    def members(self, count: int):
        """Slices of training and validation images of the specialists' kind."""
        chosen = self.sets(count)[0]
        return chosen.members(self.setup.train), chosen.members(self.setup.validation)

    @functools.cache  # noqa: B019 - one object per process
    def specialists(self, count: int, kind: str):
        """Frozen experts: the pool, or one expert per slice, made once."""
        if self.pool:
            return self.pool
        members = self.members(count)
        return train.specialists(
            self.config, self.run, self.base(self.config.seed), count, kind, self.data, members
        )[0]

    def starting(self, count: int, kind: str, seed: int):
        """K experts of one seed before any training."""
        if self.pool:
            return tuple(models.copies(expert, 1)[0] for expert in self.pool)
        return train.starting(self.asked, self.base(seed), count, kind, seed)
