"""Closed-form experts: distributions whose noisy marginals are known exactly.

For clean data x ~ p(x) the state z = alpha x + sigma eps has the marginal p_gamma(z), and the best
possible noise prediction is

    eps_hat(z, gamma) = E[eps | z] = (z - alpha E[x | z]) / sigma = -sigma grad_z log p_gamma(z)

(Tweedie's formula; Kingma et al. 2021, Eq. 4 and 9). With N(mu, Sigma) data the marginal is
N(alpha mu, alpha^2 Sigma + sigma^2 I); with a mixture it is a mixture of these; with atoms x_n of
probability p_n it is a mixture of N(alpha x_n, sigma^2 I), and has no density at sigma = 0.

None of the formulas below divides a difference z - alpha E[x | z] by a small sigma: Gaussians are
written in the eigenbasis of Sigma, atoms as an average of the residuals (z - alpha x_n) / sigma. So
they hold at both ends of the noise range in float32 as well as in float64. Parameters are leaves in
NumPy float64; every call casts them to z's dtype, so that one object serves both precisions.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Key, UInt8

from jaxmerge import noise
from jaxmerge.experts.base import Expert, per_image
from jaxmerge.noise import PixelScale

# A closed form is exact at any noise level; these ends only keep float32 away from under- and overflow.
WIDE_GAMMA_RANGE = (-30.0, 30.0)

Leaf = Array | np.ndarray
Gamma = Float[Array, ""] | Float[Array, " B"] | float


@struct.dataclass
class Gaussian(Expert):
    """Images drawn from N(mean, Sigma) with a full covariance over all D = H W C dimensions.

    Attributes:
        mean: [H, W, C], VDM's pixel scale.
        variances: eigenvalues of Sigma [D].
        basis: its eigenvectors as columns [D, D].
        gamma_range: the noise levels that it answers for.

    Example:
        >>> expert = Gaussian.from_covariance(np.zeros((1, 2, 1)), np.array([[1.0, 0.5], [0.5, 2.0]]))
        >>> eps_hat = expert.eps_hat(jnp.ones((4, 1, 2, 1)), -3.0)
    """

    mean: Float[Leaf, "H W C"]
    variances: Float[Leaf, " D"]
    basis: Float[Leaf, "D D"]
    gamma_range: tuple[float, float] = struct.field(pytree_node=False, default=WIDE_GAMMA_RANGE)

    @classmethod
    def from_covariance(cls, mean, covariance, *, gamma_range=WIDE_GAMMA_RANGE) -> "Gaussian":
        """A Gaussian from its mean [H, W, C] and covariance matrix [D, D].

        Raises:
            ValueError: shapes that do not fit, or a matrix that is no covariance.
        """
        mean = _images(mean, "mean", rank=3)
        variances, basis = _eigen(covariance, mean.size)
        return cls(mean, variances, basis, gamma_range)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.mean.shape

    def eps_hat(self, z: Float[Array, "B H W C"], gamma: Gamma) -> Float[Array, "B H W C"]:
        """sigma (alpha^2 Sigma + sigma^2 I)^-1 (z - alpha mean), in z's dtype."""
        return _gaussian_eps(z, per_image(gamma, z), self.mean, self.variances, self.basis)

    def log_prob(self, z: Float[Array, "B H W C"], gamma: Gamma) -> Float[Array, " B"]:
        """log N(z; alpha mean, alpha^2 Sigma + sigma^2 I) in nats, one value per image."""
        return _gaussian_log_prob(z, per_image(gamma, z), self.mean, self.variances, self.basis)

    def sample(self, key: Key[Array, ""], n: int) -> Float[Array, "n H W C"]:
        """n clean images x, float32; the i-th depends on (key, i) alone."""
        eps = noise.image_normal(key, jnp.arange(n), self.variances.shape)
        scaled = eps * jnp.sqrt(jnp.asarray(self.variances, eps.dtype))
        return jnp.asarray(self.mean, eps.dtype) + _rotate(scaled, self.basis.T).reshape(n, *self.mean.shape)


