"""The EDM of ImageNet32 (old version) at the paper's settings: DDPM++, unconditional, 1000 million images.

    python main.py --config configs/imagenet32_edm.py
    python main.py --config configs/imagenet32_edm.py --config.training.dry_run=True    minutes, needs no data

arXiv 2511.19434 ran EDM's code as it is (``--cond 0 --arch ddpmpp --duration 1000``) with a batch of 1024 on 4 A100 with 40
GB: Adam at 1e-3, rising over 10 million images and constant then, dropout 0.13, augmentation with probability 0.12, an
average with a half-life of half a million images, no gradient clip. Published 4.04 bits/dim and FID 7.38.
"""

from configs import default

BATCH = 1024
IMAGES = 1_000_000_000
RISE = 10_000_000
HALF_LIFE = 500_000


def get_config(variant: str = ""):
    """The paper's training.

    Raises:
        ValueError: any variant; there is none.
    """
    if variant:
        raise ValueError(f"configs/imagenet32_edm.py has no variants, got {variant!r}; leave it out.")
    config = default.get_config()
    config.task = "train_expert"
    config.data.name = "imagenet32_old"
    config.expert.kind = "edm"
    config.expert.width = 128
    config.expert.channel_mult = (2, 2, 2)
    config.expert.num_blocks = 4
    config.expert.attn_resolutions = (16,)
    config.expert.dropout = 0.13
    config.training.steps = -(-IMAGES // BATCH)
    config.training.batch_size = BATCH
    config.training.learning_rate = 1e-3
    config.training.warmup_steps = RISE // BATCH
    config.training.schedule = "constant"
    config.training.b2 = 0.999
    config.training.clip = 1e6
    config.training.ema_decay = 0.5 ** (BATCH / HALF_LIFE)
    config.training.augmentation = 0.12
    config.training.eval_every = 10_000
    config.training.eval_repeats = 1
    config.training.sample_every = 50_000
    config.training.checkpoint_every = 5_000
    return config
