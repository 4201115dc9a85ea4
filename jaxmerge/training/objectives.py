"""The objectives that the two experts are trained with.

VDM (Kingma et al. 2021, Eq. 15 and appendix I.1), in bits per dimension, gamma linear in t:

    L = (gamma_max - gamma_min) / (2 D ln 2) E_{t, eps} ||eps - eps_hat(z_t, gamma(t))||^2,

with antithetic times t_i = (u + i / B) mod 1, so that a batch covers the range evenly. Prior and
reconstruction terms have no trainable parameters.

EDM (Karras et al. 2022, Eq. 2 and Table 1), per dimension, in EDM's own pixel convention:

    L = E_{sigma, n} lambda(sigma) ||D(y + n; sigma) - y||^2 / D,   ln sigma ~ N(P_mean, P_std^2),
    lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2,

where sigma is EDM's noise level (`sigma_edm` elsewhere) and the images y span +-1 (``encode_edm``); the
published network and its preconditioning know no other scale.

`diffusion_bpd` is the integral of the VDM's objective for any expert, over its own range or a part of
it: the common measure of both experts on validation images.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8

from jaxmerge import noise
from jaxmerge.data import augment
from jaxmerge.experts.base import Expert, per_image
from jaxmerge.noise import PixelScale

P_MEAN, P_STD, SIGMA_DATA = -1.2, 1.2, 0.5
# A number for augmentation's keys that no other use of a step's key has.
AUGMENT = 0xA06


class Part(NamedTuple):
    """Which part of a batch these images are: part `number` of `count` equal ones.

    Noise and noise levels are drawn for the whole batch, so that they do not depend on how many devices
    share it; dropout does.
    """

    number: int | Int[Array, ""] = 0
    count: int = 1

    def of(self, draw, size: int) -> Array:
        """This part, of `size` entries, of what ``draw(whole size)`` gives."""
        whole = draw(self.count * size)
        return whole if self.count == 1 else jax.lax.dynamic_slice_in_dim(whole, self.number * size, size)

    def key(self, key: Key[Array, ""]) -> Key[Array, ""]:
        """A key of this part's own."""
        return key if self.count == 1 else jax.random.fold_in(key, self.number)


WHOLE = Part()


def antithetic_times(key: Key[Array, ""], batch_size: int) -> Float[Array, " B"]:
    """t_i = (u + i / B) mod 1 with one uniform u for the batch."""
    offset = jax.random.uniform(key)
    return (offset + jnp.arange(batch_size) / batch_size) % 1.0


def vdm_loss(
    expert: Expert,
    images: UInt8[Array, "B H W C"],
    key: Key[Array, ""],
    scale: PixelScale,
    *,
    train: bool = True,
    part: Part = WHOLE,
) -> Float[Array, ""]:
    """The VDM's diffusion term in bits per dimension, an unbiased estimate from one batch.

    Args:
        expert: has ``network_eps(z, gamma, *, key)`` and ``gamma_range``.
        images: grey levels.
        key: noise, times and (in training) dropout come from it.
        scale: the images' pixel scale.
        train: dropout on.
        part: of the batch.
    """
    time_key, noise_key, dropout_key = jax.random.split(key, 3)
    low, high = expert.gamma_range
    gamma = low + (high - low) * part.of(lambda n: antithetic_times(time_key, n), len(images))
    x = scale.encode(images)
    eps = part.of(lambda n: jax.random.normal(noise_key, (n, *x.shape[1:])), len(images))
    g = per_image(gamma, x)
    z = noise.alpha(g) * x + noise.sigma(g) * eps
    eps_hat = expert.network_eps(z, gamma, key=part.key(dropout_key) if train else None)
    return (high - low) / (2 * math.log(2)) * jnp.mean((eps - eps_hat) ** 2)


