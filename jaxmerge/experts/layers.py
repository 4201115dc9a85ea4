"""Building blocks that the UNets share: embeddings, resampling, residual and attention blocks.

The public networks differ in constants, not in structure; the differences are arguments here, so
that every block exists once. Modules are plain pytrees without stored random state: a dropout key is
passed in the call, and its absence means inference.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

# The published networks start their last layers (almost) at zero.
ZERO = nnx.initializers.zeros
XAVIER = nnx.initializers.xavier_uniform()
LECUN = nnx.initializers.lecun_normal()


def sinusoidal(
    t: Float[Array, " B"], size: int, *, with_end: bool = True, cos_first: bool = False
) -> Float[Array, "B N"]:
    """[sin, cos] of t times size / 2 frequencies, geometric from 1 to 1/10000.

    Args:
        with_end: whether 1/10000 is the last frequency or the one that would follow (ADM).
        cos_first: [cos, sin] instead (ADM).
    """
    half = size // 2
    freqs = 10000.0 ** (-np.arange(half) / (half - with_end))
    angle = t[:, None] * jnp.asarray(freqs, t.dtype)
    halves = [jnp.sin(angle), jnp.cos(angle)]
    return jnp.concatenate(halves[::-1] if cos_first else halves, axis=-1)


def fold(key: Key[Array, ""] | None, name: int) -> Key[Array, ""] | None:
    """A key for one block, or None at inference."""
    return None if key is None else jax.random.fold_in(key, name)


def dropout(x: Float[Array, "B ..."], rate: float, key: Key[Array, ""] | None) -> Float[Array, "B ..."]:
    """Zeroes entries with probability `rate` and rescales the others; the identity without a key."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0)


class GroupNorm(nnx.Module):
    """Normalises contiguous groups of channels; the variance takes two passes, as torch's does.

    The one-pass variance E[x^2] - E[x]^2 loses all digits where the mean is large. Summing over
    positions before channels makes this 2.4 times faster on a CPU than flax's module.
    """

    def __init__(self, channels: int, groups: int, epsilon: float):
        if channels % groups:
            raise ValueError(
                f"GroupNorm needs a number of groups that divides the {channels} channels, got {groups}; "
                "change norm_groups or the width."
            )
        self.scale, self.bias = nnx.Param(jnp.ones(channels)), nnx.Param(jnp.zeros(channels))
        self.groups, self.epsilon = groups, epsilon

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        b, h, w, c = x.shape
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))

        def group_mean(y):
            sums = y.sum((1, 2)).reshape(b, self.groups, -1).sum(-1)
            means = sums / (h * w * c // self.groups)
            return jnp.repeat(means, c // self.groups, axis=1)

        centred = wide - group_mean(wide)[:, None, None, :]
        gain = jax.lax.rsqrt(group_mean(centred * centred) + self.epsilon) * self.scale[...]
        return (centred * gain[:, None, None, :] + self.bias[...]).astype(x.dtype)


def conv3(c_in: int, c_out: int, rngs: nnx.Rngs, init=LECUN) -> nnx.Conv:
    """3x3 convolution with torch's symmetric padding of one pixel."""
    return nnx.Conv(c_in, c_out, (3, 3), padding=1, kernel_init=init, rngs=rngs)


def downsample(
    x: Float[Array, "B H W C"], taps: tuple[int, ...], padding: int | None = None
) -> Float[Array, "B h w C"]:
    """Halves the resolution with the normalised separable filter `taps`; padding (len - 1) // 2 by default."""
    if taps == (1, 1):
        b, h, w, c = x.shape
        return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))
    padding = (len(taps) - 1) // 2 if padding is None else padding
    return _depthwise(x, taps, gain=1.0, padding=padding, stride=2)


def upsample(x: Float[Array, "B H W C"], taps: tuple[int, ...]) -> Float[Array, "B h w C"]:
    """Doubles the resolution: the transpose of `downsample`, times 4."""
    if taps == (1, 1):
        return x.repeat(2, axis=1).repeat(2, axis=2)
    pad = len(taps) - 1 - (len(taps) - 1) // 2
    return _depthwise(x, taps, gain=4.0, padding=pad, dilation=2)


def _depthwise(x, taps, *, gain, padding, stride=1, dilation=1):
    channels = x.shape[-1]
    kernel = np.outer(taps, taps) / np.sum(np.outer(taps, taps)) * gain
    kernel = jnp.asarray(np.tile(kernel[:, :, None, None], (1, 1, 1, channels)), x.dtype)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        lhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels,
    )


