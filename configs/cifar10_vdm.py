"""The VDM of CIFAR-10 at the paper's settings: width 128, 33 + 32 blocks at full resolution.

    python main.py --config configs/cifar10_vdm.py
    python main.py --config configs/cifar10_vdm.py --config.training.dry_run=True       minutes, needs no data

Kingma et al. 2021 without augmentation, as arXiv 2511.19434 trained it: 10 million steps of 128 images on 8 A100 with
40 GB, the schedule fixed and linear in gamma; published 2.64 bits/dim exactly and 2.66 as a bound. AdamW, 2e-4,
constant, weight decay 0.01 on kernels, the average's decay 0.9999. As there, all 50 000 training images are trained on,
the validation images among them: validation figures show that the run is sound, not how good it is.
"""

from configs import default


def get_config(variant: str = ""):
    """The paper's training.

    Raises:
        ValueError: any variant; there is none.
    """
    if variant:
        raise ValueError(f"configs/cifar10_vdm.py has no variants, got {variant!r}; leave it out.")
    config = default.get_config()
    config.data.name = "cifar10"
    vdm_recipe(config)
    config.expert.width = 128
    config.training.steps = 10_000_000
    config.training.batch_size = 128
    return config


def vdm_recipe(config) -> None:
    """What both of the paper's VDMs share."""
    config.task = "train_expert"
    config.expert.kind = "vdm"
    config.expert.depth = 32
    config.expert.fourier = (6, 7)
    config.expert.dropout = 0.1
    config.training.learning_rate = 2e-4
    config.training.warmup_steps = 100
    config.training.schedule = "constant"
    config.training.weight_decay = 0.01
    config.training.b2 = 0.99
    config.training.ema_decay = 0.9999
    config.training.eval_every = 10_000
    config.training.eval_repeats = 1
    config.training.sample_every = 100_000
    config.training.checkpoint_every = 10_000
