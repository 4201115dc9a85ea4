"""DhariwalUNet: the ADM network (Dhariwal & Nichol 2021) in EDM's parametrisation.

Karras et al. 2022, appendix F.1; the public ImageNet-64 network has 295.9 M parameters. Against
SongUNet: the conditioning scales and shifts, heads have 64 channels, every block of a level with
attention has it, and there is no factor sqrt(1/2) anywhere (see ``trunk.py``).
"""

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxmerge.experts.layers import LECUN, sinusoidal
from jaxmerge.experts.trunk import Style, Trunk

STYLE = Style(
    epsilon=1e-5,
    scale=1.0,
    scale_shift=True,
    map_resampled=False,
    head_channels=64,
    attend_to_all=True,
    init=LECUN,
)


class DhariwalUNet(Trunk):
    """ADM.

    Args:
        resolution: height and width of the images.
        channels: image channels.
        model_channels: base width M.
        channel_mult: widths per level, in units of M.
        channel_mult_emb: width of the embedding, in units of M.
        num_blocks: residual blocks per level.
        attn_resolutions: resolutions with attention; their widths are multiples of 64.
        dropout: rate inside the blocks, active where a key is given.
        label_dim: classes; 0 for an unconditional network.

    Raises:
        ValueError: widths that groups or heads do not divide.
    """

    def __init__(
        self,
        *,
        resolution: int = 64,
        channels: int = 3,
        model_channels: int = 192,
        channel_mult: tuple[int, ...] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: tuple[int, ...] = (32, 16, 8),
        dropout: float = 0.1,
        label_dim: int = 0,
        rngs: nnx.Rngs,
    ):
        emb = model_channels * channel_mult_emb
        self.noise_width, self.label_dim = model_channels, label_dim
        self.map0 = nnx.Linear(model_channels, emb, rngs=rngs)
        self.map1 = nnx.Linear(emb, emb, rngs=rngs)
        self.map_label = nnx.Linear(label_dim, emb, use_bias=False, rngs=rngs) if label_dim else None
        widths = [model_channels * m for m in channel_mult]
        super().__init__(
            STYLE,
            resolution=resolution,
            channels=channels,
            stem=widths[0],
            widths=widths,
            c_cond=emb,
            num_blocks=num_blocks,
            attn_resolutions=attn_resolutions,
            dropout=dropout,
            rngs=rngs,
        )

    def embed(
        self,
        noise_label: Float[Array, " B"],
        labels: Float[Array, "B K"] | None,
        augment: Float[Array, "B A"] | None,
    ) -> Float[Array, "B E"]:
        if augment is not None:
            raise ValueError("DhariwalUNet takes no augmentation labels; leave augment out.")
        emb = sinusoidal(noise_label, self.noise_width, with_end=False, cos_first=True)
        emb = self.map1(jax.nn.silu(self.map0(emb)))
        if self.map_label is not None:
            emb = emb + self.map_label(self._labels(labels, emb.dtype))
        return jax.nn.silu(emb)
