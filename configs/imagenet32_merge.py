"""The paper's experiment on ImageNet32 (old version): i-DODE's public network below, an EDM above.

    python -m checkpoints_convert ckpt-N.flax checkpoints/idode_imagenet32 --name idode-imagenet32-vp
    python -m checkpoints_convert PICKLE checkpoints/edm_imagenet32 --data-set imagenet32_old
    python main.py --config configs/imagenet32_merge.py

i-DODE's checkpoint lies in a Google Drive folder and is downloaded by hand (docs/checkpoints.md). Nobody has
published an EDM for ImageNet32; the paper's was trained by its authors with EDM's code (DDPM++, unconditional, 1000
million images, batch 1024, 4 A100), and a pickle of such a run is converted like any other. No pickle says what it was
trained on, so you say it (`--data-set`): a run refuses experts of unknown data. Meant for 8 accelerators.

Published with the authors' own VDM (arXiv 2511.19434, tables 1, 2, 5 and 6): VDM 3.72 bits/dim and FID 9.85, EDM 4.04 and
7.38, merged 3.72 and 6.58 at eta = 0.5; bound 3.73 at eta = 0.5. i-DODE alone: 3.69 bits/dim.
"""

from configs import cifar10_merge, default

NOTE = "Both experts differ from the paper's: i-DODE's public network below, and an EDM of one's own above."


def get_config(variant: str = ""):
    """The paper's protocol.

    Raises:
        ValueError: any variant; there is none.
    """
    if variant:
        raise ValueError(f"configs/imagenet32_merge.py has no variants, got {variant!r}; leave it out.")
    config = default.get_config()
    config.data.name = "imagenet32_old"
    config.experts.low = "checkpoints/idode_imagenet32"
    config.experts.low_source = "idode-imagenet32-vp"
    config.experts.high = "checkpoints/edm_imagenet32"
    cifar10_merge.paper_protocol(config)
    config.report.published_note = NOTE
    return config
