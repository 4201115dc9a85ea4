"""Exact likelihoods against known entropies, i-DODE's own figures and hand-made variants that go wrong."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from jaxmerge import grids, likelihood, noise
from jaxmerge import probability_flow as flow
from jaxmerge.dequantize import dequantize, truncated_normal_entropy
from jaxmerge.experts.analytic import Discrete, Gaussian
from jaxmerge.likelihood import Likelihood, Settings
from jaxmerge.merge import Switch
from jaxmerge.noise import PixelScale
from tests import public, toys
from tests.toys import MERGED, SHAPE, Recorder

D = 4
SCALE = PixelScale(17)
KEY = jax.random.key(0)
EXACT = Settings(control=flow.FixedGrid(4.0), trace="exact")

score = jax.jit(likelihood.log_likelihood, static_argnames=("scale", "terminal"))
solve = jax.jit(flow.solve, static_argnames="rising")
log_prob = jax.jit(lambda expert, z, gamma: expert.log_prob(z, gamma))


def own_density(expert):
    """A closed-form expert's exact terminal density."""
    return lambda z, gamma: expert.log_prob(z, gamma)


def images(count, shape=SHAPE, levels=17, seed=0):
    return np.random.default_rng(seed).integers(0, levels, (count, *shape)).astype(np.uint8)


def photos(expert, count):
    """Images that a closed-form expert finds likely."""
    x = jax.jit(type(expert).sample, static_argnums=2)(expert, jax.random.key(1), count)
    return np.asarray(SCALE.nearest(x))


@functools.cache
def one_pixel():
    probs = np.random.default_rng(0).dirichlet(np.full(17, 0.7))
    levels = np.arange(17, dtype=np.uint8).reshape(17, 1, 1, 1)
    return Discrete.from_images(levels, probs, scale=SCALE, gamma_range=MERGED), levels, probs


# Closed forms


def test_gaussian_with_the_sampling_prior_agrees_with_the_linear_flow():
    """In the eigenbasis, z_T = s_T / s_0 (z_0 - alpha_0 m) + alpha_T m with s^2 = alpha^2 lambda + sigma^2.

    So z_0 with prior N(0, sigma_T^2 I) at z_T is a Gaussian too; its density is written by SciPy here.
    """
    expert = toys.gaussian()
    z = toys.states(expert, MERGED[0], 5)
    end = solve(expert, z, *MERGED, rising=True, control=flow.FixedGrid(6.0), probes=flow.exact_probes(SHAPE))
    got = likelihood.gaussian_prior(end.z, MERGED[1]) + end.divergence
    a0, a1 = (1 / (1 + np.exp(g)) for g in MERGED)
    std0, std1 = (np.sqrt(a * expert.variances + 1 - a) for a in (a0, a1))
    mean = expert.mean.reshape(-1) @ expert.basis
    centre = np.sqrt(a0) * mean - np.sqrt(a1) * mean * std0 / std1
    rows = np.asarray(z, np.float64).reshape(5, D) @ expert.basis
    want = stats.norm.logpdf(rows, centre, np.sqrt(1 - a1) * std0 / std1).sum(axis=1)
    assert np.max(np.abs(got - want)) / (D * np.log(2)) < 1e-4


def test_gaussian_expert_gives_the_gaussians_own_probability():
    """E_u log p(alpha x + sigma u) + entropy for one pixel, by quadrature, averaged over many draws."""
    mean, variance = 0.1, 0.05
    expert = Gaussian.from_covariance(np.full((1, 1, 1), mean), [[variance]], gamma_range=MERGED)
    n = 4096
    x = np.full((n, 1, 1, 1), 10, np.uint8)
    got = score(expert, x, key=KEY, scale=SCALE, settings=EXACT, terminal=own_density(expert))
    alpha2 = 1 / (1 + np.exp(MERGED[0]))
    alpha, sigma = np.sqrt(alpha2), np.sqrt(1 - alpha2)
    tau = alpha / (17 * sigma)
    u = stats.truncnorm(-tau, tau)
    marginal = stats.norm(alpha * mean, np.sqrt(alpha2 * variance + sigma**2))
    level = 2 * 10.5 / 17 - 1
    inside = integrate.quad(lambda t: u.pdf(t) * marginal.logpdf(alpha * level + sigma * t), -tau, tau)[0]
    want = -(inside + u.entropy() + np.log(sigma)) / np.log(2)
    error = np.asarray(got.bpd, np.float64) - want
    assert abs(error.mean()) < 4 * error.std() / np.sqrt(n) + 1e-4


