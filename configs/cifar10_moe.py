"""Four VDMs of CIFAR-10 under a gate, trained in two phases, with baselines and ablations.

    python main.py --config configs/cifar10_moe.py
    python main.py --config configs/cifar10_moe.py --config.moe.dry_run=True       minutes on two CPU cores

Slices by colour variance. 100 000 steps, 15 % of them every expert on its own slice; clipping at 5; the networks
are VDM's at a quarter of its depth, since there are four. ``--config.moe.base=checkpoint`` starts from
the public VDM instead. Meant for 8 accelerators with 80 GB; the dry run prints the memory plan.
"""

from configs import default


def get_config(variant: str = ""):
    """The article's protocol.

    Raises:
        ValueError: any variant; there is none.
    """
    if variant:
        raise ValueError(f"configs/cifar10_moe.py has no variants, got {variant!r}; leave it out.")
    config = default.get_config()
    config.data.name = "cifar10"
    config.data.train_split = "train_part"
    config.data.n_validation = 1000
    config.experts.low = "checkpoints/vdm_cifar10"
    config.experts.high = "checkpoints/edm_cifar10"
    config.expert.kind = "vdm"
    config.expert.width = 128
    config.expert.depth = 8
    config.expert.fourier = (5, 6)
    config.moe.slices = ("colour_variance", "texture", "classes")
    article_protocol(config)
    return config


def article_protocol(config) -> None:
    """Fresh experts in two phases, at full scale: 100 000 steps, 15 % of them warm-up."""
    config.task = "moe_ablations"
    config.moe.base = "fresh"
    config.moe.parts = "all"
    config.moe.warm_steps = 15_000
    config.moe.steps = 85_000
    config.moe.warmup_steps = 5_000
    config.moe.batch_size = 128
    config.moe.learning_rate = 1e-3
    config.moe.experts_learning_rate = 2e-4
    config.moe.ema_decay = 0.9999
    config.moe.width = 32
    config.moe.eval_every = 5000
    config.moe.checkpoint_every = 5000
    config.moe.collapse_steps = 2000
    config.moe.latency_batch = 16
    config.likelihood.n_images = 1000
    config.likelihood.batch_size = 32
    config.bound.n_images = 512
    config.bound.batch_size = 32
    config.sampling.sampler = ("heun",)
    config.sampling.n_samples = 10_000
    config.sampling.n_samples_other = 0
    config.sampling.batch_size = 64
    config.metric.kind = "inception"
