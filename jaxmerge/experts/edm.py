"""EDM-family networks as experts: preconditioning and pixel-scale alignment.

A denoiser in EDM's own coordinate and pixel scale (Karras et al. 2022, Eq. 7 and Table 1),

    D(x; sigma_edm) = c_skip x + c_out F(c_in x; c_noise),    x = y + sigma_edm n,

with EDM, VP or VE preconditioning. As an expert (arXiv 2511.19434, Eq. 18)

    eps_hat = (z - alpha D_vdm) / sigma.

Pixel scales: EDM's images are c = V / (V - 1) times VDM's (see ``noise.py``), so the network is asked
at c z / alpha and c sigma_edm, and its image is divided by c. That is exact, since the noise scales
along; in gamma it is a shift by 2 log c. The paper's listing leaves it out;
``align_pixel_scale=False`` reproduces that.
"""

import math

import flax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxmerge import noise
from jaxmerge.experts.base import Expert, per_image
from jaxmerge.experts.labels import Labels, one_hot, rows_of
from jaxmerge.experts.trunk import Trunk
from jaxmerge.noise import PixelScale

SIGMA_DATA = 0.5
BETA_MIN, BETA_D = 0.1, 19.9


def vp_time(sigma_edm: Float[Array, "..."]) -> Float[Array, "..."]:
    """sigma^-1(sigma_edm), the time at which the VP schedule has this noise (Table 1 of EDM)."""
    root = jnp.sqrt(BETA_MIN**2 + 2 * BETA_D * jnp.log1p(sigma_edm**2))
    return (root - BETA_MIN) / BETA_D


def preconditioning(kind: str, sigma_edm: Float[Array, "..."]) -> dict[str, Float[Array, "..."]]:
    """Coefficients of D = skip x + out F(c_in x; c_noise) and of the noise (x - D) / sigma_edm.

    The noise has its own pair, eps_skip = (1 - c_skip) / sigma_edm and eps_out = -c_out / sigma_edm,
    since x - D cancels to nothing at low noise.

    Raises:
        ValueError: a kind other than "edm", "vp" and "ve".
    """
    s, one = sigma_edm, jnp.ones_like(sigma_edm)
    if kind == "edm":
        total = s**2 + SIGMA_DATA**2
        return dict(
            c_in=1 / jnp.sqrt(total),
            c_noise=0.25 * jnp.log(s),
            skip=SIGMA_DATA**2 / total,
            out=s * SIGMA_DATA / jnp.sqrt(total),
            eps_skip=s / total,
            eps_out=-SIGMA_DATA / jnp.sqrt(total),
        )
    if kind == "vp":
        return dict(
            c_in=1 / jnp.sqrt(s**2 + 1),
            c_noise=999 * vp_time(s),
            skip=one,
            out=-s,
            eps_skip=0 * s,
            eps_out=one,
        )
    if kind == "ve":
        return dict(c_in=one, c_noise=jnp.log(0.5 * s), skip=one, out=s, eps_skip=0 * s, eps_out=-one)
    raise ValueError(f"preconditioner must be 'edm', 'vp' or 've', got {kind!r}.")


@flax.struct.dataclass
class EDM(Expert):
    """An EDM-family network as an expert.

    Attributes:
        net: the UNet; its parameters are the expert's leaves.
        preconditioner: "edm", "vp" or "ve".
        sigma_range: (low, high) of sigma_edm where it was trained, in its own pixel scale.
        levels: grey levels per channel it was trained for.
        shape: (H, W, C) it was trained for.
        align_pixel_scale: ask it in its own pixel scale; False reproduces the paper's listing.
        labels: rows [K] or [B, K] of a conditional network, set by `with_labels`; a leaf.
    """

    net: Trunk
    sigma_range: tuple[float, float] = flax.struct.field(pytree_node=False)
    levels: int = flax.struct.field(pytree_node=False)
    shape: tuple[int, int, int] = flax.struct.field(pytree_node=False)
    preconditioner: str = flax.struct.field(pytree_node=False, default="edm")
    align_pixel_scale: bool = flax.struct.field(pytree_node=False, default=True)
    labels: Float[Array, "*B K"] | None = None

    @property
    def c(self) -> float:
        """Ratio of this network's pixel scale to VDM's; 1 without alignment."""
        return PixelScale(self.levels).c if self.align_pixel_scale else 1.0

    @property
    def gamma_range(self) -> tuple[float, float]:
        low, high = (noise.gamma_of_sigma_edm(s) - 2 * math.log(self.c) for s in self.sigma_range)
        return low, high

    @property
    def pixel_scale(self) -> PixelScale:
        return PixelScale(self.levels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.shape

    @property
    def classes(self) -> int | None:
        return self.net.label_dim or None

    def with_labels(self, labels: Labels) -> "EDM":
        if self.classes is None:
            return super().with_labels(labels)
        return self.replace(labels=one_hot(labels, self.classes))

    def of_image(self, index: Int[Array, ""]) -> "EDM":
        one_each = self.labels is not None and self.labels.ndim == 2
        return self.replace(labels=self.labels[index]) if one_each else self

    def _network(self, x, sigma_edm, **call):
        co = preconditioning(self.preconditioner, sigma_edm)
        wide = {name: per_image(value, x) for name, value in co.items()}
        labels = None if self.labels is None else rows_of(self.labels, self.classes, len(x))
        return wide, self.net(wide["c_in"] * x, co["c_noise"], labels=labels, **call)

    def denoised(
        self,
        x: Float[Array, "B H W C"],
        sigma_edm: Float[Array, " B"],
        *,
        labels: Labels | None = None,
        augment: Float[Array, "B A"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B H W C"]:
        """D(x; sigma_edm) in EDM's own coordinate and pixel scale; a key switches dropout on.

        Args:
            x: noisy images y + sigma_edm n, y in +-1.
            sigma_edm: noise level per image.
            labels: of a conditional network; those of `with_labels` by default.
            augment: augmentation labels, in training only.
        """
        expert = self if labels is None else self.with_labels(labels)
        co, out = expert._network(x, sigma_edm, augment=augment, key=key)
        return co["skip"] * x + co["out"] * out

    def network_eps(
        self, z: Float[Array, "B H W C"], gamma: Float[Array, " B"], *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "B H W C"]:
        """`eps_hat` for gamma [B]; a key switches dropout on, for training."""
        c = np.asarray(self.c, z.dtype)
        x = z * (c / noise.alpha(per_image(gamma, z)))
        co, out = self._network(x, c * noise.sigma_edm(gamma), key=key)
        return (co["eps_skip"] * x + co["eps_out"] * out).astype(z.dtype)

    def eps_hat(self, z: Float[Array, "B H W C"], gamma) -> Float[Array, "B H W C"]:
        return self.network_eps(z, jnp.broadcast_to(jnp.asarray(gamma, z.dtype), z.shape[:1]))
