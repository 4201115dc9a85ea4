"""The objectives of a gated mixture, in bits per dimension.

    L = L_NLL + lambda_load L_load + lambda_ent L_ent + lambda_align L_align

L_NLL is the diffusion term of the bound over the mixture's range, with antithetic noise levels as in
``objectives.vdm_loss``; the penalties are in ``gate/regularisers.py``. L_align, off by default, is the
cross-entropy of the weights against the slices that an image belongs to (the slice-aligned baseline), of those whose
experts answer at its level.

Phase 1 of the two-phase schedule warms every expert up on its own slice, each over its own range:

    L_warm = mean_k L_VDM(expert k; slice k) + lambda_align L_align

Level and noise of image b follow from (key, b), b its row in the whole batch. So a batch that is cut over
devices has the loss and, averaged, the gradients that it has on one; only the experts' own dropout
differs from device to device.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from jaxmerge import noise
from jaxmerge.experts.base import per_image
from jaxmerge.gate import regularisers
from jaxmerge.gate.gated import Gated
from jaxmerge.noise import PixelScale


@dataclasses.dataclass(frozen=True)
class Penalties:
    """Penalties of the penalties.

    Attributes:
        load: of L_load.
        entropy: of L_ent.
        align: of L_align.
    """

    load: float = 0.1
    entropy: float = 0.01
    align: float = 0.0


PENALTIES = Penalties()


class Batch(NamedTuple):
    """Images of one step, or one device's part of them.

    Attributes:
        images: grey levels.
        rows: position of each image in the whole batch.
        members: 1 where an image belongs to slice k [B, K]; zeros where there are no slices.
    """

    images: UInt8[Array | np.ndarray, "B H W C"]
    rows: Int[Array | np.ndarray, " B"]
    members: Float[Array | np.ndarray, "B K"]


def _noisy(images, rows, gamma, key, scale):
    x = scale.encode(images)
    eps = noise.image_normal(key, rows, x.shape[1:])
    g = per_image(gamma, x)
    return noise.alpha(g) * x + noise.sigma(g) * eps, eps


def _levels(key, rows, total: int, low, high):
    """Antithetic levels: a batch of `total` images covers the range evenly."""
    return low + (high - low) * ((jax.random.uniform(key) + rows / total) % 1.0)


def _bpd(squared, span):
    """Mean squared error per value [...] times the range, in bits per dimension."""
    return span / (2 * math.log(2)) * squared


def mixture_loss(
    gated: Gated,
    batch: Batch,
    key: Key[Array, ""],
    *,
    total: int,
    scale: PixelScale,
    penalties: Penalties = PENALTIES,
    dropout_key: Key[Array, ""] | None = None,
    train: bool = True,
    mean: Callable = lambda tree: tree,
) -> tuple[Float[Array, ""], dict[str, Float[Array, "..."]]]:
    """Loss and figures of one batch.

    Args:
        gated: the mixture; a top-k one is evaluated with all experts and the weights that were chosen.
        batch: this device's images.
        key: of the step, the same on every device.
        total: images of the whole batch.
        scale: the images' pixel scale.
        penalties: their weights.
        dropout_key: for the experts' dropout; None leaves it off.
        train: the gate's dropout on.
        mean: mean over devices.

    Returns:
        This device's loss, whose gradient averaged over devices is that of the whole batch, and figures
        that are to be averaged too: "nll", "load", "entropy" (of the gate, positive), "align", "usage" [K] (mean
        weights), "share" [K] (share of choices in a top-k mixture, else the usage) and "expert" [K] (each expert's
        error over the levels at which it answers, bits per dimension of the whole range).
    """
    level_key, noise_key, gate_key = jax.random.split(key, 3)
    low, high = gated.gamma_range
    gamma = _levels(level_key, batch.rows, total, low, high)
    z, eps = _noisy(batch.images, batch.rows, gamma, noise_key, scale)
    keys = noise.image_keys(gate_key, batch.rows) if train else None
    blend = gated.blend(z, gamma, keys=keys, dropout_key=dropout_key)
    nll = _bpd(jnp.mean((eps - blend.eps_hat) ** 2), high - low)
    mixing = jnp.exp(blend.log_weights)
    usage = regularisers.usage_over_devices(mixing, mean)
    load = regularisers.load_penalty(usage, mean(regularisers.uniform_usage(blend.available)))
    negative_entropy = regularisers.negative_entropy(blend.log_weights)
    align = jnp.mean(regularisers.alignment(blend.log_weights, batch.members * blend.available))
    loss = nll + penalties.load * load + penalties.entropy * negative_entropy + penalties.align * align
    picked = jnp.exp(blend.chosen) > 0
    errors = jnp.mean((eps[:, None] - blend.each) ** 2, axis=(2, 3, 4))
    answered = jnp.mean(jnp.where(blend.available, errors, 0), axis=0) / jnp.maximum(
        mean(jnp.mean(blend.available, axis=0)), 1e-9
    )
    figures = {
        "nll": nll,
        "load": load,
        "entropy": -negative_entropy,
        "align": align,
        "usage": usage,
        "share": usage
        if gated.top_k is None
        else jnp.mean(picked, axis=0) / jnp.mean(jnp.sum(picked, axis=1)),
        "expert": _bpd(answered, high - low),
    }
    return loss, jax.lax.stop_gradient(figures)


def warm_loss(
    gated: Gated,
    batch: Batch,
    key: Key[Array, ""],
    *,
    total: int,
    scale: PixelScale,
    penalties: Penalties = PENALTIES,
    dropout_key: Key[Array, ""] | None = None,
    train: bool = True,
    mean: Callable = lambda tree: tree,
) -> tuple[Float[Array, ""], dict[str, Float[Array, "..."]]]:
    """Phase 1: every expert on its own slice. Arguments and figures as in `mixture_loss`.

    Args:
        batch: image b belongs to slice b mod K (see `gate_step.warm_places`), also in a device's part: whole groups
            of K images.

    Returns:
        As `mixture_loss`; "nll" is the mean of the experts' own errors, "load" is zero.
    """
    level_key, noise_key, gate_key = jax.random.split(key, 3)
    count = len(gated.experts)
    assert len(batch.images) % count == 0, "parts of a warm-up batch are whole groups of K images"
    losses, states, levels = [], [], []
    for k, expert in enumerate(gated.experts):
        low, high = expert.gamma_range
        rows = batch.rows[k::count]
        gamma = _levels(level_key, rows // count, total // count, low, high)
        z, eps = _noisy(batch.images[k::count], rows, gamma, noise_key, scale)
        own = None if dropout_key is None else jax.random.fold_in(dropout_key, k)
        losses.append(_bpd(jnp.mean((eps - expert.network_eps(z, gamma, key=own)) ** 2), high - low))
        states.append(z)
        levels.append(gamma)
    z, gamma = (jnp.stack(part, axis=1).reshape(-1, *part[0].shape[1:]) for part in (states, levels))
    keys = noise.image_keys(gate_key, batch.rows) if train else None
    log_weights = gated.log_weights(z, gamma, keys=keys)
    align = jnp.mean(regularisers.alignment(log_weights, batch.members * gated.available(gamma)))
    nll = jnp.mean(jnp.stack(losses))
    usage = jnp.mean(jnp.exp(log_weights), axis=0)
    figures = {
        "nll": nll,
        "load": jnp.zeros_like(nll),
        "entropy": -regularisers.negative_entropy(log_weights),
        "align": align,
        "usage": usage,
        "share": usage,
        "expert": jnp.stack(losses),
    }
    return nll + penalties.align * align, jax.lax.stop_gradient(figures)
