"""What a file holds: its kind, its architecture, the arrays to take, and what no file says.

    source = recognise(readers.read(path))

The kind follows from the contents, with one exception: files of i-DODE have the same names and shapes as
google-research's VDM, but their networks predict a velocity. There the kind must be given.
"""

from collections.abc import Callable
from typing import Any

from checkpoints_convert.kinds import edm, inception, ours, vdm
from checkpoints_convert.kinds.source import Source
from checkpoints_convert.readers import Contents

__all__ = ["KINDS", "Source", "recognise"]

# Kind -> whether contents are of that kind, and what makes a `Source` of them.
_MAKERS: dict[str, tuple[Callable[[Contents], bool], Callable[..., Source]]] = {
    "edm": (edm.recognised, edm.source),
    "vdm-torch": (vdm.torch_recognised, vdm.torch_source),
    "vdm-flax": (vdm.flax_recognised, vdm.flax_source),
    "idode-vp": (vdm.flax_recognised, vdm.flax_source),
    "idode-sp": (vdm.flax_recognised, vdm.flax_source),
    "idode-noise": (vdm.flax_recognised, vdm.flax_source),
    "inception": (inception.recognised, inception.source),
}
KINDS = tuple(_MAKERS)


def recognise(
    contents: Contents,
    *,
    kind: str | None = None,
    weights: str = "ema",
    config: dict[str, Any] | None = None,
    size: int = 32,
) -> Source:
    """What contents are.

    Args:
        contents: what `readers.read` returned.
        kind: one of `KINDS`, or None to find out.
        weights: "ema" or "online", where a file has both.
        config: settings of the run that wrote a torch VDM, at any depth; they say what shapes cannot.
        size: height and width of a VDM's images, which its file does not say.

    Raises:
        ValueError: contents of no known kind, or not of the kind that was asked for, or without the weights
            that were asked for, or with an architecture that is not supported.
    """
    if ours.recognised(contents):
        return ours.source(contents)
    fitting = [name for name, (fits, _) in _MAKERS.items() if fits(contents)]
    if kind is not None and kind not in _MAKERS:
        raise ValueError(f"--kind must be one of {', '.join(KINDS)}, got {kind!r}.")
    if kind is None and not fitting:
        raise ValueError(
            f"a {contents.container} was read, but its arrays are those of no known network; this command "
            f"converts {', '.join(KINDS)}."
        )
    if kind is not None and kind not in fitting:
        found = f"it looks like {fitting[0]}" if fitting else "its arrays are those of no known network"
        raise ValueError(
            f"the file (a {contents.container}) is not of the kind {kind!r}: {found}; leave --kind out or give "
            "another file."
        )
    chosen = kind or fitting[0]
    _, make = _MAKERS[chosen]
    return make(contents, kind=chosen, given=kind is not None, weights=weights, config=config, size=size)
