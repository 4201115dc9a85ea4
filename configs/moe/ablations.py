"""Mixtures of K digits experts: baselines, ablations over penalties, sparsity and K, and a study of collapse.

    python main.py --config configs/moe/ablations.py          42 minutes on two CPU cores
    python main.py --config configs/moe/ablations.py:joint    74 minutes beside other work; experts and gates together

The base expert is the shipped VDM. Phase 1 turns it into K specialists of class groups; then they are frozen
and every row with a gate of its own trains it with three seeds ("± over gates, experts fixed"). ``joint`` trains all of a
row in two phases, a sixth of the steps on slices, with experts that vary with the seed. Every part continues
where it was stopped. What the rows mean: docs/moe.md; results: docs/digits_moe_ablations/ and
docs/digits_moe_joint/.
"""

from configs import default


def get_config(variant: str = ""):
    """The grid over frozen experts, or the "joint" one.

    Raises:
        ValueError: another variant.
    """
    config = default.get_config()
    config.task = "moe_ablations"
    config.title = "Mixtures of digits experts: baselines and ablations"
    config.likelihood.n_images = 40
    config.likelihood.batch_size = 20
    config.likelihood.tolerance = 0.01
    config.bound.n_images = 120
    config.bound.repeats = 1
    config.sampling.sampler = ("heun",)
    config.sampling.n_samples = 400
    config.sampling.n_samples_other = 0
    config.moe.warm_steps = 150
    config.moe.eval_repeats = 2
    if variant == "joint":
        config.title = "Mixtures of digits experts, experts and gates trained together"
        config.moe.parts = "all"
        config.moe.collapse_steps = 0
        config.likelihood.n_images = 20
        config.moe.batch_size = 32
        config.moe.warm_steps = 40
        config.moe.steps = 200
        config.moe.eval_every = 80
        config.moe.experts_learning_rate = 5e-4
    elif variant:
        raise ValueError(
            f"configs/moe/ablations.py has the variant 'joint' only, got {variant!r}; write :joint or nothing."
        )
    return config
