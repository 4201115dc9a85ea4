"""SongUNet: the DDPM++ and NCSN++ networks (Song et al. 2021) in EDM's parametrisation.

Karras et al. 2022, appendix F.1. DDPM++ ("vp" files): positional embedding, standard encoder, filter
[1, 1]. NCSN++ ("ve" files): Fourier embedding twice as wide, residual encoder, filter [1, 3, 3, 1].
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxmerge.experts.layers import XAVIER, sinusoidal
from jaxmerge.experts.trunk import HALF, Style, Trunk

STYLE = Style(
    epsilon=1e-6,
    scale=HALF,
    scale_shift=False,
    map_resampled=True,
    head_channels=None,
    attend_to_all=False,
    init=XAVIER,
)


class SongUNet(Trunk):
    """DDPM++ or NCSN++.

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

    Raises:
        ValueError: an unknown type of embedding or encoder, or widths that groups do not divide.
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
        emb, noise = model_channels * channel_mult_emb, model_channels * channel_mult_noise
        self.noise_width, self.label_dim = noise, label_dim

        def linear(c_in, c_out, bias=True):
            return nnx.Linear(c_in, c_out, use_bias=bias, kernel_init=XAVIER, rngs=rngs)

        # A buffer, not trained: the public files carry its values.
        fourier = embedding_type == "fourier"
        self.freqs = nnx.Variable(16.0 * jax.random.normal(rngs.params(), (noise // 2,))) if fourier else None
        self.map_label = linear(label_dim, noise) if label_dim else None
        self.map_augment = linear(augment_dim, noise, bias=False) if augment_dim else None
        self.map0, self.map1 = linear(noise, emb), linear(emb, emb)
        super().__init__(
            STYLE,
            resolution=resolution,
            channels=channels,
            stem=model_channels,
            widths=[model_channels * m for m in channel_mult],
            c_cond=emb,
            num_blocks=num_blocks,
            attn_resolutions=attn_resolutions,
            dropout=dropout,
            taps=tuple(resample_filter),
            residual=encoder_type == "residual",
            rngs=rngs,
        )

    def embed(
        self,
        noise_label: Float[Array, " B"],
        labels: Float[Array, "B K"] | None,
        augment: Float[Array, "B A"] | None,
    ) -> Float[Array, "B E"]:
        if self.freqs is None:
            emb = sinusoidal(noise_label, self.noise_width)
        else:
            freqs = jax.lax.stop_gradient(self.freqs[...]).astype(noise_label.dtype)
            angle = noise_label[:, None] * (2 * np.pi * freqs)
            emb = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
        if self.map_label is not None:
            # One-hot labels are scaled to unit variance; numpy's float64 root must not widen them.
            emb = emb + self.map_label(self._labels(labels, emb.dtype) * float(np.sqrt(self.label_dim)))
        if self.map_augment is not None and augment is not None:
            emb = emb + self.map_augment(augment)
        return jax.nn.silu(self.map1(jax.nn.silu(self.map0(emb))))
