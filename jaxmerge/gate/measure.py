"""What a gate does on a data set: its bound, who answers at which noise level, and for which images.

One pass records, per image and draw, the noise level, the weights, and the squared errors of the mixture
and of each expert on the same noise. Everything else is averages of that on the host. The noise of image i
in draw r follows from (key, r, index[i]), the levels are spread evenly over range and images.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from jaxmerge import noise, parallel
from jaxmerge.experts.base import per_image
from jaxmerge.gate import regularisers
from jaxmerge.gate.gated import Gated
from jaxmerge.noise import PixelScale

# Levels of one image in successive draws are this far apart: the golden ratio spreads any number of them.
STRIDE = (math.sqrt(5) - 1) / 2


def _draw(scale, gated, key, position, images, index):
    low, high = gated.gamma_range
    gamma = low + (high - low) * position
    x = scale.encode(images)
    eps = noise.image_normal(key, index, x.shape[1:])
    g = per_image(gamma, x)
    blend = gated.blend(noise.alpha(g) * x + noise.sigma(g) * eps, gamma)
    mean = tuple(range(2, 5))
    return {
        "gamma": gamma,
        "error": jnp.mean((eps - blend.eps_hat) ** 2, axis=(1, 2, 3)),
        "errors": jnp.mean((eps[:, None] - blend.each) ** 2, axis=mean),
        "weights": jnp.exp(blend.log_weights),
        "used": jnp.exp(blend.chosen),
        "available": blend.available,
    }


@dataclasses.dataclass(frozen=True)
class Measured:
    """R draws on N images of a mixture of K experts.

    Attributes:
        gamma: noise levels [R, N].
        error: mean squared error of the mixture's eps_hat, per value [R, N].
        errors: of each expert [R, N, K]; meaningless where it does not answer.
        weights: of the gate [R, N, K].
        used: those that were used, after a choice of the top k [R, N, K].
        available: whether an expert answers [R, N, K].
        gamma_range: of the mixture.
    """

    gamma: Float[np.ndarray, "R N"]
    error: Float[np.ndarray, "R N"]
    errors: Float[np.ndarray, "R N K"]
    weights: Float[np.ndarray, "R N K"]
    used: Float[np.ndarray, "R N K"]
    available: Bool[np.ndarray, "R N K"]
    gamma_range: tuple[float, float]

    @property
    def factor(self) -> float:
        """From a squared error per value to bits per dimension of the diffusion term."""
        low, high = self.gamma_range
        return (high - low) / (2 * math.log(2))

    def diffusion_bpd(self, images: Bool[np.ndarray, " N"] | None = None) -> tuple[float, float]:
        """Diffusion term of the bound in bits per dimension and the standard error over the draws."""
        error = self.error if images is None else self.error[:, images]
        if error.size == 0:
            return math.nan, math.nan
        draws = self.factor * np.mean(error, axis=1, dtype=np.float64)
        return float(draws.mean()), float(draws.std(ddof=1) / math.sqrt(len(draws))) if len(
            draws
        ) > 1 else math.nan

    def usage(self) -> Float[np.ndarray, " K"]:
        """Mean weight of each expert."""
        return self.weights.mean((0, 1), dtype=np.float64)

    def entropy(self) -> float:
        """Mean entropy of the weights per image and step, nats."""
        return float(regularisers.entropy_of(self.weights.astype(np.float64)).mean())

    def expert_bpd(self) -> Float[np.ndarray, " K"]:
        """Each expert's mean error in bits per dimension of the whole range, over the levels it answers at."""
        total = np.sum(self.errors * self.available, axis=(0, 1), dtype=np.float64)
        return self.factor * total / np.maximum(self.available.sum((0, 1)), 1)

    def by_level(self, edges: int | Sequence[float] = 16) -> dict[str, np.ndarray]:
        """Usage, entropy and effective experts per bin of noise levels.

        Args:
            edges: of the bins, rising, from one end of the mixture's range to the other; or their number, for bins of
                equal width.

        Returns:
            "gamma" [bins] (centres), "count" [bins], "usage" [bins, K], "entropy" [bins] (mean over images and
            steps) and "effective" [bins], exp(entropy); NaN in empty bins.
        """
        ends = np.linspace(*self.gamma_range, edges + 1) if isinstance(edges, int) else np.asarray(edges)
        bins = len(ends) - 1
        number = np.searchsorted(ends[1:-1], self.gamma.ravel(), side="right")
        count = np.bincount(number, minlength=bins)

        def mean(values):
            with np.errstate(invalid="ignore"):
                return np.bincount(number, values.ravel(), minlength=bins) / count

        weights = self.weights.reshape(-1, self.weights.shape[-1]).astype(np.float64)
        entropy = mean(regularisers.entropy_of(weights))
        return {
            "gamma": (ends[1:] + ends[:-1]) / 2,
            "count": count,
            "usage": np.stack([mean(w) for w in weights.T], axis=1),
            "entropy": entropy,
            "effective": regularisers.effective_experts(entropy),
        }

    def slice_accuracy(self, members: Bool[np.ndarray, "N K"]) -> Float[np.ndarray, " K"]:
        """Share of slice k's images (over all draws) whose largest weight is expert k's; NaN for no images.

        Of n largest weights each is one with a share of 1/n: equal weights are right in 1/K of the cases.
        """
        largest = self.weights == self.weights.max(-1, keepdims=True)
        hits = largest / largest.sum(-1, keepdims=True)
        inside = np.broadcast_to(members, hits.shape)
        with np.errstate(invalid="ignore"):
            return np.sum(hits * inside, axis=(0, 1)) / inside.sum((0, 1))

    def usage_by_slice(self, members: Bool[np.ndarray, "N S"]) -> Float[np.ndarray, "S K"]:
        """Mean weights over each slice's images."""
        mean = self.weights.mean(0, dtype=np.float64)
        with np.errstate(invalid="ignore"):
            return members.T.astype(float) @ mean / members.sum(0)[:, None]

    def bpd_by_slice(self, members: Bool[np.ndarray, "N S"]) -> Float[np.ndarray, " S"]:
        """Diffusion term per slice, bits per dimension."""
        return np.array([self.diffusion_bpd(column)[0] for column in members.T])

    def collapse_warning(self) -> str | None:
        """A sentence if one expert has more than 95 % of the weight that is used, else None."""
        used = self.used.mean((0, 1), dtype=np.float64)
        return regularisers.collapse_warning(used / used.sum())


