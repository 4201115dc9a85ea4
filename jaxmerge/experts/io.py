"""Experts from and to checkpoints.

A checkpoint's metadata names the kind of expert, its architecture and its native noise range; that is
enough to build an abstract expert, whose parameters are then read by name.

    metadata["expert"] = {"kind": "vdm", "architecture": {...}, "levels": 17, "shape": [8, 8, 1],
                          "bounds": [-7.864, 5.0], "native_range": [-7.864, 5.0]}
"""

import importlib.resources
import pathlib
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxmerge import checkpoint
from jaxmerge.experts.base import Expert
from jaxmerge.experts.dhariwal_unet import DhariwalUNet
from jaxmerge.experts.edm import EDM
from jaxmerge.experts.song_unet import SongUNet
from jaxmerge.experts.vdm import VDM
from jaxmerge.experts.vdm_unet import VDMUNet

# Kind -> its class and its networks, the default first.
_KINDS = {"vdm": (VDM, {"vdm": VDMUNet}), "edm": (EDM, {"song": SongUNet, "dhariwal": DhariwalUNet})}


def build(description: dict[str, Any], *, seed: int | None = None) -> Expert:
    """An expert from its description, with fresh parameters, or abstract ones where `seed` is None.

    Args:
        description: "kind" ("vdm" or "edm"), "architecture" (arguments of its UNet), for "edm" perhaps
            "network" ("song", the default, or "dhariwal"), and the other attributes of `VDM` or `EDM`.
        seed: of the initialisation.

    Raises:
        ValueError: an unknown kind or network, or arguments that the kind does not have.
    """
    fields = dict(description)
    kind, architecture = fields.pop("kind", None), fields.pop("architecture", {})
    if kind not in _KINDS:
        raise ValueError(f"an expert's kind must be one of {sorted(_KINDS)}, got {kind!r}.")
    expert_class, networks = _KINDS[kind]
    network = fields.pop("network", next(iter(networks)))
    if network not in networks:
        raise ValueError(
            f"the network of an expert of kind {kind!r} must be one of {sorted(networks)}, got {network!r}."
        )
    net_class = networks[network]
    fields, architecture = _tuples(fields), _tuples(architecture)

    def make():
        return net_class(**architecture, rngs=nnx.Rngs(0 if seed is None else seed))

    try:
        net = nnx.eval_shape(make) if seed is None else make()
        return expert_class(net=net, **fields)
    except TypeError as error:
        raise ValueError(f"the description does not fit an expert of kind {kind!r}: {error}.") from error


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    # JSON has lists only; static attributes must be hashable.
    return {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in values.items()}


def parameters(expert: Expert) -> dict[str, Any]:
    """The expert's parameters as nested dicts of arrays (abstract or not)."""
    return nnx.to_pure_dict(nnx.state(expert.net))


def with_parameters(expert: Expert, values: dict[str, Any]) -> Expert:
    """`expert` with its network's parameters replaced."""
    graph, state = nnx.split(expert.net)
    nnx.replace_by_pure_dict(state, values)
    return expert.replace(net=nnx.merge(graph, state))


def save_expert(path: str | pathlib.Path, expert: Expert, metadata: dict[str, Any], **options: Any) -> None:
    """Writes an expert as an Orbax checkpoint; ``metadata["expert"]`` must be its description."""
    checkpoint.save(path, jax.tree.map(np.asarray, parameters(expert)), metadata, **options)


def load_expert(path: str | pathlib.Path) -> Expert:
    """Reads an expert on the default device, for any number of devices.

    Raises:
        ValueError: no checkpoint there, a damaged one, or one that is not an expert.
    """
    metadata = checkpoint.load_metadata(path)
    if "expert" not in metadata:
        raise ValueError(
            f"{path} is a checkpoint but not of an expert (its metadata has no 'expert'); "
            "give the folder of an expert."
        )
    expert = build(metadata["expert"])
    values = checkpoint.load(path, parameters(expert))
    return jax.device_put(with_parameters(expert, values))


def shipped_names() -> list[str]:
    """Names of the experts that come with the package."""
    root = importlib.resources.files("jaxmerge") / "assets"
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.endswith("_classifier"))


def shipped_path(name: str) -> pathlib.Path:
    """Folder of an expert that comes with the package.

    Raises:
        ValueError: no such expert; names those that there are.
    """
    if name not in shipped_names():
        raise ValueError(f"no shipped expert is called {name!r}; there are {', '.join(shipped_names())}.")
    return pathlib.Path(str(importlib.resources.files("jaxmerge") / "assets" / name))


def shipped(name: str) -> Expert:
    """An expert that comes with the package, see `shipped_names`."""
    return load_expert(shipped_path(name))
