"""Table 1: exact likelihood and network calls against the threshold.

    python main.py --config configs/paper/table1.py               CIFAR-10, 8 accelerators, hours
    python main.py --config configs/paper/table1.py:imagenet32    old ImageNet32, 8 accelerators, hours
    python main.py --config configs/paper/table1.py:photos        embedded photographs, two CPU cores, not timed
    python main.py --config configs/paper/table1.py:digits        embedded digits, 2 to 15 minutes on two CPU cores

Published (arXiv 2511.19434): EDM 3.21 bits per dimension, VDM 2.64, merged 2.62 at eta = 0.4 and 0.5; on the
old ImageNet32 EDM 4.04, VDM 3.72, merged 3.72 from eta = 0.4 on. Truncated-normal dequantisation, one draw,
adaptive RK45 at 1e-5 for the published network calls: the control is "batch" here, as in the public codes. The
sweep stops the solver at every threshold on the way, for the VDM alone too, so that network calls differ from
those of one plain solve.
"""

from configs.paper import common


def get_config(variant: str = ""):
    """The likelihood sweep of the paper beside its published numbers.

    Raises:
        ValueError: another variant than "", "imagenet32", "photos" and "digits".
    """
    config = common.experiment(variant, "table1")
    common.only(config, "likelihood")
    config.likelihood.control = "batch"
    common.beside(config, 1)
    return config
