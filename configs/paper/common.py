"""What the paper's tables and figures share: which experts and images, and leaving parts out.

Variants: none is CIFAR-10 with the public experts, "imagenet32" the old ImageNet32; "photos" and "digits" are the
same protocol in small on embedded images with the shipped experts. The photographs' merges are at three thresholds.
"""

from ml_collections import ConfigDict

from configs import cifar10_merge, default, imagenet32_merge, photos_merge

# The paper's columns that are thresholds; the two ends come from the experts.
ETAS = ("auto",)
NOTES = {
    "": cifar10_merge.NOTE,
    "imagenet32": imagenet32_merge.NOTE,
    "photos": "Crops of photographs and the shipped small experts: nothing here can be compared with the paper.",
    "digits": "Handwritten digits and the shipped small experts: nothing here can be compared with the paper.",
}
# Variants whose images and experts come with the package.
EMBEDDED = ("photos", "digits")
IMAGES = {
    "": "CIFAR-10",
    "imagenet32": "ImageNet32, old version",
    "photos": "photographs",
    "digits": "digits",
}
# Network calls that are counted under another protocol than the paper's.
CALLS_OF_A_SWEEP = (
    "Network calls of the likelihood: the sweep stops the solver at every threshold on the way, for the VDM alone too; "
    "the paper's are those of one plain solve."
)
CALLS_OF_A_GRID = (
    "Network calls of the likelihood are those of a fixed grid, not of the paper's adaptive RK45."
)
CALLS_OF_THE_ODE = (
    "Network calls of samples by the ODE are those of a fixed grid of sampling.ode_steps_per_gamma steps per unit of "
    "gamma, not of the paper's adaptive RK45."
)


def experiment(variant: str, name: str) -> ConfigDict:
    """The merge of the variant's experts, every part at the paper's size, or small for the digits.

    Args:
        variant: "", "imagenet32", "photos" or "digits".
        name: the config's name, for messages.

    Raises:
        ValueError: another variant.
    """
    if variant not in NOTES:
        known = ", ".join(f":{v}" for v in NOTES if v)
        raise ValueError(f"configs/paper/{name}.py has the variants {known} or none, got {variant!r}.")
    if variant == "digits":
        config = digits()
    elif variant == "photos":
        config = photos()
    else:
        config = (imagenet32_merge if variant else cifar10_merge).get_config()
        config.merge.etas = ETAS
        config.report.published = ()
    config.title = f"{name.replace('table', 'Table ').replace('figure', 'Figure ')}: {IMAGES[variant]}"
    config.report.published_note = NOTES[variant]
    return config


def digits() -> ConfigDict:
    """The digits' experts with few images."""
    config = default.get_config()
    config.merge.etas = ETAS
    config.likelihood.n_images = config.bound.n_images = 60
    config.likelihood.batch_size = 30
    config.sampling.n_samples = config.sampling.n_samples_other = 120
    config.sampling.ancestral_samples = config.sampling.ancestral_samples_other = 120
    config.sampling.seeds = config.sampling.seeds_other = config.sampling.ancestral_seeds = 3
    config.reconstruction.n_images = 60
    config.cost.repeats = 3
    return config


def photos() -> ConfigDict:
    """The photographs' experts at the size of ``configs/photos_merge.py:small``, with ancestral samples too."""
    config = photos_merge.get_config("small")
    config.sampling.ancestral_samples = config.sampling.ancestral_samples_other = 60
    config.sampling.ancestral_steps = 64
    return config


def beside(config: ConfigDict, *numbers: int) -> None:
    """Puts tables of the paper beside the measured values, and says whose network calls have another protocol.

    Args:
        config: the experiment, whose samplers and step control are chosen.
        numbers: the paper's tables.
    """
    config.report.published = numbers
    said = [config.report.published_note]
    if 1 in numbers:
        said.append(CALLS_OF_A_SWEEP if config.likelihood.control == "batch" else CALLS_OF_A_GRID)
    if {2, 6} & set(numbers) and "ode" in config.sampling.sampler:
        said.append(CALLS_OF_THE_ODE)
    config.report.published_note = " ".join(said)


def only(config: ConfigDict, *parts: str) -> None:
    """Leaves out every part that is not named: "proposal", "likelihood", "bound", "samples", "others" (noise removed
    from test images, cost of sampling)."""
    config.merge.propose = "proposal" in parts
    if "likelihood" not in parts:
        config.likelihood.n_images = 0
    if "bound" not in parts:
        config.bound.n_images = 0
    if "samples" not in parts:
        config.sampling.n_samples = config.sampling.n_samples_other = 0
        config.sampling.ancestral_samples = config.sampling.ancestral_samples_other = 0
        config.metric.kind = "none"
    if "others" not in parts:
        config.reconstruction.n_images = config.cost.repeats = 0


def samples_only(variant: str, name: str, model: str) -> ConfigDict:
    """Free samples of one model, as the paper's Figures 7 to 10 show them."""
    config = experiment(variant, name)
    config.task = "sample"
    config.metric.kind = "none"
    config.shards.model = model
    config.shards.eta = 0.3
    config.shards.count, config.shards.size = 120, 60
    config.sampling.sampler = ("ode",)
    return config
