"""The gated mixture of experts, one more expert: eps_hat = sum_k w_k(z, gamma) eps_hat_k(z, gamma).

Weights are a softmax of a gate's logits, for each image at each noise level; with `top_k` only the
largest of them are kept, and only those experts run.

Ranges. An expert answers inside its own range of noise levels only: elsewhere its weight is zero and the
others are renormalised. So the mixture covers the union of the ranges, and its field jumps in gamma where
one of them ends: there it is cut into pieces, each a smooth mixture of the experts that answer in it.
Ends that lie within the house's slack of 0.02 count as one.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxmerge.experts.base import Expert, Piece, per_image
from jaxmerge.gate import routing
from jaxmerge.merge import Merge, common
from jaxmerge.noise import GAMMA_SLACK

_STATIC = ("top_k", "renormalise", "capacity_factor", "active", "tally")


class Region(NamedTuple):
    """Noise levels between two ends of ranges, and the numbers of the experts that answer there."""

    low: float
    high: float
    active: tuple[int, ...]


def regions(ranges: Sequence[tuple[float, float]]) -> tuple[Region, ...]:
    """Cuts the union of ranges at their ends; ends within the slack of one another are one cut.

    Raises:
        ValueError: a gap between the ranges.
    """
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    cuts = [low]
    for end in sorted(end for r in ranges for end in r):
        if end > cuts[-1] + GAMMA_SLACK and end < high - GAMMA_SLACK:
            cuts.append(end)
    cuts.append(high)
    found = []
    for a, b in itertools.pairwise(cuts):
        active = tuple(k for k, r in enumerate(ranges) if r[0] <= a + GAMMA_SLACK and r[1] >= b - GAMMA_SLACK)
        if not active:
            raise ValueError(
                f"gated experts must cover their noise levels without a gap, between gamma {a:.4f} and {b:.4f} "
                "none of them answers; add one that does."
            )
        found.append(Region(a, b, active))
    return tuple(found)


class Blend(NamedTuple):
    """A mixture's prediction with what it is made of, for training and diagnostics.

    Attributes:
        eps_hat: the mixture's [B, H, W, C].
        each: every expert's [B, K, H, W, C]; zero where it does not answer.
        log_weights: of the gate before any choice [B, K].
        chosen: log-weights that were used [B, K]; those of the gate in a dense mixture.
        available: whether an expert answers at the image's level [B, K].
    """

    eps_hat: Float[Array, "B H W C"]
    each: Float[Array, "B K H W C"]
    log_weights: Float[Array, "B K"]
    chosen: Float[Array, "B K"]
    available: Bool[Array, "B K"]


@jax.tree_util.register_pytree_with_keys_class
class Gated(Merge):
    """Experts, weighted by a gate for each image at each noise level.

    With `top_k` and one gamma for the whole batch (fixed grid, ancestral, Heun), images are grouped by
    expert and each expert runs only where it was chosen (see ``routing.py``). Levels per image, and
    batches of one image (adaptive steps per image), evaluate all experts and leave out the weights that
    were not chosen: the same numbers without the saving. A top-k field jumps with z, so `smooth` is False
    and an exact likelihood is refused; bound and samplers take it.

    Args:
        experts: K single-piece experts, or an `AdapterBank`.
        gate: called as ``gate(z, gamma, keys=None)``, returns logits [B, K].
        top_k: experts per image; None for all of them.
        renormalise: whether the kept weights sum to 1 again (the article's do not).
        capacity_factor: slots per pass of an expert, in units of its share of uniform routing.
        bias: [K], added to the log-weights for the choice of experts alone; zeros by default.

    Raises:
        ValueError: experts with jumps of their own, for different images, or with a gap between their
            ranges; a gate for another number of experts; a top_k that is not between 1 and K.

    Example:
        >>> gate = Gate(2, gamma_range=(-7.9, 8.8), shape=(8, 8, 1), rngs=nnx.Rngs(0))
        >>> mixture = Gated((vdm, edm), gate)
        >>> mixture.eps_hat(z, 1.5).shape == z.shape
        True
    """

    def __init__(
        self,
        experts: Sequence[Expert],
        gate: Callable[..., Float[Array, "B K"]],
        *,
        top_k: int | None = None,
        renormalise: bool = True,
        capacity_factor: float = 0.25,
        bias: Float[Array, " K"] | None = None,
    ):
        experts = tuple(experts) if isinstance(experts, list) else experts
        count = len(experts)
        if gate.count != count:
            raise ValueError(
                f"the gate must have one output per expert, got {gate.count} for {count} experts."
            )
        if top_k is not None and not 1 <= top_k <= count:
            raise ValueError(f"top_k must be between 1 and the number of experts {count}, got {top_k}.")
        if not capacity_factor > 0:
            raise ValueError(f"capacity_factor must be positive, got {capacity_factor}.")
        if any(len(e.pieces()) > 1 for e in experts):
            raise ValueError(
                "experts of a gated mixture must be single networks, got a merge with several pieces; gate the "
                "experts inside it."
            )
        common(experts, "pixel_scale", "grey levels")
        common(experts, "image_shape", "image shape")
        self.experts, self.gate = experts, gate
        self.bias = jnp.zeros(count) if bias is None else jnp.asarray(bias)
        self.top_k, self.renormalise, self.capacity_factor = top_k, renormalise, capacity_factor
        self.active, self.tally = None, None
        self.regions()

    def but(self, **changes: Any) -> "Gated":
        """The same mixture with some attributes changed (experts, gate, bias, top_k, ...)."""
        new = object.__new__(Gated)
        new.__dict__.update(self.__dict__ | changes)
        return new

    def regions(self) -> tuple[Region, ...]:
        """Where which experts answer; one region for the part of a mixture inside one piece."""
        ranges = [e.gamma_range for e in self.experts]
        if self.active is None:
            return regions(ranges)
        own = [ranges[k] for k in self.active]
        return (Region(max(r[0] for r in own), min(r[1] for r in own), self.active),)

    @property
    def gamma_range(self) -> tuple[float, float]:
        parts = self.regions()
        return parts[0].low, parts[-1].high

    @property
    def smooth(self) -> bool:
        """Whether eps_hat is continuous in z: not where a choice of experts depends on it."""
        chooses = self.top_k is not None and any(self.top_k < len(r.active) for r in self.regions())
        return super().smooth and self.gate.smooth and not chooses

    def pieces(self) -> tuple[Piece, ...]:
        """One piece per region: the mixture of the experts that answer there, or the only one."""
        return tuple(Piece(r.low, r.high, self._within(r)) for r in self.regions())

    def _within(self, region: Region) -> Expert:
        if len(region.active) == 1 and self.tally is None:
            return self.experts[region.active[0]]
        return self.but(active=region.active)

    def available(self, gamma: Float[Array, " B"]) -> Bool[Array, "B K"]:
        """Which experts answer at each level."""
        parts = self.regions()
        table = np.zeros((len(parts), len(self.experts)), bool)
        for row, region in zip(table, parts, strict=True):
            row[list(region.active)] = True
        return jnp.asarray(table)[_region_of(parts, gamma)]

    def log_weights(
        self, z: Float[Array, "B H W C"], gamma: Float[Array, " B"], *, keys: Key[Array, " B"] | None = None
    ) -> Float[Array, "B K"]:
        """Log of the gate's weights, normalised over the experts that answer; keys switch dropout on."""
        return routing.normalised(self.gate(z, gamma, keys=keys), self.available(gamma))

    def choose(self, log_weights: Float[Array, "B K"]) -> Float[Array, "B K"]:
        """Log-weights that are used: all in a dense mixture, else the `top_k` largest."""
        if self.top_k is None:
            return log_weights
        return routing.select(log_weights, self.top_k, bias=self.bias, renormalise=self.renormalise)

    def eps_hat(self, z: Float[Array, "B H W C"], gamma) -> Float[Array, "B H W C"]:
        parts = self.regions()
        if jnp.ndim(gamma) != 0:
            return self.blend(z, gamma).eps_hat
        if len(parts) == 1:
            return self._within_one(parts[0], z, gamma)[0]
        return jax.lax.switch(
            _region_of(parts, jnp.asarray(gamma, z.dtype)),
            [lambda r=r: self._within_one(r, z, gamma)[0] for r in parts],
        )

    def routed(
        self, z: Float[Array, "B H W C"], gamma: Float[Array, ""] | float
    ) -> tuple[Float[Array, "B H W C"], Int[Array, " K"]]:
        """`eps_hat` at one level with the passes of each expert that ran, for a mixture of one region.

        Raises:
            ValueError: experts with different ranges; ask the pieces.
        """
        parts = self.regions()
        if len(parts) > 1:
            raise ValueError(
                f"passes are counted where one set of experts answers, this mixture has {len(parts)} such ranges; "
                "ask the experts of its pieces()."
            )
        return self._within_one(parts[0], z, gamma)

    def capacity(self, batch: int) -> int:
        """Slots per pass in a batch of this size."""
        active = len(self.active or self.experts)
        return routing.slots(batch, min(self.top_k or active, active), active, self.capacity_factor)

    def _within_one(self, region: Region, z, gamma):
        """eps_hat and passes at one level; only the region's experts are touched."""
        inside = self.but(active=region.active)
        levels = jnp.broadcast_to(jnp.asarray(gamma, z.dtype), z.shape[:1])
        weights = jnp.exp(inside.choose(inside.log_weights(z, levels))).astype(z.dtype)[
            :, list(region.active)
        ]
        experts = [self.experts[k] for k in region.active]
        sparse = self.top_k is not None and self.top_k < len(experts) and len(z) > 1
        if sparse:
            capacity = inside.capacity(len(z))
            total, ran = routing.dispatch(experts, z, gamma, weights, capacity=capacity)
        else:
            parts = [per_image(weights[:, i], z) * e.eps_hat(z, gamma) for i, e in enumerate(experts)]
            total, capacity, ran = sum(parts), len(z), jnp.ones(len(experts), jnp.int32)
        passes = jnp.zeros(len(self.experts), ran.dtype).at[np.array(region.active)].set(ran)
        if self.tally is not None:
            jax.debug.callback(self.tally.add, passes, len(z), capacity)
        return total, passes

    def blend(
        self,
        z: Float[Array, "B H W C"],
        gamma: Float[Array, " B"],
        *,
        keys: Key[Array, " B"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Blend:
        """Every expert's prediction and the mixture of them, at one level per image.

        Args:
            z: noisy images.
            gamma: noise levels [B].
            keys: one per image, for the gate's dropout.
            dropout_key: for the experts' dropout.
        """
        gamma = jnp.asarray(gamma, z.dtype)
        available = self.available(gamma)
        log_weights = self.log_weights(z, gamma, keys=keys)
        chosen = self.choose(log_weights)
        each = []
        for k, expert in enumerate(self.experts):
            if self.active is not None and k not in self.active:
                each.append(jnp.zeros_like(z))
                continue
            # Asked at an end of its range where it does not answer: finite, and left out.
            level = jnp.where(available[:, k], gamma, jnp.clip(gamma, *expert.gamma_range))
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, k)
            eps = expert.network_eps(z, level, key=key).astype(z.dtype)
            each.append(jnp.where(available[:, k, None, None, None], eps, 0))
        each = jnp.stack(each, axis=1)
        eps_hat = jnp.einsum("bk,bkhwc->bhwc", jnp.exp(chosen).astype(z.dtype), each, precision="highest")
        return Blend(eps_hat, each, log_weights, chosen, available)

    def tree_flatten_with_keys(self):
        names = ("experts", "gate", "bias")
        children = [(jax.tree_util.GetAttrKey(n), getattr(self, n)) for n in names]
        return children, tuple(getattr(self, n) for n in _STATIC)

    @classmethod
    def tree_unflatten(cls, static, children):
        self = object.__new__(cls)
        self.experts, self.gate, self.bias = children
        self.__dict__.update(zip(_STATIC, static, strict=True))
        return self


def _region_of(parts: Sequence[Region], gamma) -> Int[Array, "..."]:
    """Number of the region of each level; a cut belongs to the region below it."""
    gamma = jnp.asarray(gamma)
    return sum(
        (jnp.asarray(gamma > r.high, jnp.int32) for r in parts[:-1]), jnp.zeros(gamma.shape, jnp.int32)
    )
