"""The UNet of variational diffusion models (Kingma et al. 2021, appendix B), in its public flavours.

No resampling: every block runs at full resolution. The flavours (google-research's Flax code, i-DODE's
fork of it, the PyTorch re-implementation) differ in constants that are arguments here:

    =====================  =================  ======================
    argument               torch              flax (VDM and i-DODE)
    =====================  =================  ======================
    fourier                (5, 6)             (6, 7)
    fourier_order          "frequency"        "channel"
    norm_epsilon           1e-5               1e-6
    pad_conditioning       0                  1
    =====================  =================  ======================
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxmerge.experts.layers import ZERO, Attention, GroupNorm, ResBlock, conv3, fold, sinusoidal


def fourier_features(
    z: Float[Array, "B H W C"], powers: tuple[int, ...], order: str
) -> Float[Array, "B H W F"]:
    """z, then sin(2 pi 2^k z) and cos(2 pi 2^k z) for k in `powers`.

    Args:
        order: "frequency" puts all channels of one k together, "channel" all k of one channel.
    """
    if not powers:
        return z
    scales = jnp.asarray([2.0**k * 2 * np.pi for k in powers], z.dtype)
    if order == "frequency":
        angles = [z * s for s in scales]
        angle = jnp.concatenate(angles, axis=-1)
    elif order == "channel":
        angle = (z[..., :, None] * scales).reshape(*z.shape[:-1], -1)
    else:
        raise ValueError(f"fourier_order must be 'frequency' or 'channel', got {order!r}.")
    return jnp.concatenate([z, jnp.sin(angle), jnp.cos(angle)], axis=-1)


class VDMUNet(nnx.Module):
    """Maps noisy images and a noise position t in [0, 1] to the noise (or velocity); input added.

    Args:
        channels: image channels.
        width: channels of every block (128 for CIFAR-10, 256 for ImageNet32).
        depth: number of down blocks (32); there is one more up block.
        fourier: powers k of the Fourier features of z; empty for none.
        fourier_order: see `fourier_features`.
        heads: attention heads.
        attention_everywhere: one attention after the ResBlock of each down and up block.
        mid_attention: attention between the two middle ResBlocks; its cost grows with the fourth power of
            the images' side.
        norm_groups, norm_epsilon: of every GroupNorm.
        pad_conditioning: constant zeros appended to the time embedding.
        dropout: rate inside the ResBlocks, active where a key is given.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        width: int = 128,
        depth: int = 32,
        fourier: tuple[int, ...] = (5, 6),
        fourier_order: str = "frequency",
        heads: int = 1,
        attention_everywhere: bool = False,
        mid_attention: bool = True,
        norm_groups: int = 32,
        norm_epsilon: float = 1e-5,
        pad_conditioning: int = 0,
        dropout: float = 0.1,
        rngs: nnx.Rngs,
    ):
        self.width, self.fourier, self.fourier_order = width, tuple(fourier), fourier_order
        self.pad_conditioning = pad_conditioning
        common = dict(groups=lambda c: norm_groups, epsilon=norm_epsilon, rngs=rngs)

        def block(c_in):
            return ResBlock(
                c_in,
                width,
                4 * width,
                dropout_rate=dropout,
                cond_bias=False,
                zero_cond=True,
                **common,
            )

        def attention():
            return Attention(width, heads=heads, **common)

        def attentions(n):
            return nnx.List([attention() for _ in range(n)]) if attention_everywhere else None

        self.dense0 = nnx.Linear(width + pad_conditioning, 4 * width, rngs=rngs)
        self.dense1 = nnx.Linear(4 * width, 4 * width, rngs=rngs)
        self.conv_in = conv3(channels * (1 + 2 * len(self.fourier)), width, rngs)
        self.down = nnx.List([block(width) for _ in range(depth)])
        self.down_attention = attentions(depth)
        self.mid0 = block(width)
        self.mid_attention = attention() if mid_attention else None
        self.mid1 = block(width)
        self.up = nnx.List([block(2 * width) for _ in range(depth + 1)])
        self.up_attention = attentions(depth + 1)
        self.norm_out = GroupNorm(width, norm_groups, norm_epsilon)
        self.conv_out = conv3(width, channels, rngs, ZERO)

    def __call__(
        self, z: Float[Array, "B H W C"], t: Float[Array, " B"], *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "B H W C"]:
        embedding = sinusoidal(1000.0 * t, self.width)
        embedding = jnp.pad(embedding, ((0, 0), (0, self.pad_conditioning)))
        cond = jax.nn.silu(self.dense1(jax.nn.silu(self.dense0(embedding))))

        h = self.conv_in(fourier_features(z, self.fourier, self.fourier_order))
        skips = [h]
        for i, block in enumerate(self.down):
            h = block(h, cond, key=fold(key, i))
            if self.down_attention is not None:
                h = self.down_attention[i](h)
            skips.append(h)
        n = len(self.down)
        h = self.mid0(h, cond, key=fold(key, n))
        if self.mid_attention is not None:
            h = self.mid_attention(h)
        h = self.mid1(h, cond, key=fold(key, n + 1))
        for i, block in enumerate(self.up):
            h = block(jnp.concatenate([h, skips.pop()], axis=-1), cond, key=fold(key, n + 2 + i))
            if self.up_attention is not None:
                h = self.up_attention[i](h)
        return self.conv_out(jax.nn.silu(self.norm_out(h))) + z
