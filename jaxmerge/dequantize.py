"""Dequantisation: from grey levels to a continuous state whose density bounds a probability.

An image x of grey levels has a probability P(x), a diffusion model gives densities p(z) at its lowest
noise level. For every method below and any model,

    log P(x) >= E_q[log p(z) + log p(x | z) - log q(z | x)]
              = E_q[log p(z) + log_p_x_given_z] + entropy

in nats, all densities in z (variance preserving, VDM's pixel scale). V levels, D dimensions.

- ``truncated_normal`` (arXiv 2511.19434, Eq. 16-17; i-DODE's): z = alpha x + sigma u, u ~ N(0, I)
  truncated to +-tau, tau = alpha / (V sigma), which fills exactly the level's bin, so
  log p(x | z) = 0. entropy = D/2 (1 + log 2 pi sigma^2) + D log Z - D tau / (sqrt(2 pi) Z)
  exp(-tau^2 / 2), Z = erf(tau / sqrt 2). The paper prints Eq. 16's bounds and "gamma_eps = 13.3"
  with other signs: the bounds +-tau are those of u, and gamma is -13.3.
- ``uniform``: z = alpha (x + u), u ~ U(-1/V, 1/V); entropy = D log alpha + D log(2 / V).
- ``variational`` (the bound of Kingma et al. 2021 at z_0): z = alpha x + sigma eps, eps ~ N(0, I);
  entropy = D/2 (1 + log 2 pi sigma^2), and log p(x | z) is the decoder's.

With K importance draws log P(x) >= E log mean_k exp(log p(z_k) + log_p_x_given_z_k + neg_log_q_k);
`log_mean_exp` keeps the -log K that i-DODE's public code leaves out (0.0014 bits per dimension at
K = 20, D = 3072).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf, logsumexp
from jaxtyping import Array, Float, Key, Shaped

from jaxmerge import decoder
from jaxmerge import noise as noise_levels
from jaxmerge.noise import PixelScale

METHODS = ("truncated_normal", "uniform", "variational")


class Dequantized(NamedTuple):
    """Continuous states of a batch of images, and what turns their density into a bound on log P(x).

    Attributes:
        z: states [B, H, W, C] at the noise level `gamma`.
        gamma: -log SNR of z, a scalar in z's dtype.
        log_p_x_given_z: log p(x | z) in nats [B]; zero except for the variational method.
        neg_log_q: -log q(z | x) of these draws in nats [B], for importance weights.
        entropy: its expectation in closed form in nats [B], for a single draw.
    """

    z: Float[Array, "B H W C"]
    gamma: Float[Array, ""]
    log_p_x_given_z: Float[Array, " B"]
    neg_log_q: Float[Array, " B"]
    entropy: Float[Array, " B"]


def dequantize(
    method: str,
    images: Shaped[Array | np.ndarray, "B H W C"],
    *,
    scale: PixelScale,
    keys: Key[Array, " B"] | None = None,
    gamma: Float[Array, ""] | float | None = None,
    noise: Float[Array | np.ndarray, "B H W C"] | None = None,
    dtype=jnp.float32,
) -> Dequantized:
    """Draws z ~ q(z | x) for every image.

    Args:
        method: "truncated_normal", "uniform" or "variational".
        images: uint8 grey levels 0 ... V-1 [B, H, W, C].
        scale: the grey levels V.
        keys: one key per image [B]; not needed when `noise` is given. Noise is always drawn in
            float32, so that both precisions see the same.
        gamma: the noise level at which the model starts; by default scale.uniform_gamma for the
            uniform method and scale.gamma_min for the others.
        noise: the standardised noise itself [B, H, W, C] instead of keys: in [-tau, tau]
            (truncated normal), in [-1, 1] (uniform) or standard normal (variational).
        dtype: of the computation and of every result.

    Raises:
        ValueError: an unknown method, neither keys nor noise, or images that are not uint8.
    """
    if method not in METHODS:
        raise ValueError(
            f"method must be one of {', '.join(METHODS)}, got {method!r}; choose how grey levels become "
            "continuous."
        )
    if images.dtype != jnp.uint8:
        raise ValueError(
            f"images must be uint8 grey levels 0 to {scale.levels - 1}, got dtype {images.dtype}; pass the "
            "raw levels."
        )
    if keys is None and noise is None:
        raise ValueError(
            "dequantize needs one key per image or the noise itself, got neither; pass keys or noise."
        )
    if gamma is None:
        gamma = scale.uniform_gamma if method == "uniform" else scale.gamma_min
    gamma = jnp.asarray(gamma, dtype)
    if noise is None:
        noise = standard_noise(method, keys, images.shape[1:], scale, gamma)
    x = jnp.asarray(scale.values(), dtype)[images]
    z, neg_log_q, entropy = _FORMULAS[method](x, jnp.asarray(noise, dtype), gamma, scale)
    log_p_x_given_z = (
        decoder.log_prob(images, z, gamma, scale) if method == "variational" else jnp.zeros_like(neg_log_q)
    )
    return Dequantized(z, gamma, log_p_x_given_z, neg_log_q, jnp.broadcast_to(entropy, neg_log_q.shape))


def standard_noise(
    method: str, keys: Key[Array, " B"], shape: tuple[int, ...], scale: PixelScale, gamma
) -> Float[Array, "B H W C"]:
    """The standardised noise of a method, float32 [B, *shape], from one key per image.

    The truncated normal is drawn by its inverse distribution function, so that the same key gives
    ordered, nearly equal noise at two values of tau.
    """
    tau = truncation(jnp.asarray(gamma, jnp.float32), scale)
    draw = {
        "truncated_normal": lambda key: jax.random.truncated_normal(key, -tau, tau, shape, jnp.float32),
        "uniform": lambda key: jax.random.uniform(key, shape, jnp.float32, -1.0, 1.0),
        "variational": lambda key: jax.random.normal(key, shape, jnp.float32),
    }[method]
    return jax.vmap(draw)(keys)


def truncation(gamma: Float[Array, ""] | float, scale: PixelScale) -> Float[Array, ""]:
    """tau = alpha / (V sigma) = exp(-gamma / 2) / V: half a level in noise standard deviations."""
    return jnp.exp(-0.5 * jnp.asarray(gamma)) / scale.levels


def truncated_normal_entropy(gamma: Float[Array, ""] | float, scale: PixelScale) -> Float[Array, ""]:
    """Entropy of one dimension of z under truncated-normal dequantisation, nats (Eq. 17's extra terms).

    1/2 (1 + log 2 pi sigma^2) + log Z - tau exp(-tau^2 / 2) / (sqrt(2 pi) Z), Z = erf(tau / sqrt 2).
    """
    tau = truncation(gamma, scale)
    mass = erf(tau / math.sqrt(2.0))
    cut = tau / (math.sqrt(2.0 * math.pi) * mass) * jnp.exp(-0.5 * tau**2)
    return 0.5 + _half_log_2_pi_variance(gamma) + jnp.log(mass) - cut


def log_mean_exp(log_weights: Float[Array, "K B"]) -> Float[Array, " B"]:
    """log of the mean over K importance draws of exp(log_weights), including the -log K."""
    return logsumexp(log_weights, axis=0) - math.log(log_weights.shape[0])


def _half_log_2_pi_variance(gamma):
    return 0.5 * (math.log(2.0 * math.pi) + jax.nn.log_sigmoid(jnp.asarray(gamma)))


def _truncated_normal(x, u, gamma, scale):
    z = noise_levels.alpha(gamma) * x + noise_levels.sigma(gamma) * u
    log_mass = jnp.log(erf(truncation(gamma, scale) / math.sqrt(2.0)))
    neg_log_q = jnp.sum(0.5 * u**2 + (_half_log_2_pi_variance(gamma) + log_mass), axis=(1, 2, 3))
    return z, neg_log_q, x[0].size * truncated_normal_entropy(gamma, scale)


def _uniform(x, u, gamma, scale):
    z = noise_levels.alpha(gamma) * (x + u / scale.levels)
    per_dimension = 0.5 * jax.nn.log_sigmoid(-gamma) + math.log(2.0 / scale.levels)
    entropy = x[0].size * per_dimension
    return z, jnp.broadcast_to(entropy, x.shape[:1]), entropy


def _variational(x, eps, gamma, scale):
    del scale  # q does not depend on the number of levels
    z = noise_levels.alpha(gamma) * x + noise_levels.sigma(gamma) * eps
    constant = _half_log_2_pi_variance(gamma)
    return z, jnp.sum(0.5 * eps**2 + constant, axis=(1, 2, 3)), x[0].size * (0.5 + constant)


_FORMULAS = {"truncated_normal": _truncated_normal, "uniform": _uniform, "variational": _variational}