@pytest.mark.parametrize("method", ["truncated_normal", "uniform", "variational"])
def test_discrete_expert_bounds_its_entropy(method):
    """Averaged over the true distribution, every method lies above the entropy, by known gaps (bits)."""
    expert, levels, probs = one_pixel()
    n = 512
    settings = EXACT.replace(dequantization=method, control=flow.FixedGrid(8.0))
    x = np.repeat(levels, n, axis=0)
    result = score(expert, x, key=KEY, settings=settings, terminal=own_density(expert))
    each = np.asarray(result.bpd, np.float64).reshape(17, n)
    cross = probs @ each.mean(axis=1)
    se = np.sqrt(np.sum((probs**2) * each.var(axis=1, ddof=1) / n))
    entropy = -np.sum(probs * np.log2(probs))
    gap = {"truncated_normal": 0.0014, "uniform": None, "variational": 0.0032}[method]
    assert np.all(result.ok) and cross > entropy - 4 * se
    if gap is not None:
        assert abs(cross - entropy - gap) < 4 * se + 2e-4


# Terms


def test_terms_are_named_and_add_up():
    expert = toys.mixture()
    x = photos(expert, 6)
    for method in ("truncated_normal", "uniform", "variational"):
        r = score(expert, x, key=KEY, scale=SCALE, settings=EXACT.replace(dequantization=method))
        np.testing.assert_allclose(r.bpd, r.prior + r.trace + r.dequantization + r.decoder, atol=2e-6)
        assert np.all(r.ok) and np.all(r.nfe == 3 * np.ceil((MERGED[1] - start(method)) * 4) + 1)
        assert np.all(r.decoder > 0) if method == "variational" else np.all(r.decoder == 0)


def start(method):
    return SCALE.uniform_gamma if method == "uniform" else MERGED[0]


def test_dequantization_term_is_the_closed_form_entropy():
    r = score(toys.mixture(), images(3), key=KEY, scale=SCALE, settings=EXACT)
    want = -truncated_normal_entropy(MERGED[0], SCALE) / np.log(2)
    np.testing.assert_allclose(r.dequantization, want, rtol=1e-5)


def test_prior_is_the_density_of_the_sampling_prior():
    z = np.random.default_rng(0).normal(size=(3, *SHAPE))
    sigma = 1 / np.sqrt(1 + np.exp(-2.0))
    want = stats.norm.logpdf(z, 0, sigma).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(likelihood.gaussian_prior(jnp.asarray(z, jnp.float32), 2.0), want, rtol=1e-5)


# Merges


def test_merge_of_equal_experts_ignores_eta():
    low, high = toys.mixture(toys.LOW), toys.mixture(toys.HIGH)
    x = photos(low, 8)
    settings = EXACT.replace(trace="hutchinson", control=flow.FixedGrid(8.0))
    single = score(toys.mixture(), x, key=KEY, scale=SCALE, settings=settings)
    for eta in (0.06, 0.3, 0.5, 0.77):
        merged = score(Switch(low, high, eta=eta), x, key=KEY, scale=SCALE, settings=settings)
        np.testing.assert_allclose(merged.bpd, single.bpd, atol=2e-4)


# Noise


def test_noise_follows_the_images_identity_not_its_place():
    expert = toys.mixture()
    x = photos(expert, 6)
    settings = EXACT.replace(trace="hutchinson")
    whole = score(expert, x, key=KEY, scale=SCALE, settings=settings)
    order = np.array([4, 0, 5])
    some = score(expert, x[order], key=KEY, index=order, scale=SCALE, settings=settings)
    np.testing.assert_allclose(some.bpd, whole.bpd[order], atol=1e-5)
    other = score(expert, x[order], key=KEY, scale=SCALE, settings=settings)
    assert np.min(np.abs(other.bpd - some.bpd)) > 1e-4


def test_dequantisation_noise_does_not_depend_on_the_probes():
    expert = toys.mixture()
    x = photos(expert, 4)
    one, four = (
        score(expert, x, key=KEY, scale=SCALE, settings=EXACT.replace(trace="hutchinson", probes=p))
        for p in (1, 4)
    )
    np.testing.assert_allclose(one.prior, four.prior, atol=1e-5)
    assert np.max(np.abs(one.trace - four.trace)) > 1e-4


# Importance weights


