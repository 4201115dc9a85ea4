"""Merging experts gives an expert.

`Switch` is the paper's merge (arXiv 2511.19434, Eq. 10): one expert at low noise, another above a
threshold, no training. `Mixture` blends experts with weights that depend on the noise level. Both are
experts, so merges nest: a mixture between two single-expert ranges is a switch of switches.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxmerge import noise
from jaxmerge.experts.base import Expert, Piece, per_image
from jaxmerge.experts.labels import Labels
from jaxmerge.noise import GAMMA_SLACK, PixelScale


def common(experts: Sequence[Expert], attribute: str, what: str) -> Any:
    """The value that all experts share; None if none of them fixes it."""
    values = {getattr(e, attribute) for e in experts} - {None}
    if len(values) > 1:
        raise ValueError(
            f"experts that are merged must have the same {what}, got {sorted(map(str, values))}; "
            "choose experts made for the same images."
        )
    return values.pop() if values else None


def eta_range(low: Expert, high: Expert) -> tuple[float, float]:
    """(eta_min, eta_max): the thresholds that both experts allow, as positions in the merged range."""
    span = low.gamma_range[0], high.gamma_range[1]
    lowest, highest = (noise.eta_of_gamma(g, *span) for g in (high.gamma_range[0], low.gamma_range[1]))
    return max(lowest, 0.0), min(highest, 1.0)


class Merge(Expert):
    """What every merge has from its experts: images, labels, smoothness.

    Labels are passed on to those of its experts that have classes. Two conditional experts must have the same
    classes, or be given their labels before they are merged.
    """

    def _inside(self) -> list[Expert]:
        return [leaf for leaf in jax.tree.leaves(self, is_leaf=self._is_inside) if isinstance(leaf, Expert)]

    def _is_inside(self, node) -> bool:
        return isinstance(node, Expert) and node is not self

    def _each(self, change: Callable[[Expert], Expert]) -> "Merge":
        """The same merge of changed experts."""
        return jax.tree.map(
            lambda leaf: change(leaf) if isinstance(leaf, Expert) else leaf, self, is_leaf=self._is_inside
        )

    @property
    def smooth(self) -> bool:
        return all(expert.smooth for expert in self._inside())

    @property
    def pixel_scale(self) -> PixelScale | None:
        return common(self._inside(), "pixel_scale", "grey levels")

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        return common(self._inside(), "image_shape", "image shape")

    @property
    def classes(self) -> int | None:
        return common(self._inside(), "classes", "number of classes")

    def with_labels(self, labels: Labels) -> "Merge":
        if self.classes is None:
            return super().with_labels(labels)
        return self._each(lambda expert: expert if expert.classes is None else expert.with_labels(labels))

    def of_image(self, index: Int[Array, ""]) -> "Merge":
        return self._each(lambda expert: expert.of_image(index))


@jax.tree_util.register_pytree_with_keys_class
class Switch(Merge):
    """`low` where gamma <= the threshold, `high` above it (Eq. 10).

    Args:
        low: answers at low noise (the paper's VDM).
        high: answers at high noise (the paper's EDM).
        eta: the threshold as a position in the merged range [low's lower end, high's upper end].
        gamma: the threshold as a noise level; give one of the two.

    The threshold is a leaf: changing it never recompiles.

    Raises:
        ValueError: no or two thresholds, a threshold outside either expert's range (slack 0.02 in
            gamma), or experts for different images.

    Example:
        >>> merged = Switch(vdm, edm, eta=0.2)
        >>> merged.eps_hat(z, 1.5).shape == z.shape
        True
    """

    def __init__(self, low: Expert, high: Expert, eta: float | None = None, *, gamma: float | None = None):
        if (eta is None) == (gamma is None):
            raise ValueError(f"Switch needs exactly one of eta and gamma, got eta={eta} and gamma={gamma}.")
        common((low, high), "pixel_scale", "grey levels")
        common((low, high), "image_shape", "image shape")
        self.low, self.high = low, high
        self.gamma = noise.gamma_of_eta(eta, *self.gamma_range) if gamma is None else gamma
        if not isinstance(self.gamma, jax.core.Tracer):
            self._check(float(self.gamma))

    def _check(self, gamma: float) -> None:
        lowest = max(self.low.gamma_range[0], self.high.gamma_range[0])
        highest = min(self.low.gamma_range[1], self.high.gamma_range[1])
        if not lowest - GAMMA_SLACK <= gamma <= highest + GAMMA_SLACK:
            etas = eta_range(self.low, self.high)
            raise ValueError(
                f"the threshold must lie inside both experts' ranges, eta from {etas[0]:.4f} to "
                f"{etas[1]:.4f} (gamma from {lowest:.4f} to {highest:.4f}), got eta = "
                f"{noise.eta_of_gamma(gamma, *self.gamma_range):.4f} (gamma = {gamma:.4f})."
            )

    @property
    def eta(self) -> float | Float[Array, ""]:
        """The threshold as a position in the merged range."""
        return noise.eta_of_gamma(self.gamma, *self.gamma_range)

    @property
    def gamma_range(self) -> tuple[float, float]:
        return self.low.gamma_range[0], self.high.gamma_range[1]

    def pieces(self) -> tuple[Piece, ...]:
        """The pieces of both sides, cut at the threshold."""
        below = [Piece(*_cut(p, upper=self.gamma), p.expert) for p in self.low.pieces()]
        above = [Piece(*_cut(p, lower=self.gamma), p.expert) for p in self.high.pieces()]
        return tuple(below + above)

    def eps_hat(self, z: Float[Array, "B H W C"], gamma) -> Float[Array, "B H W C"]:
        """Runs exactly one expert, by a ``lax.cond`` on the scalar gamma.

        Under ``vmap`` over gamma a cond runs both sides, so levels per image are refused.

        Raises:
            ValueError: gamma is not a scalar.
        """
        if jnp.ndim(gamma) != 0:
            raise ValueError(
                f"a switch takes one scalar gamma, got the shape {list(jnp.shape(gamma))}; solve piece by "
                "piece (see pieces()) or call it once per noise level."
            )
        gamma = jnp.asarray(gamma, z.dtype)
        return jax.lax.cond(
            gamma <= jnp.asarray(self.gamma, z.dtype),
            lambda: self.low.eps_hat(z, gamma),
            lambda: self.high.eps_hat(z, gamma),
        )

    def tree_flatten_with_keys(self):
        names = ("low", "high", "gamma")
        return [(jax.tree_util.GetAttrKey(n), getattr(self, n)) for n in names], None

    @classmethod
    def tree_unflatten(cls, _, children):
        self = object.__new__(cls)
        self.low, self.high, self.gamma = children
        return self


def _cut(piece: Piece, lower=None, upper=None):
    """The piece's ends after a cut; a piece that lies beyond the cut becomes empty."""
    ends = (piece.gamma_low, piece.gamma_high)
    if lower is not None:
        ends = tuple(_maximum(g, lower) for g in ends)
    if upper is not None:
        ends = tuple(_minimum(g, upper) for g in ends)
    return ends


def _is_number(*values) -> bool:
    return all(isinstance(v, int | float) for v in values)


def _maximum(a, b):
    return max(a, b) if _is_number(a, b) else jnp.maximum(a, b)


def _minimum(a, b):
    return min(a, b) if _is_number(a, b) else jnp.minimum(a, b)


@jax.tree_util.register_pytree_with_keys_class
class Mixture(Merge):
    """Sum over experts of w_k(gamma) eps_hat_k, with weights tabulated over gamma.

    Every expert is asked at every level, so the mixture's range is what all of them share; outside it,
    switch to a single expert. Weights need not be positive or sum to 1 (the affine optimum of the bound
    has negative ones); between the table's levels they are interpolated linearly, beyond its ends they
    stay constant.

    Args:
        experts: K experts.
        gammas: increasing noise levels of the table [G].
        weights: [G, K], or [K] for constant weights.

    Raises:
        ValueError: shapes that do not fit, levels that do not increase, experts for different images or
            without a common range.
    """

    def __init__(
        self,
        experts: Sequence[Expert],
        weights: Float[Array, "G K"] | Float[Array, " K"],
        gammas: Float[Array, " G"] | None = None,
    ):
        experts = tuple(experts)
        weights = jnp.asarray(weights)
        if gammas is None:
            gammas = jnp.zeros(1)
            weights = weights[None] if weights.ndim == 1 else weights
        gammas = jnp.asarray(gammas)
        if weights.shape != (len(gammas), len(experts)):
            raise ValueError(
                f"weights must have the shape [{len(gammas)} levels, {len(experts)} experts], got "
                f"{list(weights.shape)}."
            )
        if not isinstance(gammas, jax.core.Tracer) and np.any(np.diff(gammas) <= 0):
            raise ValueError("the mixture's gammas must increase strictly; sort them and drop repeated ones.")
        common(experts, "pixel_scale", "grey levels")
        common(experts, "image_shape", "image shape")
        self.experts, self.gammas, self.weights = experts, gammas, weights
        low, high = self.gamma_range
        if low >= high:
            raise ValueError(
                f"experts that are mixed must share a range of noise levels, got {[e.gamma_range for e in experts]}."
            )

    @property
    def gamma_range(self) -> tuple[float, float]:
        ranges = [e.gamma_range for e in self.experts]
        return max(r[0] for r in ranges), min(r[1] for r in ranges)

    def pieces(self) -> tuple[Piece, ...]:
        """One piece, or several where an expert in the mixture has a jump of its own."""
        low, high = self.gamma_range
        inner = [p.gamma_high for e in self.experts for p in e.pieces()[:-1]]
        if not inner:
            return (Piece(low, high, self),)
        cuts = jnp.sort(jnp.clip(jnp.stack([jnp.asarray(g) for g in inner]), low, high))
        edges = [low, *cuts, high]
        return tuple(Piece(a, b, self._between(a, b)) for a, b in itertools.pairwise(edges))

    def _between(self, low, high) -> "Mixture":
        """The same mixture with each expert replaced by a smooth one between two neighbouring jumps."""
        middle = 0.5 * (low + high)
        smooth = [_Routed(e, middle) if len(e.pieces()) > 1 else e for e in self.experts]
        return Mixture(smooth, self.weights, self.gammas)

    def eps_hat(self, z: Float[Array, "B H W C"], gamma) -> Float[Array, "B H W C"]:
        levels = jnp.broadcast_to(jnp.asarray(gamma, z.dtype), z.shape[:1])
        total = jnp.zeros_like(z)
        for k, expert in enumerate(self.experts):
            weight = jnp.interp(levels, self.gammas.astype(z.dtype), self.weights[:, k].astype(z.dtype))
            total = total + per_image(weight, z) * expert.eps_hat(z, gamma)
        return total

    def tree_flatten_with_keys(self):
        names = ("experts", "gammas", "weights")
        return [(jax.tree_util.GetAttrKey(n), getattr(self, n)) for n in names], None

    @classmethod
    def tree_unflatten(cls, _, children):
        self = object.__new__(cls)
        self.experts, self.gammas, self.weights = children
        return self


@jax.tree_util.register_pytree_with_keys_class
class _Routed(Merge):
    """The piece of `expert` that answers at `level`, asked at any gamma: smooth where `expert` jumps."""

    def __init__(self, expert: Expert, level: float | Float[Array, ""]):
        self.expert, self.level = expert, level

    @property
    def gamma_range(self) -> tuple[float, float]:
        return self.expert.gamma_range

    @property
    def pixel_scale(self):
        return self.expert.pixel_scale

    @property
    def image_shape(self):
        return self.expert.image_shape

    def eps_hat(self, z: Float[Array, "B H W C"], gamma) -> Float[Array, "B H W C"]:
        pieces = self.expert.pieces()
        index = sum(jnp.asarray(self.level > p.gamma_high, jnp.int32) for p in pieces[:-1])
        return jax.lax.switch(index, [lambda p=p: p.expert.eps_hat(z, gamma) for p in pieces])

    def tree_flatten_with_keys(self):
        names = ("expert", "level")
        return [(jax.tree_util.GetAttrKey(n), getattr(self, n)) for n in names], None

    @classmethod
    def tree_unflatten(cls, _, children):
        self = object.__new__(cls)
        self.expert, self.level = children
        return self
