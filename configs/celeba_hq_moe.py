"""Four experts of CelebA-HQ faces under a gate: one trunk with adapters, slices by hair colour.

    python main.py --config configs/celeba_hq_moe.py             256x256
    python main.py --config configs/celeba_hq_moe.py:1024        1024x1024
    ... --config.moe.dry_run=True                                memory plan and one step on miniature data

Memory per device on 8 devices of 80 GB, float32, as the dry run estimates it for K = 4:

    =========  =======  ========  ===================  ========  =====  ===============
    size       images   training  kept for its         sampling  bound  samples of one
                        GiB       backward pass, GiB   GiB       GiB    seed, host, GiB
    =========  =======  ========  ===================  ========  =====  ===============
    256x256    2        22.0      21.1                 2.8       1.2    1.8
    1024x1024  1        37.0      35.7                 8.5       4.3    29.3
    =========  =======  ========  ===================  ========  =====  ===============

The host needs twice the last column while samples are put together. What is kept for the backward pass grows with
pixels and with K, since all experts see all images in training; it is why the networks of 1024x1024 are narrow at the
top (16 channels), why a device has one image there, and why K = 8 is left out there (about 72 GiB). Sampling keeps
nothing: the top 2 of K run one after the other.
"""

from configs import cifar10_moe, default


def get_config(variant: str = ""):
    """256x256, or the variant "1024".

    Raises:
        ValueError: another variant.
    """
    if variant not in ("", "1024"):
        raise ValueError(
            f"configs/celeba_hq_moe.py has the variant '1024' only, got {variant!r}; write :1024 or nothing."
        )
    config = default.get_config()
    config.data.name = "celeba_hq_1024" if variant else "celeba_hq_256"
    config.data.n_validation = 64 if variant else 500
    config.moe.slices = ("hair", "lighting", "texture")
    cifar10_moe.article_protocol(config)
    faces(config)
    if variant:
        config.expert.width = 16
        config.expert.channel_mult = (1, 2, 4, 8, 16, 16, 16)
        config.expert.num_blocks = 1
        config.moe.batch_size = 8
        config.moe.counts = (2, 4)
        config.moe.latency_batch = 2
        config.bound.n_images = 128
    return config


def faces(config) -> None:
    """Networks and sizes for colour images of 256x256."""
    config.expert.kind = "edm"
    config.expert.width = 64
    config.expert.channel_mult = (1, 2, 2, 4, 4, 4)
    config.expert.num_blocks = 2
    config.expert.attn_resolutions = (16,)
    config.moe.experts = "adapters"
    config.moe.rank = 8
    config.moe.depth = 4
    config.moe.batch_size = 16
    config.moe.latency_batch = 4
    config.likelihood.n_images = 0
    config.bound.n_images = 256
    config.bound.batch_size = 4
    config.sampling.batch_size = 8
