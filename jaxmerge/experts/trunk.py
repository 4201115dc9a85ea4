"""The trunk of EDM's networks: the encoder, the decoder and the skips between them.

DDPM++, NCSN++ (``song_unet.py``) and ADM (``dhariwal_unet.py``) walk the same way down and up and differ
in their embedding and in what `Style` lists (Karras et al. 2022, appendix F.1 and table 7):

    ================  ===================  =================
    field             DDPM++ and NCSN++    ADM
    ================  ===================  =================
    epsilon           1e-6                 1e-5
    scale             sqrt(1/2)            1
    scale_shift       no                   yes
    map_resampled     yes                  no
    head_channels     all in one head      64
    attend_to_all     no                   yes
    ================  ===================  =================
"""

import abc
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxmerge.experts.layers import ZERO, Attention, GroupNorm, ResBlock, conv3, downsample, fold

HALF = float(np.sqrt(0.5))


def groups_of(channels: int) -> int:
    """Groups of every GroupNorm."""
    return min(32, channels // 4)


class Style(NamedTuple):
    """How the blocks of a family are made.

    Attributes:
        epsilon: of the GroupNorms.
        scale: factor on the sum of every block and attention with its input.
        scale_shift: the conditioning scales and shifts the second norm instead of being added before it.
        map_resampled: resampling blocks have a 1x1 map in their skip.
        head_channels: channels per attention head; None for a single head.
        attend_to_all: attention in all of a level's decoder blocks, not in the last only.
        init: initialiser of the kernels that do not start at zero.
    """

    epsilon: float
    scale: float
    scale_shift: bool
    map_resampled: bool
    head_channels: int | None
    attend_to_all: bool
    init: Callable


class EncoderStep(nnx.Module):
    """One entry of the encoder or decoder: a block, with attention where the level has it."""

    def __init__(self, block: ResBlock, attention: Attention | None = None):
        self.block, self.attention = block, attention

    def __call__(self, x, emb, *, key=None):
        x = self.block(x, emb, key=key)
        return x if self.attention is None else self.attention(x)


def _make_step(style: Style, c_cond: int, dropout: float, taps: tuple[int, ...], rngs: nnx.Rngs):
    common = dict(groups=groups_of, epsilon=style.epsilon, scale=style.scale, init=style.init, rngs=rngs)

    def step(c_in, c_out, *, attention=False, resample=None):
        block = ResBlock(
            c_in,
            c_out,
            c_cond,
            dropout_rate=dropout,
            scale_shift=style.scale_shift,
            resample=resample,
            taps=taps,
            map_resampled=style.map_resampled,
            **common,
        )
        if not attention:
            return EncoderStep(block)
        heads = 1 if style.head_channels is None else c_out // style.head_channels
        return EncoderStep(block, Attention(c_out, heads=heads, **common))

    return step


class Trunk(nnx.Module):
    """Maps scaled noisy images and a noise label to the preconditioned network's output F.

    A network makes the modules of its embedding, calls this constructor (initial values are drawn in
    that order) and says in `embed` how blocks are conditioned.

    Args:
        style: what the family's blocks have in common.
        resolution: height and width of the images.
        channels: image channels.
        stem: channels after the first convolution.
        widths: channels of every level.
        c_cond: width of the conditioning vector.
        num_blocks: residual blocks per level.
        attn_resolutions: resolutions with attention.
        dropout: rate inside the blocks, active where a key is given.
        taps: filter of the resampling.
        residual: whether the encoder adds the downsampled image to every level ("residual" encoder).
    """

    label_dim: int

    def __init__(
        self,
        style: Style,
        *,
        resolution: int,
        channels: int,
        stem: int,
        widths: list[int],
        c_cond: int,
        num_blocks: int,
        attn_resolutions: tuple[int, ...],
        dropout: float,
        taps: tuple[int, ...] = (1, 1),
        residual: bool = False,
        rngs: nnx.Rngs,
    ):
        self.taps, self.residual = taps, residual
        step = _make_step(style, c_cond, dropout, taps, rngs)
        attention = [resolution >> level in attn_resolutions for level in range(len(widths))]
        self.conv_in = conv3(channels, stem, rngs, style.init)
        skips = self._make_encoder(step, channels, stem, widths, num_blocks, attention, style.init, rngs)
        c = skips[-1]
        self.in0, self.in1 = step(c, c, attention=True), step(c, c)
        self._make_decoder(step, skips, widths, num_blocks, attention, style.attend_to_all)
        self.norm_out = GroupNorm(widths[0], groups_of(widths[0]), style.epsilon)
        self.conv_out = conv3(widths[0], channels, rngs, ZERO)

    def _make_encoder(self, step, channels, stem, widths, num_blocks, attention, init, rngs) -> list[int]:
        """One down step, one auxiliary convolution and `num_blocks` steps per level; returns the skips' channels."""
        down, aux, encoder, skips = [], [], [], [stem]
        c_aux = channels
        for level, width in enumerate(widths):
            c = skips[-1]
            if level:
                down.append(step(c, c, resample="down"))
                if self.residual:
                    aux.append(conv3(c_aux, c, rngs, init))
                    c_aux = c
                skips.append(c)
            blocks = []
            for _ in range(num_blocks):
                blocks.append(step(skips[-1], width, attention=attention[level]))
                skips.append(width)
            encoder.append(nnx.List(blocks))
        self.down, self.aux, self.encoder = nnx.List(down), nnx.List(aux), nnx.List(encoder)
        return skips

    def _make_decoder(self, step, skips, widths, num_blocks, attention, attend_to_all) -> None:
        """One up step and `num_blocks` + 1 steps per level, from the lowest level upwards."""
        c, skips = skips[-1], list(skips)
        up, decoder = [], []
        for level in reversed(range(len(widths))):
            if level < len(widths) - 1:
                up.append(step(c, c, resample="up"))
            blocks = []
            for i in range(num_blocks + 1):
                attend = attention[level] and (attend_to_all or i == num_blocks)
                blocks.append(step(c + skips.pop(), widths[level], attention=attend))
                c = widths[level]
            decoder.append(nnx.List(blocks))
        self.up, self.decoder = nnx.List(up), nnx.List(decoder)

    @abc.abstractmethod
    def embed(
        self,
        noise_label: Float[Array, " B"],
        labels: Float[Array, "B K"] | None,
        augment: Float[Array, "B A"] | None,
    ) -> Float[Array, "B E"]:
        """The conditioning vector of every block."""

    def _labels(self, labels: Float[Array, "B K"] | None, dtype) -> Float[Array, "B K"]:
        """The labels of a conditional network, which cannot do without."""
        if labels is None:
            raise ValueError(
                f"this network is conditional on {self.label_dim} classes, got no labels; use "
                "expert.with_labels(labels) with classes or one-hot labels [B, classes]."
            )
        return labels.astype(dtype)

    def _auxiliary(self, conv: nnx.Conv, x):
        """The residual encoder's downsampling: convolution and filter as one fused operation."""
        pad = 1 + (len(self.taps) - 1) // 2
        kernel, bias = conv.kernel[...].astype(x.dtype), conv.bias[...].astype(x.dtype)
        y = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return downsample(y, self.taps, padding=0) + bias

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        noise_label: Float[Array, " B"],
        *,
        labels: Float[Array, "B K"] | None = None,
        augment: Float[Array, "B A"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B H W C"]:
        emb = self.embed(noise_label, labels, augment)
        count = itertools.count()

        def run(step, h):
            return step(h, emb, key=fold(key, next(count)))

        h, aux = self.conv_in(x), x
        skips = [h]
        for level, blocks in enumerate(self.encoder):
            if level:
                h = run(self.down[level - 1], h)
                if self.residual:
                    h = aux = (h + self._auxiliary(self.aux[level - 1], aux)) * HALF
                skips.append(h)
            for block in blocks:
                h = run(block, h)
                skips.append(h)
        h = run(self.in1, run(self.in0, h))
        for i, blocks in enumerate(self.decoder):
            if i:
                h = run(self.up[i - 1], h)
            for block in blocks:
                h = run(block, jnp.concatenate([h, skips.pop()], axis=-1))
        return self.conv_out(jax.nn.silu(self.norm_out(h)))
