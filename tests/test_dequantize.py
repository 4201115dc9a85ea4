"""Dequantisation against discrete distributions of known entropy, quadrature and i-DODE's own figures.

One-pixel truth: P is Dirichlet(0.7) over the V levels (NumPy seed 0), which has the entropies 7.1907 and
3.1512 bits at V = 256 and 17. With the exact marginal density the bounds are 7.1920 and 7.1938, and
3.1526 and 3.1544 bits (measured independently of this code).
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.polynomial.hermite_e import hermegauss
from numpy.polynomial.legendre import leggauss
from scipy import integrate, stats
from scipy.special import log_softmax, logsumexp

from jaxmerge import noise
from jaxmerge.dequantize import (
    METHODS,
    dequantize,
    log_mean_exp,
    standard_noise,
    truncated_normal_entropy,
    truncation,
)
from jaxmerge.experts.analytic import Discrete
from jaxmerge.noise import PixelScale

FIXTURE = Path(__file__).parent / "fixtures" / "likelihood_idode_tiny.npz"
GAMMA = {256: -13.3, 17: -7.86}
KNOWN_BITS = {
    256: {"entropy": 7.1907, "truncated_normal": 7.1920, "variational": 7.1938},
    17: {"entropy": 3.1512, "truncated_normal": 3.1526, "variational": 3.1544},
}


# Converged quadrature (`two_pixel_reference_bits`) for two correlated pixels at V = 17.
TWO_PIXEL_GAP_BITS = {"truncated_normal": 0.0019, "uniform": 0.1137, "variational": 0.0026}

jitted = jax.jit(dequantize, static_argnames=("method", "scale", "dtype"))
image_keys = jax.jit(noise.image_keys)


@functools.cache
def one_pixel(levels):
    probs = np.random.default_rng(0).dirichlet(np.full(levels, 0.7))
    images = np.arange(levels, dtype=np.uint8).reshape(levels, 1, 1, 1)
    return Discrete.from_images(images, probs, scale=PixelScale(levels))


@functools.cache
def two_pixels(levels=17):
    """Two neighbouring pixels, strongly correlated, every pair possible."""
    i = np.arange(levels)
    rough = np.random.default_rng(1).dirichlet(np.full(levels**2, 2.0)).reshape(levels, levels)
    probs = rough * np.exp(-np.abs(i[:, None] - i) / 3.0)
    images = np.stack(np.meshgrid(i, i, indexing="ij"), -1).reshape(-1, 1, 2, 1).astype(np.uint8)
    return Discrete.from_images(images, probs.reshape(-1), scale=PixelScale(levels))


def batch(levels):
    """A scale, six images and their keys."""
    images = np.random.default_rng(0).integers(0, levels, (6, 8, 8, 1)).astype(np.uint8)
    return PixelScale(levels), images, image_keys(jax.random.key(0), jnp.arange(6))


def nodes(method, gamma, levels, count):
    """Quadrature nodes in standardised noise and their probabilities under q."""
    x, w = leggauss(count)
    if method == "uniform":
        return x, w / 2
    if method == "variational":
        x, w = hermegauss(count)
        return x, w / np.sqrt(2 * np.pi)
    tau = np.exp(-gamma / 2) / levels
    return tau * x, tau * w * stats.truncnorm.pdf(tau * x, -tau, tau)


@functools.partial(jax.jit, static_argnames=("method", "scale"))
def values(method, expert, images, u, gamma, scale):
    """log p(z) + log p(x|z) + entropy of given images and standardised noise, float64."""
    d = dequantize(method, images, scale=scale, gamma=gamma, noise=u, dtype=u.dtype)
    return expert.log_prob(d.z, d.gamma) + d.log_p_x_given_z + d.entropy


def bound_bits(method, expert, gamma, count):
    """-E[log p(z) + log p(x|z) + entropy] in bits by quadrature over all images and all noise."""
    scale, pixels = expert.pixel_scale, int(np.prod(expert.image_shape))
    u, w = nodes(method, gamma, scale.levels, count)
    grid = np.stack(np.meshgrid(*[u] * pixels, indexing="ij"), -1).reshape(-1, *expert.image_shape)
    weight = functools.reduce(np.multiply.outer, [w] * pixels).reshape(-1)
    images = np.asarray(scale.nearest(jnp.asarray(expert.atoms)))
    parts = scale.levels ** (pixels - 1)
    total = 0.0
    with jax.enable_x64(True):
        for part, log_p in zip(np.split(images, parts), np.split(expert.log_probs, parts), strict=True):
            batch, noise_of_all = np.repeat(part, len(grid), axis=0), np.tile(grid, (len(part), 1, 1, 1))
            value = values(method, expert, batch, noise_of_all, gamma, scale)
            total += float(np.exp(log_p) @ (np.asarray(value).reshape(len(part), -1) @ weight))
    return -total / np.log(2)


def reference_bits(method, levels, gamma):
    """The same for one pixel by SciPy's adaptive quadrature, from the definitions alone."""
    log_p = one_pixel(levels).log_probs
    x = 2 * (np.arange(levels) + 0.5) / levels - 1
    alpha, sigma = 1 / np.sqrt(1 + np.exp(gamma)), 1 / np.sqrt(1 + np.exp(-gamma))
    tau = alpha / (levels * sigma)

    def log_density(z):
        return logsumexp(log_p + stats.norm.logpdf(z, alpha * x, sigma))

    def of_level(i):
        q = {
            "truncated_normal": lambda: stats.truncnorm(-tau, tau, alpha * x[i], sigma),
            "uniform": lambda: stats.uniform(alpha * (x[i] - 1 / levels), 2 * alpha / levels),
            "variational": lambda: stats.norm(alpha * x[i], sigma),
        }[method]()
        half = 9 * sigma if method == "variational" else alpha / levels

        def integrand(z):
            decoder = (
                log_softmax(-0.5 * ((z / alpha - x) / (sigma / alpha)) ** 2)[i]
                if method == "variational"
                else 0
            )
            return q.pdf(z) * (log_density(z) + decoder - q.logpdf(z))

        edge = half * (1 - 1e-12)
        points = alpha * x[i] + np.array([-alpha / levels, 0.0, alpha / levels])
        return integrate.quad(
            integrand, alpha * x[i] - edge, alpha * x[i] + edge, points=points, epsabs=1e-9, limit=200
        )[0]

    return -sum(np.exp(log_p[i]) * of_level(i) for i in range(levels)) / np.log(2)


