"""Figure 9: free samples of the VDM.

    python main.py --config configs/paper/figure9.py               CIFAR-10, one accelerator, minutes
    python main.py --config configs/paper/figure9.py:imagenet32    old ImageNet32, one accelerator, minutes
    python main.py --config configs/paper/figure9.py:photos        embedded photographs, two CPU cores, not timed
    python main.py --config configs/paper/figure9.py:digits        embedded digits, a minute on two CPU cores

The figure samples.png of the run, by the probability-flow ODE. The paper shows pictures, no numbers.
"""

from configs.paper import common


def get_config(variant: str = ""):
    """Samples of the VDM.

    Raises:
        ValueError: another variant than "", "imagenet32", "photos" and "digits".
    """
    config = common.samples_only(variant, "figure9", "low")
    return config
