r"""LPIPS, the learned perceptual distance of two images (Zhang et al. 2018, Eq. 1), version 0.1.

    d(a, b) = sum_l mean_{h, w} sum_c w_{l c} (u_l(a) - u_l(b))^2_{h w c},    u = f / (|f|_2 + 1e-10)

with f_l the activations of five layers of AlexNet or VGG16, normalised over channels. Images are RGB in
-1 ... 1 and are then standardised per channel by `SHIFT` and `SPREAD`. Nothing is resized: a distance at 32x32 is not
one at 256x256 of the same pictures.

The weights are the user's: torchvision's backbone (``features.N.weight``, ``features.N.bias``) and the linear
layers of the public lpips files (``linK.model.1.weight``, never negative).
"""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from jaxmerge import checkpoint, parallel
from jaxmerge.noise import PixelScale

# Mean and standard deviation of ImageNet's channels, moved from 0 ... 1 to -1 ... 1.
SHIFT = (-0.030, -0.088, -0.188)
SPREAD = (0.458, 0.448, 0.450)
EPSILON = 1e-10


class Conv(NamedTuple):
    """One convolution with ReLU: number in the public file, channels, kernel, stride, padding."""

    number: int
    width: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1


class Backbone(NamedTuple):
    """Stages with a max pool before each but the first; `compared` are the convolutions whose outputs count.

    Attributes:
        name: for results.
        pool: size of the max pools (window, stride).
        stages: convolutions between the pools.
        compared: numbers of five convolutions.
        smallest: smallest height and width of an image.
    """

    name: str
    pool: tuple[int, int]
    stages: tuple[tuple[Conv, ...], ...]
    compared: tuple[int, ...]
    smallest: int

    @property
    def convs(self) -> tuple[Conv, ...]:
        """All convolutions, in order."""
        return sum(self.stages, ())


BACKBONES = {
    "alex": Backbone(
        "AlexNet",
        (3, 2),
        (
            (Conv(0, 64, 11, 4, 2),),
            (Conv(3, 192, 5, 1, 2),),
            (Conv(6, 384), Conv(8, 256), Conv(10, 256)),
        ),
        (0, 3, 6, 8, 10),
        31,
    ),
    "vgg": Backbone(
        "VGG16",
        (2, 2),
        (
            (Conv(0, 64), Conv(2, 64)),
            (Conv(5, 128), Conv(7, 128)),
            (Conv(10, 256), Conv(12, 256), Conv(14, 256)),
            (Conv(17, 512), Conv(19, 512), Conv(21, 512)),
            (Conv(24, 512), Conv(26, 512), Conv(28, 512)),
        ),
        (2, 7, 14, 21, 28),
        16,
    ),
}


class LPIPS(nnx.Module):
    """The distance of pairs of images; parameters are named after the public files.

    Args:
        kind: "alex" or "vgg".
        rngs: nnx keys of fresh parameters.
    """

    def __init__(self, kind: str, *, rngs: nnx.Rngs):
        self.kind, channels = kind, 3
        for conv in backbone_of(kind).convs:
            layer = nnx.Conv(
                channels,
                conv.width,
                (conv.kernel, conv.kernel),
                strides=conv.stride,
                padding=conv.padding,
                rngs=rngs,
            )
            setattr(self, f"features_{conv.number}", layer)
            channels = conv.width
        widths = {conv.number: conv.width for conv in backbone_of(kind).convs}
        for k, number in enumerate(backbone_of(kind).compared):
            setattr(self, f"lin{k}", nnx.Param(jnp.full(widths[number], 1 / widths[number])))

    def activations(self, x: Float[Array, "B H W 3"]) -> list[Float[Array, "B h w c"]]:
        """The five compared layers, after their ReLU, of images in -1 ... 1."""
        backbone, found = BACKBONES[self.kind], []
        (window, stride), h = backbone.pool, (x - jnp.asarray(SHIFT)) / jnp.asarray(SPREAD)
        for i, stage in enumerate(backbone.stages):
            if i:
                h = nnx.max_pool(h, (window, window), strides=(stride, stride))
            for conv in stage:
                h = jax.nn.relu(getattr(self, f"features_{conv.number}")(h))
                if conv.number in backbone.compared:
                    found.append(h)
        return found

    def __call__(self, a: Float[Array, "B H W 3"], b: Float[Array, "B H W 3"]) -> Float[Array, " B"]:
        """Distances of images in -1 ... 1."""
        total = jnp.zeros(len(a))
        for k, both in enumerate(self.activations(jnp.concatenate([a, b]))):
            f, g = jnp.split(_unit(both), 2)
            difference = jnp.square(f - g)
            total += jnp.mean(difference @ getattr(self, f"lin{k}")[...], axis=(1, 2))
        return total


def _unit(f: Array) -> Array:
    return f / (jnp.sqrt(jnp.sum(f * f, axis=-1, keepdims=True)) + EPSILON)


def backbone_of(kind: str) -> Backbone:
    """The backbone of a kind.

    Raises:
        ValueError: neither "alex" nor "vgg".
    """
    if kind not in BACKBONES:
        raise ValueError(f"the backbone of LPIPS must be 'alex' or 'vgg', got {kind!r}.")
    return BACKBONES[kind]


