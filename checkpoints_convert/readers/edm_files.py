"""EDM's pickles: a dictionary whose `ema` is the network, rebuilt as plain data.

The networks are "persistence objects": a record with the class's *source text* and its attributes. The
original loader runs that text. Here the text is skipped, and the class is only a name.
"""

from typing import Any

import numpy as np

from checkpoints_convert.readers import trees
from checkpoints_convert.readers.faults import OFFICIAL, Budget, Fault
from checkpoints_convert.readers.pickle_globals import Environment
from checkpoints_convert.readers.pickle_machine import Machine
from checkpoints_convert.readers.torch_files import read_storage
from checkpoints_convert.readers.trees import Module


def read_edm(data: memoryview, budget: Budget) -> dict[str, Any]:
    """The dictionary in an EDM pickle; networks are `Module`s, tensors views of `data`.

    Raises:
        Fault: the file is damaged or not EDM's.
    """
    machine = Machine(data, Environment(budget, nested=lambda stream: read_storage(stream, budget)))
    tree = machine.run()
    if machine.position != len(data):
        raise Fault(f"expected the end of the file after {machine.position} bytes, but it has {len(data)}")
    if type(tree) is not dict or not any(type(value) is Module for value in tree.values()):
        raise Fault("expected a pickle with a network of EDM in it, found none", OFFICIAL)
    trees.check(tree, len(data))
    return tree


def module_arrays(module: Module) -> dict[str, np.ndarray]:
    """Parameters and buffers of a network by torch's names.

    Args:
        module: a network that `read` returned.

    Returns:
        "model.enc.8x8_conv.weight" -> read-only array, in the order of the file.

    Raises:
        ValueError: the object is no torch module, or two arrays have the same name.
    """
    flat: dict[str, np.ndarray] = {}

    def walk(node: Module, prefix: str) -> None:
        for group in ("_parameters", "_buffers"):
            for name, array in _group(node, group).items():
                if array is not None:
                    trees.add_array(flat, prefix + str(name), array)
        for name, child in _group(node, "_modules").items():
            if child is not None:
                walk(child, f"{prefix}{name}.")

    walk(module, "")
    return flat


def _group(node: Module, name: str) -> dict[str, Any]:
    wanted = Module if name == "_modules" else np.ndarray
    group = node.state.get(name) if isinstance(node, Module) else None
    if not isinstance(group, dict) or not all(v is None or isinstance(v, wanted) for v in group.values()):
        raise ValueError(
            f"expected a torch module with {name} inside the network, got another object; take the file "
            "from its official source."
        )
    return group
