"""FID's Inception-v3: the network of TensorFlow's 2015 graph, at inference.

It differs from the textbook network (Szegedy et al. 2016) where the graph does, and FID (Heusel et al.
2017) and the Inception score (Salimans et al. 2016) are defined by it:

- images are resized to 299 x 299 bilinearly with source coordinate i in / 299 (no half-pixel centres) and
  without antialiasing, also where they shrink; then (x - 128) / 128;
- average pools leave the padding out of the mean, and the last block pools by the maximum;
- 1008 logits, whose bias the Inception score leaves out.

Blocks and layers have the names of the public state dict.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from jaxmerge import checkpoint, parallel

SIZE = 299
EPSILON = 1e-3


class Layer(NamedTuple):
    """One convolution: name, channels out, kernel; stride 2 goes without padding, stride 1 keeps the size."""

    name: str
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


class Block(NamedTuple):
    """Branches side by side, and a pool.

    Attributes:
        branches: the layers of every branch, in the order of their channels; a tuple of layers at a
            branch's end is a fork, whose parts stand side by side too.
        pool: "average" or "max" of 3x3, followed by a layer; or "halve", a max pool of stride 2 alone.
        pool_width: channels of the layer after the pool.
    """

    branches: tuple[tuple[Layer | tuple[Layer, ...], ...], ...]
    pool: str
    pool_width: int = 0


def _row(prefix: str, *layers: tuple) -> tuple[Layer, ...]:
    """Layers prefix_1, prefix_2, ... from (width, kernel, stride)."""
    return tuple(Layer(f"{prefix}_{i}", *layer) for i, layer in enumerate(layers, 1))


def _block_5(pool_width: int) -> Block:
    double = _row("branch3x3dbl", (64,), (96, (3, 3)), (96, (3, 3)))
    return Block(
        ((Layer("branch1x1", 64),), _row("branch5x5", (48,), (64, (5, 5))), double), "average", pool_width
    )


def _block_6(width: int) -> Block:
    across, down = (1, 7), (7, 1)
    single = _row("branch7x7", (width,), (width, across), (192, down))
    double = _row("branch7x7dbl", (width,), (width, down), (width, across), (width, down), (192, across))
    return Block(((Layer("branch1x1", 192),), single, double), "average", 192)


def _block_7(pool: str) -> Block:
    def fork(prefix):
        return (Layer(f"{prefix}a", 384, (1, 3)), Layer(f"{prefix}b", 384, (3, 1)))

    single = (*_row("branch3x3", (384,)), fork("branch3x3_2"))
    double = (*_row("branch3x3dbl", (448,), (384, (3, 3))), fork("branch3x3dbl_3"))
    return Block(((Layer("branch1x1", 320),), single, double), pool, 192)


BLOCKS = {
    "Mixed_5b": _block_5(32),
    "Mixed_5c": _block_5(64),
    "Mixed_5d": _block_5(64),
    "Mixed_6a": Block(
        (
            (Layer("branch3x3", 384, (3, 3), 2),),
            _row("branch3x3dbl", (64,), (96, (3, 3)), (96, (3, 3), 2)),
        ),
        "halve",
    ),
    "Mixed_6b": _block_6(128),
    "Mixed_6c": _block_6(160),
    "Mixed_6d": _block_6(160),
    "Mixed_6e": _block_6(192),
    "Mixed_7a": Block(
        (
            _row("branch3x3", (192,), (320, (3, 3), 2)),
            _row("branch7x7x3", (192,), (192, (1, 7)), (192, (7, 1)), (192, (3, 3), 2)),
        ),
        "halve",
    ),
    "Mixed_7b": _block_7("average"),
    "Mixed_7c": _block_7("max"),
}


class Features(NamedTuple):
    """What the metrics take, per image.

    Attributes:
        block_64: mean activations after the first max pool [B, 64].
        block_192: after the second [B, 192].
        block_768: before the last reduction [B, 768].
        pool: of the last block [B, 2048], the features of FID.
        logits: without bias [B, 1008], for the Inception score.
    """

    block_64: Float[Array, "B 64"]
    block_192: Float[Array, "B 192"]
    block_768: Float[Array, "B 768"]
    pool: Float[Array, "B 2048"]
    logits: Float[Array, "B 1008"]


class Norm(nnx.Module):
    """Batch norm with recorded moments, then ReLU."""

    def __init__(self, channels: int):
        self.scale, self.bias = nnx.Param(jnp.ones(channels)), nnx.Param(jnp.zeros(channels))
        self.mean, self.variance = nnx.BatchStat(jnp.zeros(channels)), nnx.BatchStat(jnp.ones(channels))

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        gain = self.scale[...] * jax.lax.rsqrt(self.variance[...] + EPSILON)
        return jax.nn.relu(x * gain + (self.bias[...] - self.mean[...] * gain))


class ConvNorm(nnx.Module):
    """Convolution without bias, batch norm, ReLU; padded to keep the size where it has stride 1."""

    def __init__(self, c_in: int, layer: Layer, *, padded: bool = True, rngs: nnx.Rngs):
        padded = padded and layer.stride == 1
        pads = [((k - 1) // 2, (k - 1) // 2) if padded else (0, 0) for k in layer.kernel]
        self.conv = nnx.Conv(
            c_in, layer.width, layer.kernel, strides=layer.stride, padding=pads, use_bias=False, rngs=rngs
        )
        self.bn = Norm(layer.width)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w c"]:
        return self.bn(self.conv(x))


def _max_pool(x, stride: int):
    padding = "SAME" if stride == 1 else "VALID"
    return nnx.max_pool(x, (3, 3), strides=(stride, stride), padding=padding)


class Mixed(nnx.Module):
    """One of the network's blocks (see `Block`)."""

    def __init__(self, c_in: int, block: Block, *, rngs: nnx.Rngs):
        self.block, self.width = block, 0
        for branch in block.branches:
            c = c_in
            for step in branch:
                parts = (step,) if isinstance(step, Layer) else step
                for layer in parts:
                    setattr(self, layer.name, ConvNorm(c, layer, rngs=rngs))
                c = sum(layer.width for layer in parts)
            self.width += c
        if block.pool == "halve":
            self.width += c_in
        else:
            self.branch_pool = ConvNorm(c_in, Layer("branch_pool", block.pool_width), rngs=rngs)
            self.width += block.pool_width

    def _pooled(self, x):
        if self.block.pool == "halve":
            return _max_pool(x, stride=2)
        if self.block.pool == "max":
            return self.branch_pool(_max_pool(x, stride=1))
        mean = nnx.avg_pool(x, (3, 3), strides=(1, 1), padding="SAME", count_include_pad=False)
        return self.branch_pool(mean)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w c"]:
        outs = []
        for branch in self.block.branches:
            h = x
            for step in branch:
                parts = (step,) if isinstance(step, Layer) else step
                h = jnp.concatenate([getattr(self, layer.name)(h) for layer in parts], axis=-1)
            outs.append(h)
        return jnp.concatenate([*outs, self._pooled(x)], axis=-1)


