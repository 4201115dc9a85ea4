"""The bound against public codes, closed forms, quadrature and the exact likelihood."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxmerge import likelihood, noise, vlb
from jaxmerge import probability_flow as flow
from jaxmerge.experts.analytic import Discrete
from jaxmerge.merge import Switch
from jaxmerge.noise import PixelScale
from jaxmerge.vlb import Curves, Moments
from tests import public
from tests.toys import HIGH, LOW, MERGED

SCALE = PixelScale(17)
LEVELS = np.arange(17, dtype=np.uint8).reshape(17, 1, 1, 1)
KEY = jax.random.key(0)
LN2 = math.log(2)

bound = jax.jit(vlb.bound, static_argnames=("scale", "strata"))
prediction_error = jax.jit(vlb.prediction_error)
discrete = jax.jit(vlb.discrete_diffusion, static_argnums=2, static_argnames="scale")


@functools.cache
def one_pixel(gamma_range=MERGED, seed=0):
    """A closed-form expert for one pixel; other seeds are experts for the wrong distribution."""
    probs = np.random.default_rng(seed).dirichlet(np.full(17, 0.7))
    return Discrete.from_images(LEVELS, probs, scale=SCALE, gamma_range=gamma_range)


def probabilities(expert):
    return np.exp(np.asarray(expert.log_probs))


def photos(expert, count, seed=0):
    return (
        np.random.default_rng(seed)
        .choice(17, count, p=probabilities(expert))
        .astype(np.uint8)
        .reshape(-1, 1, 1, 1)
    )


def squared_error(expert, gamma):
    """E (eps - eps_hat)^2 per level [17] at one noise level, by the trapezoidal rule over eps, in NumPy."""
    alpha, sigma = (1 / np.sqrt(1 + np.exp(s * gamma)) for s in (1, -1))
    x, probs = SCALE.values(), probabilities(expert)
    eps = np.linspace(-7, 7, 281)
    z = alpha * x[:, None] + sigma * eps
    residual = (z[..., None] - alpha * x) / sigma
    weight = probs * np.exp(-0.5 * (residual**2 - (residual**2).min(-1, keepdims=True)))
    eps_hat = (weight * residual).sum(-1) / weight.sum(-1)
    return ((eps - eps_hat) ** 2 * stats.norm.pdf(eps)).sum(-1) * (eps[1] - eps[0])


@functools.cache
def error_table(seed=0, points=1200):
    gammas = np.linspace(*MERGED, points + 1)
    return gammas, np.array([squared_error(one_pixel(seed=seed), g) for g in gammas])


def exact_diffusion(low, high, seed=0):
    """1/2 integral of the squared error per level [17], in bits."""
    gammas, errors = error_table(seed)
    nodes = np.unique(np.concatenate([[low, high], gammas[(gammas > low) & (gammas < high)]]))
    values = np.stack([np.interp(nodes, gammas, errors[:, k]) for k in range(17)])
    return 0.5 * np.trapezoid(values, nodes) / LN2


# Public codes


@pytest.mark.parametrize("name", ["vdm_torch_tiny", "vdm_torch_attn_tiny"])
def test_terms_are_the_public_vdms(name):
    expert, data = public.vdm_torch(name), public.arrays(name)
    low, high = expert.gamma_range
    images, eps, eps0 = (np.moveaxis(data[k], 1, -1) for k in ("img", "noise", "eps0"))
    scale, size = expert.pixel_scale, images[0].size
    x = scale.encode(jnp.asarray(images))
    gamma = jnp.asarray(low + (high - low) * data["times"], jnp.float32)
    with jax.default_matmul_precision("highest"):
        error = prediction_error(expert, x, gamma, jnp.asarray(eps))
    diffusion = 0.5 * (high - low) * np.sum(np.asarray(error, np.float64) ** 2, axis=(1, 2, 3)) / (size * LN2)
    np.testing.assert_allclose(diffusion, data["diffusion_bpd"], rtol=1e-5)
    latent = vlb.prior_kl(x, high) / (size * LN2)
    np.testing.assert_allclose(latent, data["latent_bpd"], rtol=0, atol=2e-6)
    recon = vlb.reconstruction(images, low, scale, jnp.asarray(eps0)) / (size * LN2)
    np.testing.assert_allclose(recon, data["recon_bpd"], rtol=0, atol=2e-6)


# Closed forms


@pytest.mark.parametrize("gamma", [-13.3, 0.0, 5.0, 8.764])
def test_prior_is_the_divergence_between_gaussians(gamma):
    x = np.random.default_rng(0).uniform(-1, 1, (3, 2, 2, 1))
    mean2, variance = x**2 / (1 + np.exp(gamma)), 1 / (1 + np.exp(-gamma))
    want = 0.5 * (mean2 + variance - 1 - np.log(variance)).sum((1, 2, 3))
    np.testing.assert_allclose(vlb.prior_kl(jnp.asarray(x, jnp.float32), gamma), want, rtol=1e-5)


def test_reconstruction_is_the_decoders_expected_log_probability():
    """One pixel, averaged over its noise, against quadrature with a broad decoder (gamma = -4)."""
    n, gamma = 20_000, -4.0
    eps = jnp.asarray(np.random.default_rng(0).normal(size=(n, 1, 1, 1)), jnp.float32)
    got = np.asarray(vlb.reconstruction(np.full((n, 1, 1, 1), 5, np.uint8), gamma, SCALE, eps), np.float64)
    grid = np.linspace(-8, 8, 2001)
    x = SCALE.values()
    y = x[5] + np.exp(gamma / 2) * grid
    density = stats.norm.pdf(y[:, None], x, np.exp(gamma / 2))
    want = np.trapezoid(-np.log(density[:, 5] / density.sum(1)) * stats.norm.pdf(grid), grid)
    assert abs(got.mean() - want) < 4 * got.std() / math.sqrt(n)


def test_stratified_estimate_is_unbiased():
    """Each level's diffusion term over 4000 independent draws of few strata, against quadrature."""
    n = 4000
    images = np.tile(LEVELS, (n, 1, 1, 1))
    got = bound(one_pixel(), images, key=KEY, strata=5)[:, 2]
    each = np.asarray(got, np.float64).reshape(n, 17)
    want = exact_diffusion(*MERGED)
    assert np.all(np.abs(each.mean(0) - want) < 4.5 * each.std(0) / math.sqrt(n) + 1e-3 * want)