@pytest.mark.parametrize("levels", [256, 17])
def test_the_distribution_has_the_known_entropy(levels):
    assert one_pixel(levels).entropy_bits() == pytest.approx(KNOWN_BITS[levels]["entropy"], abs=6e-5)


@pytest.mark.parametrize("method", ["truncated_normal", "variational"])
@pytest.mark.parametrize("levels", [256, 17])
def test_one_pixel_lies_above_the_entropy_by_the_known_gap(levels, method):
    bits = bound_bits(method, one_pixel(levels), GAMMA[levels], count=120)
    assert bits == pytest.approx(KNOWN_BITS[levels][method], abs=1e-4)
    assert bits > one_pixel(levels).entropy_bits() + 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_one_pixel_agrees_with_independent_quadrature(method):
    gamma = PixelScale(17).uniform_gamma if method == "uniform" else PixelScale(17).gamma_min
    bits = bound_bits(method, one_pixel(17), gamma, count=120)
    assert bits == pytest.approx(reference_bits(method, 17, gamma), abs=1e-6)
    assert bits > one_pixel(17).entropy_bits()


def two_pixel_reference_bits(method, gamma, count):
    """The bound for `two_pixels` from the definitions, in NumPy, pixel by pixel."""
    levels, expert = 17, two_pixels()
    table = np.exp(expert.log_probs).reshape(levels, levels)
    x = 2 * (np.arange(levels) + 0.5) / levels - 1
    alpha, sigma = 1 / np.sqrt(1 + np.exp(gamma)), 1 / np.sqrt(1 + np.exp(-gamma))
    u, w = nodes(method, gamma, levels, count)
    z = alpha * (x[:, None] + u / levels) if method == "uniform" else alpha * x[:, None] + sigma * u
    kernel = stats.norm.pdf(z[..., None], alpha * x, sigma)  # [level, node, atom level]
    density = np.einsum("iua,ab,jvb->ijuv", kernel, table, kernel)
    own = kernel[np.arange(levels), :, np.arange(levels)]
    extra = {
        "truncated_normal": lambda: np.log(2 * stats.norm.cdf(alpha / (levels * sigma)) - 1) - np.log(own),
        "uniform": lambda: np.full_like(own, np.log(2 * alpha / levels)),
        "variational": lambda: -np.log(kernel.sum(-1)),
    }[method]()
    log_ratio = np.log(density) + extra[:, None, :, None] + extra[None, :, None, :]
    return -np.einsum("ij,u,v,ijuv->", table, w, w, log_ratio) / np.log(2)


