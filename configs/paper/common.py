"""What the paper's tables and figures share: which experts and images, and leaving parts out.

Variants: none is CIFAR-10 with the public experts, "imagenet32" the old ImageNet32, "digits" the same protocol in
small on the embedded digits with the shipped experts.
"""

from ml_collections import ConfigDict

from configs import cifar10_merge, default, imagenet32_merge

# The paper's columns that are thresholds; the two ends come from the experts.
ETAS = ("auto",)
NOTES = {
    "": "The VDM here is google-research's public network, the paper's is its authors' own; the EDM is the same.",
    "imagenet32": "Both experts differ from the paper's: i-DODE's public network below, and an EDM of one's own above.",
    "digits": "Handwritten digits and the shipped small experts: nothing here can be compared with these numbers.",
}


def experiment(variant: str, name: str) -> ConfigDict:
    """The merge of the variant's experts, every part at the paper's size, or small for the digits.

    Args:
        variant: "", "imagenet32" or "digits".
        name: the config's name, for messages.

    Raises:
        ValueError: another variant.
    """
    if variant not in NOTES:
        known = " or ".join(f":{v}" for v in NOTES if v)
        raise ValueError(f"configs/paper/{name}.py has the variants {known} or none, got {variant!r}.")
    if variant == "digits":
        config = default.get_config()
        config.likelihood.n_images = config.bound.n_images = 60
        config.likelihood.batch_size = 30
        config.sampling.n_samples = config.sampling.n_samples_other = 120
        config.sampling.ancestral_samples = config.sampling.ancestral_samples_other = 120
        config.sampling.seeds = config.sampling.seeds_other = config.sampling.ancestral_seeds = 3
        config.reconstruction.n_images = 60
        config.cost.repeats = 3
    else:
        config = (imagenet32_merge if variant else cifar10_merge).get_config()
        config.report.published_data = "imagenet32_old" if variant else "cifar10"
    images = {"": "CIFAR-10", "imagenet32": "ImageNet32, old version"}.get(variant, "digits")
    config.title = f"{name.replace('table', 'Table ').replace('figure', 'Figure ')}: {images}"
    config.merge.etas = ETAS
    config.report.published_note = NOTES[variant]
    return config


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