@struct.dataclass
class GaussianMixture(Expert):
    """Images drawn from sum_k w_k N(mean_k, Sigma_k) with full covariances.

    Attributes:
        log_weights: log w_k [K], normalised.
        means: [K, H, W, C], VDM's pixel scale.
        variances: eigenvalues of each Sigma_k [K, D].
        bases: their eigenvectors as columns [K, D, D].
        gamma_range: the noise levels that it answers for.
    """

    log_weights: Float[Leaf, " K"]
    means: Float[Leaf, "K H W C"]
    variances: Float[Leaf, "K D"]
    bases: Float[Leaf, "K D D"]
    gamma_range: tuple[float, float] = struct.field(pytree_node=False, default=WIDE_GAMMA_RANGE)

    @classmethod
    def from_covariances(
        cls, weights, means, covariances, *, gamma_range=WIDE_GAMMA_RANGE
    ) -> "GaussianMixture":
        """A mixture from weights [K], means [K, H, W, C] and covariances.

        Args:
            weights: non-negative [K]; normalised here.
            means: [K, H, W, C].
            covariances: matrices [K, D, D], or one variance per component [K] (isotropic).
            gamma_range: the noise levels that it answers for.

        Raises:
            ValueError: shapes that do not fit, negative weights, or a matrix that is no covariance.
        """
        means = _images(means, "means", rank=4)
        log_weights = _log_probs(weights, len(means), "weights")
        d = means[0].size
        covariances = np.asarray(covariances, np.float64)
        if covariances.shape == (len(means),):
            covariances = covariances[:, None, None] * np.eye(d)
        if covariances.shape != (len(means), d, d):
            raise ValueError(
                f"covariances must have the shape [{len(means)}] or [{len(means)}, {d}, {d}], got "
                f"{list(covariances.shape)}; give one variance or one matrix per component."
            )
        pairs = [_eigen(matrix, d) for matrix in covariances]
        return cls(log_weights, means, *(np.stack(leaf) for leaf in zip(*pairs, strict=True)), gamma_range)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.means.shape[1:]

    def eps_hat(self, z: Float[Array, "B H W C"], gamma: Gamma) -> Float[Array, "B H W C"]:
        """The components' eps_hat, averaged with their posterior weights; in z's dtype."""
        share = jax.nn.softmax(self._joint(z, gamma), axis=0)
        eps = self._each(_gaussian_eps, z, gamma)
        return jnp.sum(share[:, :, None, None, None] * eps, axis=0)

    def log_prob(self, z: Float[Array, "B H W C"], gamma: Gamma) -> Float[Array, " B"]:
        """log sum_k w_k N(z; alpha mean_k, alpha^2 Sigma_k + sigma^2 I) in nats, per image."""
        return logsumexp(self._joint(z, gamma), axis=0)

    def sample(self, key: Key[Array, ""], n: int) -> Float[Array, "n H W C"]:
        """n clean images x, float32; the i-th depends on (key, i) alone."""
        log_weights, means, variances, bases = (
            jnp.asarray(leaf, jnp.float32)
            for leaf in (self.log_weights, self.means, self.variances, self.bases)
        )

        def draw(image_key):
            component_key, noise_key = jax.random.split(image_key)
            k = jax.random.categorical(component_key, log_weights)
            scaled = jax.random.normal(noise_key, variances.shape[1:]) * jnp.sqrt(variances[k])
            return means[k] + _rotate(scaled[None], bases[k].T).reshape(means.shape[1:])

        return jax.vmap(draw)(noise.image_keys(key, jnp.arange(n)))

    def _each(self, function: Callable, z, gamma) -> Float[Array, "K B *rest"]:
        """A Gaussian's function for every component."""
        over_components = jax.vmap(function, in_axes=(None, None, 0, 0, 0))
        return over_components(z, per_image(gamma, z), self.means, self.variances, self.bases)

    def _joint(self, z, gamma) -> Float[Array, "K B"]:
        """log w_k + log N_k(z)."""
        return jnp.asarray(self.log_weights, z.dtype)[:, None] + self._each(_gaussian_log_prob, z, gamma)


