"""Which array of a public checkpoint each parameter of our networks is.

A parameter of ours is named by its path, "down/0/norm0/scale". `torch_vdm`, `flax_vdm` and `song_unet`
say for every path which source arrays it is made of, and how; `fill` sets every parameter exactly once
and reports every source array that is left over.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx


class Origin(NamedTuple):
    """Source arrays of one parameter, and the function that makes it from them."""

    sources: tuple[str, ...]
    make: Callable[..., np.ndarray]


def parameter_paths(net: nnx.Module) -> dict[str, tuple[int, ...]]:
    """Path and shape of every parameter of a (possibly abstract) network."""
    flat, _ = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(nnx.state(net)))
    return {jax.tree_util.keystr(k, simple=True, separator="/"): tuple(v.shape) for k, v in flat}


def _transposed(a):
    """Torch Linear, 1x1 or 3x3 convolution to ours: outputs first becomes outputs last."""
    if a.ndim == 4 and a.shape[2:] == (1, 1):
        a = a[:, :, 0, 0]
    return a.transpose(2, 3, 1, 0) if a.ndim == 4 else a.T


def _interleaved(a):
    """EDM's qkv (q, k, v vary fastest along the outputs, one head) to three blocks [q, k, v]."""
    return np.concatenate([a[i::3] for i in range(3)], axis=0)


def _torch(name: str, leaf: str, *, interleaved: bool = False) -> Origin:
    suffix, make = {"kernel": ("weight", _transposed), "scale": ("weight", None), "bias": ("bias", None)}[leaf]
    steps = [f for f in (_interleaved if interleaved else None, make) if f is not None]

    def run(a):
        for step in steps:
            a = step(a)
        return a

    return Origin((f"{name}.{suffix}",), run)


_TORCH_BLOCK = {"norm0": "net1.0", "conv0": "net1.2", "cond": "cond_proj", "norm1": "net2.0", "conv1": "net2.3"}
_TORCH_ATTENTION = {"norm": "layers.0", "qkv": "layers.1", "out": "layers.3"}
_TORCH_TOP = {
    "dense0": "embed_conditioning.0",
    "dense1": "embed_conditioning.2",
    "conv_in": "conv_in",
    "norm_out": "conv_out.0",
    "conv_out": "conv_out.2",
}


def torch_vdm(path: str) -> Origin:
    """The PyTorch VDM's array for a path of `VDMUNet`."""
    *parts, leaf = path.split("/")
    block = {**_TORCH_BLOCK, "skip": "skip_conv"}
    match parts:
        case ["down" | "up" as way, i, part]:
            return _torch(f"model.{way}_blocks.{i}.resnet_block.{block[part]}", leaf)
        case ["down_attention" | "up_attention" as way, i, part]:
            name = f"model.{way.removesuffix('_attention')}_blocks.{i}.attention_block"
            return _torch(f"{name}.{_TORCH_ATTENTION[part]}", leaf)
        case ["mid0" | "mid1" as mid, part]:
            return _torch(f"model.mid_resnet_block_{int(mid[-1]) + 1}.{block[part]}", leaf)
        case ["mid_attention", part]:
            return _torch(f"model.mid_attn_block.{_TORCH_ATTENTION[part]}", leaf)
        case [top]:
            return _torch(f"model.{_TORCH_TOP[top]}", leaf)
    raise KeyError(path)


_FLAX_BLOCK = {
    "norm0": "GroupNorm_0",
    "conv0": "conv1",
    "cond": "cond_proj",
    "norm1": "GroupNorm_1",
    "conv1": "conv2",
    "skip": "nin_shortcut",
}


def flax_vdm(path: str) -> Origin:
    """The google-research VDM's (and i-DODE's) array for a path of `VDMUNet`."""
    *parts, leaf = path.split("/")

    def one(name):
        return Origin((f"score_model/{name}/{leaf}",), lambda a: a)

    def attention(name, part):
        if part == "qkv":
            names = tuple(f"score_model/{name}/{p}/{leaf}" for p in "qkv")
            return Origin(names, lambda *a: np.concatenate(a, axis=-1))
        return one(f"{name}/{ {'norm': 'GroupNorm_0', 'out': 'proj_out'}[part] }")

    match parts:
        case ["down" | "up" as way, i, part]:
            return one(f"{way}.block_{i}/{_FLAX_BLOCK[part]}")
        case ["down_attention" | "up_attention" as way, i, part]:
            return attention(f"{way.removesuffix('_attention')}.attn_{i}", part)
        case ["mid0" | "mid1" as mid, part]:
            return one(f"mid.block_{int(mid[-1]) + 1}/{_FLAX_BLOCK[part]}")
        case ["mid_attention", part]:
            return attention("mid.attn_1", part)
        case ["norm_out"]:
            return one("GroupNorm_0")
        case [top]:
            return one(top)
    raise KeyError(path)