def test_stratification_lowers_the_variance():
    """Against independent uniform noise levels, at the same number of network calls."""
    n, strata = 2000, 16
    images = np.full((n, 1, 1, 1), 9, np.uint8)
    stratified = np.asarray(bound(one_pixel(), images, key=KEY, strata=strata)[:, 2])
    # One stratum per call is plain Monte Carlo; the mean of 16 independent ones.
    plain = np.mean(
        [bound(one_pixel(), images, key=jax.random.key(r), strata=1)[:, 2] for r in range(strata)], axis=0
    )
    assert stratified.var() < 0.8 * plain.var()


# Against the exact likelihood


@functools.cache
def exact_pair():
    """Bound and bpd with variational dequantisation of one exact expert, per image."""
    expert, n = one_pixel(), 4096
    images = photos(expert, n)
    terms = np.asarray(bound(expert, images, key=jax.random.key(1), strata=64), np.float64)
    settings = likelihood.Settings(control=flow.FixedGrid(6.0), dequantization="variational", trace="exact")
    score = jax.jit(likelihood.log_likelihood, static_argnames="terminal")
    result = score(expert, images, key=jax.random.key(2), settings=settings, terminal=own_density)
    assert np.all(result.ok)
    return images, terms, np.asarray(result.bpd, np.float64)


def own_density(z, gamma):
    return one_pixel().log_prob(z, gamma)


