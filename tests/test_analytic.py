"""Closed-form experts against SciPy, automatic differentiation and limiting cases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

from jaxmerge.experts.analytic import Discrete, Gaussian, GaussianMixture
from jaxmerge.noise import PixelScale

SHAPE = (2, 2, 1)
GAMMAS = (-13.3, -7.0, -1.0, 0.0, 4.0, 8.764)


def covariance(seed, d=4, floor=1e-3):
    factor = np.random.default_rng(seed).normal(size=(d, d)) * 0.4
    return factor @ factor.T + floor * np.eye(d)


def gaussian(**kwargs):
    mean = np.random.default_rng(0).normal(size=SHAPE) * 0.3
    return Gaussian.from_covariance(mean, covariance(1), **kwargs)


def mixture():
    means = np.random.default_rng(2).normal(size=(3, *SHAPE)) * 0.5
    return GaussianMixture.from_covariances(
        [0.2, 0.5, 0.3], means, [covariance(k, floor=0.01) for k in (3, 4, 5)]
    )


def discrete(levels=17, atoms=40):
    rng = np.random.default_rng(6)
    images = rng.integers(0, levels, size=(atoms, *SHAPE)).astype(np.uint8)
    return Discrete.from_images(images, rng.dirichlet(np.ones(atoms)), scale=PixelScale(levels))


EXPERTS = {"gaussian": gaussian, "mixture": mixture, "discrete": discrete}


def states(expert, gamma, count=6, dtype=np.float64):
    """States of the expert at one noise level, not far from typical ones."""
    rng = np.random.default_rng(7)
    if isinstance(expert, Gaussian):
        x = expert.mean + 0.3 * rng.normal(size=(count, *SHAPE))
    else:
        centres = expert.means if isinstance(expert, GaussianMixture) else expert.atoms
        x = centres[rng.integers(0, len(centres), count)]
    eps = rng.normal(size=x.shape)
    return jnp.asarray(x / np.sqrt(1 + np.exp(gamma)) + eps / np.sqrt(1 + np.exp(-gamma)), dtype)


@jax.jit
def evaluate(expert, z, gamma):
    """eps_hat, log_prob and the gradient of log_prob."""
    score = jax.grad(lambda z: expert.log_prob(z, gamma).sum())(z)
    return expert.eps_hat(z, gamma), expert.log_prob(z, gamma), score


@functools.partial(jax.jit, static_argnames="probes")
def tangents(expert, z, gamma, probes):
    """Jacobian-vector products of eps_hat by one linearisation, and the probes."""
    directions = jax.random.rademacher(jax.random.key(5), (probes, *z.shape), z.dtype)
    _, push = jax.linearize(lambda z: expert.eps_hat(z, gamma), z)
    return jax.vmap(push)(directions), directions


def reference_log_prob(name, expert, z, gamma):
    """The marginal's log-density from SciPy, in float64."""
    alpha2, sigma2 = 1 / (1 + np.exp(gamma)), 1 / (1 + np.exp(-gamma))
    flat, d = np.asarray(z, np.float64).reshape(len(z), -1), int(np.prod(SHAPE))
    noise_cov = sigma2 * np.eye(d)
    if name == "gaussian":
        parts = [(1.0, expert.mean, covariance(1))]
    elif name == "mixture":
        weights = np.exp(expert.log_weights)
        parts = list(zip(weights, expert.means, [covariance(k, floor=0.01) for k in (3, 4, 5)], strict=True))
    else:
        parts = [
            (p, x, np.zeros((d, d))) for p, x in zip(np.exp(expert.log_probs), expert.atoms, strict=True)
        ]
    logs = [
        np.log(w)
        + stats.multivariate_normal(np.sqrt(alpha2) * m.reshape(-1), alpha2 * c + noise_cov).logpdf(flat)
        for w, m, c in parts
    ]
    return logsumexp(np.array(logs), axis=0)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("name", EXPERTS)