class Inception(nnx.Module):
    """Features of images, already resized and scaled, at four depths, and logits."""

    def __init__(self, *, rngs: nnx.Rngs):
        stem = functools.partial(ConvNorm, rngs=rngs)
        self.Conv2d_1a_3x3 = stem(3, Layer("Conv2d_1a_3x3", 32, (3, 3), 2))
        self.Conv2d_2a_3x3 = stem(32, Layer("Conv2d_2a_3x3", 32, (3, 3)), padded=False)
        self.Conv2d_2b_3x3 = stem(32, Layer("Conv2d_2b_3x3", 64, (3, 3)))
        self.Conv2d_3b_1x1 = stem(64, Layer("Conv2d_3b_1x1", 80))
        self.Conv2d_4a_3x3 = stem(80, Layer("Conv2d_4a_3x3", 192, (3, 3)), padded=False)
        c = 192
        for name, block in BLOCKS.items():
            mixed = Mixed(c, block, rngs=rngs)
            setattr(self, name, mixed)
            c = mixed.width
        self.fc = nnx.Linear(c, 1008, rngs=rngs)

    def __call__(self, x: Float[Array, "B 299 299 3"]) -> Features:
        def mean(h):
            return h.mean((1, 2))

        h = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        first = _max_pool(h, stride=2)
        second = _max_pool(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(first)), stride=2)
        h, before_last = second, None
        for name in BLOCKS:
            h = getattr(self, name)(h)
            if name == "Mixed_6e":
                before_last = h
        pool = mean(h)
        return Features(mean(first), mean(second), mean(before_last), pool, pool @ self.fc.kernel[...])


