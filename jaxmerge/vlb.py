"""The variational lower bound, and every expert's error curve over the noise range.

    -log P(x) <= prior + reconstruction + diffusion, in nats                      (Eq. 1-3, 9)
    prior          = KL(N(alpha_1 x, sigma_1^2 I) || N(0, I)) at gamma_max
    reconstruction = -E log p(x | z_0) at gamma_min
    diffusion      = 1/2 integral of E ||eps - eps_hat(z_gamma, gamma)||^2 dgamma

(arXiv 2511.19434; Kingma et al. 2021). The integrand at each gamma belongs to one expert. So one pass
that records what each expert makes of the same noise gives the bound of every threshold as a cumulative
sum, the best routing, and the best weights per gamma, without asking any merge.

Noise levels are stratified with a random offset per image, and every threshold is a stratum edge: the
estimate stays unbiased, and a threshold never cuts through a stratum.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from jaxmerge import decoder, noise, parallel, sampling
from jaxmerge.experts.base import Expert, per_image
from jaxmerge.noise import GAMMA_SLACK, PixelScale


def prior_kl(x: Float[Array, "B H W C"], gamma_max) -> Float[Array, " B"]:
    """KL(N(alpha x, sigma^2 I) || N(0, I)) in nats; x in VDM's pixel scale."""
    gamma = jnp.asarray(gamma_max, x.dtype)
    alpha2 = jax.nn.sigmoid(-gamma)
    # -log sigma^2 = softplus(-gamma), and sigma^2 - 1 = -alpha^2: no cancellation at high noise.
    return 0.5 * jnp.sum(alpha2 * (x**2 - 1) + jax.nn.softplus(-gamma), axis=(1, 2, 3))


def reconstruction(
    images: UInt8[Array, "B H W C"], gamma_min, scale: PixelScale, eps: Float[Array, "B H W C"]
) -> Float[Array, " B"]:
    """-log p(x | z_0) in nats for z_0 = alpha_0 x + sigma_0 eps."""
    x = jnp.asarray(scale.values(), eps.dtype)[images]
    gamma = jnp.asarray(gamma_min, eps.dtype)
    return -decoder.log_prob(images, noise.alpha(gamma) * x + noise.sigma(gamma) * eps, gamma, scale)


def prediction_error(
    expert: Expert, x: Float[Array, "B H W C"], gamma: Float[Array, " B"], eps: Float[Array, "B H W C"]
) -> Float[Array, "B H W C"]:
    """eps - eps_hat(alpha x + sigma eps, gamma), one noise level per image."""
    g = per_image(gamma, x)
    return eps - expert.eps_hat(noise.alpha(g) * x + noise.sigma(g) * eps, gamma)


class Moments(NamedTuple):
    """What one pass over images records.

    Attributes:
        products: inner products <e_k, e_l> of the experts' errors e = eps - eps_hat per image and stratum
            [N, S, K, K]; zero where an expert does not answer.
        prior: prior term of each expert's own upper end [N, K], nats.
        reconstruction: reconstruction term of each expert's own lower end [N, K], nats.
    """

    products: Float[Array, "N S K K"]
    prior: Float[Array, "N K"]
    reconstruction: Float[Array, "N K"]


def moments(
    experts: Sequence[Expert],
    images: UInt8[Array, "B H W C"],
    edges: Float[Array, " S1"],
    *,
    key: Key[Array, ""],
    index: Int[Array, " B"],
    scale: PixelScale,
) -> Moments:
    """Errors of single-piece experts on the same noise, one draw per image and stratum.

    Args:
        experts: K experts that take one noise level per image.
        images: grey levels.
        edges: increasing stratum edges [S + 1]; an expert answers in the strata inside its range.
        key: the noise of image i comes from (key, index[i]).
        index: identity of each image.
        scale: grey levels.
    """
    x = scale.encode(images)
    count = len(edges) - 1
    keys = noise.image_keys(key, index)

    def stratum(s):
        stratum_keys = jax.vmap(lambda k: jax.random.fold_in(k, s))(keys)
        offset = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, 0)))(stratum_keys)
        eps = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 1), x.shape[1:]))(stratum_keys)
        gamma = edges[s] + offset * (edges[s + 1] - edges[s])
        middle = 0.5 * (edges[s] + edges[s + 1])

        def ask(expert):
            low, high = expert.gamma_range
            inside = (middle > low - GAMMA_SLACK) & (middle < high + GAMMA_SLACK)
            return jax.lax.cond(
                inside, lambda: prediction_error(expert, x, gamma, eps), lambda: jnp.zeros_like(x)
            )

        errors = jnp.stack([ask(e) for e in experts], axis=1).reshape(len(x), len(experts), -1)
        return jnp.einsum("bkd,bld->bkl", errors, errors)

    with jax.default_matmul_precision("highest"):
        products = jax.lax.map(stratum, jnp.arange(count))
    eps0 = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, count), x.shape[1:]))(keys)
    prior = [prior_kl(x, e.gamma_range[1]) for e in experts]
    recon = [reconstruction(images, e.gamma_range[0], scale, eps0) for e in experts]
    return Moments(jnp.moveaxis(products, 0, 1), jnp.stack(prior, 1), jnp.stack(recon, 1))