def build(kind: str, seed: int | None = None) -> LPIPS:
    """A network with fresh parameters (no LPIPS yet), or abstract ones (shapes only) without a seed."""
    backbone_of(kind)
    if seed is None:
        return nnx.eval_shape(lambda: LPIPS(kind, rngs=nnx.Rngs(0)))
    return LPIPS(kind, rngs=nnx.Rngs(seed))


def parameters(net: LPIPS) -> dict[str, Any]:
    """The parameters as nested dicts of arrays, the form that checkpoints have."""
    return nnx.to_pure_dict(nnx.state(net))


def from_arrays(kind: str, arrays: dict[str, np.ndarray]) -> LPIPS:
    """The network from arrays with the names of the public files.

    Args:
        kind: "alex" or "vgg".
        arrays: those of torchvision's file (its ``classifier.*`` are ignored) and of the lpips file together.

    Raises:
        ValueError: an array that is missing, of another shape or not finite, or a negative linear layer.
    """
    shapes = jax.tree.map(lambda leaf: leaf.shape, parameters(build(kind)))
    tree: dict[str, Any] = {}
    for ours, shape in shapes.items():
        if ours.startswith("lin"):
            size = shape[0]
            tree[ours] = _take(arrays, f"{ours}.model.1.weight", (1, size, 1, 1), kind).reshape(size)
            if (tree[ours] < 0).any():
                raise ValueError(
                    f"{ours}.model.1.weight of LPIPS must not be negative, got {tree[ours].min():.3g}; give the files "
                    "of version 0.1."
                )
            continue
        h, w, c_in, c_out = shape["kernel"]
        public = ours.replace("_", ".")
        kernel = _take(arrays, f"{public}.weight", (c_out, c_in, h, w), kind).transpose(2, 3, 1, 0)
        tree[ours] = {"kernel": kernel, "bias": _take(arrays, f"{public}.bias", (c_out,), kind)}
    return _with_parameters(kind, tree)


def _take(arrays, name: str, shape: tuple[int, ...], kind: str) -> np.ndarray:
    found = np.asarray(arrays[name], np.float32) if name in arrays else None
    if found is None or found.shape != shape or not np.isfinite(found).all():
        got = "it is missing" if found is None else f"got {list(found.shape)}"
        got = "it is not finite" if found is not None and found.shape == shape else got
        raise ValueError(
            f"LPIPS with {BACKBONES[kind].name} needs {name} of the shape {list(shape)}, {got}; give torchvision's "
            f"backbone and the linear layers ({kind}.pth) of LPIPS version 0.1 together."
        )
    return found


def _with_parameters(kind: str, tree: dict[str, Any]) -> LPIPS:
    graph, state = nnx.split(build(kind))
    nnx.replace_by_pure_dict(state, tree)
    return jax.device_put(nnx.merge(graph, state))


def load(path: str | pathlib.Path) -> LPIPS:
    """The network from a checkpoint with ``{"network": {"kind": "lpips", "backbone": "alex"}}`` (or "vgg").

    Raises:
        ValueError: a missing or damaged checkpoint, or one of another network.
    """
    network = checkpoint.load_metadata(path).get("network", {})
    if network.get("kind") != "lpips":
        raise ValueError(f"{path} is a checkpoint but not of LPIPS; convert the user's lpips files first.")
    kind = network.get("backbone", "")
    return _with_parameters(kind, checkpoint.load(path, parameters(build(kind))))


def _batch(scale: PixelScale, net: LPIPS, a, b):
    a, b = (jnp.broadcast_to(scale.encode_edm(images), (*images.shape[:3], 3)) for images in (a, b))
    with jax.default_matmul_precision("highest"):
        return net(a, b)


def distances(
    net: LPIPS,
    a: UInt8[np.ndarray, "N H W C"],
    b: UInt8[np.ndarray, "N H W C"],
    *,
    scale: PixelScale,
    batch_size: int = 50,
) -> Float[np.ndarray, " N"]:
    """LPIPS of pairs of images, sharded over all local devices; a single channel is repeated three times.

    Args:
        net: from `load` or `from_arrays`.
        a, b: grey levels.
        scale: their number of levels; 0 is -1 and the highest 1.
        batch_size: pairs per device and call.

    Raises:
        ValueError: images of different shapes, neither RGB nor grey, or smaller than the backbone takes.
    """
    a = scale.check(a)
    b = scale.check(b, a.shape[1:])
    backbone = BACKBONES[net.kind]
    if len(a) != len(b) or a.shape[-1] not in (1, 3) or min(a.shape[1:3]) < backbone.smallest:
        raise ValueError(
            f"LPIPS with {backbone.name} needs as many originals as images, grey or RGB of at least "
            f"{backbone.smallest} x {backbone.smallest} pixels, got {list(a.shape)} and {list(b.shape)}; it is not "
            "defined for smaller images."
        )
    return parallel.map_batches(_batch, (scale,), (net,), (a, b), batch_size=batch_size)