@struct.dataclass
class Discrete(Expert):
    """Images drawn from a finite list: atom n with probability p_n.

    The clean distribution has probabilities, not a density; its noisy marginals are the mixtures
    sum_n p_n N(z; alpha x_n, sigma^2 I). Memory is B N D numbers per call.

    Attributes:
        log_probs: log p_n [N], normalised; -inf is allowed.
        atoms: x_n [N, H, W, C], VDM's pixel scale.
        gamma_range: the noise levels that it answers for.
        pixel_scale: the grey levels the atoms were encoded with, None if they were given as they are.

    Example:
        >>> levels = np.arange(17, dtype=np.uint8).reshape(17, 1, 1, 1)
        >>> expert = Discrete.from_images(levels, np.full(17, 1 / 17), scale=PixelScale(17))
        >>> expert.entropy_bits()
        4.08746...
    """

    log_probs: Float[Leaf, " N"]
    atoms: Float[Leaf, "N H W C"]
    gamma_range: tuple[float, float] = struct.field(pytree_node=False, default=WIDE_GAMMA_RANGE)
    pixel_scale: PixelScale | None = struct.field(pytree_node=False, default=None)

    @classmethod
    def from_images(
        cls, images: UInt8[np.ndarray, "N H W C"], probs, *, scale: PixelScale, gamma_range=WIDE_GAMMA_RANGE
    ) -> "Discrete":
        """A distribution on uint8 images with probabilities [N] (normalised here).

        Raises:
            ValueError: images that do not fit the scale, or probabilities that are none.
        """
        images = scale.check(images)
        return cls(_log_probs(probs, len(images), "probs"), scale.values()[images], gamma_range, scale)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.atoms.shape[1:]

    def entropy_bits(self) -> float:
        """Entropy of the clean distribution in bits per image."""
        log_probs = np.asarray(self.log_probs, np.float64)
        kept = log_probs[np.isfinite(log_probs)]
        return float(-np.sum(np.exp(kept) * kept) / np.log(2.0))

    def eps_hat(self, z: Float[Array, "B H W C"], gamma: Gamma) -> Float[Array, "B H W C"]:
        """sum_n p(n | z) (z - alpha x_n) / sigma, in z's dtype."""
        residual = self._residual(z, gamma)
        weight = jax.nn.softmax(self._logits(residual), axis=1)
        eps = jnp.einsum("bn,bnd->bd", weight, residual, precision=jax.lax.Precision.HIGHEST)
        return eps.reshape(z.shape)

    def log_prob(self, z: Float[Array, "B H W C"], gamma: Gamma) -> Float[Array, " B"]:
        """log sum_n p_n N(z; alpha x_n, sigma^2 I) in nats, one value per image."""
        residual = self._residual(z, gamma)
        log_variance = jax.nn.log_sigmoid(per_image(gamma, z)[:, 0, 0, 0])
        constant = 0.5 * residual.shape[2] * (math.log(2.0 * math.pi) + log_variance)
        return logsumexp(self._logits(residual), axis=1) - constant

    def sample(self, key: Key[Array, ""], n: int) -> Float[Array, "n H W C"]:
        """n clean images x, float32; the i-th depends on (key, i) alone."""
        log_probs = jnp.asarray(self.log_probs, jnp.float32)
        drawn = jax.vmap(lambda k: jax.random.categorical(k, log_probs))(noise.image_keys(key, jnp.arange(n)))
        return jnp.asarray(self.atoms, jnp.float32)[drawn]

    def _residual(self, z, gamma) -> Float[Array, "B N D"]:
        """(z - alpha x_n) / sigma; expanding its square instead would lose float32 at low noise."""
        g = per_image(gamma, z)[:, :, :, 0]
        atoms = jnp.asarray(self.atoms, z.dtype).reshape(1, len(self.atoms), -1)
        return (z.reshape(len(z), 1, -1) - noise.alpha(g) * atoms) / noise.sigma(g)

    def _logits(self, residual) -> Float[Array, "B N"]:
        """log p(n, z) up to a term without n."""
        return jnp.asarray(self.log_probs, residual.dtype) - 0.5 * jnp.sum(residual**2, axis=2)


def _rotate(rows, basis):
    return jnp.matmul(rows, jnp.asarray(basis, rows.dtype), precision=jax.lax.Precision.HIGHEST)


def _gaussian_coordinates(z, g, mean, variances, basis):
    """z - alpha mean in the eigenbasis [B, D], and the marginal's variances there [B, D]."""
    rows = (z - noise.alpha(g) * jnp.asarray(mean, z.dtype)).reshape(len(z), -1)
    g = g[:, :, 0, 0]
    return _rotate(rows, basis), jax.nn.sigmoid(-g) * jnp.asarray(variances, z.dtype) + jax.nn.sigmoid(g)


def _gaussian_eps(z, g, mean, variances, basis):
    coordinates, variance = _gaussian_coordinates(z, g, mean, variances, basis)
    return noise.sigma(g) * _rotate(coordinates / variance, basis.T).reshape(z.shape)


def _gaussian_log_prob(z, g, mean, variances, basis):
    coordinates, variance = _gaussian_coordinates(z, g, mean, variances, basis)
    return -0.5 * jnp.sum(coordinates**2 / variance + jnp.log(2.0 * jnp.pi * variance), axis=1)


def _images(values, name: str, rank: int) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != rank:
        want = "[H, W, C]" if rank == 3 else "[K, H, W, C]"
        raise ValueError(
            f"{name} must have the shape {want}, got {list(values.shape)}; reshape it to images."
        )
    return values


def _log_probs(probs, count: int, name: str) -> np.ndarray:
    """Normalised logarithms of `count` non-negative numbers."""
    probs = np.asarray(probs, np.float64)
    if probs.shape != (count,) or not np.all(probs >= 0) or not 0 < probs.sum() < np.inf:
        raise ValueError(
            f"{name} must be {count} non-negative numbers with a positive sum, got the shape "
            f"{list(probs.shape)} and values from {probs.min(initial=np.inf):.4g}; give one per image."
        )
    with np.errstate(divide="ignore"):
        return np.log(probs / probs.sum())


def _eigen(covariance, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues [D] and eigenvectors [D, D] of a covariance matrix, in float64."""
    covariance = np.asarray(covariance, np.float64)
    if covariance.shape != (d, d):
        raise ValueError(
            f"covariance must have the shape [{d}, {d}] (the square of the mean's size), got "
            f"{list(covariance.shape)}; flatten images row by row as in mean.reshape(-1)."
        )
    size = np.abs(covariance).max()
    variances, basis = np.linalg.eigh(covariance)
    asymmetry = np.abs(covariance - covariance.T).max()
    if asymmetry > 1e-6 * size or variances.min() < -1e-6 * size:
        raise ValueError(
            f"covariance must be symmetric with no negative eigenvalue, got an asymmetry of {asymmetry:.2g} "
            f"and the eigenvalue {variances.min():.4g}; estimate it with numpy.cov."
        )
    return np.maximum(variances, 0.0), basis
