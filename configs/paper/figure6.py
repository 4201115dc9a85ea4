"""Figure 6: one noise, every threshold.

    python main.py --config configs/paper/figure6.py               CIFAR-10, one accelerator, minutes
    python main.py --config configs/paper/figure6.py:imagenet32    old ImageNet32, one accelerator, minutes
    python main.py --config configs/paper/figure6.py:photos        embedded photographs, 3 minutes on two CPU cores
    python main.py --config configs/paper/figure6.py:digits        embedded digits, a minute on two CPU cores

The figure samples.png of the run with a single column of noise per row: how one image changes with eta. The
paper shows pictures, no numbers.
"""

from configs.paper import common


def get_config(variant: str = ""):
    """One image per threshold, from the same noise.

    Raises:
        ValueError: another variant than "", "imagenet32", "photos" and "digits".
    """
    config = common.experiment(variant, "figure6")
    common.only(config, "samples")
    config.metric.kind = "none"
    config.sampling.sampler = ("ode",)
    config.sampling.n_samples = config.sampling.n_samples_other = 8
    config.sampling.seeds = config.sampling.seeds_other = 1
    config.report.columns = 1
    config.report.merges = 0
    return config
