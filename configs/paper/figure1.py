"""Figure 1: the method.

    python main.py --config configs/paper/figure1.py               CIFAR-10 experts, seconds
    python main.py --config configs/paper/figure1.py:imagenet32    ImageNet32 experts, seconds
    python main.py --config configs/paper/figure1.py:photos        shipped experts of photographs, seconds
    python main.py --config configs/paper/figure1.py:digits        shipped experts of digits, seconds

A diagram: which expert answers at which noise level, drawn from the experts' own ranges and the threshold
0.3. Nothing is measured.
"""

from configs.paper import common


def get_config(variant: str = ""):
    """The diagram of the method.

    Raises:
        ValueError: another variant than "", "imagenet32", "photos" and "digits".
    """
    config = common.experiment(variant, "figure1")
    common.only(config)
    config.merge.etas = (0.3,)
    config.report.diagram = True
    return config