def measure(
    gated: Gated,
    images: UInt8[np.ndarray, "N H W C"],
    *,
    key: Key[Array, ""],
    index: Int[np.ndarray, " N"] | None = None,
    repeats: int = 8,
    scale: PixelScale | None = None,
    batch_size: int = 128,
    advance: Callable[[int], None] = lambda n: None,
) -> Measured:
    """Evaluates all experts and the gate on images, sharded over all local devices.

    Args:
        gated: the mixture.
        images: grey levels.
        key, index: the noise of image i in draw r follows from (key, r, index[i]).
        repeats: draws R per image.
        scale: grey levels, where the experts do not know them.
        batch_size: images per device and call.
        advance: called with the number of images done.

    Returns:
        Figures on the host.
    """
    scale = scale or gated.pixel_scale
    images = scale.check(images, gated.image_shape)
    count = len(images)
    index = np.arange(count) if index is None else np.asarray(index)
    draws = []
    for r in range(repeats):
        position = ((np.arange(count) + 0.5) / count + r * STRIDE) % 1.0
        draws.append(
            parallel.map_batches(
                _draw,
                (scale,),
                (gated, jax.random.fold_in(key, r)),
                (position.astype(np.float32), images, index),
                batch_size=batch_size,
                advance=advance,
            )
        )
    stacked = {name: np.stack([d[name] for d in draws]) for name in draws[0]}
    return Measured(gamma_range=gated.gamma_range, **stacked)
