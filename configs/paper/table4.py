"""Table 4: EDM's noise range as log signal-to-noise ratio.

    python main.py --config configs/paper/table4.py               CIFAR-10 experts, seconds
    python main.py --config configs/paper/table4.py:imagenet32    ImageNet32 experts, seconds
    python main.py --config configs/paper/table4.py:photos        shipped experts of photographs, seconds
    python main.py --config configs/paper/table4.py:digits        shipped experts of digits, seconds

Published (arXiv 2511.19434): sigma_edm 0.002 and 80 are gamma -12.43 and 8.764. Nothing is measured, so no
image is scored and no sample drawn; the run computes both beside the published numbers and draws the ranges
of the experts.
"""

from configs.paper import common


def get_config(variant: str = ""):
    """EDM's noise range in gamma beside the published one.

    Raises:
        ValueError: another variant than "", "imagenet32", "photos" and "digits".
    """
    config = common.experiment(variant, "table4")
    common.only(config)
    common.beside(config, 4)
    config.report.diagram = True
    return config
