"""What a run about mixtures refuses before anything is trained."""

import functools

import jax
from ml_collections import ConfigDict

from jaxmerge.tasks import merge, reconstructions
from jaxmerge.tasks.moe import models
from jaxmerge.tasks.moe.train import check_tensorboard
from jaxmerge.tasks.setup import Setup

# Keys of section moe that only task "moe_ablations" reads, and what they are where nobody asks for anything.
GRID_ONLY = {
    "width": 16,
    "load": 0.1,
    "entropy": 0.01,
    "align": 1.0,
    "top_k": 2,
    "capacity_factor": 0.25,
    "bias_rate": 0.02,
    "counts": (2, 4, 8),
    "pool": (),
    "base": "checkpoint",
    "experts": "full",
    "rank": 4,
    "parts": "gate",
    "warm_steps": 100,
    "experts_learning_rate": 3e-4,
    "rows": ("all",),
    "collapse_offset": 3.0,
    "collapse_steps": 150,
}


def check_settings(config: ConfigDict) -> None:
    """Refuses settings that no data set or expert could make valid.

    Raises:
        ValueError: several draws of the likelihood, an unknown control, sampler or dequantisation, no seeds, a pool
            that is not one of `moe.count` checkpoints, or TensorBoard's files without the package that writes them.
    """
    merge.check_late_stages(config)
    asked = config.moe
    check_tensorboard(asked)
    if asked.pool and (asked.base, asked.experts, len(asked.pool)) != ("checkpoint", "full", asked.count):
        raise ValueError(
            f"moe.pool must name moe.count={asked.count} experts, with moe.base='checkpoint' and moe.experts='full'; got "
            f"{len(asked.pool)} names, base {asked.base!r} and experts {asked.experts!r}."
        )
    if config.moe.seeds < 1:
        raise ValueError(f"moe.seeds must be at least 1, got {config.moe.seeds}; three tell a spread.")


def check_pair_settings(config: ConfigDict) -> None:
    """Refuses settings of the grid where two frozen experts are put under a gate, which would leave them unread.

    Raises:
        ValueError: a key of `GRID_ONLY` that was set.
    """
    asked = [f"moe.{key}={config.moe[key]!r}" for key, usual in GRID_ONLY.items() if config.moe[key] != usual]
    if asked:
        raise ValueError(
            f"task 'moe' puts experts.low and experts.high, as they are, under gates and must be given no settings of "
            f"task 'moe_ablations' (configs/moe/ablations.py), got {', '.join(asked)}; leave them out or run that task."
        )


def check_gates(config: ConfigDict, setup: Setup) -> None:
    """Builds the gates of two frozen experts in every width, as shapes.

    Raises:
        ValueError: sizes that no gate can have.
    """
    for width in config.moe.widths:
        pair = (setup.low, setup.high)
        jax.eval_shape(functools.partial(models.fresh, config.moe, pair, seed=0, width=width))


def check_measurements(config: ConfigDict, setup: Setup) -> None:
    """Refuses what the measurements would refuse after the training.

    Raises:
        ValueError: more test images than there are, too few seeds for a score, a noise level of the reconstructions
            outside the experts' ranges, or an LPIPS network that is not there.
    """
    setup.test.take(max(config.likelihood.n_images, config.bound.n_images, 1))
    reconstructions.check_levels([config.moe.reconstruction_gamma], setup, what="moe.reconstruction_gamma")
    reconstructions.check_lpips(config.reconstruction.lpips, setup)
    judge = setup.judge
    if judge is not None and config.sampling.n_samples and config.moe.seeds < judge.fewest_seeds:
        raise ValueError(
            f"{judge.names.long} needs at least {judge.fewest_seeds} seeds, got moe.seeds={config.moe.seeds}; ask for "
            "more or say --config.metric.allow_few=True."
        )