@pytest.mark.parametrize("draws", [2, 16])
def test_importance_draws_tighten_the_bound_and_keep_log_k(draws):
    """For an exact expert the K-draw estimate tends to -log2 P(x) from above; without -log K it is log2 K lower."""
    expert, levels, probs = one_pixel()
    n = 64
    settings = EXACT.replace(draws=draws, control=flow.FixedGrid(8.0))
    x = np.repeat(levels, n, axis=0)
    result = score(expert, x, key=KEY, settings=settings, terminal=own_density(expert))
    each = np.asarray(result.bpd, np.float64).reshape(17, n)
    likely = probs > 1e-3
    se = each.std(axis=1, ddof=1) / np.sqrt(n)
    error = each.mean(axis=1) + np.log2(probs)
    assert np.all((np.abs(error) < 4 * se + 0.01)[likely])
    assert np.all(np.abs(error - np.log2(draws))[likely] > 0.9)
    assert np.all(result.nfe == draws * (3 * np.ceil((MERGED[1] - MERGED[0]) * 8) + 1))


def correlated():
    """16 strongly correlated dimensions: off-diagonal Jacobians, hence much Hutchinson noise."""
    d = 16
    covariance = 0.15 * np.ones((d, d)) + 0.01 * np.eye(d)
    return Gaussian.from_covariance(np.zeros((4, 4, 1)), covariance, gamma_range=MERGED)


def test_independent_probes_per_draw_flatter_the_model_and_shared_ones_do_not():
    """The log-mean-exp over draws turns noise that differs between them into likelihood that is not there."""
    expert, draws, n, control = correlated(), 8, 48, flow.FixedGrid(2.0)
    x = photos(expert, n)
    bits = 1 / (16 * math.log(2))

    def bpd(**changes):
        settings = Settings(control=control, draws=draws, **changes)
        return np.asarray(score(expert, x, key=KEY, scale=SCALE, settings=settings).bpd, np.float64)

    exact, shared = bpd(trace="exact"), bpd(trace="hutchinson")

    # The same draws by hand, with one set of probes per draw.
    keys = noise.image_keys(KEY, jnp.arange(n))
    total = []
    for k in range(draws):
        draw_keys = jax.vmap(lambda key, k=k: jax.random.fold_in(jax.random.fold_in(key, 0), k))(keys)
        d = dequantize("truncated_normal", x, scale=SCALE, keys=draw_keys, gamma=MERGED[0])
        ends = {}
        for name, probes in (
            ("exact", flow.exact_probes((4, 4, 1))),
            ("independent", flow.rademacher_probes(draw_keys, 1, (4, 4, 1))),
        ):
            end = solve(expert, d.z, *MERGED, rising=True, control=control, probes=probes)
            ends[name] = likelihood.gaussian_prior(end.z, MERGED[1]) + end.divergence + d.neg_log_q
        total.append(ends)
    stacked = {
        name: np.stack([t[name] for t in total]).astype(np.float64) for name in ("exact", "independent")
    }
    by_hand = {
        name: -bits * np.log(np.mean(np.exp(v - v.max(0)), 0)) - bits * v.max(0)
        for name, v in stacked.items()
    }
    np.testing.assert_allclose(by_hand["exact"], exact, atol=2e-5)

    flattery = exact - by_hand["independent"]
    assert flattery.mean() > 4 * flattery.std(ddof=1) / np.sqrt(n) and flattery.mean() > 0.05
    difference = exact - shared
    assert abs(difference.mean()) < 3 * difference.std(ddof=1) / np.sqrt(n)


# The public code's own figure


@functools.cache
def idode():
    return public.vdm_flax("likelihood_idode_tiny"), dict(public.arrays("likelihood_idode_tiny"))


@pytest.mark.slow
def test_whole_likelihood_agrees_with_idode():
    """z_0, prior and trace of two images in float64 against SciPy's RK45 at 1e-9."""
    expert, data = idode()
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        scale = PixelScale(256)
        d = dequantize(
            "truncated_normal", data["image"], scale=scale, gamma=-13.3, noise=data["u"], dtype=jnp.float64
        )
        np.testing.assert_allclose(d.z, data["z0"], atol=1e-12)
        np.testing.assert_allclose(d.entropy, data["entropy_term"], rtol=1e-9)
        probes = jnp.asarray(data["probe"])[None]
        end = solve(expert, d.z, -13.3, 5.0, rising=True, control=flow.PerImage(1e-9, 1e-9), probes=probes)
        prior = likelihood.gaussian_prior(end.z, 5.0)
        bpd = -(prior + end.divergence + d.entropy) / (192 * np.log(2))
        assert np.all(end.ok) and bpd.dtype == jnp.float64
        np.testing.assert_allclose(bpd, data["bpd_1e-09"], atol=1e-5)
        np.testing.assert_allclose(prior, data["prior_logp"], atol=2e-3)
        np.testing.assert_allclose(end.divergence, data["delta_logp_1e-09"], atol=2e-3)


