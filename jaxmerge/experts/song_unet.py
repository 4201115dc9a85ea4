"""SongUNet: the DDPM++ and NCSN++ networks (Song et al. 2021) in EDM's parametrisation.

Karras et al. 2022, appendix F.1. DDPM++ ("vp" files): positional embedding, standard encoder, filter
[1, 1]. NCSN++ ("ve" files): Fourier embedding twice as wide, residual encoder, filter [1, 3, 3, 1].
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxmerge.experts.layers import (
    XAVIER,
    ZERO,
    Attention,
    GroupNorm,
    ResBlock,
    conv3,
    downsample,
    fold,
    sinusoidal,
)

EPSILON = 1e-6
HALF = float(np.sqrt(0.5))


def _groups(channels: int) -> int:
    return min(32, channels // 4)


class EncoderStep(nnx.Module):
    """One entry of the encoder: a block, with attention where the level has it."""

    def __init__(self, block: ResBlock, attention: Attention | None = None):
        self.block, self.attention = block, attention

    def __call__(self, x, emb, *, key=None):
        x = self.block(x, emb, key=key)
        return x if self.attention is None else self.attention(x)


class SongUNet(nnx.Module):
    """Maps scaled noisy images and a noise label to the preconditioned network's output F.

    Args:
        resolution: height and width of the images.
        channels: image channels.
        model_channels: base width M.
        channel_mult: widths per level, in units of M.
        channel_mult_emb: width of the embedding, in units of M.
        num_blocks: residual blocks per level.
        attn_resolutions: resolutions with attention.
        dropout: rate inside the blocks, active where a key is given.
        label_dim: classes; 0 for an unconditional network.
        augment_dim: augmentation labels (9 in the public files); 0 for none.
        embedding_type: "positional" or "fourier".
        channel_mult_noise: width of the noise embedding, in units of M.
        encoder_type: "standard" or "residual".
        resample_filter: (1, 1) or (1, 3, 3, 1).
    """

    def __init__(
        self,
        *,
        resolution: int = 32,
        channels: int = 3,
        model_channels: int = 128,
        channel_mult: tuple[int, ...] = (2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: tuple[int, ...] = (16,),
        dropout: float = 0.13,
        label_dim: int = 0,
        augment_dim: int = 0,
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        resample_filter: tuple[int, ...] = (1, 1),
        rngs: nnx.Rngs,
    ):
        if embedding_type not in ("positional", "fourier"):
            raise ValueError(f"embedding_type must be 'positional' or 'fourier', got {embedding_type!r}.")
        if encoder_type not in ("standard", "residual"):
            raise ValueError(f"encoder_type must be 'standard' or 'residual', got {encoder_type!r}.")
        emb = model_channels * channel_mult_emb
        noise = model_channels * channel_mult_noise
        taps = tuple(resample_filter)
        self.noise_width, self.label_dim, self.taps = noise, label_dim, taps
        self.residual = encoder_type == "residual"

        def linear(c_in, c_out, bias=True):
            return nnx.Linear(c_in, c_out, use_bias=bias, kernel_init=XAVIER, rngs=rngs)

        def step(c_in, c_out, *, attention=False, resample=None):
            common = dict(groups=_groups, epsilon=EPSILON, scale=HALF, init=XAVIER, rngs=rngs)
            block = ResBlock(
                c_in, c_out, emb, dropout_rate=dropout, resample=resample, taps=taps, **common
            )
            return EncoderStep(block, Attention(c_out, heads=1, **common) if attention else None)

        # A buffer, not trained: the public files carry its values.
        fourier = embedding_type == "fourier"
        self.freqs = nnx.Variable(16.0 * jax.random.normal(rngs.params(), (noise // 2,))) if fourier else None
        self.map_label = linear(label_dim, noise) if label_dim else None
        self.map_augment = linear(augment_dim, noise, bias=False) if augment_dim else None
        self.map0, self.map1 = linear(noise, emb), linear(emb, emb)

        widths = [model_channels * m for m in channel_mult]
        self.conv_in = conv3(channels, model_channels, rngs, XAVIER)
        # One down step, one auxiliary convolution and `num_blocks` steps per level.
        down, aux, encoder, skips = [], [], [], [model_channels]
        c, c_aux = model_channels, channels
        for level, width in enumerate(widths):
            has_attention = resolution >> level in attn_resolutions
            if level:
                down.append(step(c, c, resample="down"))
                if self.residual:
                    aux.append(conv3(c_aux, c, rngs, XAVIER))
                    c_aux = c
                skips.append(c)
            blocks = []
            for _ in range(num_blocks):
                blocks.append(step(c, width, attention=has_attention))
                c = width
                skips.append(c)
            encoder.append(nnx.List(blocks))
        self.down, self.aux, self.encoder = nnx.List(down), nnx.List(aux), nnx.List(encoder)

        self.in0, self.in1 = step(c, c, attention=True), step(c, c)
        up, decoder = [], []
        for level in reversed(range(len(widths))):
            has_attention = resolution >> level in attn_resolutions
            if level < len(widths) - 1:
                up.append(step(c, c, resample="up"))
            blocks = []
            for i in range(num_blocks + 1):
                attention = has_attention and i == num_blocks
                blocks.append(step(c + skips.pop(), widths[level], attention=attention))
                c = widths[level]
            decoder.append(nnx.List(blocks))
        self.up, self.decoder = nnx.List(up), nnx.List(decoder)
        self.norm_out = GroupNorm(c, _groups(c), EPSILON)
        self.conv_out = conv3(c, channels, rngs, ZERO)

    def embed(
        self,
        noise_label: Float[Array, " B"],
        labels: Float[Array, "B K"] | None,
        augment: Float[Array, "B A"] | None,
    ) -> Float[Array, "B E"]:
        """The conditioning vector of every block."""
        if self.freqs is None:
            emb = sinusoidal(noise_label, self.noise_width)
        else:
            freqs = jax.lax.stop_gradient(self.freqs[...]).astype(noise_label.dtype)
            angle = noise_label[:, None] * (2 * np.pi * freqs)
            emb = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
        if self.map_label is not None:
            if labels is None:
                raise ValueError(
                    f"this network is conditional on {self.label_dim} classes, got no labels; "
                    "pass one-hot labels [B, classes]."
                )
            emb = emb + self.map_label(labels * np.sqrt(self.label_dim))
        if self.map_augment is not None and augment is not None:
            emb = emb + self.map_augment(augment)
        return jax.nn.silu(self.map1(jax.nn.silu(self.map0(emb))))

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
