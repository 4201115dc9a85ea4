"""Names of EDM's networks, SongUNet and DhariwalUNet, inside a preconditioner.

Blocks are named by the resolution of their level ("enc.16x16_block0"), which the paths of ours number.
"""

from collections.abc import Callable

import numpy as np

from checkpoints_convert.names.origins import Origin, same, torch

_BLOCK = {
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
_POINTWISE = ("skip", "qkv", "out")
_EMBEDDING = {
    "map_label": "map_label",
    "map_augment": "map_augment",
    "map0": "map_layer0",
    "map1": "map_layer1",
}
_SONG_END = {"norm_out": "dec.{}_aux_norm", "conv_out": "dec.{}_aux_conv"}
_DHARIWAL_END = {"norm_out": "out_norm", "conv_out": "out_conv"}


def song_unet(resolution: int, levels: int) -> Callable[[str], Origin]:
    """Origins of the paths of `SongUNet` for images of a height and a number of levels."""
    return _unet(resolution, levels, _SONG_END)


def dhariwal_unet(resolution: int, levels: int) -> Callable[[str], Origin]:
    """Origins of the paths of `DhariwalUNet` for images of a height and a number of levels."""
    return _unet(resolution, levels, _DHARIWAL_END)


def _unet(resolution, levels, end) -> Callable[[str], Origin]:
    top = {
        **_EMBEDDING,
        "conv_in": f"enc.{_size(resolution, 0)}_conv",
        **{part: name.format(_size(resolution, 0)) for part, name in end.items()},
    }

    def origin(path: str) -> Origin:
        if path == "freqs":
            return same("model.map_noise.freqs")
        *parts, leaf = path.split("/")
        if len(parts) == 1:
            return torch(f"model.{top[parts[0]]}", leaf)
        if parts[0] == "aux":
            return torch(f"model.{_step(resolution, levels, parts)}", leaf)
        inside = tuple(parts[-2:])
        name = f"model.{_step(resolution, levels, parts[:-2])}.{_BLOCK[inside]}"
        return torch(name, leaf, pointwise=inside[1] in _POINTWISE, interleaved=inside[1] == "qkv")

    return origin


def _size(resolution: int, level: int) -> str:
    return f"{resolution >> level}x{resolution >> level}"


def _step(resolution: int, levels: int, parts: list[str]) -> str:
    """Name of one entry of the encoder or decoder."""

    def size(level):
        return _size(resolution, int(level))

    match parts:
        case ["down", i]:
            return f"enc.{size(int(i) + 1)}_down"
        case ["aux", i]:
            return f"enc.{size(int(i) + 1)}_aux_residual"
        case ["encoder", level, i]:
            return f"enc.{size(level)}_block{i}"
        case ["decoder", i, j]:
            return f"dec.{size(levels - 1 - int(i))}_block{j}"
        case ["up", i]:
            return f"dec.{size(levels - 2 - int(i))}_up"
        case ["in0" | "in1" as which]:
            return f"dec.{size(levels - 1)}_{which}"
    raise KeyError("/".join(parts))


def is_resample_filter(name: str) -> bool:
    """Whether an array is a resampling filter, a constant that follows from the architecture."""
    return name.endswith(".resample_filter")


def resample_filters(
    resolution: int, levels: int, *, taps: tuple[int, ...] = (1, 1), residual: bool = False
) -> dict[str, np.ndarray]:
    """The filters that a public file carries: f outer f over its sum, [1, 1, k, k].

    Args:
        resolution: height of the images.
        levels: of the network.
        taps: f, (1, 1) for ADM.
        residual: whether the encoder has auxiliary convolutions ("residual").
    """
    kernel = np.outer(taps, taps).astype(np.float32)
    kernel = (kernel / kernel.sum())[None, None]
    names = []
    for i in map(str, range(levels - 1)):
        for way in ("down", "up"):
            step = _step(resolution, levels, [way, i])
            names += [f"{step}.conv0", f"{step}.skip"]
        if residual:
            names.append(_step(resolution, levels, ["aux", i]))
    return {f"model.{name}.resample_filter": kernel.copy() for name in names}
