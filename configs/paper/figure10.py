"""Figure 10: free samples of the merge at eta = 0.5, on ImageNet32.

    python main.py --config configs/paper/figure10.py           old ImageNet32, one accelerator, minutes
    python main.py --config configs/paper/figure10.py:photos    embedded photographs, two CPU cores, not timed
    python main.py --config configs/paper/figure10.py:digits    embedded digits, a minute on two CPU cores

The figure samples.png of the run, by the probability-flow ODE. The paper shows pictures, no numbers.
"""

from configs.paper import common


def get_config(variant: str = ""):
    """Samples of the merge at eta = 0.5, on ImageNet32.

    Raises:
        ValueError: another variant than "", "photos" and "digits".
    """
    config = common.samples_only(variant or "imagenet32", "figure10", "merged")
    config.shards.eta = 0.5
    return config
