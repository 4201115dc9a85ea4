"""Does a trained gate merge VDM and EDM better than a switch or a table of weights? On colour photographs.

    python main.py --config configs/photos_moe.py

The question of configs/digits_moe.py at CIFAR-10's shape and 256 levels, with the experts of
configs/photos_merge.py, which come with the package and stay as they are. Methods are compared by the bound, whose
paired differences are known to about 0.001 bpd from 64 images; ``--config.likelihood.n_images=40`` adds exact
likelihoods. Results: docs/photos_moe/, meaning of every row: docs/moe.md.
"""

from configs import photos_merge


def get_config(variant: str = ""):
    """The comparison.

    Raises:
        ValueError: any variant; there is none.
    """
    if variant:
        raise ValueError(f"configs/photos_moe.py has no variants, got {variant!r}; leave it out.")
    config = photos_merge.get_config("small")
    config.task = "moe"
    config.title = "VDM and EDM of photographs under a trained gate"
    config.likelihood.control = "multistep"
    config.likelihood.n_images = 0
    config.moe.slices = ("colour_variance", "texture")
    config.moe.batch_size = 32
    config.moe.eval_every = 20
    config.moe.eval_repeats = 2
    config.moe.learning_rate = 2e-3
    config.moe.ema_decay = 0.95
    config.moe.latency_batch = 8
    config.moe.latency_repeats = 3
    return config