class ResBlock(nnx.Module):
    """norm, SiLU, [resample], conv; + Linear(cond); norm, SiLU, dropout, conv; + skip; times scale.

    Args:
        c_in, c_out: channels in and out.
        c_cond: width of the conditioning vector.
        groups: function channels -> number of groups of a GroupNorm.
        epsilon: of the GroupNorms.
        cond_bias: whether the conditioning's Linear has a bias.
        scale_shift: Linear(cond) is [a, b] and norm(h) (a + 1) + b replaces norm(h + Linear(cond)).
        resample: None, "down" or "up", by the filter `taps`.
        map_resampled: whether the skip of a resampling block has a 1x1 map even where channels agree.
        scale: factor on the sum with the skip.
        init: initialiser of all kernels but the last (and, with `zero_cond`, the conditioning's).
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        c_cond: int,
        *,
        groups,
        epsilon: float,
        dropout_rate: float,
        rngs: nnx.Rngs,
        cond_bias: bool = True,
        zero_cond: bool = False,
        scale_shift: bool = False,
        resample: str | None = None,
        taps: tuple[int, ...] = (1, 1),
        map_resampled: bool = True,
        scale: float = 1.0,
        init=LECUN,
    ):
        self.norm0 = GroupNorm(c_in, groups(c_in), epsilon)
        self.conv0 = conv3(c_in, c_out, rngs, init)
        cond_init = ZERO if zero_cond else init
        c_shift = 2 * c_out if scale_shift else c_out
        self.cond = nnx.Linear(c_cond, c_shift, use_bias=cond_bias, kernel_init=cond_init, rngs=rngs)
        self.norm1 = GroupNorm(c_out, groups(c_out), epsilon)
        self.conv1 = conv3(c_out, c_out, rngs, ZERO)
        has_map = c_in != c_out or (resample is not None and map_resampled)
        self.skip = nnx.Linear(c_in, c_out, kernel_init=init, rngs=rngs) if has_map else None
        self.scale_shift, self.resample, self.taps = scale_shift, resample, tuple(taps)
        self.dropout_rate, self.scale = dropout_rate, scale

    def _resample(self, x):
        if self.resample is None:
            return x
        return (downsample if self.resample == "down" else upsample)(x, self.taps)

    def __call__(
        self, x: Float[Array, "B H W C"], cond: Float[Array, "B E"], *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "B h w c"]:
        h = self.conv0(self._resample(jax.nn.silu(self.norm0(x))))
        shift = self.cond(cond)[:, None, None, :]
        if self.scale_shift:
            factor, shift = jnp.split(shift, 2, axis=-1)
            h = shift + self.norm1(h) * (factor + 1)
        else:
            h = self.norm1(h + shift)
        h = self.conv1(dropout(jax.nn.silu(h), self.dropout_rate, key))
        x = self._resample(x)
        if self.skip is not None:
            x = self.skip(x)
        return (x + h) * self.scale if self.scale != 1.0 else x + h


class Attention(nnx.Module):
    """GroupNorm, q/k/v, softmax(q k / sqrt(d)) over all positions, output map; + input; times scale.

    The map to q, k and v is one Linear with the three blocks [q, k, v] along its outputs, each split
    into contiguous heads. Public files pack them in three ways; conversion brings them to this one.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        groups,
        epsilon: float,
        rngs: nnx.Rngs,
        scale: float = 1.0,
        init=LECUN,
    ):
        if heads < 1 or channels % heads:
            raise ValueError(
                f"attention needs a number of heads that divides the {channels} channels, got {heads}; "
                "change the heads or the width."
            )
        self.norm = GroupNorm(channels, groups(channels), epsilon)
        self.qkv = nnx.Linear(channels, 3 * channels, kernel_init=init, rngs=rngs)
        self.out = nnx.Linear(channels, channels, kernel_init=ZERO, rngs=rngs)
        self.heads, self.scale = heads, scale

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        b, h, w, c = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, h * w, 3, self.heads, c // self.heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k / np.sqrt(c // self.heads))
        # At least float32: bfloat16 has too few digits for a softmax over 256 or more positions.
        weights = jax.nn.softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), axis=-1)
        out = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(v.dtype), v).reshape(b, h, w, c)
        out = x + self.out(out)
        return out * self.scale if self.scale != 1.0 else out
