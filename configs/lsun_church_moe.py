"""Four experts of LSUN churches at 256x256 under a gate: one trunk with adapters, slices by subcategory.

    python -m jaxmerge.subcategories lsun_church_256 --count 2 4 8
    python main.py --config configs/lsun_church_moe.py
    python main.py --config configs/lsun_church_moe.py --config.moe.dry_run=True

LSUN publishes no subcategories: the first command makes them once, by k-means on Inception's features of the training
images. The dry run needs neither them nor data. Beside them stand slices by mean gradient energy, lighting and colour
variance. Networks and schedule are those of configs/celeba_hq_moe.py.
"""

from configs import celeba_hq_moe, cifar10_moe, default


def get_config(variant: str = ""):
    """The article's protocol on churches.

    Raises:
        ValueError: any variant; there is none.
    """
    if variant:
        raise ValueError(f"configs/lsun_church_moe.py has no variants, got {variant!r}; leave it out.")
    config = default.get_config()
    config.data.name = "lsun_church_256"
    config.data.train_split = "train_part"
    config.data.n_validation = 500
    config.moe.slices = ("subcategory", "texture", "lighting", "colour_variance")
    cifar10_moe.article_protocol(config)
    celeba_hq_moe.faces(config)
    return config