def _batch(scale, experts, edges, key, images, index):
    return moments(experts, images, edges, key=key, index=index, scale=scale)


@dataclasses.dataclass(frozen=True)
class Curves:
    """Error curves of K experts on N images: everything the bound can say about their merges.

    Attributes:
        names: of the experts.
        ranges: (low, high) in gamma of each expert.
        edges: stratum edges [S + 1].
        moments: averaged over repeats.
        dimensions: D, values per image.
    """

    names: tuple[str, ...]
    ranges: tuple[tuple[float, float], ...]
    edges: Float[np.ndarray, " S1"]
    moments: Moments
    dimensions: int

    @property
    def bits(self) -> float:
        """Nats per image to bits per dimension."""
        return 1.0 / (self.dimensions * math.log(2))

    @property
    def centres(self) -> Float[np.ndarray, " S"]:
        """Middle of every stratum."""
        return 0.5 * (self.edges[1:] + self.edges[:-1])

    def answers(self) -> np.ndarray:
        """Whether expert k answers in stratum s [K, S]."""
        low, high = np.array(self.ranges).T[:, :, None]
        return (low - GAMMA_SLACK < self.centres) & (self.centres < high + GAMMA_SLACK)

    def density(self) -> Float[np.ndarray, "K S"]:
        """1/2 E||eps - eps_hat||^2 of each expert, bits per dimension and unit of gamma; NaN outside its range."""
        squared = np.einsum("skk->ks", self.gram())
        return np.where(self.answers(), 0.5 * self.bits * squared, np.nan)

    def diffusion(self) -> Float[np.ndarray, "N K S"]:
        """Contribution of every stratum to the diffusion term, bits per dimension, per image and expert."""
        squared = np.einsum("nskk->nks", np.asarray(self.moments.products, np.float64))
        return 0.5 * self.bits * squared * np.diff(self.edges)

    def single(self, k: int) -> Float[np.ndarray, "N 3"]:
        """(prior, reconstruction, diffusion) of expert k on its own over its own range, bits per dimension."""
        low, high = self.ranges[k]
        # The slack of `answers` is for thresholds; ends of ranges are edges themselves.
        own = (self.centres > low) & (self.centres < high)
        diffusion = self.diffusion()[:, k, own].sum(-1)
        return np.stack([self._ends(k, "prior"), self._ends(k, "reconstruction"), diffusion], axis=1)

    def switch(self, gamma: float, low: int = 0, high: int = 1) -> Float[np.ndarray, "N 3"]:
        """(prior, reconstruction, diffusion) of the merge of two experts at a threshold that is an edge.

        Raises:
            ValueError: gamma is not one of the edges, or lies outside either expert's range.
        """
        cut = int(np.argmin(np.abs(self.edges - gamma)))
        if abs(self.edges[cut] - gamma) > 1e-4:
            raise ValueError(
                f"the threshold gamma = {gamma:.4f} must be one of the curve's stratum edges; the nearest is "
                f"{self.edges[cut]:.4f}. Add it to the thresholds when the curves are measured."
            )
        lowest, highest = self.ranges[high][0], self.ranges[low][1]
        if not lowest - GAMMA_SLACK <= gamma <= highest + GAMMA_SLACK:
            raise ValueError(
                f"the threshold must lie inside both experts' ranges, gamma from {lowest:.4f} to {highest:.4f}, "
                f"got gamma = {gamma:.4f}."
            )
        each, number = self.diffusion(), np.arange(len(self.centres))
        below = (number < cut) & (self.centres > self.ranges[low][0])
        above = (number >= cut) & (self.centres < self.ranges[high][1])
        diffusion = each[:, low, below].sum(-1) + each[:, high, above].sum(-1)
        return np.stack([self._ends(high, "prior"), self._ends(low, "reconstruction"), diffusion], axis=1)

    def _ends(self, k: int, term: str) -> Float[np.ndarray, " N"]:
        return self.bits * np.asarray(getattr(self.moments, term), np.float64)[:, k]

    def gram(self) -> Float[np.ndarray, "S K K"]:
        """Second moments of the experts' errors per stratum, averaged over images."""
        return np.asarray(self.moments.products, np.float64).mean(0)


def stratum_edges(experts: Sequence[Expert], thresholds: Sequence[float], per_interval: int) -> np.ndarray:
    """Edges at every threshold and every end of a range, with `per_interval` strata between neighbours.

    Raises:
        ValueError: fewer than one stratum per interval.
    """
    if per_interval < 1:
        raise ValueError(f"the number of strata per interval must be at least 1, got {per_interval}.")
    marks = sorted({*thresholds, *(g for e in experts for g in e.gamma_range)})
    # Ends that differ by rounding are one mark.
    kept = [marks[0]] + [b for a, b in itertools.pairwise(marks) if b - a > 1e-4]
    parts = [np.linspace(a, b, per_interval, endpoint=False) for a, b in itertools.pairwise(kept)]
    return np.concatenate([*parts, [kept[-1]]])


