"""The paper's experiment on real images: a VDM and an EDM of the digits, and their merges.

    python main.py --config configs/digits_merge.py          at most 5 minutes on two CPU cores
    python main.py --config configs/digits_merge.py:full     at most 45 minutes on two CPU cores

Both experts come with the package. The run proposes a threshold from training and validation images,
then measures exact likelihood, bound and Frechet distance of both experts and of every merge on test
images. ``full`` takes all test images, every row from both samplers, and five seeds.
"""

from configs import default


def get_config(variant: str = ""):
    """The five-minute run, or the "full" one.

    Raises:
        ValueError: another variant.
    """
    config = default.get_config()
    config.title = "Two experts of handwritten digits and their merges"
    if variant == "full":
        config.likelihood.n_images = 360
        config.likelihood.tolerance = 0.002
        config.likelihood.image_tolerance = 0.01
        config.likelihood.alignment_images = 360
        config.likelihood.batch_size = 60
        config.bound.n_images = 360
        config.bound.n_times = 2
        config.bound.repeats = 10
        config.sampling.seeds = 5
        config.sampling.seeds_other = 5
        config.sampling.ancestral_seeds = 5
        config.sampling.ancestral_samples_other = 500
    elif variant:
        raise ValueError(
            f"configs/digits_merge.py has the variant 'full' only, got {variant!r}; write :full or nothing."
        )
    return config
