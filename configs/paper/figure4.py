"""Figure 4: every metric against the threshold on CIFAR-10, logarithmic scale.

    python main.py --config configs/paper/figure4.py               CIFAR-10, 8 accelerators, hours
    python main.py --config configs/paper/figure4.py:imagenet32    old ImageNet32, 8 accelerators, hours
    python main.py --config configs/paper/figure4.py:photos        embedded photographs, two CPU cores, not timed
    python main.py --config configs/paper/figure4.py:digits        embedded digits, 2 to 15 minutes on two CPU cores

The figure all_metrics.png of the run: exact likelihood, bound, distance, scores and network calls. Published
values are those of Tables 1, 2 and 5 (arXiv 2511.19434).
"""

from configs.paper import common


def get_config(variant: str = ""):
    """Every metric of every merge.

    Raises:
        ValueError: another variant than "", "imagenet32", "photos" and "digits".
    """
    config = common.experiment(variant, "figure4")
    common.only(config, "likelihood", "bound", "samples", "others")
    config.sampling.sampler = ("ode", "ancestral")
    common.beside(config, 1, 2, 5)
    return config