def test_networks_run_at_full_precision_inside_the_likelihood():
    expert, data = idode()
    call = functools.partial(likelihood.log_likelihood, key=KEY)
    text = str(jax.make_jaxpr(lambda e, x: call(e, x))(expert, data["image"]))
    full = "precision=(Precision.HIGHEST, Precision.HIGHEST)"
    assert text.count("conv_general_dilated[") > 5 and text.count("dot_general[") > 2
    assert "precision=None" not in text and full in text


# Failures and refusals


@pytest.mark.parametrize("draws", [1, 3])
def test_a_failed_solve_is_counted_and_never_averaged(draws):
    expert = toys.mixture()
    broken = expert.replace(means=np.where(np.arange(3)[:, None, None, None] == 1, np.nan, expert.means))
    x = photos(expert, 4)
    settings = EXACT.replace(control=flow.FixedGrid(1.0), draws=draws)
    good = score(expert, x, key=KEY, scale=SCALE, settings=settings)
    bad = score(broken, x, key=KEY, scale=SCALE, settings=settings)
    assert np.all(good.ok) and not np.any(bad.ok)
    assert likelihood.mean_bpd(bad)[2:] == (0, 4) and math.isnan(likelihood.mean_bpd(bad).mean)
    mixed = jax.tree.map(lambda a, b: np.concatenate([a, b[:1]]), good, bad)
    mean = likelihood.mean_bpd(mixed)
    assert mean[2:] == (4, 1)
    np.testing.assert_allclose(mean.mean, np.mean(good.bpd), rtol=1e-6)
    np.testing.assert_allclose(mean.se, stats.sem(np.asarray(good.bpd, np.float64)), rtol=1e-6)


def fake(bpd, ok):
    zero = np.zeros(len(bpd))
    fields = dict.fromkeys(Likelihood._fields, zero) | {"bpd": np.asarray(bpd), "ok": np.asarray(ok)}
    return Likelihood(**fields)


def test_paired_difference_uses_images_that_both_solved():
    a = fake([1.0, 2.0, 3.0, np.nan], [True, True, True, False])
    b = fake([0.5, np.inf, 2.7, 1.0], [True, False, True, True])
    got = likelihood.paired_difference(a, b)
    assert got.mean == pytest.approx(0.4) and got.se == pytest.approx(0.1) and got[2:] == (2, 2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dequantization": "gaussian"}, "dequantization must be one of"),
        ({"trace": "none"}, "trace must be 'hutchinson' or 'exact'"),
        ({"probes": 0}, "probes and draws must be at least 1"),
        ({"draws": 0}, "probes and draws must be at least 1"),
        ({"dtype": "float16"}, "dtype must be 'float32' or 'float64'"),
    ],
)
def test_unknown_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Settings(**wrong)


def test_float64_needs_the_switch():
    with pytest.raises(ValueError, match="jax_enable_x64"):
        likelihood.log_likelihood(
            toys.mixture(), images(1), key=KEY, scale=SCALE, settings=Settings(dtype="float64")
        )


def test_an_expert_without_grey_levels_needs_a_scale():
    with pytest.raises(ValueError, match="scale=PixelScale"):
        likelihood.log_likelihood(toys.mixture(), images(1), key=KEY)
    with pytest.raises(ValueError, match="grey levels"):
        likelihood.evaluate(toys.mixture(), images(1), key=KEY)


def test_uniform_dequantisation_below_the_experts_range_is_refused():
    expert = toys.mixture((-5.0, 8.764))
    with pytest.raises(ValueError, match=r"uniform dequantisation needs gamma from -6\.37"):
        likelihood.log_likelihood(
            expert, images(1), key=KEY, scale=SCALE, settings=EXACT.replace(dequantization="uniform")
        )


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (images(2).astype(np.float32), "dtype float32"),
        (images(2)[..., 0], r"shape \[B, 2, 2, 1\], got \[2, 2, 2\]"),
        (images(2, (3, 2, 1)), r"got \[2, 3, 2, 1\]"),
        (images(2) + np.uint8(17), "17 grey levels"),
    ],
)
def test_images_that_do_not_fit_are_refused(bad, message):
    expert = Recorder(0.5, pixel_scale=SCALE, image_shape=SHAPE)
    with pytest.raises(ValueError, match=message):
        likelihood.evaluate(expert, bad, key=KEY)