def edm_weight(sigma_edm: Float[Array, "..."], sigma_data: float = SIGMA_DATA) -> Float[Array, "..."]:
    """lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2."""
    return (sigma_edm**2 + sigma_data**2) / (sigma_edm * sigma_data) ** 2


def edm_loss(
    expert: Expert,
    images: UInt8[Array, "B H W C"],
    key: Key[Array, ""],
    scale: PixelScale,
    *,
    p_mean: float = P_MEAN,
    p_std: float = P_STD,
    augmentation: float = 0.0,
    train: bool = True,
    part: Part = WHOLE,
) -> Float[Array, ""]:
    """EDM's weighted denoising error per dimension.

    Args:
        expert: has ``denoised(x, sigma_edm, *, key)`` in EDM's own scale.
        images: grey levels.
        key: noise levels, noise and (in training) dropout come from it.
        scale: the images' pixel scale.
        p_mean, p_std: of ln sigma_edm.
        augmentation: probability of every operation of `augment`, of whose labels the network is told; 0 for
            none, not even mirror images.
        train: dropout and augmentation on.
        part: of the batch.
    """
    level_key, noise_key, dropout_key = jax.random.split(key, 3)
    # Stratified normal levels: marginally N(p_mean, p_std^2), as the published code draws them, but a
    # batch covers the range evenly, like the VDM's antithetic times.
    size = len(images)
    quantile = jnp.clip(part.of(lambda n: antithetic_times(level_key, n), size), 1e-6, 1 - 1e-6)
    sigma_edm = jnp.exp(p_mean + p_std * jax.scipy.special.ndtri(quantile))
    y, told = scale.encode_edm(images), {}
    if train and augmentation > 0:
        places = part.of(jnp.arange, size)
        y, labels = augment.augment(y, jax.random.fold_in(key, AUGMENT), augmentation, places)
        told = {"augment": labels}
    s = per_image(sigma_edm, y)
    noisy = y + s * part.of(lambda n: jax.random.normal(noise_key, (n, *y.shape[1:])), size)
    denoised = expert.denoised(noisy, sigma_edm, key=part.key(dropout_key) if train else None, **told)
    return jnp.mean(edm_weight(s) * (denoised - y) ** 2)


def diffusion_bpd(
    expert: Expert,
    images: UInt8[Array, "B H W C"],
    key: Key[Array, ""],
    scale: PixelScale,
    *,
    gamma_low: float | None = None,
    gamma_high: float | None = None,
) -> Float[Array, ""]:
    """1/2 integral of E||eps - eps_hat||^2 d gamma, in bits per dimension, from one draw per image.

    Args:
        expert: any expert; asked through ``eps_hat``.
        images: grey levels.
        key: noise and noise levels come from it.
        scale: the images' pixel scale.
        gamma_low, gamma_high: the part of the range; by default the expert's own ends.
    """
    _, bits = diffusion_bits(expert, images, key, scale, gamma_low=gamma_low, gamma_high=gamma_high)
    return jnp.mean(bits)


def diffusion_bits(
    expert: Expert,
    images: UInt8[Array, "B H W C"],
    key: Key[Array, ""],
    scale: PixelScale,
    *,
    gamma_low: float | None = None,
    gamma_high: float | None = None,
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """`diffusion_bpd` image by image: its noise level, and its share (their mean is the integral)."""
    low = expert.gamma_range[0] if gamma_low is None else gamma_low
    high = expert.gamma_range[1] if gamma_high is None else gamma_high
    time_key, noise_key = jax.random.split(key)
    gamma = low + (high - low) * antithetic_times(time_key, len(images))
    x = scale.encode(images)
    eps = jax.random.normal(noise_key, x.shape)
    g = per_image(gamma, x)
    error = eps - expert.eps_hat(noise.alpha(g) * x + noise.sigma(g) * eps, gamma)
    return gamma, (high - low) / (2 * math.log(2)) * jnp.mean(error**2, axis=(1, 2, 3))
