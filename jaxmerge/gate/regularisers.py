"""What a gate's weights should look like: the penalties of its objective and the figures of its use.

With w_bk the weight of expert k for image b and u_k = mean_b w_bk its usage,

    L_load = K sum_k (u_k - t_k)^2,   t_k = 1/K        (zero exactly at uniform usage)
    L_ent  = mean_b sum_k w_bk log w_bk                (negative entropy: higher entropy is rewarded)

Where some experts do not answer at every noise level, t is the usage of a gate that is uniform over
those that do.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

COLLAPSE = 0.95


def load_penalty(usage: Float[Array, " K"], target: Float[Array, " K"] | None = None) -> Float[Array, ""]:
    """K sum_k (u_k - t_k)^2, between 0 and K - 1.

    Args:
        usage: mean weight of each expert over the whole batch, on all devices.
        target: 1/K each by default.
    """
    count = len(usage)
    target = 1.0 / count if target is None else target
    return count * jnp.sum((usage - target) ** 2)


def uniform_usage(available: Bool[Array, "B K"]) -> Float[Array, " K"]:
    """Usage of a gate that is uniform over the experts that answer at each image's level."""
    return jnp.mean(available / jnp.sum(available, axis=-1, keepdims=True), axis=0)


def negative_entropy(log_weights: Float[Array, "B K"]) -> Float[Array, ""]:
    """mean_b sum_k w log w, in nats; experts that are left out add nothing."""
    return jnp.mean(jnp.sum(jnp.exp(log_weights) * log_weights, axis=-1))


def alignment(log_weights: Float[Array, "B K"], members: Float[Array, "B K"]) -> Float[Array, " B"]:
    """Cross-entropy of the weights against an even split over the slices that an image belongs to.

    Zero for images in no slice.
    """
    share = members / jnp.maximum(jnp.sum(members, axis=-1, keepdims=True), 1)
    return -jnp.sum(jnp.where(share > 0, share * log_weights, 0), axis=-1)


def balanced(bias: Float[Array, " K"], usage: Float[Array, " K"], rate: float) -> Float[Array, " K"]:
    """The bias of the choice after one step: up by `rate` for experts below 1/K, down for those above.

    Wang et al. 2024, Algorithm 1.
    """
    return bias + rate * jnp.sign(1.0 / len(usage) - usage)


def effective_experts(entropy: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """exp(H): 1 where one expert has all the weight, K at uniform weights."""
    return np.exp(entropy)


def collapse_warning(usage: Float[np.ndarray, " K"]) -> str | None:
    """A sentence if one expert has more than 95 % of the weight, else None."""
    worst = int(np.argmax(usage))
    if usage[worst] <= COLLAPSE or len(usage) == 1:
        return None
    return (
        f"the gate has collapsed: expert {worst} has {100 * usage[worst]:.1f} % of the weight; raise the load "
        "penalty, or use its expert alone."
    )


def entropy_of(weights: Float[np.ndarray, "... K"]) -> Float[np.ndarray, "..."]:
    """Entropy in nats of weights that may be zero."""
    return -np.sum(weights * np.log(np.where(weights > 0, weights, 1.0)), axis=-1)


def usage_over_devices(weights: Float[Array, "B K"], mean) -> Float[Array, " K"]:
    """Usage over the batches of all devices; `mean` averages over devices (the identity on one).

    Its gradient is that of the local usage: once gradients are averaged over devices, they are those of
    a penalty on the whole batch, whatever rule a backend has for differentiating collectives.
    """
    local = jnp.mean(weights, axis=0)
    return local + jax.lax.stop_gradient(mean(local) - local)
