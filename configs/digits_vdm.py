"""The digits VDM that the package ships: noise prediction, VDM's objective, gamma from -7.864 to 5.

    python main.py --config configs/digits_vdm.py

Kingma et al. 2021's recipe at 8x8: AdamW, weight decay 0.01 on kernels, antithetic times, no
resampling, Fourier features with k in {2, 3} (the ones that tell 17 grey levels apart). 1 257 images
are few: the weights that are shipped are the EMA weights with the lowest bound on the 180 validation
images, not the last ones. Figures of the shipped run stand in the checkpoint's metadata.json.
"""

from configs import default


def get_config(variant: str = ""):
    """The shipped VDM's training.

    Raises:
        ValueError: any variant; there is none.
    """
    if variant:
        raise ValueError(f"configs/digits_vdm.py has no variants, got {variant!r}; leave it out.")
    config = default.get_config()
    config.task = "train_expert"
    config.expert.kind = "vdm"
    config.expert.width = 32
    config.expert.depth = 2
    config.expert.fourier = (2, 3)
    config.training.steps = 12_000
    config.training.weight_decay = 0.01
    config.training.b2 = 0.99
    return config
