"""The VDM of ImageNet32 (old version) at the paper's settings: CIFAR-10's with 256 channels.

    python main.py --config configs/imagenet32_vdm.py
    python main.py --config configs/imagenet32_vdm.py --config.training.dry_run=True    minutes, needs no data

arXiv 2511.19434: 2 million steps of 512 images on 8 A100 with 80 GB; published 3.72 bits/dim.
"""

from configs import cifar10_vdm, default


def get_config(variant: str = ""):
    """The paper's training.

    Raises:
        ValueError: any variant; there is none.
    """
    if variant:
        raise ValueError(f"configs/imagenet32_vdm.py has no variants, got {variant!r}; leave it out.")
    config = default.get_config()
    config.data.name = "imagenet32_old"
    cifar10_vdm.vdm_recipe(config)
    config.expert.width = 256
    config.training.steps = 2_000_000
    config.training.batch_size = 512
    return config
