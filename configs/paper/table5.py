"""Table 5: the variational bound against the threshold.

    python main.py --config configs/paper/table5.py               CIFAR-10, 8 accelerators, hours
    python main.py --config configs/paper/table5.py:imagenet32    old ImageNet32, 8 accelerators, hours
    python main.py --config configs/paper/table5.py:photos        embedded photographs, two CPU cores, not timed
    python main.py --config configs/paper/table5.py:digits        embedded digits, 2 to 15 minutes on two CPU cores

Published (arXiv 2511.19434), mean of 10 runs of batch 512: EDM 3.21, VDM 2.65, merged 2.64 at eta = 0.4; on
the old ImageNet32 EDM 4.01, VDM 3.73, merged 3.73. Here 10 disjoint batches of 512 test images; the column
vlb_std_of_groups of results.csv has the standard deviation of their means, vlb_se the standard error over
images.
"""

from configs.paper import common


def get_config(variant: str = ""):
    """The bound of the paper beside its published numbers.

    Raises:
        ValueError: another variant than "", "imagenet32", "photos" and "digits".
    """
    config = common.experiment(variant, "table5")
    common.only(config, "bound")
    config.bound.groups = 10
    common.beside(config, 5)
    return config
