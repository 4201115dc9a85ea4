"""The digits EDM that the package ships: preconditioned denoiser, EDM's objective and pixel convention.

    python main.py --config configs/digits_edm.py

Karras et al. 2022's recipe at 8x8: Adam without weight decay, ln sigma_edm ~ N(-1.2, 1.2^2), images in
+-1 (``encode_edm``), so that pixel-scale alignment is really exercised when it is merged. The weights
that are shipped are the EMA weights with the lowest loss on the 180 validation images, not the last
ones. Figures of the shipped run stand in the checkpoint's metadata.json.
"""

from configs import default


def get_config(variant: str = ""):
    """The shipped EDM's training.

    Raises:
        ValueError: any variant; there is none.
    """
    if variant:
        raise ValueError(f"configs/digits_edm.py has no variants, got {variant!r}; leave it out.")
    config = default.get_config()
    config.task = "train_expert"
    config.expert.kind = "edm"
    config.expert.width = 24
    config.expert.channel_mult = (1, 2)
    config.expert.num_blocks = 1
    config.expert.attn_resolutions = (4,)
    config.training.steps = 10_000
    config.training.b2 = 0.999
    return config
