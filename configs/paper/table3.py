"""Table 3: EDM's own sampler, Heun with 18 steps and 35 network calls.

    python main.py --config configs/paper/table3.py               CIFAR-10, 8 accelerators, hours
    python main.py --config configs/paper/table3.py:imagenet32    old ImageNet32, 8 accelerators, hours
    python main.py --config configs/paper/table3.py:photos        embedded photographs, two CPU cores, not timed
    python main.py --config configs/paper/table3.py:digits        embedded digits, 2 to 15 minutes on two CPU cores

The merge takes the same noise grid with the switch as one more node and ends at its own lowest noise, the
extension that the paper leaves for later. Published for the EDM with Heun (Karras et al. 2022, quoted in
Table 6 of arXiv 2511.19434): FID 1.97 at 35 calls on CIFAR-10, which stands beside the EDM's row.
"""

from configs.paper import common


def get_config(variant: str = ""):
    """Heun samples of the experts and of every merge.

    Raises:
        ValueError: another variant than "", "imagenet32", "photos" and "digits".
    """
    config = common.experiment(variant, "table3")
    common.only(config, "samples")
    config.sampling.sampler = ("heun",)
    common.beside(config, 6)
    return config