@pytest.mark.parametrize("method", METHODS)
def test_two_correlated_pixels_lie_above_the_entropy_by_the_expected_gap(method):
    gamma = PixelScale(17).uniform_gamma if method == "uniform" else PixelScale(17).gamma_min
    coarse = bound_bits(method, two_pixels(), gamma, count=12)
    assert coarse == pytest.approx(two_pixel_reference_bits(method, gamma, count=12), abs=1e-6)
    gap = two_pixel_reference_bits(method, gamma, count=120) - two_pixels().entropy_bits()
    assert gap == pytest.approx(TWO_PIXEL_GAP_BITS[method], abs=2e-4)


@pytest.mark.parametrize("method", METHODS)
def test_two_independent_pixels_add_up_at_256_levels(method):
    """The exact expert on all 65 536 pairs gives the sum of two one-pixel bounds, draw by draw."""
    single, scale = one_pixel(256), PixelScale(256)
    gamma = scale.uniform_gamma if method == "uniform" else scale.gamma_min
    level = np.arange(256, dtype=np.uint8)
    pairs = np.stack(np.meshgrid(level, level, indexing="ij"), -1).reshape(-1, 1, 2, 1)
    log_p = np.asarray(single.log_probs)
    pair = Discrete.from_images(pairs, np.exp(log_p[:, None] + log_p).reshape(-1), scale=scale)
    assert pair.entropy_bits() == pytest.approx(2 * single.entropy_bits(), rel=1e-9)
    images = np.random.default_rng(0).integers(0, 256, size=(8, 1, 2, 1)).astype(np.uint8)
    u = standard_noise(method, image_keys(jax.random.key(1), jnp.arange(8)), (1, 2, 1), scale, gamma)
    both = values(method, pair, images, u, gamma, scale)
    left, right = (values(method, single, images[:, :, i], u[:, :, i], gamma, scale) for i in ([0], [1]))
    np.testing.assert_allclose(both, left + right, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_entropy_is_the_mean_of_neg_log_q(method):
    scale = PixelScale(17)
    images = jnp.zeros((4000, 2, 3, 1), jnp.uint8)
    d = jitted(method, images, scale=scale, keys=image_keys(jax.random.key(0), jnp.arange(4000)))
    error = float(d.neg_log_q.std()) / np.sqrt(4000)
    assert float(d.neg_log_q.mean()) == pytest.approx(float(d.entropy[0]), abs=5 * error + 1e-5)
    assert d.z.shape == images.shape and d.entropy.shape == d.neg_log_q.shape == (4000,)


@pytest.mark.parametrize("levels, gamma", [(256, -13.3), (17, -7.86), (256, -12.43), (2, -1.0)])
def test_truncated_normal_entropy_equals_scipy(levels, gamma):
    alpha, sigma = 1 / np.sqrt(1 + np.exp(gamma)), 1 / np.sqrt(1 + np.exp(-gamma))
    tau = alpha / (levels * sigma)
    expected = stats.truncnorm(-tau, tau, scale=sigma).entropy()
    with jax.enable_x64(True):
        assert float(truncation(jnp.float64(gamma), PixelScale(levels))) == pytest.approx(tau, rel=1e-12)
        entropy = truncated_normal_entropy(jnp.float64(gamma), PixelScale(levels))
        assert float(entropy) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_importance_draws_tighten_the_bound_and_never_beat_the_truth(method, count=6):
    """Uses the uniform dequantisation's gap (tenths of a bit) and the small ones of the others."""
    expert, scale = one_pixel(17), PixelScale(17)
    levels = np.repeat(np.arange(17, dtype=np.uint8), 400).reshape(-1, 1, 1, 1)
    key = jax.random.key(0)

    @jax.jit
    def log_weight(k):
        keys = noise.image_keys(jax.random.fold_in(key, k), jnp.arange(len(levels)))
        d = dequantize(method, jnp.asarray(levels), scale=scale, keys=keys)
        return expert.log_prob(d.z, d.gamma) + d.log_p_x_given_z + d.neg_log_q

    log_weights = np.asarray(jnp.stack([log_weight(k) for k in range(count)]), np.float64)
    probs = np.repeat(np.exp(expert.log_probs), 400) / 400

    def bits(per_image):
        return -float(probs @ np.asarray(per_image)) / np.log(2)

    one, many, truth = (
        bits(log_weights.mean(0)),
        bits(log_mean_exp(jnp.asarray(log_weights))),
        expert.entropy_bits(),
    )
    assert truth - 1e-3 < many < one
    assert many - truth < 0.6 * (one - truth)
    # Without -log K the "bound" would undercut the entropy by log2(6) = 2.6 bits.
    assert bits(logsumexp(log_weights, axis=0)) < truth - 2


def test_likelihood_fixture_of_idode_is_reproduced():
    """z0, tau and the entropy term of i-DODE's public code (float64, V = 256, gamma = -13.3)."""
    fixture = np.load(FIXTURE)
    scale = PixelScale(256)
    with jax.enable_x64(True):
        d = dequantize(
            "truncated_normal",
            jnp.asarray(fixture["image"]),
            scale=scale,
            gamma=-13.3,
            noise=jnp.asarray(fixture["u"]),
            dtype=jnp.float64,
        )
        np.testing.assert_allclose(d.z, fixture["z0"], rtol=0, atol=1e-9)
        np.testing.assert_allclose(d.entropy, np.full(2, fixture["entropy_term"]), rtol=1e-7)
        assert float(truncation(d.gamma, scale)) == pytest.approx(float(fixture["tau"]), rel=1e-7)
        log_p = fixture["prior_logp"] + fixture["delta_logp_1e-09"] + np.asarray(d.entropy)
    np.testing.assert_allclose(-log_p / (192 * np.log(2)), fixture["bpd_1e-09"], atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_noise_belongs_to_its_image_whatever_its_place_and_dtype(method):
    scale, images, keys = batch(17)
    whole = jitted(method, images, scale=scale, keys=keys)
    backwards = jitted(method, images[::-1], scale=scale, keys=keys[::-1])
    np.testing.assert_array_equal(whole.z[::-1], backwards.z)
    np.testing.assert_allclose(whole.log_p_x_given_z[::-1], backwards.log_p_x_given_z, rtol=1e-5)
    with jax.enable_x64(True):
        double = jitted(method, images, scale=scale, keys=keys, dtype=jnp.float64)
        assert {value.dtype for value in double} == {jnp.dtype(jnp.float64)}
    assert {value.dtype for value in whole} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(whole.z, double.z, atol=1e-6)
    np.testing.assert_allclose(whole.entropy, double.entropy, rtol=1e-6)


@pytest.mark.parametrize("levels", [17, 256])
@pytest.mark.parametrize("method", ["truncated_normal", "uniform"])
def test_bounded_noise_stays_inside_its_grey_level(method, levels):
    scale, images, keys = batch(levels)
    d = jitted(method, images, scale=scale, keys=keys)
    x = np.asarray(d.z) / np.asarray(noise.alpha(d.gamma))
    assert np.abs(x - scale.values()[images]).max() <= (1 + 1e-4) / levels
    assert not d.log_p_x_given_z.any()


@pytest.mark.parametrize("method", METHODS)
def test_default_noise_levels(method):
    scale, images, keys = batch(17)
    d = jitted(method, images, scale=scale, keys=keys)
    assert float(d.gamma) == pytest.approx(scale.uniform_gamma if method == "uniform" else scale.gamma_min)


def test_the_same_keys_give_nearly_the_same_noise_at_another_truncation():
    scale, _, keys = batch(256)
    draw = jax.jit(lambda gamma: standard_noise("truncated_normal", keys, (16, 16, 1), scale, gamma))
    low, high = np.ravel(draw(-13.3)), np.ravel(draw(-12.43))
    assert np.corrcoef(low, high)[0, 1] > 0.98
    np.testing.assert_array_equal(np.argsort(low), np.argsort(high))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"method": "gaussian"}, "truncated_normal, uniform, variational.*'gaussian'"),
        ({"images": jnp.zeros((1, 2, 2, 1))}, "images must be uint8"),
        ({"keys": None}, "needs one key per image"),
    ],
)
def test_bad_arguments_are_refused(change, words):
    arguments = {
        "method": "uniform",
        "images": jnp.zeros((1, 2, 2, 1), jnp.uint8),
        "scale": PixelScale(17),
        "keys": image_keys(jax.random.key(0), jnp.arange(1)),
    }
    with pytest.raises(ValueError, match=words):
        dequantize(**{**arguments, **change})
