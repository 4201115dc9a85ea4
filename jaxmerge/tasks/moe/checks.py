"""What a run about mixtures refuses before anything is trained."""

from ml_collections import ConfigDict

from jaxmerge.tasks import merge, reconstructions
from jaxmerge.tasks.moe.train import check_tensorboard
from jaxmerge.tasks.setup import Setup


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
