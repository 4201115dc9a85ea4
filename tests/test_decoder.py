"""The decoder against a brute-force sum over levels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from jaxmerge import decoder, noise
from jaxmerge.noise import PixelScale

log_prob = jax.jit(decoder.log_prob, static_argnames="scale")
decode = jax.jit(decoder.decode, static_argnames="scale")
image_keys = jax.jit(noise.image_keys)

LEVELS = (2, 17, 256)
SHAPE = (4, 3, 2)


def noisy_images(levels, gamma, batch=5, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, levels, size=(batch, *SHAPE)).astype(np.uint8)
    x, eps = PixelScale(levels).values()[images], rng.normal(size=images.shape)
    return images, x / np.sqrt(1 + np.exp(gamma)) + eps / np.sqrt(1 + np.exp(-gamma))


def brute_force(z0, gamma, levels):
    """log p(level | z_0) of every level [..., V], float64."""
    y = z0 * np.sqrt(1 + np.exp(gamma))
    values = 2 * (np.arange(levels) + 0.5) / levels - 1
    return log_softmax(-0.5 * (y[..., None] - values) ** 2 * np.exp(-gamma), axis=-1)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("offset", [-1.0, 4.0])
def test_log_prob_equals_brute_force(levels, offset):
    scale = PixelScale(levels)
    gamma = scale.gamma_min + offset
    images, z0 = noisy_images(levels, gamma)
    table = brute_force(z0, gamma, levels)
    expected = np.take_along_axis(table, images[..., None].astype(int), -1)[..., 0].sum((1, 2, 3))
    with jax.enable_x64(True):
        result = log_prob(jnp.asarray(images), jnp.asarray(z0), gamma, scale)
        assert result.dtype == jnp.float64
        np.testing.assert_allclose(result, expected, rtol=1e-10, atol=1e-10)
    single = log_prob(jnp.asarray(images), jnp.asarray(z0, jnp.float32), gamma, scale)
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("levels", LEVELS)
def test_probabilities_sum_to_one(levels):
    scale = PixelScale(levels)
    gamma = scale.gamma_min + 3.0
    images = jnp.arange(levels, dtype=jnp.uint8).reshape(levels, 1, 1, 1)
    for z0 in (-1.3, -0.2, 0.01, 0.99):
        result = log_prob(images, jnp.full((levels, 1, 1, 1), z0), gamma, scale)
        assert float(np.exp(result).sum()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("levels", LEVELS)
def test_argmax_equals_brute_force(levels):
    scale = PixelScale(levels)
    gamma = scale.gamma_min + 4.0
    _, z0 = noisy_images(levels, gamma, batch=40)
    decoded = decode(jnp.asarray(z0, jnp.float32), gamma, scale)
    assert decoded.dtype == jnp.uint8
    np.testing.assert_array_equal(decoded, brute_force(z0, gamma, levels).argmax(-1))


@pytest.mark.parametrize("levels", LEVELS)
def test_draws_follow_the_probabilities(levels):
    scale = PixelScale(levels)
    gamma = scale.gamma_min + 3.0
    draws = 4000
    z0 = np.broadcast_to(np.array([-0.97, -0.01, 0.4]).reshape(1, 3, 1, 1), (draws, 3, 1, 1))
    keys = image_keys(jax.random.key(0), jnp.arange(draws))
    drawn = np.asarray(decode(jnp.asarray(z0, jnp.float32), gamma, scale, keys=keys))
    for pixel in range(3):
        probs = np.exp(brute_force(z0[0, pixel, 0, 0], gamma, levels))
        counts = np.bincount(drawn[:, pixel, 0, 0], minlength=levels)
        np.testing.assert_allclose(counts / draws, probs, atol=5 * np.sqrt(0.25 / draws))


def test_a_draw_depends_on_its_own_key_alone():
    scale, gamma = PixelScale(17), -4.0
    _, z0 = noisy_images(17, gamma, batch=6)
    z0, keys = jnp.asarray(z0, jnp.float32), image_keys(jax.random.key(1), jnp.arange(6))
    together = decode(z0, gamma, scale, keys=keys)
    np.testing.assert_array_equal(together[::-1], decode(z0[::-1], gamma, scale, keys=keys[::-1]))


def test_low_noise_draws_equal_the_argmax():
    scale = PixelScale(17)
    images, z0 = noisy_images(17, -14.0)
    keys = image_keys(jax.random.key(1), jnp.arange(len(images)))
    np.testing.assert_array_equal(decode(jnp.asarray(z0, jnp.float32), -14.0, scale, keys=keys), images)
    np.testing.assert_array_equal(decode(jnp.asarray(z0, jnp.float32), -14.0, scale), images)


def test_gamma_per_image_equals_scalar_gamma():
    scale = PixelScale(17)
    gammas = jnp.array([-7.8, -6.0, -4.0])
    images, z0 = noisy_images(17, -6.0, batch=3)
    images, z0 = jnp.asarray(images), jnp.asarray(z0, jnp.float32)
    together = log_prob(images, z0, gammas, scale)
    alone = [log_prob(images[i : i + 1], z0[i : i + 1], gammas[i], scale)[0] for i in range(3)]
    np.testing.assert_allclose(together, jnp.stack(alone), rtol=1e-5)
