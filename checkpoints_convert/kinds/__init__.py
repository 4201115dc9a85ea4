"""What a file holds: its kind, its architecture, the arrays to take, and what no file says.

    source = recognise(readers.read(path))

The kind follows from the contents, with one exception: files of i-DODE have the same names and shapes as
google-research's VDM, but their networks predict a velocity. There the kind must be given.
"""

from collections.abc import Callable

from checkpoints_convert.kinds import edm, inception, lpips, ours, vdm
from checkpoints_convert.kinds.source import Asked, Source
from checkpoints_convert.readers import Contents
from checkpoints_convert.registry import KINDS

__all__ = ["KINDS", "Asked", "Source", "recognise"]

# Kind -> whether contents are of that kind, and what makes a `Source` of them.
_MAKERS: dict[str, tuple[Callable[[Contents], bool], Callable[[Contents, str, Asked], Source]]] = {
    "edm": (edm.recognised, edm.source),
    "vdm-torch": (vdm.torch_recognised, vdm.torch_source),
    "vdm-flax": (vdm.flax_recognised, vdm.flax_source),
    "idode-vp": (vdm.flax_recognised, vdm.flax_source),
    "idode-sp": (vdm.flax_recognised, vdm.flax_source),
    "idode-noise": (vdm.flax_recognised, vdm.flax_source),
    "inception": (inception.recognised, inception.source),
    "lpips": (lpips.recognised, lpips.source),
}


def recognise(contents: Contents, asked: Asked) -> Source:
    """What contents are.

    Args:
        contents: what `readers.read` returned.
        asked: what the user says of them.

    Raises:
        ValueError: contents of no known kind, or not of the kind that was asked for, or without the weights
            that were asked for, or with an architecture that is not supported; or something was said that
            contradicts the file, or that files of its kind have no use for.
    """
    kind = asked.kind
    if kind is not None and kind not in _MAKERS:
        raise ValueError(f"--kind must be one of {', '.join(KINDS)}, got {kind!r}.")
    if ours.recognised(contents):
        return _agreeing(ours.source(contents, asked), asked)
    fitting = [name for name, (fits, _) in _MAKERS.items() if fits(contents)]
    container = contents.container
    if kind is None and not fitting:
        raise ValueError(
            f"the file ({container}) was read, but its arrays are those of no known network; this command converts "
            f"{', '.join(KINDS)}."
        )
    if kind is not None and kind not in fitting:
        found = f"it looks like {fitting[0]}" if fitting else "its arrays are those of no known network"
        raise ValueError(
            f"the file ({container}) is not of the kind {kind!r}: {found}; leave --kind out or give another file."
        )
    chosen = kind or fitting[0]
    _, make = _MAKERS[chosen]
    return _agreeing(make(contents, chosen, asked), asked)


def _agreeing(source: Source, asked: Asked) -> Source:
    """The source, unless something was said that it does not need or that it contradicts."""
    if asked.config_given and source.kind != "vdm-torch":
        raise ValueError(
            f"--config is for a PyTorch VDM, and this file is of the kind {source.kind}; leave it out."
        )
    if asked.backbone is not None and source.kind != "lpips":
        raise ValueError(
            f"--backbone is for the linear layers of LPIPS, and this file is of the kind {source.kind}; leave it out."
        )
    shape = source.description.get("shape")
    if asked.size is not None and (shape is None or asked.size != shape[0]):
        found = "of any size" if shape is None else f"{shape[0]}x{shape[1]}, as it says itself"
        raise ValueError(f"--size is {asked.size}, but the file's images are {found}; leave --size out.")
    return source