_SONG_BLOCK = {
    ("block", "norm0"): "norm0",
    ("block", "conv0"): "conv0",
    ("block", "cond"): "affine",
    ("block", "norm1"): "norm1",
    ("block", "conv1"): "conv1",
    ("block", "skip"): "skip",
    ("attention", "norm"): "norm2",
    ("attention", "qkv"): "qkv",
    ("attention", "out"): "proj",
}
_SONG_TOP = {
    "map_label": "map_label",
    "map_augment": "map_augment",
    "map0": "map_layer0",
    "map1": "map_layer1",
}


def song_unet(resolution: int, levels: int) -> Callable[[str], Origin]:
    """Names of EDM's SongUNet, which contain the resolution of each level."""

    def size(level):
        return f"{resolution >> level}x{resolution >> level}"

    def origin(path: str) -> Origin:
        if path == "freqs":
            return Origin(("model.map_noise.freqs",), lambda a: a)
        *parts, leaf = path.split("/")
        top = size(0)
        match parts:
            case ["down", i, *rest]:
                name = f"enc.{size(int(i) + 1)}_down"
            case ["encoder", level, i, *rest]:
                name = f"enc.{size(int(level))}_block{i}"
            case ["decoder", i, j, *rest]:
                name = f"dec.{size(levels - 1 - int(i))}_block{j}"
            case ["up", i, *rest]:
                name = f"dec.{size(levels - 2 - int(i))}_up"
            case ["in0" | "in1" as which, *rest]:
                name = f"dec.{size(levels - 1)}_{which}"
            case ["aux", i]:
                return _torch(f"model.enc.{size(int(i) + 1)}_aux_residual", leaf)
            case ["conv_in"]:
                return _torch(f"model.enc.{top}_conv", leaf)
            case ["norm_out"]:
                return _torch(f"model.dec.{top}_aux_norm", leaf)
            case ["conv_out"]:
                return _torch(f"model.dec.{top}_aux_conv", leaf)
            case [part]:
                return _torch(f"model.{_SONG_TOP[part]}", leaf)
        return _torch(f"model.{name}.{_SONG_BLOCK[tuple(rest)]}", leaf, interleaved=rest[-1] == "qkv")

    return origin


def fill(
    net: nnx.Module,
    source: Mapping[str, np.ndarray],
    origin: Callable[[str], Origin],
    *,
    left_out: Callable[[str], bool] = lambda name: False,
) -> nnx.Module:
    """`net` with every parameter taken from `source`, each source array used exactly once.

    Args:
        net: a network, concrete or from ``nnx.eval_shape``.
        source: name -> array in the source's layout.
        origin: path -> `Origin`.
        left_out: names that are left out on purpose.

    Raises:
        ValueError: lists every missing, left-over and misshapen array.
    """
    wanted, values, used, faults = parameter_paths(net), {}, set(), []
    for path, shape in wanted.items():
        names, make = origin(path)
        missing = [n for n in names if n not in source]
        if missing:
            faults += [f"missing {n}" for n in missing]
            continue
        used.update(names)
        values[path] = np.ascontiguousarray(make(*(np.asarray(source[n]) for n in names)))
        if values[path].shape != shape:
            faults.append(f"{', '.join(names)}: {path} needs {shape}, got {values[path].shape}")
    faults += [f"left over {n}" for n in source if n not in used and not left_out(n)]
    if faults:
        raise ValueError(
            "the checkpoint does not fit the network, its arrays must be used exactly once each: "
            + "; ".join(sorted(faults))
        )
    state = nnx.state(net)
    flat, treedef = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(state))
    filled = [values[jax.tree_util.keystr(k, simple=True, separator="/")] for k, _ in flat]
    nnx.replace_by_pure_dict(state, jax.tree_util.tree_unflatten(treedef, filled))
    graph, _ = nnx.split(net)
    return nnx.merge(graph, state)
