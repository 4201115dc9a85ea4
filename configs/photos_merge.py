"""The paper's experiment on 32x32 colour crops of photographs: a VDM and an EDM, and their merges.

    python main.py --config configs/photos_merge.py:small     at most 15 minutes on two CPU cores
    python main.py --config configs/photos_merge.py           about two hours on two CPU cores, minutes on a GPU

The digits' report at CIFAR-10's shape and 256 levels. Train both experts first, which wants a GPU (a few steps per second
on two CPU cores, tens of thousands of steps):

    python main.py --config configs/photos_vdm.py
    python main.py --config configs/photos_edm.py

A short training need not make the VDM better than the EDM at low noise: then there is nothing to merge, and the report
says so. The classifier that judges the samples comes with the package.
"""

from configs import default


def get_config(variant: str = ""):
    """The whole run, or the "small" one.

    Raises:
        ValueError: another variant.
    """
    config = default.get_config()
    config.title = "Two experts of photographs and their merges"
    config.data.name = "photos"
    config.experts.low = "runs/photos_vdm/expert"
    config.experts.high = "runs/photos_edm/expert"
    config.metric.classifier = "photos_classifier"
    config.likelihood.n_images = 96
    config.likelihood.batch_size = 16
    config.bound.n_images = 484
    config.bound.batch_size = 44
    config.sampling.n_samples = config.sampling.n_samples_other = 484
    config.sampling.seeds = 3
    config.sampling.ancestral_samples = 484
    config.sampling.batch_size = 44
    config.reconstruction.n_images = 484
    config.reconstruction.batch_size = 44
    config.cost.repeats, config.cost.batch_size = 5, 44
    if variant == "small":
        small(config)
    elif variant:
        raise ValueError(
            f"configs/photos_merge.py has the variant 'small' only, got {variant!r}; write :small or nothing."
        )
    return config


def small(config) -> None:
    """Fewer images, thresholds and samples; a coarser grid of the solver."""
    config.data.n_validation = 64
    config.merge.etas = (0.2, 0.5, 0.8)
    config.merge.candidate_step = 0.05
    config.likelihood.n_images = 12
    config.likelihood.tolerance = 0.02
    config.likelihood.image_tolerance = 0.2
    config.likelihood.batch_size = 6
    config.bound.n_images = 64
    config.bound.repeats = 2
    config.bound.batch_size = 32
    config.sampling.sampler = ("heun",)
    config.sampling.n_samples = config.sampling.n_samples_other = 100
    config.sampling.seeds = 1
    config.sampling.batch_size = 25
    config.reconstruction.n_images = 64
    config.reconstruction.batch_size = 32
    config.cost.repeats, config.cost.batch_size = 3, 25
