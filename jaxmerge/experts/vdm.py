"""VDM and i-DODE networks as experts.

Every public network of this family predicts "network output + z" at t = (gamma - gamma_min) /
(gamma_max - gamma_min), with the bounds of its configuration (-13.3, 5) even where its schedule was
learned. What the prediction means, and in which schedule it is asked, differs:

    ==========  ==========  ==========================================
    prediction  schedule    eps_hat (arXiv 2511.19434; i-DODE, Zheng et al. 2023)
    ==========  ==========  ==========================================
    noise       VP          F
    velocity    VP          alpha F + sigma z
    velocity    SP          sqrt(2) alpha_SP F + z_SP
    ==========  ==========  ==========================================

The straight-path (SP) schedule has alpha = sigmoid(-gamma/2), sigma = sigmoid(gamma/2); at the same
gamma its state is z_SP = z alpha_SP / alpha_VP, and the noise in it is the same.
"""

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxmerge import noise
from jaxmerge.experts.base import Expert, per_image
from jaxmerge.experts.vdm_unet import VDMUNet
from jaxmerge.noise import PixelScale


@flax.struct.dataclass
class VDM(Expert):
    """A VDM-family network as an expert.

    Attributes:
        net: the UNet; its parameters are the expert's leaves.
        bounds: (gamma_min, gamma_max) that the network's time input is normalised with.
        native_range: (low, high) in gamma where it was trained; differs from `bounds` where the
            schedule was learned.
        levels: grey levels per channel it was trained for.
        shape: (H, W, C) it was trained for.
        prediction: "noise" or "velocity".
        schedule: "VP" or "SP".
    """

    net: VDMUNet
    bounds: tuple[float, float] = flax.struct.field(pytree_node=False)
    native_range: tuple[float, float] = flax.struct.field(pytree_node=False)
    levels: int = flax.struct.field(pytree_node=False)
    shape: tuple[int, int, int] = flax.struct.field(pytree_node=False)
    prediction: str = flax.struct.field(pytree_node=False, default="noise")
    schedule: str = flax.struct.field(pytree_node=False, default="VP")

    def __post_init__(self):
        if (self.prediction, self.schedule) not in (("noise", "VP"), ("velocity", "VP"), ("velocity", "SP")):
            raise ValueError(
                "prediction and schedule must be ('noise', 'VP'), ('velocity', 'VP') or ('velocity', "
                f"'SP'), got ({self.prediction!r}, {self.schedule!r})."
            )

    @property
    def gamma_range(self) -> tuple[float, float]:
        return self.native_range

    @property
    def pixel_scale(self) -> PixelScale:
        return PixelScale(self.levels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.shape

    def raw(
        self, z: Float[Array, "B H W C"], gamma: Float[Array, " B"], *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "B H W C"]:
        """The network's own prediction at a state of its own schedule."""
        low, high = self.bounds
        return self.net(z, (gamma - low) / (high - low), key=key)

    def network_eps(
        self, z: Float[Array, "B H W C"], gamma: Float[Array, " B"], *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "B H W C"]:
        """`eps_hat` for gamma [B]; a key switches dropout on, for training."""
        g = per_image(gamma, z)
        if self.prediction == "noise":
            return self.raw(z, gamma, key=key)
        alpha, sigma = noise.alpha(g), noise.sigma(g)
        if self.schedule == "VP":
            return alpha * self.raw(z, gamma, key=key) + sigma * z
        alpha_sp = jax.nn.sigmoid(-0.5 * g)
        z_sp = z * (alpha_sp / alpha)
        return np.sqrt(2.0).astype(z.dtype) * alpha_sp * self.raw(z_sp, gamma, key=key) + z_sp

    def eps_hat(self, z: Float[Array, "B H W C"], gamma) -> Float[Array, "B H W C"]:
        gamma = jnp.broadcast_to(jnp.asarray(gamma, z.dtype), z.shape[:1])
        return self.network_eps(z, gamma).astype(z.dtype)
