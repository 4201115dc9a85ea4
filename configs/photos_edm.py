"""An EDM of the photos: preconditioned denoiser of 32x32 colour crops, 256 levels.

    python main.py --config configs/photos_edm.py        about an hour of one CPU core

Karras et al. 2022's recipe: Adam without weight decay, ln sigma_edm ~ N(-1.2, 1.2^2), images in +-1
(``encode_edm``), a UNet over the resolutions 32, 16 and 8. Its checkpoint comes with the package as "photos_edm".
"""

from configs import default


def get_config(variant: str = ""):
    """The EDM's training.

    Raises:
        ValueError: any variant; there is none.
    """
    if variant:
        raise ValueError(f"configs/photos_edm.py has no variants, got {variant!r}; leave it out.")
    config = default.get_config()
    config.task = "train_expert"
    config.data.name = "photos"
    config.expert.kind = "edm"
    config.expert.width = 32
    config.expert.channel_mult = (1, 2, 2)
    config.expert.num_blocks = 1
    config.expert.attn_resolutions = (8,)
    config.expert.dropout = 0.0
    config.training.steps = 5_000
    config.training.batch_size = 16
    config.training.learning_rate = 1e-3
    config.training.warmup_steps = 200
    config.training.b2 = 0.999
    config.training.eval_every = 500
    config.training.eval_repeats = 2
    config.training.eval_batch_size = 76
    config.training.sample_every = 5000
    config.training.checkpoint_every = 250
    return config