def error_curves(
    experts: dict[str, Expert],
    images: UInt8[np.ndarray, "N H W C"],
    *,
    key: Key[Array, ""],
    thresholds: Sequence[float] = (),
    index: Int[np.ndarray, " N"] | None = None,
    per_interval: int = 4,
    repeats: int = 1,
    batch_size: int = 128,
    advance: Callable[[int], None] = lambda n: None,
) -> Curves:
    """One pass over images that records every expert's error on the same noise, sharded over all devices.

    Args:
        experts: single-piece experts by name, for the same grey levels.
        images: grey levels [N, H, W, C].
        key: the noise of image i comes from (key, index[i], repeat).
        thresholds: noise levels that become stratum edges.
        index: identity of each image; its position by default.
        per_interval: strata between neighbouring thresholds.
        repeats: independent draws per image and stratum, averaged.
        batch_size: images per device and call.
        advance: called with the number of images done.

    Returns:
        The curves, on the host.
    """
    models = tuple(experts.values())
    scale = models[0].pixel_scale
    images = scale.check(images, models[0].image_shape)
    index = np.arange(len(images)) if index is None else np.asarray(index)
    edges = stratum_edges(models, thresholds, per_interval)
    total = None
    for r in range(repeats):
        one = parallel.map_batches(
            _batch,
            (scale,),
            (models, np.asarray(edges, np.float32), jax.random.fold_in(key, r)),
            (images, index),
            batch_size=batch_size,
            advance=advance,
        )
        total = one if total is None else jax.tree.map(np.add, total, one)
    ranges = tuple(tuple(float(g) for g in e.gamma_range) for e in models)
    mean = jax.tree.map(lambda a: a / repeats, total)
    return Curves(tuple(experts), ranges, edges, mean, math.prod(images.shape[1:]))


def bound(
    expert: Expert,
    images: UInt8[Array, "B H W C"],
    *,
    key: Key[Array, ""],
    index: Int[Array, " B"] | None = None,
    scale: PixelScale | None = None,
    strata: int = 64,
) -> Float[Array, "B 3"]:
    """(prior, reconstruction, diffusion) of any expert in bits per dimension, continuous time; jit it.

    Every piece gets `strata` noise levels; thresholds may be traced.

    Args:
        expert: any expert.
        images: grey levels.
        key, index: the noise of image i comes from (key, index[i]).
        scale: grey levels, where the expert does not know them itself.
        strata: noise levels per image and piece.
    """
    scale = scale or expert.pixel_scale
    index = jnp.arange(len(images)) if index is None else index
    diffusion = 0.0
    for number, piece in enumerate(expert.pieces()):
        edges = piece.gamma_low + (piece.gamma_high - piece.gamma_low) * jnp.linspace(0, 1, strata + 1)
        one = moments(
            (piece.expert,),
            images,
            edges,
            key=jax.random.fold_in(key, number),
            index=index,
            scale=scale,
        )
        diffusion += 0.5 * jnp.sum(one.products[:, :, 0, 0] * jnp.diff(edges), axis=1)
    low, high = expert.gamma_range
    x = scale.encode(images)
    eps0 = noise.image_normal(jax.random.fold_in(key, 2**31 - 1), index, x.shape[1:])
    terms = jnp.stack([prior_kl(x, high), reconstruction(images, low, scale, eps0), diffusion], axis=1)
    return terms / (math.prod(images.shape[1:]) * math.log(2))


def discrete_diffusion(
    expert: Expert,
    images: UInt8[Array, "B H W C"],
    steps: int,
    *,
    key: Key[Array, ""],
    index: Int[Array, " B"] | None = None,
    scale: PixelScale | None = None,
) -> Float[Array, " B"]:
    """The diffusion term of T discrete steps, every step evaluated once, in bits per dimension.

    sum over t of 1/2 expm1(gamma_t - gamma_s) ||eps - eps_hat(z_t, gamma_t)||^2, s = t - 1 (Kingma et al.
    2021, Eq. 14). For T to infinity it falls to the continuous-time term.

    Args:
        expert: any expert.
        images: grey levels.
        steps: T, uniform in gamma over the expert's range.
        key, index, scale: as in `bound`.
    """
    scale = scale or expert.pixel_scale
    index = jnp.arange(len(images)) if index is None else index
    x = scale.encode(images)
    low, high = expert.gamma_range
    width = (high - low) / steps
    total = jnp.zeros(len(x), x.dtype)
    for single, first, last in sampling.piece_nodes(expert, steps):

        def step(i, total, single=single, first=first):
            t = first + 1 + i
            eps = noise.image_normal(jax.random.fold_in(key, t), index, x.shape[1:])
            gamma = jnp.full(len(x), low + width * t, x.dtype)
            return total + jnp.sum(prediction_error(single, x, gamma, eps) ** 2, axis=(1, 2, 3))

        with jax.default_matmul_precision("highest"):
            total = jax.lax.fori_loop(0, last - first, step, total)
    return 0.5 * math.expm1(width) * total / (math.prod(images.shape[1:]) * math.log(2))
