"""Figure 2: likelihood against sample quality over the threshold.

    python main.py --config configs/paper/figure2.py               CIFAR-10, 8 accelerators, hours
    python main.py --config configs/paper/figure2.py:imagenet32    old ImageNet32, 8 accelerators, hours
    python main.py --config configs/paper/figure2.py:photos        embedded photographs, two CPU cores, not timed
    python main.py --config configs/paper/figure2.py:digits        embedded digits, 2 to 15 minutes on two CPU cores

The figure trade_off.png of the run. Published (arXiv 2511.19434, Tables 1 and 2): 2.62 bits per dimension
with FID 2.14 at eta = 0.4 against the VDM's 2.64 with 9.37 and the EDM's 3.21 with 2.02.
"""

from configs.paper import common


def get_config(variant: str = ""):
    """Likelihood and quality of every merge.

    Raises:
        ValueError: another variant than "", "imagenet32", "photos" and "digits".
    """
    config = common.experiment(variant, "figure2")
    common.only(config, "likelihood", "samples")
    config.sampling.sampler = ("ode",)
    common.beside(config, 1, 2)
    return config
