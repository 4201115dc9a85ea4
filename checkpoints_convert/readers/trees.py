"""Plain trees: what a reader makes of a file, checked so that every later walk over it is short.

A pickle may refer to one object many times, and even to an object from within itself. A tree that passed
`check` has no cycle, is at most `DEPTH` levels deep, and stays small when every shared object is counted as
often as it is met. So recursion over it is safe and no walk over it explodes.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from checkpoints_convert.readers.faults import OFFICIAL, Fault, shown

DEPTH = 100
NODES = 1_000_000
NAME_LENGTH = 1000
_LEAVES = (str, int, float, bool, type(None), bytes, memoryview, np.ndarray)


class Module(NamedTuple):
    """A persistence object or a torch container as plain data; its source text is not kept.

    Attributes:
        class_name: the class that the file names, "SongUNet".
        state: its attributes, among them torch's `_parameters`, `_buffers` and `_modules`.
    """

    class_name: str
    state: dict[str, Any]


class Contents(NamedTuple):
    """What is in a file.

    Attributes:
        container: "EDM pickle", "torch zip", "torch legacy", "flax msgpack" or "safetensors".
        tree: nested dictionaries, lists, tuples and sets of numbers, texts, bytes, None, `Module` and
            read-only arrays, which show the mapped file itself wherever it holds them uncompressed.
        metadata: the header's texts of a safetensors file, otherwise empty.
    """

    container: str
    tree: Any
    metadata: dict[str, str]


def flatten(tree: Any, separator: str) -> dict[str, np.ndarray]:
    """All arrays of a tree by the path that leads to them; every other leaf is left out.

    Args:
        tree: what `read` returned, or a part of it.
        separator: stands between the keys of a path; a list's or tuple's keys are its positions.

    Returns:
        path -> array, in the order of the file. A `Module` is walked like the dictionary of its attributes.

    Raises:
        ValueError: two arrays have the same path, or a path is absurdly long.
    """
    flat: dict[str, np.ndarray] = {}

    def walk(node: Any, path: str) -> None:
        if isinstance(node, np.ndarray):
            add_array(flat, path, node)
            return
        for key, child in _items(node):
            walk(child, f"{path}{separator}{key}" if path else str(key))

    walk(tree, "")
    return flat


def add_array(flat: dict[str, np.ndarray], name: str, array: np.ndarray) -> None:
    """Adds one array; ValueError where the name is taken or absurdly long."""
    if name in flat or len(name) > NAME_LENGTH:
        raise ValueError(
            f"expected arrays with different names of at most {NAME_LENGTH} characters, got "
            f"{'twice ' if name in flat else ''}{shown(name)}; take the file from its official source."
        )
    flat[name] = array


def check(tree: Any, size: int) -> None:
    """Refuses trees that are no plain data, hold no array, or that no walk could finish.

    Args:
        tree: what a reader built.
        size: bytes of weights that the file holds.

    Raises:
        Fault: a cycle, too deep, too large when shared parts are counted as often as they are met, a value
            that is no plain data, or no array at all.
    """
    arrays = False
    sums: dict[int, tuple[int, int, int]] = {}  # id -> nodes, bytes, depth of everything below
    ancestors: set[int] = set()
    waiting = [(tree, False)]
    while waiting:
        node, finished = waiting.pop()
        if isinstance(node, _LEAVES) or id(node) in sums:
            arrays |= isinstance(node, np.ndarray)
        elif finished:
            ancestors.discard(id(node))
            sums[id(node)] = _sum(node, sums, size)
        elif id(node) in ancestors:
            raise Fault("expected a tree, but one of its containers holds itself", OFFICIAL)
        else:
            ancestors.add(id(node))
            waiting.append((node, True))
            waiting += [(child, False) for _, child in _items(node)]
    if not arrays:
        raise Fault("expected a checkpoint with arrays of weights, found none", "give a file with weights")


def _sum(node: Any, sums: dict[int, tuple[int, int, int]], size: int) -> tuple[int, int, int]:
    nodes, total, depth = 1, 0, 0
    for _, child in _items(node):
        if isinstance(child, _LEAVES):
            nodes, total = nodes + 1, total + getattr(child, "nbytes", 0)
        else:
            below = sums[id(child)]
            nodes, total, depth = nodes + below[0], total + below[1], max(depth, below[2])
    if nodes > NODES or total > 8 * size + 2**20:
        raise Fault(
            "expected a tree about as large as its file, but its shared parts unfold to far more", OFFICIAL
        )
    if depth >= DEPTH:
        raise Fault(f"expected at most {DEPTH} nested containers, got more", OFFICIAL)
    return nodes, total, depth + 1


def _items(node: Any) -> Iterator[tuple[Any, Any]]:
    kind = type(node)
    if kind is dict:
        yield from node.items()
    elif kind is Module:
        yield from node.state.items()
    elif kind in (list, tuple):
        yield from enumerate(node)
    elif kind is not set and not isinstance(node, _LEAVES):
        raise Fault(f"expected plain data, but it holds {shown(node)}", OFFICIAL)