def test_log_prob_agrees_with_scipy(name, gamma):
    expert = EXPERTS[name]()
    with jax.enable_x64(True):
        z = states(expert, gamma)
        _, log_prob, _ = evaluate(expert, z, gamma)
        assert log_prob.dtype == jnp.float64 and log_prob.shape == (6,)
        np.testing.assert_allclose(
            log_prob, reference_log_prob(name, expert, z, gamma), rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("name", EXPERTS)
def test_eps_hat_is_minus_sigma_times_score(name, gamma):
    expert = EXPERTS[name]()
    with jax.enable_x64(True):
        z = states(expert, gamma)
        eps_hat, _, score = evaluate(expert, z, gamma)
        assert eps_hat.dtype == jnp.float64
        np.testing.assert_allclose(eps_hat, -score / np.sqrt(1 + np.exp(-gamma)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("name", EXPERTS)
def test_float32_agrees_with_float64(name, gamma):
    """The difference is the rounding of z itself, 6e-8 of it in units of sigma."""
    expert = EXPERTS[name]()
    with jax.enable_x64(True):
        z = states(expert, gamma)
        eps_hat, log_prob, _ = evaluate(expert, z, gamma)
        single = evaluate(expert, z.astype(jnp.float32), gamma)
        assert {value.dtype for value in single} == {jnp.dtype(jnp.float32)}
    rounding = 2e-7 * np.sqrt(1 + np.exp(-gamma))
    np.testing.assert_allclose(single[0], eps_hat, atol=2e-5 + 4 * rounding)
    np.testing.assert_allclose(single[1], log_prob, rtol=1e-6, atol=2e-5 + 20 * rounding)


@pytest.mark.parametrize("gamma", [-30.0, 30.0])
@pytest.mark.parametrize("name", EXPERTS)
def test_both_ends_of_the_range_stay_finite_in_float32(name, gamma):
    expert = EXPERTS[name]()
    assert expert.gamma_range == (-30.0, 30.0)
    z = states(expert, gamma, dtype=np.float32)
    assert all(
        np.isfinite(value).all() for value in (*evaluate(expert, z, gamma), *tangents(expert, z, gamma, 1))
    )


@pytest.mark.parametrize("name", EXPERTS)
def test_high_noise_returns_the_state_itself(name):
    expert = EXPERTS[name]()
    z = states(expert, 30.0, dtype=np.float32)
    np.testing.assert_allclose(evaluate(expert, z, 30.0)[0], z, atol=1e-5)


@pytest.mark.parametrize("name", EXPERTS)
def test_gamma_per_image_equals_scalar_gamma(name):
    expert = EXPERTS[name]()
    z = jnp.concatenate([states(expert, g, count=1, dtype=np.float32) for g in GAMMAS])
    gammas = jnp.array(GAMMAS)
    together = evaluate(expert, z, gammas)
    for i, gamma in enumerate(GAMMAS):
        for per_image, scalar in zip(together, evaluate(expert, z, gamma), strict=True):
            np.testing.assert_allclose(per_image[i], scalar[i], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", EXPERTS)
def test_linearisation_gives_the_jacobian(name):
    expert, gamma, step = EXPERTS[name](), -3.0, 1e-5
    with jax.enable_x64(True):
        z = states(expert, gamma)
        pushed, probes = tangents(expert, z, gamma, 4)
        for probe, tangent in zip(probes, pushed, strict=True):
            up, down = (evaluate(expert, z + sign * step * probe, gamma)[0] for sign in (1, -1))
            np.testing.assert_allclose(tangent, (up - down) / (2 * step), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", EXPERTS)
def test_expert_is_a_pytree_for_both_precisions(name):
    expert = EXPERTS[name]()
    z = states(expert, 0.0, dtype=np.float32)
    on_device = jax.device_put(expert)
    for jitted, eager in zip(evaluate(on_device, z, 0.0), (expert.eps_hat, expert.log_prob), strict=False):
        np.testing.assert_allclose(jitted, eager(z, 0.0), rtol=1e-5, atol=1e-6)
    assert jax.tree.map(lambda leaf: leaf, on_device).image_shape == SHAPE
    (piece,) = expert.pieces()
    assert (piece.gamma_low, piece.gamma_high) == expert.gamma_range and piece.expert is expert


@pytest.mark.parametrize("name", EXPERTS)
def test_samples_have_the_right_moments_and_do_not_depend_on_their_number(name):
    expert = EXPERTS[name]()
    draw = jax.jit(lambda expert, key, n: expert.sample(key, n), static_argnums=2)
    x = draw(expert, jax.random.key(3), 20_000)
    np.testing.assert_allclose(x[:5], draw(expert, jax.random.key(3), 5), atol=1e-6)
    if name == "gaussian":
        mean, cov = expert.mean.reshape(-1), covariance(1)
    else:
        weights = np.exp(expert.log_weights if name == "mixture" else expert.log_probs)
        points = (expert.means if name == "mixture" else expert.atoms).reshape(len(weights), -1)
        mean = weights @ points
        cov = (weights[:, None] * points).T @ points - np.outer(mean, mean)
        if name == "mixture":
            cov += sum(w * covariance(k, floor=0.01) for w, k in zip(weights, (3, 4, 5), strict=True))
    flat = np.asarray(x).reshape(len(x), -1)
    np.testing.assert_allclose(flat.mean(0), mean, atol=5 * np.sqrt(np.diag(cov).max() / len(x)))
    np.testing.assert_allclose(np.cov(flat.T), cov, atol=0.03)


def test_isotropic_mixture_equals_full_matrices():
    means = np.zeros((2, *SHAPE))
    means[1] += 0.5
    short = GaussianMixture.from_covariances([1, 3], means, [0.1, 0.2])
    full = GaussianMixture.from_covariances([0.25, 0.75], means, [0.1 * np.eye(4), 0.2 * np.eye(4)])
    z = states(full, -2.0, dtype=np.float32)
    for one, other in zip(evaluate(short, z, -2.0), evaluate(full, z, -2.0), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_point_gaussian_equals_one_atom():
    mean = np.full(SHAPE, 0.3)
    point = Gaussian.from_covariance(mean, np.zeros((4, 4)))
    atom = Discrete(np.zeros(1), mean[None])
    z = states(atom, -6.0, dtype=np.float32)
    for one, other in zip(evaluate(point, z, -6.0)[:2], evaluate(atom, z, -6.0)[:2], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gamma", [-9.0, -12.0])
def test_low_noise_denoises_to_the_atom(gamma):
    expert = discrete()
    x = jax.jit(type(expert).denoise)(expert, states(expert, gamma, dtype=np.float32), gamma)
    distance = np.abs(np.asarray(x)[:, None] - expert.atoms).max((2, 3, 4)).min(1)
    np.testing.assert_allclose(distance, 0, atol=1e-5)


def test_discrete_entropy_and_impossible_atoms():
    images = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    expert = Discrete.from_images(images, [2, 2, 0, 4], scale=PixelScale(17))
    assert expert.entropy_bits() == pytest.approx(1.5)
    assert expert.pixel_scale == PixelScale(17)
    levels = PixelScale(17).nearest(expert.sample(jax.random.key(0), 500))
    assert set(np.unique(levels)) == {0, 1, 3}
    z = jnp.asarray(np.linspace(-1, -0.5, 6).reshape(6, 1, 1, 1), jnp.float32)
    assert all(np.isfinite(value).all() for value in evaluate(expert, z, -5.0))


def test_gamma_range_can_be_set():
    assert gaussian(gamma_range=(-13.3, 5.0)).pieces()[0][:2] == (-13.3, 5.0)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Gaussian.from_covariance(np.zeros(4), np.eye(4)), "mean must have the shape"),
        (lambda: Gaussian.from_covariance(np.zeros(SHAPE), np.eye(3)), "covariance must have the shape"),
        (
            lambda: Gaussian.from_covariance(np.zeros(SHAPE), np.diag([1.0, 1, 1, -1])),
            "no negative eigenvalue",
        ),
        (lambda: Gaussian.from_covariance(np.zeros(SHAPE), np.triu(np.ones((4, 4)))), "symmetric"),
        (lambda: GaussianMixture.from_covariances([1, -1], np.zeros((2, *SHAPE)), [1, 1]), "weights must be"),
        (
            lambda: GaussianMixture.from_covariances([1, 1], np.zeros((2, *SHAPE)), [1, 1, 1]),
            "covariances must",
        ),
        (
            lambda: Discrete.from_images(np.full((1, *SHAPE), 17, np.uint8), [1], scale=PixelScale(17)),
            "grey levels",
        ),
        (
            lambda: Discrete.from_images(np.zeros((1, *SHAPE), np.uint8), [1, 2], scale=PixelScale(17)),
            "probs must be",
        ),
    ],
)
def test_bad_parameters_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
