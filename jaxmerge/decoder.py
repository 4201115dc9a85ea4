"""The decoder p(x | z_0): from the last, slightly noisy state to grey levels.

Each pixel is decoded on its own, over the V levels x_v of VDM's pixel scale,

    p(x_i = x_v | z_0) = N(z_0,i / alpha_0; x_v, exp(gamma_0)) / sum_w N(z_0,i / alpha_0; x_w, exp(gamma_0))

(Kingma et al. 2021, Eq. 12 and appendix; arXiv 2511.19434, Alg. 1 and 2, last line). It is the
posterior of the levels under a uniform prior. The public codes decode with its argmax, although the
algorithms are written as drawing from it; both exist here, the argmax is the default.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8

from jaxmerge import noise
from jaxmerge.experts.base import per_image
from jaxmerge.noise import PixelScale


def log_prob(
    images: UInt8[Array | np.ndarray, "B H W C"],
    z0: Float[Array, "B H W C"],
    gamma0: Float[Array, ""] | Float[Array, " B"] | float,
    scale: PixelScale,
) -> Float[Array, " B"]:
    """log p(images | z_0), normalised over the V levels, in nats per image.

    Computed in z_0's dtype, relative to the nearest level (whose term is the largest), so that the
    sum over levels is one fused reduction.

    Args:
        images: grey levels 0 ... V-1 [B, H, W, C].
        z0: states at the lowest noise level [B, H, W, C], variance preserving.
        gamma0: that noise level, a scalar or one per image [B].
        scale: the grey levels V.
    """
    values = jnp.asarray(scale.values(), z0.dtype)
    y, precision = _coordinates(z0, gamma0)
    best = values[scale.nearest(y)]
    others = _log_ratio(y[..., None], values, best[..., None], precision[..., None])
    normaliser = jnp.log(jnp.sum(jnp.exp(others), axis=-1))
    return jnp.sum(_log_ratio(y, values[images], best, precision) - normaliser, axis=(1, 2, 3))


def decode(
    z0: Float[Array, "B H W C"],
    gamma0: Float[Array, ""] | Float[Array, " B"] | float,
    scale: PixelScale,
    *,
    keys: Key[Array, " B"] | None = None,
) -> UInt8[Array, "B H W C"]:
    """Grey levels from z_0: the most probable ones, or a draw from p(x | z_0).

    Args:
        z0: states at the lowest noise level [B, H, W, C], variance preserving.
        gamma0: that noise level, a scalar or one per image [B].
        scale: the grey levels V.
        keys: None decodes with the argmax (what the public codes do), in closed form; one key per
            image [B] draws from p(x | z_0) (the literal reading of the algorithms) and needs memory
            for V numbers per pixel.
    """
    y, precision = _coordinates(z0, gamma0)
    if keys is None:
        return scale.nearest(y)
    values = jnp.asarray(scale.values(), z0.dtype)
    logits = -0.5 * precision[..., None] * (y[..., None] - values) ** 2
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.uint8)


def _coordinates(z0, gamma0):
    """z_0 / alpha_0 and the decoder's precision exp(-gamma_0)."""
    g = per_image(gamma0, z0)
    return z0 / noise.alpha(g), jnp.exp(-g)


def _log_ratio(y, x, best, precision):
    """log N(y; x, 1 / precision) - log N(y; best, 1 / precision), without squaring y."""
    return 0.5 * precision * (x - best) * (2.0 * y - x - best)
