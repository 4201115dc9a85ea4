"""Figure 3: samples from the same noise at every threshold.

    python main.py --config configs/paper/figure3.py               CIFAR-10, one accelerator, minutes
    python main.py --config configs/paper/figure3.py:imagenet32    old ImageNet32, one accelerator, minutes
    python main.py --config configs/paper/figure3.py:photos        embedded photographs, two CPU cores, not timed
    python main.py --config configs/paper/figure3.py:digits        embedded digits, a minute on two CPU cores

The figure samples.png of the run: a column starts from the same noise in every row. The paper shows pictures,
no numbers.
"""

from configs.paper import common


def get_config(variant: str = ""):
    """Samples of both experts and of merges from common noise.

    Raises:
        ValueError: another variant than "", "imagenet32", "photos" and "digits".
    """
    config = common.experiment(variant, "figure3")
    common.only(config, "samples")
    config.metric.kind = "none"
    config.sampling.sampler = ("ode",)
    config.sampling.n_samples = config.sampling.n_samples_other = 24
    config.sampling.seeds = config.sampling.seeds_other = 1
    config.report.merges = 0
    return config
