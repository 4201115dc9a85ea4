"""Table 2: FID of 50 000 samples against the threshold, ancestral with 256 steps and by the ODE.

    python main.py --config configs/paper/table2.py               CIFAR-10, 8 accelerators, hours
    python main.py --config configs/paper/table2.py:imagenet32    old ImageNet32, 8 accelerators, hours
    python main.py --config configs/paper/table2.py:photos        embedded photographs, two CPU cores, not timed
    python main.py --config configs/paper/table2.py:digits        embedded digits, 2 to 15 minutes on two CPU cores

Published (arXiv 2511.19434), by the ODE: EDM 2.02, VDM 9.37, merged 2.01 at eta = 0.3; ancestral: EDM 3.37,
VDM 9.32, merged 3.39 at eta = 0.3. On the old ImageNet32 by the ODE: EDM 7.38, VDM 9.85, merged 6.58 at eta =
0.5. The ODE is solved on a fixed grid of sampling.ode_steps_per_gamma steps per unit of gamma instead of the paper's
adaptive RK45, so that its network calls are counted under another protocol. The embedded images are judged by their
own Frechet distance, which is no FID.
"""

from configs.paper import common


def get_config(variant: str = ""):
    """The sample sweep of the paper beside its published numbers.

    Raises:
        ValueError: another variant than "", "imagenet32", "photos" and "digits".
    """
    config = common.experiment(variant, "table2")
    common.only(config, "samples", "others")
    config.sampling.sampler = ("ancestral", "ode")
    common.beside(config, 2)
    return config