# Choosing the grid


def known_scale():
    """A non-linear expert that knows its grey levels."""
    rng = np.random.default_rng(6)
    atoms = rng.integers(0, 17, (12, *SHAPE)).astype(np.uint8)
    return Discrete.from_images(atoms, np.ones(12), scale=SCALE, gamma_range=MERGED), atoms


@pytest.mark.parametrize("kind", [flow.FixedGrid, flow.MultistepGrid])
def test_grid_is_chosen_by_doubling_and_holds_its_tolerance(kind):
    expert, atoms = known_scale()
    settings = EXACT.replace(control=kind())
    choice = grids.choose_grid(expert, atoms, key=KEY, tolerance=1e-2, settings=settings, first=1.0)
    assert type(choice.control) is kind
    assert choice.densities == [2.0**k for k in range(len(choice.densities))]
    assert choice.control.steps_per_gamma == choice.densities[-2]
    assert choice.mean_change[-1] <= 1e-2 and all(c > 1e-2 for c in choice.mean_change[:-1])
    fine = likelihood.evaluate(expert, atoms, key=KEY, settings=EXACT.replace(control=flow.FixedGrid(64.0)))
    got = likelihood.evaluate(expert, atoms, key=KEY, settings=EXACT.replace(control=choice.control))
    assert np.mean(np.abs(got.bpd - fine.bpd)) < 1.3 * choice.mean_change[-1]


def test_images_over_tolerance_are_solved_again_and_counted():
    expert, atoms = known_scale()
    settings = EXACT.replace(control=flow.FixedGrid(2.0))
    once = likelihood.evaluate(expert, atoms, key=KEY, settings=settings)
    bound = float(np.median(once.error))
    twice = likelihood.evaluate(
        expert, atoms, key=KEY, settings=settings, refinement=likelihood.Refinement(bound, factor=8.0)
    )
    np.testing.assert_array_equal(twice.refined, once.error > bound)
    assert 0 < twice.refined.sum() < 12
    fine = likelihood.evaluate(expert, atoms, key=KEY, settings=EXACT.replace(control=flow.FixedGrid(16.0)))
    np.testing.assert_allclose(twice.bpd[twice.refined], fine.bpd[twice.refined], atol=1e-5)
    np.testing.assert_allclose(twice.bpd[~twice.refined], once.bpd[~twice.refined], atol=1e-6)
    assert not np.any(once.refined)
    # Both solves were paid for.
    np.testing.assert_allclose(twice.nfe[twice.refined], once.nfe[twice.refined] + fine.nfe[twice.refined])
    np.testing.assert_allclose(twice.nfe[~twice.refined], once.nfe[~twice.refined])


def test_an_image_whose_coarse_solve_fails_is_solved_again():
    expert, atoms = known_scale()
    settings = EXACT.replace(control=flow.FixedGrid(2.0))
    once = likelihood.evaluate(expert, atoms, key=KEY, settings=settings)
    tried = []

    def solve(settings, images, index, few):
        tried.append((settings.control.steps_per_gamma, list(index), few))
        failed = (index == 5) & (settings.control.steps_per_gamma == 2.0)
        some = jax.tree.map(lambda a: a[index], once)
        return some._replace(ok=~failed, error=np.where(failed, np.nan, 0.0))

    got = likelihood.refine(
        solve,
        likelihood.error_or_failure,
        likelihood.solved_twice,
        atoms,
        np.arange(12),
        settings,
        likelihood.Refinement(1.0, factor=4.0),
    )
    assert tried == [(2.0, list(range(12)), False), (8.0, [5], True)]
    assert np.all(got.ok)
    np.testing.assert_array_equal(got.refined, np.arange(12) == 5)


def test_a_tolerance_that_no_grid_reaches_is_refused():
    expert, atoms = known_scale()
    with pytest.raises(ValueError, match=r"no fixed grid up to 2 steps .* 12 training images"):
        grids.choose_grid(expert, atoms, key=KEY, tolerance=1e-9, settings=EXACT, most=2.0)
