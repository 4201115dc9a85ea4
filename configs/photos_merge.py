"""The paper's experiment on 32x32 colour crops of photographs: a VDM and an EDM, and their merges.

    python main.py --config configs/photos_merge.py:small     at most 15 minutes on two CPU cores
    python main.py --config configs/photos_merge.py           hours on two CPU cores, minutes on a GPU

The digits' report at CIFAR-10's shape and 256 levels. Both experts and the classifier that judges the samples come with
the package; configs/photos_vdm.py, photos_edm.py and photos_classifier.py train them again. The report of ``:small``:
docs/photos_merge/.
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
    config.experts.low = "photos_vdm"
    config.experts.high = "photos_edm"
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
    config.data.n_validation = 128
    config.merge.etas = (0.2, 0.5, 0.8)
    config.merge.candidate_step = 0.05
    config.likelihood.n_images = 40
    config.likelihood.tolerance = 0.02
    config.likelihood.image_tolerance = 0.2
    config.likelihood.batch_size = 20
    config.bound.n_images = 64
    config.bound.repeats = 2
    config.bound.batch_size = 32
    config.sampling.sampler = ("heun",)
    config.sampling.n_samples = config.sampling.n_samples_other = 120
    config.sampling.seeds = 3
    config.sampling.batch_size = 30
    config.reconstruction.n_images = 64
    config.reconstruction.batch_size = 32
    config.cost.repeats, config.cost.batch_size = 3, 8
