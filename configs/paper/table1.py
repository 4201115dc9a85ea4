"""Table 1: exact likelihood and network calls against the threshold.

    python main.py --config configs/paper/table1.py            CIFAR-10, 8 accelerators, hours
    python main.py --config configs/paper/table1.py:digits     embedded digits, two CPU cores, a few minutes

Published (arXiv 2511.19434): EDM 3.21 bits per dimension, VDM 2.64, merged 2.62 at eta = 0.4 and 0.5; on the
old ImageNet32 EDM 4.04, VDM 3.72, merged 3.72 from eta = 0.4 on. Truncated-normal dequantisation, one draw,
adaptive RK45 at 1e-5 for the published network calls: the control is "batch" here, as in the public codes.
"""

from configs.paper import common


def get_config(variant: str = ""):
    """The likelihood sweep of the paper beside its published numbers.

    Raises:
        ValueError: another variant than "", "imagenet32" and "digits".
    """
    config = common.experiment(variant, "table1")
    common.only(config, "likelihood")
    config.likelihood.control = "batch"
    config.report.published = 1
    return config
