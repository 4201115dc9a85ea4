"""Table 6: the merge among other published methods.

    python main.py --config configs/paper/table6.py               CIFAR-10, 8 accelerators, hours
    python main.py --config configs/paper/table6.py:imagenet32    old ImageNet32, 8 accelerators, hours
    python main.py --config configs/paper/table6.py:photos        embedded photographs, two CPU cores, not timed
    python main.py --config configs/paper/table6.py:digits        embedded digits, 2 to 15 minutes on two CPU cores

Other methods stand as the paper prints them (arXiv 2511.19434), the paper's own rows beside this run's of the same
model and threshold, and this run's other models below them. Likelihoods
there are by truncated-normal dequantisation unless marked; FID is of 50 000 samples. Published for the merge
on CIFAR-10: 2.62 bits per dimension and FID 2.14 at eta = 0.4, 2.63 and 2.01 at eta = 0.3.
"""

from configs.paper import common


def get_config(variant: str = ""):
    """Likelihood and quality of this run's models below the published comparison.

    Raises:
        ValueError: another variant than "", "imagenet32", "photos" and "digits".
    """
    config = common.experiment(variant, "table6")
    common.only(config, "proposal", "likelihood", "bound", "samples", "others")
    config.sampling.sampler = ("ode",)
    if variant not in common.EMBEDDED:
        config.merge.etas = (0.5,) if variant == "imagenet32" else (0.3, 0.4)
    common.beside(config, 6)
    return config
