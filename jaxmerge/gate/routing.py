"""Choosing experts per image, and running each of them only on the images that chose it.

Dense evaluation costs K networks per image. With the k best experts per image the work falls towards
k/K of it, if experts run on gathered images: expert e has n_e images, gets them in chunks of a fixed
number C of slots (shapes stay static) and runs ceil(n_e / C) times, not at all for n_e = 0. No image is
ever dropped. The waste is at most C - 1 slots per expert, so small chunks cost least work and large
ones fewest calls.
"""

import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxmerge.experts.base import Expert, per_image

# The log-weight of an expert that is left out: exp gives exactly zero, and no gradient becomes NaN as
# it would from -inf.
EXCLUDED = -1e30


def normalised(logits: Float[Array, "B K"], allowed: Bool[Array, "*B K"]) -> Float[Array, "B K"]:
    """log softmax over the allowed experts; the others get `EXCLUDED`."""
    log_weights = jax.nn.log_softmax(jnp.where(allowed, logits, EXCLUDED), axis=-1)
    return jnp.where(allowed, log_weights, EXCLUDED)


def select(
    log_weights: Float[Array, "B K"],
    k: int,
    *,
    bias: Float[Array, " K"] | None = None,
    renormalise: bool = True,
) -> Float[Array, "B K"]:
    """Keeps the k largest weights of each image.

    Args:
        log_weights: normalised, `EXCLUDED` where an expert does not answer.
        k: experts per image.
        bias: added to the log-weights for the choice alone, never to the weights (balancing without an
            auxiliary loss; Wang et al. 2024).
        renormalise: whether the kept weights sum to 1 again. The article adds the two weighted updates
            as they are, which shrinks the predicted noise.

    Returns:
        Log-weights with `EXCLUDED` in place of all others.
    """
    scores = log_weights if bias is None else log_weights + jax.lax.stop_gradient(bias)
    _, best = jax.lax.top_k(scores, k)
    kept = jnp.any(jax.nn.one_hot(best, scores.shape[-1], dtype=bool), axis=1)
    # Written so that a weight that is not a number is kept and shows in the result.
    kept = kept & ~(log_weights <= EXCLUDED)
    return normalised(log_weights, kept) if renormalise else jnp.where(kept, log_weights, EXCLUDED)


def slots(batch: int, k: int, count: int, factor: float) -> int:
    """Slots per pass, ceil(factor k B / K): at factor 1 uniform routing needs one pass per expert."""
    return max(1, min(batch, math.ceil(factor * k * batch / count)))


def dispatch(
    experts: Iterable[Expert],
    z: Float[Array, "B H W C"],
    gamma: Float[Array, ""] | float,
    weights: Float[Array, "B K"],
    *,
    capacity: int,
) -> tuple[Float[Array, "B H W C"], Int[Array, " K"]]:
    """Sum over experts of weights times eps_hat, each expert run on the images with a weight only.

    Args:
        experts: K experts.
        z: noisy images.
        gamma: one noise level for all of them.
        weights: zero where an expert is not wanted.
        capacity: slots C per pass.

    Returns:
        The weighted sum and the number of passes of each expert.
    """
    total, passes = jnp.zeros_like(z), []
    for k, expert in enumerate(experts):
        total, ran = _serve(expert, z, gamma, weights[:, k], total, capacity)
        passes.append(ran)
    return total, jnp.stack(passes)


def _serve(expert, z, gamma, weights, total, capacity):
    """Adds one expert's share to `total`; returns its passes too."""
    batch = len(z)
    # A weight that is not a number is wanted, so that it shows in the result.
    wanted = ~(weights == 0)
    waiting = jnp.sum(wanted)
    padding = jnp.full(-batch % capacity, batch)
    queue = jnp.concatenate([jnp.argsort(~wanted, stable=True), padding])
    passes = -(-waiting // capacity)

    def serve(number, total):
        seats = jax.lax.dynamic_slice(queue, (number * capacity,), (capacity,))
        taken = number * capacity + jnp.arange(capacity) < waiting
        eps = expert.of_image(seats).eps_hat(z.at[seats].get(mode="clip"), gamma)
        share = per_image(weights.at[seats].get(mode="clip"), eps) * eps
        share = jnp.where(taken[:, None, None, None], share, 0)
        return total.at[seats].add(share, mode="drop")

    return jax.lax.fori_loop(0, passes, serve, total), passes