def resize(images: UInt8[Array, "B H W C"]) -> Float[Array, "B 299 299 C"]:
    """Bilinear resize as TensorFlow 1 has it, one small matrix per axis; grey levels stay 0 to 255."""
    rows, columns = (jnp.asarray(_interpolation(n), jnp.float32) for n in images.shape[1:3])
    return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, images.astype(jnp.float32))


def _interpolation(size: int) -> Float[np.ndarray, "299 n"]:
    """Row i mixes the pixels around the source coordinate i size / 299."""
    source = np.arange(SIZE) * (size / SIZE)
    low = np.floor(source).astype(int)
    high, share = np.minimum(low + 1, size - 1), source - low
    matrix = np.zeros((SIZE, size))
    np.add.at(matrix, (np.arange(SIZE), low), 1 - share)
    np.add.at(matrix, (np.arange(SIZE), high), share)
    return matrix


def _batch(net: Inception, images: UInt8[Array, "B H W 3"]) -> Features:
    # Full float32: a metric must not depend on the machine's default matrix precision.
    with jax.default_matmul_precision("highest"):
        return net((resize(images) - 128) / 128)


def features(
    net: Inception,
    images: UInt8[np.ndarray, "N H W 3"],
    *,
    batch_size: int = 50,
    advance: Callable[[int], None] = lambda n: None,
) -> Features:
    """Features of any number of images of one size, sharded over all local devices.

    Args:
        net: from `load`.
        images: uint8 RGB.
        batch_size: images per device and call.
        advance: called with the number of images done.

    Returns:
        numpy arrays, one row per image.

    Raises:
        ValueError: images of another shape or dtype, or none.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not images.size:
        raise ValueError(
            f"Inception needs uint8 RGB images [N, H, W, 3], got {images.dtype} of the shape "
            f"{list(images.shape)}; repeat a single channel three times."
        )
    return parallel.map_batches(_batch, (), (net,), (images,), batch_size=batch_size, advance=advance)


def build(seed: int | None = None) -> Inception:
    """A network with fresh parameters, or abstract ones (shapes only) without a seed."""
    if seed is None:
        return nnx.eval_shape(lambda: Inception(rngs=nnx.Rngs(0)))
    return Inception(rngs=nnx.Rngs(seed))


def parameters(net: Inception) -> dict[str, Any]:
    """All arrays as nested dicts, batch norm's moments included: the form that checkpoints have."""
    return nnx.to_pure_dict(nnx.state(net))


def load(path: str | pathlib.Path) -> Inception:
    """The network from a converted checkpoint, whose metadata has ``{"network": {"kind": "inception"}}``.

    Raises:
        ValueError: a missing or damaged checkpoint, or one of another network.
    """
    metadata = checkpoint.load_metadata(path)
    if metadata.get("network", {}).get("kind") != "inception":
        raise ValueError(
            f"{path} is a checkpoint but not of Inception-v3; give the folder that "
            "`python -m checkpoints_convert` wrote from FID's network."
        )
    graph, state = nnx.split(build())
    nnx.replace_by_pure_dict(state, checkpoint.load(path, nnx.to_pure_dict(state)))
    return jax.device_put(nnx.merge(graph, state))
