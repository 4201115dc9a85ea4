"""Names of LPIPS: torchvision's backbones, the linear layers of the lpips package, and that package's whole state dict.

The package cuts a backbone into five slices, each of which ends with a compared convolution, and leaves
torchvision's numbers: "features.12.weight" is "net.slice3.12.weight" there.
"""

import bisect
from collections.abc import Callable

import numpy as np

from checkpoints_convert.names.origins import Origin, torch


def torchvision(path: str) -> Origin:
    """The array for a path of `LPIPS`, where the backbone has torchvision's names."""
    return _origin(path, lambda number: f"features.{number}")


def package(compared: tuple[int, ...]) -> Callable[[str], Origin]:
    """Origins of the paths of `LPIPS` in the package's state dict, for the numbers of the compared convolutions."""
    return lambda path: _origin(path, lambda n: f"net.slice{bisect.bisect_left(compared, n) + 1}.{n}")


def linear(k: int) -> str:
    """The name of linear layer k."""
    return f"lin{k}.model.1.weight"


def _origin(path: str, convolution: Callable[[int], str]) -> Origin:
    layer, _, leaf = path.partition("/")
    if layer.startswith("lin"):
        return Origin((linear(int(layer[3:])),), np.ravel, lambda a: (a.reshape(1, -1, 1, 1),))
    return torch(convolution(int(layer.removeprefix("features_"))), leaf)
