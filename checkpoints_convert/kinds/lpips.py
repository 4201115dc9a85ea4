"""LPIPS: linear layers with a backbone from a second file, or a state dict of the lpips package with both.

The channels of the linear layers say which backbone they belong to. A state dict may have more than LPIPS needs:
torchvision's classifier; a second copy of the linear layers ("lins.K..."), which must be equal to the first; shift
and scale of the images, which must be those that are built in here. All that is left out.
"""

import re

import numpy as np

from checkpoints_convert import registry
from checkpoints_convert.kinds.source import Asked, Source
from checkpoints_convert.names import lpips as names
from checkpoints_convert.readers import Contents, flatten
from jaxmerge.metrics.lpips import BACKBONES, SHIFT, SPREAD

_LINEAR = re.compile(r"lin\d+\.model\.1\.weight")
_FIRST = ("features.0.weight", "net.slice1.0.weight")
_SCALING = {"scaling_layer.shift": SHIFT, "scaling_layer.scale": SPREAD}
_WIDTHS = {
    kind: tuple(conv.width for conv in backbone.convs if conv.number in backbone.compared)
    for kind, backbone in BACKBONES.items()
}
# Backbone -> short name of torchvision's file.
_PUBLIC = {"alex": "torchvision-alexnet", "vgg": "torchvision-vgg16"}


def recognised(contents: Contents) -> bool:
    """Whether contents have linear layers of LPIPS, or are one of its backbones alone, which `source` refuses."""
    if not isinstance(contents.tree, dict):
        return False
    return bool(_linear(contents.tree)) or _backbone(contents.tree) is not None


def _linear(arrays: dict) -> list[str]:
    return sorted(name for name in arrays if isinstance(name, str) and _LINEAR.fullmatch(name))


def _backbone(arrays: dict) -> str | None:
    """Which backbone arrays are by their first convolution; None where it is missing or that of neither."""
    first = next((arrays[name] for name in _FIRST if name in arrays), None)
    for kind, backbone in BACKBONES.items():
        conv = backbone.convs[0]
        if getattr(first, "shape", None) == (conv.width, 3, conv.kernel, conv.kernel):
            return kind
    return None


def source(contents: Contents, kind: str, asked: Asked) -> Source:
    """LPIPS's weights.

    Raises:
        ValueError: a part is missing, there twice, of another network, negative where it must not be, or of another
            standardisation; or one of several sets of weights was asked for.
    """
    if asked.weights is not None:
        raise ValueError("a file of LPIPS has one set of weights only; leave --weights out.")
    arrays = flatten(contents.tree, ".")
    backbone = _fitting(arrays)
    arrays |= _other_part(arrays, backbone, asked.backbone)
    if _backbone(arrays) != backbone:
        found = _backbone(arrays)
        advice = "save LPIPS again" if asked.backbone is None else f"give {_advice(backbone)}"
        raise ValueError(
            f"the linear layers are those for {BACKBONES[backbone].name}, but the backbone is "
            f"{'another network' if found is None else BACKBONES[found].name}; {advice}."
        )
    for name in _linear(arrays):
        if (lowest := np.fmin.reduce(arrays[name].ravel().astype(np.float64))) < 0:
            raise ValueError(
                f"{name} must not be negative, got {lowest:.3g}; give the linear layers of version 0.1."
            )
    left_out, notes = _left_out(arrays)
    notes.append("the linear layers are taken to be those of version 0.1, which no file says")
    origin = names.torchvision if _FIRST[0] in arrays else names.package(BACKBONES[backbone].compared)
    description = {"kind": "lpips", "backbone": backbone}
    return Source(
        *(kind, description, arrays, origin, left_out.__contains__), "the only ones", notes=tuple(notes)
    )


def _fitting(arrays: dict[str, np.ndarray]) -> str:
    """The backbone that the linear layers are for."""
    if not _linear(arrays):
        raise ValueError(
            "the file holds a backbone of LPIPS without linear layers; give the linear layers (alex.pth or vgg.pth of "
            "lpips 0.1) as SOURCE, and this file with --backbone."
        )
    wanted = map(names.linear, range(len(_linear(arrays))))
    found = [list(arrays[name].shape) if name in arrays else "none" for name in wanted]
    for kind, widths in _WIDTHS.items():
        if found == [[1, width, 1, 1] for width in widths]:
            return kind
    known = " or ".join(
        f"{', '.join(map(str, widths))} ({BACKBONES[kind].name})" for kind, widths in _WIDTHS.items()
    )
    raise ValueError(
        f"the linear layers of LPIPS must have the shapes [1, C, 1, 1] with C = {known}, got "
        f"{', '.join(map(str, found[:10]))}; other backbones are not supported."
    )


def _advice(backbone: str) -> str:
    """Words for the backbone that is needed."""
    entry = registry.ENTRIES[_PUBLIC[backbone]]
    return f"torchvision's {entry.url.rsplit('/', 1)[-1]} with --backbone FILE, or --backbone {entry.name} to fetch it"


def _other_part(arrays: dict, backbone: str, given: Contents | None) -> dict[str, np.ndarray]:
    """The arrays of the second file; none where the first has the backbone itself."""
    if any(name.startswith(("net.", "features.")) for name in arrays):
        if given is not None:
            raise ValueError("the file holds linear layers and a backbone; leave --backbone out.")
        return {}
    if given is None:
        raise ValueError(
            f"the file holds the linear layers of LPIPS for {BACKBONES[backbone].name} without their backbone; give "
            f"{_advice(backbone)}."
        )
    found = flatten(given.tree, ".")
    if not found.keys().isdisjoint(arrays) or _FIRST[0] not in found:
        raise ValueError(
            f"the file given with --backbone holds none of torchvision's networks alone; give {_advice(backbone)}."
        )
    return found


def _left_out(arrays: dict[str, np.ndarray]) -> tuple[set[str], list[str]]:
    """Names that are left out on purpose, and what to say of them."""
    classifier = {name for name in arrays if name.startswith("classifier.")}
    twice = {f"lins.{name.removeprefix('lin')}": name for name in _linear(arrays)}
    twice = {name: first for name, first in twice.items() if name in arrays}
    for name, first in twice.items():
        if arrays[name].shape != arrays[first].shape or arrays[name].tobytes() != arrays[first].tobytes():
            raise ValueError(f"{name} must be equal to {first}, but differs; save LPIPS again.")
    scaling = {name: value for name, value in _SCALING.items() if name in arrays}
    for name, value in scaling.items():
        found = arrays[name].ravel()[:4].astype(np.float64)
        if found.shape != (3,) or not np.allclose(found, value, rtol=0, atol=1e-6):
            raise ValueError(
                f"{name} must be {', '.join(map(str, value))}, got {', '.join(f'{x:.4g}' for x in found)}; another "
                "standardisation of images is not supported."
            )
    said = {
        "left out on purpose: the backbone's classifier": classifier,
        f"left out on purpose: {len(twice)} linear layers that are in the file twice, and are equal": twice,
        "left out on purpose: shift and scale of the images, which are those that are built in": scaling,
    }
    return classifier | twice.keys() | scaling.keys(), [note for note, which in said.items() if which]
