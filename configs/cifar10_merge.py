"""The paper's experiment on CIFAR-10 with public experts: nothing is trained.

    python -m checkpoints_convert vdm-cifar10 checkpoints/vdm_cifar10
    python -m checkpoints_convert edm-cifar10-32x32-uncond-vp checkpoints/edm_cifar10
    python main.py --config configs/cifar10_merge.py

or, in one command, ``python main.py --config configs/cifar10_merge.py --config.experts.fetch=True``. The EDM
weights are CC BY-NC-SA 4.0. Meant for 8 accelerators: the likelihood costs about 250 calls of a 30-million and a
56-million-parameter network per image, 10 000 images; 50 000 samples cost 35 to 173 calls each. ``:smoke`` runs the
same programs on untrained networks of full size and mock images, in 3 minutes on two CPU cores.

Published with the authors' own VDM (arXiv 2511.19434, tables 1, 2, 5 and 6): VDM 2.64 bits/dim and FID 9.37, EDM 3.21
and 2.02; merged 2.62 and 2.14 at eta = 0.4, 2.63 and 2.01 at eta = 0.3; bound 2.64 at eta = 0.4. The public VDM here is
google-research's (bound 2.637), trained for as many steps.
"""

from configs import default

NOTE = (
    "The VDM here is google-research's public network, the paper's is its authors' own; the EDM is the same."
)


def get_config(variant: str = ""):
    """The paper's protocol, or "smoke": the same programs at full size on untrained weights and mock images.

    Raises:
        ValueError: another variant.
    """
    if variant not in ("", "smoke"):
        raise ValueError(
            f"configs/cifar10_merge.py has the variant 'smoke' only, got {variant!r}; write :smoke or nothing."
        )
    config = default.get_config()
    if variant == "smoke":
        return smoke(config)
    config.data.name = "cifar10"
    config.experts.low = "checkpoints/vdm_cifar10"
    config.experts.low_source = "vdm-cifar10"
    config.experts.high = "checkpoints/edm_cifar10"
    config.experts.high_source = "edm-cifar10-32x32-uncond-vp"
    paper_protocol(config)
    config.report.published_note = NOTE
    return config


def smoke(config):
    """Every part once, as little of it as there can be."""
    config.title = "Untrained networks on mock images: a test of the program, not of a model"
    config.data.name = "mock32"
    config.experts.low = "untrained:vdm_cifar10"
    config.experts.high = "untrained:edm_cifar10"
    config.merge.etas = (0.4,)
    config.merge.propose = False
    config.likelihood.n_images = config.bound.n_images = 2
    config.likelihood.batch_size = config.bound.batch_size = 1
    config.likelihood.steps_per_gamma = 0.1
    config.likelihood.image_tolerance = 0.999
    config.merge.candidate_step = 0.9
    config.bound.repeats = 1
    config.metric.kind = "none"
    config.sampling.sampler = ("heun",)
    config.sampling.heun_steps = 2
    config.sampling.n_samples = config.sampling.n_samples_other = 2
    config.sampling.seeds = config.sampling.seeds_other = 1
    config.sampling.batch_size = 1
    config.reconstruction.n_images = 2
    config.reconstruction.gammas = (0.0,)
    config.reconstruction.batch_size = 2
    return config


def paper_protocol(config) -> None:
    """Numbers of images, samples and repetitions as in the paper's tables."""
    config.metric.kind = "inception"
    config.sampling.sampler = ("ode", "ancestral")
    config.likelihood.n_images = 10_000
    config.likelihood.batch_size = 64
    config.bound.n_images = 5120
    config.bound.groups = 10
    config.bound.repeats = 1
    config.bound.batch_size = 64
    config.sampling.n_samples = 50_000
    config.sampling.seeds = config.sampling.seeds_other = config.sampling.ancestral_seeds = 3
    config.sampling.n_samples_other = 50_000
    config.sampling.ancestral_samples = 50_000
    config.sampling.ancestral_samples_other = 50_000
    config.sampling.batch_size = 128
    config.reconstruction.n_images = 512
    config.cost.repeats = 10
    config.report.published = (1, 2, 5, 6)
    config.report.published_data = config.data.name