def test_mean_bound_of_an_exact_expert_is_its_mean_bpd_with_variational_dequantisation():
    _, terms, bpd = exact_pair()
    difference = terms.sum(1) - bpd
    # The bound's prior is N(0, I), the likelihood's terminal density exact: a gap below 1e-4 bits at 8.764.
    assert abs(difference.mean()) < 3 * difference.std(ddof=1) / math.sqrt(len(bpd)) + 1e-4


def test_bound_of_an_exact_expert_lies_above_the_entropy_by_the_decoders_gap():
    """E KL(p(x | z_0) || decoder), by quadrature: the decoder is the posterior under equal probabilities."""
    images, terms, _ = exact_pair()
    expert = one_pixel()
    probs, x = probabilities(expert), SCALE.values()
    y = np.linspace(-1.5, 1.5, 60_001)
    likelihoods = stats.norm.pdf(y[:, None], x, np.exp(MERGED[0] / 2))
    joint = probs * likelihoods + 1e-300
    true, model = joint / joint.sum(1, keepdims=True), (likelihoods + 1e-300)
    model = model / model.sum(1, keepdims=True)
    gap = np.trapezoid((joint * np.log2(true / model)).sum(1), y)
    assert 0 < gap < 0.01
    surprise = -np.log2(probs[images.ravel()])
    excess = terms.sum(1) - surprise
    se = excess.std(ddof=1) / math.sqrt(len(excess))
    assert abs(excess.mean() - gap) < 4 * se + 2e-4
    assert excess.mean() > -3 * se


def test_a_wrong_expert_has_a_higher_bound():
    images, terms, _ = exact_pair()
    wrong = np.asarray(bound(one_pixel(seed=5), images, key=jax.random.key(1), strata=64), np.float64)
    paired = wrong.sum(1) - terms.sum(1)
    assert paired.mean() > 10 * paired.std() / math.sqrt(len(paired))


# Discrete time


def test_discrete_time_bound_lies_above_the_continuous_one_and_falls_to_it():
    """The sums themselves by quadrature (exact experts), and the estimates against them."""
    expert, n = one_pixel(), 600
    images = np.tile(LEVELS, (n, 1, 1, 1))
    probs = probabilities(expert)
    continuous = probs @ exact_diffusion(*MERGED)
    excess = []
    for steps in (8, 32, 128):
        gammas = np.linspace(*MERGED, steps + 1)
        factor = 0.5 * np.expm1(gammas[1] - gammas[0]) / LN2
        want = factor * sum(squared_error(expert, g) for g in gammas[1:])
        each = np.asarray(discrete(expert, images, steps, key=KEY), np.float64).reshape(n, 17)
        assert np.all(np.abs(each.mean(0) - want) < 4.5 * each.std(0) / math.sqrt(n) + 1e-3 * want)
        excess.append(probs @ want - continuous)
    assert excess[0] > excess[1] > excess[2] > 0
    assert 3 < excess[1] / excess[2] < 5.5  # as 1/T


