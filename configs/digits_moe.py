"""Does a trained gate merge VDM and EDM better than a switch or a table of weights? On the embedded digits.

    python main.py --config configs/digits_moe.py            25 minutes on two busy CPU cores

Both experts come with the package and stay as they are; only gates are trained, three seeds of each kind: on
the noise level alone or on image and noise level, learning from training images or from held-out ones.
They stand beside both single experts, the hard switch at the proposed threshold, the uniform average, and the
best convex and affine weights per noise level. Results: docs/digits_moe/, meaning of every row: docs/moe.md.
"""

from configs import default


def get_config(variant: str = ""):
    """The comparison.

    Raises:
        ValueError: any variant; there is none.
    """
    if variant:
        raise ValueError(f"configs/digits_moe.py has no variants, got {variant!r}; leave it out.")
    config = default.get_config()
    config.task = "moe"
    config.title = "VDM and EDM of handwritten digits under a trained gate"
    config.likelihood.n_images = 120
    config.likelihood.batch_size = 60
    config.bound.n_images = 360
    config.bound.repeats = 1
    config.moe.eval_every = 20
    config.moe.learning_rate = 2e-3
    config.moe.ema_decay = 0.95
    config.sampling.sampler = ("heun",)
    config.sampling.n_samples = 500
    config.sampling.n_samples_other = 0
    return config
