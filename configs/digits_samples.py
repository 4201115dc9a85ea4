"""Two thousand digits of the merge in files, with their Frechet distance.

    python main.py --config configs/digits_samples.py          a minute on two CPU cores

The files are in ``runs/digits_samples/samples``; a stopped run continues with the same command.
"""

from configs import default


def get_config(variant: str = ""):
    """Samples of the merged digits experts.

    Raises:
        ValueError: any variant; there is none.
    """
    if variant:
        raise ValueError(f"configs/digits_samples.py has no variants, got {variant!r}; leave it out.")
    config = default.get_config()
    config.task = "sample"
    config.shards.eta = 0.22
    config.shards.count = 2000
    config.shards.size = 500
    return config
