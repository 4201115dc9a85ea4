"""Figure 7: free samples of the merge at eta = 0.3.

    python main.py --config configs/paper/figure7.py            CIFAR-10, one accelerator, minutes
    python main.py --config configs/paper/figure7.py:digits     embedded digits, two CPU cores, a minute

The figure samples.png of the run, by the probability-flow ODE. The paper shows pictures, no numbers.
"""

from configs.paper import common


def get_config(variant: str = ""):
    """Samples of the merge at eta = 0.3.

    Raises:
        ValueError: another variant than "", "imagenet32" and "digits".
    """
    config = common.samples_only(variant, "figure7", "merged")
    return config
