"""A VDM of the photos: noise prediction at 256 levels, gamma from -13.29 to 5.

    python main.py --config configs/photos_vdm.py        about an hour of one CPU core

Kingma et al. 2021's recipe on 32x32 colour crops: AdamW, weight decay 0.01 on kernels, antithetic times, no
resampling, Fourier features with k in {6, 7} (the ones that tell 256 grey levels apart). Its checkpoint comes with the
package as "photos_vdm".
"""

from configs import default


def get_config(variant: str = ""):
    """The VDM's training.

    Raises:
        ValueError: any variant; there is none.
    """
    if variant:
        raise ValueError(f"configs/photos_vdm.py has no variants, got {variant!r}; leave it out.")
    config = default.get_config()
    config.task = "train_expert"
    config.data.name = "photos"
    config.expert.kind = "vdm"
    config.expert.width = 32
    config.expert.depth = 3
    config.expert.fourier = (6, 7)
    config.expert.mid_attention = False
    config.expert.dropout = 0.0
    config.training.steps = 12_000
    config.training.batch_size = 8
    config.training.learning_rate = 2e-3
    config.training.warmup_steps = 200
    config.training.weight_decay = 0.01
    config.training.b2 = 0.99
    config.training.eval_every = 500
    config.training.eval_repeats = 2
    config.training.eval_batch_size = 76
    config.training.sample_every = 5000
    config.training.checkpoint_every = 500
    return config
