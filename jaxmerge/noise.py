"""Noise levels, pixel scales and per-image randomness: the conventions that everything else shares.

One noise coordinate is handed between modules, ``gamma = -log SNR = log(sigma^2 / alpha^2)``. It
rises with noise. All states are variance preserving,

    z = alpha(gamma) x + sigma(gamma) eps,   sigma^2 = sigmoid(gamma),   alpha^2 = sigmoid(-gamma),

(Kingma et al. 2021, Eq. 2-4). EDM's own coordinate is ``sigma_edm = sigma / alpha = exp(gamma / 2)``
(arXiv 2511.19434, Eq. 18); a bare ``sigma`` in this repository is never EDM's.

A threshold ``eta`` is a position in a merged range, ``gamma_eta = gamma_min + eta (gamma_max -
gamma_min)``.

Pixel scales. VDM encodes level i of V as ``2 (i + 1/2) / V - 1``, in +-(1 - 1/V); EDM encodes it as
``2 i / (V - 1) - 1``, in +-1. So ``x_vdm = x_edm / c`` with ``c = V / (V - 1)``, exactly. All of this
package works in VDM's scale; an EDM network is asked in its own (see ``experts/edm.py``).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

# Native ranges are compared with this slack in gamma: EDM's 0.002 is gamma = -12.4292, printed as
# -12.43, and pixel-scale alignment moves its upper end from 8.764 to 8.756.
GAMMA_SLACK = 0.02

# The highest noise of the two published experts (Table 4 of the paper).
VDM_GAMMA_MAX = 5.0
MERGED_GAMMA_MAX = 8.764
# EDM's lowest noise lies this far above the VDM's, -12.43 + 13.3 at V = 256.
EDM_GAMMA_OFFSET = 0.87


def alpha(gamma: Float[Array, "..."] | float) -> Float[Array, "..."]:
    """Signal scale, sqrt(sigmoid(-gamma))."""
    return jnp.exp(0.5 * jax.nn.log_sigmoid(-jnp.asarray(gamma)))


def sigma(gamma: Float[Array, "..."] | float) -> Float[Array, "..."]:
    """Noise scale of the variance-preserving state, sqrt(sigmoid(gamma))."""
    return jnp.exp(0.5 * jax.nn.log_sigmoid(jnp.asarray(gamma)))


def sigma_edm(gamma: Float[Array, "..."] | float) -> Float[Array, "..."]:
    """EDM's noise level sigma / alpha = exp(gamma / 2)."""
    return jnp.exp(0.5 * jnp.asarray(gamma))


def gamma_of_sigma_edm(sigma_edm: float) -> float:
    """gamma = 2 log sigma_edm, for a concrete noise level."""
    return 2.0 * math.log(sigma_edm)


def gamma_of_eta(eta, gamma_min, gamma_max):
    """gamma at the position eta in [0, 1] of the range [gamma_min, gamma_max]."""
    return gamma_min + eta * (gamma_max - gamma_min)


def eta_of_gamma(gamma, gamma_min, gamma_max):
    """Position of gamma in the range [gamma_min, gamma_max]; the inverse of `gamma_of_eta`."""
    return (gamma - gamma_min) / (gamma_max - gamma_min)


@dataclasses.dataclass(frozen=True)
class PixelScale:
    """Encodings of images with `levels` grey levels per channel, and the noise range they imply.

    Args:
        levels: the number V of grey levels, 2 to 256.

    Example:
        >>> PixelScale(256).gamma_min
        -13.297...
    """

    levels: int

    def __post_init__(self):
        if not isinstance(self.levels, int) or not 2 <= self.levels <= 256:
            raise ValueError(
                f"levels must be an integer from 2 to 256, got {self.levels!r}; it is the number of "
                "grey levels per channel (256 for 8-bit images)."
            )

    @property
    def c(self) -> float:
        """V / (V - 1), the ratio of EDM's scale to VDM's."""
        return self.levels / (self.levels - 1)

    @property
    def gamma_min(self) -> float:
        """-2 log(3 V): half a level is three noise standard deviations; -13.3 at V = 256."""
        return -2.0 * math.log(3 * self.levels)

    @property
    def uniform_gamma(self) -> float:
        """The noise level of uniform dequantisation, -11.8 + 2 log(256 / V)."""
        return -11.8 + 2.0 * math.log(256 / self.levels)

    @property
    def edm_sigma_range(self) -> tuple[float, float]:
        """EDM's noise range in its own coordinate and pixel scale, for networks trained here.

        Chosen so that in the merged coordinate (gamma = gamma_edm - 2 log c) it is
        [gamma_min + 0.87, 8.764], as the published range is at V = 256.
        """
        low = self.c * math.exp(0.5 * (self.gamma_min + EDM_GAMMA_OFFSET))
        return low, self.c * math.exp(0.5 * MERGED_GAMMA_MAX)

    def encode(self, images: UInt8[Array, "..."]) -> Float[Array, "..."]:
        """Grey levels 0 ... V-1 to VDM's scale, 2 (i + 1/2) / V - 1."""
        return (2.0 * jnp.asarray(images, jnp.float32) + 1.0) / self.levels - 1.0

    def encode_edm(self, images: UInt8[Array, "..."]) -> Float[Array, "..."]:
        """Grey levels 0 ... V-1 to EDM's scale, 2 i / (V - 1) - 1."""
        return 2.0 * jnp.asarray(images, jnp.float32) / (self.levels - 1) - 1.0

    def values(self) -> np.ndarray:
        """The V encoded levels in VDM's scale, float64 [V]."""
        return (2.0 * np.arange(self.levels) + 1.0) / self.levels - 1.0

    def nearest(self, x: Float[Array, "..."]) -> UInt8[Array, "..."]:
        """The grey level nearest to x (VDM's scale); the inverse of `encode`."""
        level = jnp.floor((x + 1.0) * (0.5 * self.levels))
        return jnp.clip(level, 0, self.levels - 1).astype(jnp.uint8)

    def check(self, images: np.ndarray, shape: tuple[int, int, int] | None = None) -> np.ndarray:
        """Returns `images` if they are uint8 [B, H, W, C] with levels below V.

        Raises:
            ValueError: another dtype, rank, shape or a level of V or more.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8:
            raise ValueError(
                f"images must be uint8 grey levels 0 to {self.levels - 1}, got dtype {images.dtype}; "
                "pass the raw levels, the package encodes them itself."
            )
        if images.ndim != 4 or (shape is not None and images.shape[1:] != tuple(shape)):
            want = "[B, H, W, C]" if shape is None else f"[B, {', '.join(map(str, shape))}]"
            raise ValueError(
                f"images must have the shape {want}, got {list(images.shape)}; "
                "reshape them or use an expert made for this shape."
            )
        if images.size and int(images.max()) >= self.levels:
            raise ValueError(
                f"images must have {self.levels} grey levels (0 to {self.levels - 1}), got the level "
                f"{int(images.max())}; quantise them or use an expert for more levels."
            )
        return images


def image_keys(key: Key[Array, ""], index: Int[Array, " B"]) -> Key[Array, " B"]:
    """One key per image from (key, index) alone: batch size, device count and resuming change nothing."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(index))


def image_normal(
    key: Key[Array, ""], index: Int[Array, " B"], shape: tuple[int, ...]
) -> Float[Array, "B ..."]:
    """Standard normal noise [B, *shape], float32, drawn per image from (key, index)."""
    return jax.vmap(lambda k: jax.random.normal(k, shape))(image_keys(key, index))