def test_discrete_time_routes_each_step_to_its_expert():
    """A merge's discrete sum is made of the single experts' own, node by node (T = 10, eta = 0.3)."""
    images = np.tile(LEVELS, (20, 1, 1, 1))
    low, high = one_pixel(LOW), one_pixel(HIGH, seed=5)
    got = discrete(Switch(low, high, 0.3), images, 10, key=KEY)
    x, width = SCALE.encode(jnp.asarray(images)), (MERGED[1] - MERGED[0]) / 10
    total = np.zeros(len(images))
    for t in range(1, 11):
        eps = noise.image_normal(jax.random.fold_in(KEY, t), jnp.arange(len(images)), (1, 1, 1))
        gamma = jnp.full(len(images), MERGED[0] + width * t)
        error = prediction_error(low if t <= 3 else high, x, gamma, eps)
        total += np.sum(np.asarray(error, np.float64) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(got, 0.5 * np.expm1(width) * total / LN2, rtol=1e-4, atol=1e-6)


# Error curves


ETAS = (0.06, 0.2, 0.5, 0.77)


def gamma_of(eta):
    return MERGED[0] + eta * (MERGED[1] - MERGED[0])


@functools.cache
def curves(per_interval=6, repeats=1, batch_size=500):
    experts = {"low": one_pixel(LOW), "high": one_pixel(HIGH, seed=5)}
    images = photos(one_pixel(), 1000)
    found = vlb.error_curves(
        experts,
        images,
        key=KEY,
        thresholds=[gamma_of(e) for e in ETAS],
        per_interval=per_interval,
        repeats=repeats,
        batch_size=batch_size,
    )
    return images, experts, found


def test_edges_are_thresholds_and_ends_of_ranges():
    found = curves()[2]
    for mark in (*LOW, *HIGH, *(gamma_of(e) for e in ETAS)):
        assert np.abs(found.edges - mark).min() < 1e-9
    assert np.all(np.diff(found.edges) > 0) and len(found.edges) == 6 * 7 + 1
    assert found.edges[0] == MERGED[0] and found.edges[-1] == MERGED[1]


def test_ends_that_differ_by_rounding_are_one_edge():
    edges = vlb.stratum_edges([one_pixel(LOW), one_pixel(HIGH)], [5.0 + 1e-6, HIGH[0]], 2)
    np.testing.assert_allclose(edges[::2], [LOW[0], HIGH[0], 5.0, HIGH[1]])
    with pytest.raises(ValueError, match="at least 1, got 0"):
        vlb.stratum_edges([one_pixel(LOW)], [], 0)


@pytest.mark.parametrize("eta", ETAS)
def test_every_thresholds_bound_equals_a_separate_evaluation(eta):
    images, experts, found = curves()
    got = found.switch(gamma_of(eta))
    merged = Switch(*experts.values(), eta)
    apart = np.asarray(bound(merged, images, key=jax.random.key(8), strata=16), np.float64)
    difference = got - apart
    se = difference.std(axis=0, ddof=1) / math.sqrt(len(images))
    assert np.all(np.abs(difference.mean(0)) < 4 * se + 1e-5)
    np.testing.assert_allclose(got[:, 0], apart[:, 0], rtol=1e-6)  # the prior has no noise


@pytest.mark.parametrize("number", [0, 1])
def test_single_experts_bound_covers_their_own_range(number):
    images, experts, found = curves()
    got = found.single(number)
    expert = list(experts.values())[number]
    apart = np.asarray(bound(expert, images, key=jax.random.key(8), strata=16), np.float64)
    se = (got - apart).std(axis=0, ddof=1) / math.sqrt(len(images))
    assert np.all(np.abs((got - apart).mean(0)) < 4 * se + 1e-5)


def by_hand(edges, ranges, products):
    """Curves whose moments are given, one image."""
    strata, k = products.shape[:2]
    moments = Moments(products[None], np.arange(1.0, k + 1)[None], 10 * np.arange(1.0, k + 1)[None])
    assert strata == len(edges) - 1
    return Curves(tuple("abc"[:k]), ranges, np.asarray(edges, np.float64), moments, 1)


def test_switch_is_the_cumulative_sum_by_hand():
    edges = [-3.0, -2.0, -1.5, 0.0, 2.0, 3.0]
    products = np.zeros((5, 2, 2))
    products[:, 0, 0] = [1, 2, 3, 4, 0]  # answers from -3 to 2
    products[:, 1, 1] = [0, 7, 5, 3, 1]  # answers from -2 to 3
    found = by_hand(edges, ((-3.0, 2.0), (-2.0, 3.0)), products)
    bits = 1 / LN2
    for gamma, want in [
        (-2.0, 1 * 1 + 0.5 * 7 + 1.5 * 5 + 2 * 3 + 1),
        (-1.5, 1 * 1 + 0.5 * 2 + 1.5 * 5 + 2 * 3 + 1),
        (0.0, 1 * 1 + 0.5 * 2 + 1.5 * 3 + 2 * 3 + 1),
        (2.0, 1 * 1 + 0.5 * 2 + 1.5 * 3 + 2 * 4 + 1),
    ]:
        np.testing.assert_allclose(found.switch(gamma), [[2 * bits, 10 * bits, 0.5 * bits * want]])
    np.testing.assert_allclose(found.single(0), [[bits, 10 * bits, 0.5 * bits * 14.5]])
    np.testing.assert_allclose(found.single(1), [[2 * bits, 20 * bits, 0.5 * bits * 18]])
    density = found.density()
    assert np.isnan(density[0, 4]) and np.isnan(density[1, 0])
    np.testing.assert_allclose(density[0, :4], 0.5 * bits * np.array([1, 2, 3, 4]))


def test_narrow_strata_beside_a_ranges_end_do_not_count():
    """The slack of 0.02 lets an expert answer a little outside its range, but its own bound ends there."""
    edges = np.linspace(-1.0, 1.0, 401)  # 0.005 wide
    products = np.ones((400, 3, 3))
    ranges = ((-0.9, 0.5), (-0.5, 0.9), (-1.0, 1.0))
    found = by_hand(edges, ranges, products)
    for k, (low, high) in enumerate(ranges):
        np.testing.assert_allclose(found.single(k)[0, 2], 0.5 / LN2 * (high - low))
    np.testing.assert_allclose(found.switch(0.1)[0, 2], 0.5 / LN2 * 1.8)


@pytest.mark.parametrize(
    ("gamma", "message"),
    [
        (gamma_of(0.31), "must be one of the curve's stratum edges"),
        (MERGED[1], "inside both experts' ranges"),
    ],
)
def test_thresholds_that_the_curves_cannot_answer_are_refused(gamma, message):
    with pytest.raises(ValueError, match=message):
        curves()[2].switch(gamma)


def test_noise_of_an_image_depends_on_key_and_index_alone():
    images, experts, found = curves()
    other = curves(batch_size=333)[2]
    np.testing.assert_allclose(found.moments.products, other.moments.products, rtol=1e-4, atol=1e-5)
    some = np.array([5, 17, 400])
    part = vlb.error_curves(
        experts, images[some], key=KEY, index=some, thresholds=[gamma_of(e) for e in ETAS], per_interval=6
    )
    np.testing.assert_allclose(part.moments.products, found.moments.products[some], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        part.moments.reconstruction, found.moments.reconstruction[some], rtol=1e-4, atol=1e-6
    )


def test_repeats_are_independent_draws_that_are_averaged():
    one, four = (curves(repeats=r)[2].switch(gamma_of(0.5))[:, 2] for r in (1, 4))
    images = curves()[0].ravel()
    common = [k for k in np.unique(images) if np.sum(images == k) > 30]
    spread = [np.mean([v[images == k].var() for k in common]) for v in (one, four)]
    assert 2.5 < spread[0] / spread[1] < 6  # 4, within what 1000 images of 17 levels can tell


def test_experts_see_the_same_noise():
    """Equal experts have equal errors, so that every entry of the second moments is the same."""
    images = photos(one_pixel(), 50)
    found = vlb.error_curves({"a": one_pixel(), "b": one_pixel(seed=0)}, images, key=KEY, per_interval=8)
    products = found.moments.products
    np.testing.assert_allclose(products[..., 0, 0], products[..., 1, 1], rtol=1e-6)
    np.testing.assert_allclose(products[..., 0, 1], products[..., 0, 0], rtol=1e-6)


def test_thresholds_of_the_bound_may_be_traced():
    traced = []

    @jax.jit
    def program(merged, images):
        traced.append(merged)
        return vlb.bound(merged, images, key=KEY, strata=4)

    for eta in (0.1, 0.4):
        program(Switch(one_pixel(LOW), one_pixel(HIGH, seed=5), eta), photos(one_pixel(), 8))
    assert len(traced) == 1
