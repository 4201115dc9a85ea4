"""Small experts for tests: one that records each call at run time, and closed forms of a few dimensions."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxmerge.experts.analytic import Gaussian, GaussianMixture
from jaxmerge.experts.base import Expert, per_image
from jaxmerge.noise import PixelScale

# The digits experiment's merged range, and the two experts' own.
MERGED = (-7.864, 8.764)
LOW, HIGH = (-7.864, 5.0), (-6.994, 8.764)
SHAPE = (2, 2, 1)


class Calls:
    """Which expert was evaluated at which noise level, recorded by the running program."""

    def __init__(self):
        self.log: list[tuple[str, float]] = []

    def of(self, name: str) -> list[float]:
        """Noise levels at which `name` was evaluated since `clear`."""
        jax.effects_barrier()
        return [gamma for n, gamma in self.log if n == name]

    def counts(self) -> dict[str, int]:
        jax.effects_barrier()
        names = [n for n, _ in self.log]
        return {n: names.count(n) for n in names}

    def clear(self) -> None:
        jax.effects_barrier()
        self.log.clear()


@struct.dataclass
class Recorder(Expert):
    """eps_hat = slope * z + gamma / 10, recorded in `calls` whenever it is computed (not when it is traced)."""

    slope: float
    name: str = struct.field(pytree_node=False, default="only")
    calls: Calls | None = struct.field(pytree_node=False, default=None)
    gamma_range: tuple[float, float] = struct.field(pytree_node=False, default=MERGED)
    pixel_scale: PixelScale | None = struct.field(pytree_node=False, default=None)
    image_shape: tuple[int, int, int] | None = struct.field(pytree_node=False, default=None)

    def eps_hat(self, z, gamma):
        if self.calls is not None:
            level = jnp.mean(jnp.asarray(gamma, z.dtype))
            jax.debug.callback(lambda g: self.calls.log.append((self.name, float(g))), level)
        return jnp.asarray(self.slope, z.dtype) * z + 0.1 * per_image(gamma, z)


def covariance(seed: int, d: int = 4, scale: float = 0.4, floor: float = 0.02) -> np.ndarray:
    factor = np.random.default_rng(seed).normal(size=(d, d)) * scale / np.sqrt(d)
    return factor @ factor.T + floor * np.eye(d)


def gaussian(gamma_range=MERGED) -> Gaussian:
    mean = np.random.default_rng(0).normal(size=SHAPE) * 0.3
    return Gaussian.from_covariance(mean, covariance(1), gamma_range=gamma_range)


def mixture(gamma_range=MERGED, shape=SHAPE, spread: float = 0.4) -> GaussianMixture:
    """Three components with full covariances."""
    d = int(np.prod(shape))
    means = np.random.default_rng(2).normal(size=(3, *shape)) * spread
    matrices = [covariance(k, d) for k in (3, 4, 5)]
    return GaussianMixture.from_covariances([0.2, 0.5, 0.3], means, matrices, gamma_range=gamma_range)


def states(expert, gamma: float, count: int, dtype=np.float32, seed: int = 0) -> jnp.ndarray:
    """Draws of the expert's own marginal at `gamma` (a closed-form expert)."""
    x = np.asarray(jax.jit(type(expert).sample, static_argnums=2)(expert, jax.random.key(seed), count))
    eps = np.random.default_rng(seed).normal(size=x.shape)
    z = x / np.sqrt(1 + np.exp(gamma)) + eps / np.sqrt(1 + np.exp(-gamma))
    return jnp.asarray(z, dtype)
