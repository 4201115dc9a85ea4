"""The state dict of FID's Inception-v3, in pytorch-fid's and torch-fidelity's files alike."""

from checkpoints_convert.kinds.source import Asked, Source
from checkpoints_convert.names import inception as names
from checkpoints_convert.readers import Contents, flatten

_MARKS = ("Conv2d_1a_3x3.conv.weight", "Mixed_7c.branch1x1.conv.weight", "fc.weight")


def recognised(contents: Contents) -> bool:
    """Whether contents are a state dict of FID's Inception."""
    return isinstance(contents.tree, dict) and all(mark in contents.tree for mark in _MARKS)


def _is_counter(name: str) -> bool:
    return name.endswith(".num_batches_tracked")


def source(contents: Contents, kind: str, asked: Asked) -> Source:
    """Inception's weights.

    Raises:
        ValueError: one of several sets of weights was asked for.
    """
    if asked.weights is not None:
        raise ValueError("a file of Inception has one set of weights only; leave --weights out.")
    arrays = flatten(contents.tree, ".")
    counters = sum(map(_is_counter, arrays))
    notes = (f"left out on purpose: {counters} counters of batch normalisation",) if counters else ()
    description = {"kind": "inception"}
    return Source(kind, description, arrays, names.origin, _is_counter, "the only ones", notes=notes)
