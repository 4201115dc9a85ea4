"""Proposals against known minima, weights against optimisers, sweeps against separate evaluations."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from scipy import optimize

from jaxmerge import likelihood, sampling, sweeps, thresholds, vlb
from jaxmerge import probability_flow as flow
from jaxmerge.experts.base import Expert
from jaxmerge.likelihood import Refinement, Settings
from jaxmerge.merge import Switch
from jaxmerge.noise import PixelScale
from jaxmerge.vlb import Curves, Moments
from tests import toys
from tests.toys import HIGH, LOW, SHAPE, Calls, Recorder

SCALE = PixelScale(17)
KEY = jax.random.key(2)
SETTINGS = Settings(control=flow.FixedGrid(4.0))
ETAS = (0.4, 0.06, 0.77, 0.2)  # in no order


@struct.dataclass
class Wave(Expert):
    """A cheap non-linear expert whose Jacobian is far from diagonal; NaN for bright images where it fails."""

    slope: float
    gamma_range: tuple[float, float] = struct.field(pytree_node=False, default=LOW)
    fails: bool = struct.field(pytree_node=False, default=False)
    pixel_scale: PixelScale = struct.field(pytree_node=False, default=SCALE)
    image_shape: tuple[int, int, int] = struct.field(pytree_node=False, default=SHAPE)

    def eps_hat(self, z, gamma):
        wave = jnp.sin(2 * jnp.roll(z, 1, axis=1) + z + 0.1 * jnp.asarray(gamma))
        eps = self.slope * z + 0.3 * wave
        bright = jnp.min(z, axis=(1, 2, 3), keepdims=True) > 0.8
        return jnp.where(bright & (gamma < -7.5) & self.fails, jnp.nan, eps)


def waves(fails=False):
    return Wave(0.5, LOW, fails), Wave(0.9, HIGH)


@struct.dataclass
class Photo(Expert):
    """A closed-form expert that knows its grey levels."""

    expert: Expert

    @property
    def gamma_range(self):
        return self.expert.gamma_range

    @property
    def pixel_scale(self):
        return SCALE

    @property
    def image_shape(self):
        return SHAPE

    def eps_hat(self, z, gamma):
        return self.expert.eps_hat(z, gamma)


def pair():
    """Two different closed-form experts."""
    return Photo(toys.mixture(LOW)), Photo(toys.mixture(HIGH, spread=0.6))


def images(count=6, seed=0):
    return np.random.default_rng(seed).integers(2, 12, (count, *SHAPE)).astype(np.uint8)


def recorders(**kwargs):
    calls = Calls()
    low = Recorder(0.5, "low", calls, LOW, SCALE, SHAPE)
    return low, Recorder(0.9, "high", calls, HIGH, SCALE, SHAPE), calls


# Thresholds


def test_standard_etas_are_the_papers():
    low, high = Recorder(0.0, gamma_range=(-13.3, 5.0)), Recorder(0.0, gamma_range=(-12.43, 8.764))
    etas = thresholds.standard_etas(low, high)
    np.testing.assert_allclose(etas, [0.0394307, *(k / 10 for k in range(1, 9)), 0.829405], atol=1e-6)
    for eta in etas:
        Switch(low, high, eta)


def test_standard_etas_keep_what_both_experts_allow():
    etas = thresholds.standard_etas(Recorder(0.0, gamma_range=LOW), Recorder(0.0, gamma_range=HIGH))
    np.testing.assert_allclose(etas, [0.0523, *(k / 10 for k in range(1, 8)), 0.7736], atol=1e-4)


def synthetic(low, high, missing=2.0):
    """Curves over the merged range [0, 1] (gamma is eta), strata of 0.1.

    Args:
        low, high: squared errors [N, 10] of experts for [0, 0.9] and [0.1, 1].
        missing: what an expert's own end term costs for the stratum beyond its range, in units of what the
            other expert needs there; with 1 an expert alone equals the merge at its end.
    """
    n = len(low)
    products = np.zeros((n, 10, 2, 2))
    products[:, :9, 0, 0], products[:, 1:, 1, 1] = low[:, :9], high[:, 1:]
    prior = np.stack([1 + missing * 0.05 * high[:, 9], np.ones(n)], axis=1)
    recon = np.stack([np.zeros(n), missing * 0.05 * low[:, 0]], axis=1)
    moments = Moments(products, prior, recon)
    return Curves(("low", "high"), ((0.0, 0.9), (0.1, 1.0)), np.linspace(0, 1, 11), moments, 4)


CANDIDATES = np.arange(1, 10) / 10
CENTRES = np.arange(10) / 10 + 0.05


def totals(low, high):
    """Bounds of every candidate per image, by plain sums, bits per dimension."""
    each = [1 + 0.05 * (low[:, :k].sum(1) + high[:, k:].sum(1)) for k in range(1, 10)]
    return np.stack(each, axis=1) / (4 * np.log(2))


def test_the_best_pair_of_several_experts_is_that_of_a_search_over_all_merges():
    rng = np.random.default_rng(1)
    errors = rng.uniform(3, 9, (20, 10, 3))
    # The third is best below 0.4, the first above it.
    errors[:, :4, 2] -= 2.5
    errors[:, 4:, 0] -= 2.5
    products = np.einsum("nsk,kl->nskl", errors, np.eye(3))
    moments = Moments(products, rng.uniform(0, 0.01, (20, 3)), rng.uniform(0, 0.01, (20, 3)))
    curves = Curves(("a", "b", "c"), ((0.0, 1.0),) * 3, np.linspace(0, 1, 11), moments, 4)
    found = thresholds.best_pair(curves)
    assert (found.low, found.high) == (2, 0) and found.gamma == pytest.approx(0.4)
    diffusion = 0.05 * (errors[:, :4, 2].sum(1) + errors[:, 4:, 0].sum(1))
    ends = moments.prior[:, 0] + moments.reconstruction[:, 2]
    assert found.bpd == pytest.approx(np.mean(diffusion + ends) / (4 * np.log(2)))


def test_a_pair_needs_an_edge_between_its_ends():
    curves = synthetic(np.ones((3, 10)), np.ones((3, 10)))
    whole = dataclasses.replace(curves, edges=curves.edges[[0, 10]])
    with pytest.raises(
        ValueError, match="got 2 experts and 2 edges; measure the curves with more thresholds"
    ):
        thresholds.best_pair(whole)


@pytest.mark.parametrize("crossing", [0.3, 0.5, 0.8])
def test_proposal_finds_the_known_minimum(crossing):
    """The low expert is better below the crossing, the high one above it."""
    rng = np.random.default_rng(0)
    high = rng.uniform(3, 9, (50, 10))
    low = high + 5 * (CENTRES - crossing) + 0.1 * rng.normal(size=(50, 10))
    want = totals(low, high)
    found = thresholds.propose(synthetic(low, high), CANDIDATES[::-1])
    assert found.best == crossing and found.merge
    np.testing.assert_allclose(found.etas, CANDIDATES)
    np.testing.assert_allclose(found.bpd, want.mean(0), rtol=1e-10)
    np.testing.assert_allclose(found.se, want.std(0, ddof=1) / np.sqrt(50), rtol=1e-10)
    # Images differ much more than the paired differences do.
    assert np.all(found.excess_se < 0.1 * found.se)


def test_cautious_proposal_is_the_smallest_within_one_paired_standard_error():
    rng = np.random.default_rng(1)
    high = rng.uniform(3, 9, (50, 10))
    gain = np.where(CENTRES < 0.3, -4.0, np.where(CENTRES < 0.7, -0.05, 3.0))
    scatter = rng.normal(size=(50, 10))
    low = high + gain + scatter - scatter.mean(0)
    found = thresholds.propose(synthetic(low, high), CANDIDATES)
    each = totals(low, high)
    best = int(np.argmin(each.mean(0)))
    excess = each - each[:, [best]]
    near = excess.mean(0) <= excess.std(0, ddof=1) / np.sqrt(50)
    assert (found.best, found.cautious) == (0.7, 0.3) == (CANDIDATES[best], CANDIDATES[near][0])
    assert not near[: np.argmax(near)].any() and near.sum() > 1
    np.testing.assert_allclose(found.excess, excess.mean(0), atol=1e-12)


@pytest.mark.parametrize("better", ["low", "high"])
def test_no_merge_is_proposed_where_one_expert_is_better_everywhere(better):
    """Then the best merge lies at the end of the range, and the expert alone is as good or better."""
    rng = np.random.default_rng(2)
    base = rng.uniform(3, 9, (50, 10))
    shift = 2.0 + 0.1 * rng.normal(size=(50, 10))
    low, high = (base, base + shift) if better == "low" else (base + shift, base)
    found = thresholds.propose(synthetic(low, high, missing=0.9), CANDIDATES)
    assert found.best == (0.9 if better == "low" else 0.1) and not found.merge


def test_candidates_that_the_curves_do_not_hold_are_refused():
    curves = synthetic(np.ones((3, 10)), np.ones((3, 10)))
    for eta, message in ((0.25, "one of the curve's stratum edges"), (0.0, "inside both experts' ranges")):
        with pytest.raises(ValueError, match=message):
            thresholds.propose(curves, [0.3, eta])


def test_proposal_from_measured_curves_prefers_the_better_expert_on_each_side():
    """The high expert knows the data, the low one a narrower distribution: the smallest threshold is best."""
    low, high = Photo(toys.gaussian(LOW).replace(variances=np.full(4, 1e-3))), Photo(toys.gaussian(HIGH))
    x = np.asarray(SCALE.nearest(jax.jit(type(high.expert).sample, static_argnums=2)(high.expert, KEY, 200)))
    etas = thresholds.standard_etas(low, high)
    marks = [LOW[0] + eta * (HIGH[1] - LOW[0]) for eta in etas]
    curves = vlb.error_curves({"low": low, "high": high}, x, key=KEY, thresholds=marks, per_interval=2)
    found = thresholds.propose(curves, etas)
    assert found.best == found.cautious == etas[0]


# Weights


def grams(count, seed, n=6):
    """Second moments of `count` correlated errors, some nearly equal."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n, 12, 1)) * rng.uniform(0, 3, (n, 1, 1))
    errors = common + rng.normal(size=(n, 12, count)) * rng.uniform(0.2, 2, (n, 1, count))
    return np.einsum("nij,nik->njk", errors, errors)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_affine_weights_solve_the_lagrangian(count):
    for gram in grams(count, count):
        kkt = np.block([[2 * gram, np.ones((count, 1))], [np.ones((1, count)), np.zeros((1, 1))]])
        want = np.linalg.solve(kkt, np.append(np.zeros(count), 1))[:count]
        np.testing.assert_allclose(thresholds.affine_weights(gram), want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_convex_weights_are_scipys(count):
    clipped = 0
    for gram in grams(count, 10 + count, 12):
        found = thresholds.convex_weights(gram)
        scale = np.trace(gram)
        result = optimize.minimize(
            lambda w, g=gram / scale: w @ g @ w,
            np.full(count, 1 / count),
            jac=lambda w, g=gram / scale: 2 * g @ w,
            bounds=[(0, 1)] * count,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert found.min() >= 0 and found.sum() == pytest.approx(1)
        assert found @ gram @ found <= (1 + 1e-9) * scale * result.fun
        np.testing.assert_allclose(found, result.x, atol=1e-4)
        clipped += thresholds.affine_weights(gram).min() < 0
    assert 0 < clipped < 12  # both kinds of optimum were seen


def test_two_experts_convex_weights_are_the_clipped_affine_ones():
    for gram in grams(2, 5, 20):
        clipped = np.clip(thresholds.affine_weights(gram), 0, 1)
        np.testing.assert_allclose(thresholds.convex_weights(gram), clipped, atol=1e-12)


def test_degenerate_moments_have_sensible_weights():
    np.testing.assert_allclose(thresholds.affine_weights(np.full((2, 2), 3.0)), [0.5, 0.5], atol=1e-3)
    for weights in (thresholds.affine_weights, thresholds.convex_weights):
        assert weights(np.full((2, 2), 3.0)).sum() == pytest.approx(1)
        np.testing.assert_allclose(weights(np.diag([0.0, 2.0])), [1, 0], atol=1e-9)
        assert weights(np.zeros((3, 3))).sum() == pytest.approx(1)


def test_best_weights_use_the_experts_that_answer_and_order_the_routings():
    rng = np.random.default_rng(3)
    errors = rng.normal(size=(40, 10, 2, 12)) + rng.normal(size=(40, 10, 1, 12))
    errors[:, 9, 0], errors[:, 0, 1] = 0, 0  # out of range
    products = np.einsum("nskd,nsld->nskl", errors, errors)
    moments = Moments(products, np.zeros((40, 2)), np.zeros((40, 2)))
    curves = Curves(("low", "high"), ((0.0, 0.9), (0.1, 1.0)), np.linspace(0, 1, 11), moments, 12)
    found = thresholds.best_weights(curves)
    for w in (found.affine, found.convex):
        np.testing.assert_allclose(w.sum(1), 1)
        np.testing.assert_allclose(w[[0, 9]], [[1, 0], [0, 1]])
    gram = products.mean(0)
    np.testing.assert_allclose(found.affine[4], thresholds.affine_weights(gram[4]))
    np.testing.assert_allclose(found.condition[4], np.linalg.cond(gram[4]))
    by_hand = 0.05 / (12 * np.log(2)) * sum(w @ m @ w for w, m in zip(found.affine, gram, strict=True))
    assert found.affine_bpd == pytest.approx(by_hand)
    assert found.affine_bpd <= found.convex_bpd < found.best_single_bpd
    switch = min(curves.switch(eta)[:, 2].mean() for eta in CANDIDATES)
    assert found.best_single_bpd <= switch + 1e-12  # routing per stratum is at least as free as one threshold


# Sweep of likelihoods


@functools.cache
def swept(dequantization="truncated_normal"):
    low, high = waves()
    settings = SETTINGS.replace(dequantization=dequantization)
    return sweeps.sweep_likelihood(low, high, ETAS, images(), key=KEY, settings=settings, batch_size=6)


@pytest.mark.parametrize(
    "dequantization", ["truncated_normal", "uniform", pytest.param("variational", marks=pytest.mark.slow)]
)
def test_swept_likelihoods_are_the_separate_ones(dequantization):
    """Uniform dequantisation starts at gamma = -6.38, above the lowest threshold: that merge is the high expert."""
    low, high = waves()
    result = swept(dequantization)
    models = [(Switch(low, high, eta), r) for eta, r in zip(ETAS, result.merged, strict=True)]
    if dequantization == "truncated_normal":
        models += [(low, result.low), (high, result.high)]
    for expert, got in models:
        settings = SETTINGS.replace(dequantization=dequantization)
        want = likelihood.evaluate(expert, images(), key=KEY, settings=settings)
        np.testing.assert_allclose(got.bpd, want.bpd, atol=1e-3)
        for term in ("prior", "trace", "dequantization", "decoder"):
            np.testing.assert_allclose(getattr(got, term), getattr(want, term), atol=2e-3)
        assert np.all(got.ok) and not np.any(got.refined)
        # A trunk with a node at every threshold takes a few steps more, of three calls each.
        extra = np.asarray(got.nfe) - want.nfe
        assert np.all(extra >= 0) and np.all(extra <= 4 * (len(ETAS) + 1))
        np.testing.assert_allclose(got.error, want.error, rtol=1.0, atol=1e-4)
    spread = np.ptp([r.bpd.mean() for _, r in models])
    assert spread > 0.05  # the models differ much more than the tolerance above


def test_sweep_takes_fewer_calls_than_separate_evaluations():
    """Counted by hand: trunk up to each threshold and on to the low expert's end, one branch per threshold."""
    result = swept()
    gammas = LOW[0] + np.sort(ETAS) * (HIGH[1] - LOW[0])

    def calls(a, b):
        return 3 * np.ceil((b - a) * 4) + 1

    trunk = sum(calls(a, b) for a, b in zip([LOW[0], *gammas], [*gammas, LOW[1]], strict=True))
    branches = sum(calls(g, HIGH[1]) for g in gammas)
    assert result.calls == trunk + branches + calls(*HIGH)
    assert result.calls < 0.8 * result.calls_apart
    low, high = waves()
    merges = [likelihood.evaluate(Switch(low, high, e), images(), key=KEY, settings=SETTINGS) for e in ETAS]
    apart = sum(float(r.nfe.mean()) for r in merges) + calls(*LOW) + calls(*HIGH)
    assert apart <= result.calls_apart < 1.1 * apart


def test_swept_ode_asks_each_expert_as_often_as_it_says():
    low, high, calls = recorders()
    settings = sampling.Settings("ode", control=flow.FixedGrid(2.0))
    result = sweeps.sweep_samples(low, high, ETAS, 1, key=KEY, settings=settings)
    assert sum(calls.counts().values()) == result.calls < sum(result.nfe)
    assert max(calls.of("low")) < 5.0 and min(calls.of("high")) > HIGH[0]


@pytest.mark.parametrize("batch_size", [6, pytest.param(4, marks=pytest.mark.slow)])
def test_order_of_thresholds_and_batch_size_change_nothing(batch_size):
    low, high = waves()
    order = [2, 0, 3, 1]
    etas = [ETAS[i] for i in order]
    other = sweeps.sweep_likelihood(
        low, high, etas, images(), key=KEY, settings=SETTINGS, batch_size=batch_size
    )
    for i, got in zip(order, other.merged, strict=True):
        np.testing.assert_allclose(got.bpd, swept().merged[i].bpd, atol=1e-5)
    np.testing.assert_allclose(other.low.bpd, swept().low.bpd, atol=1e-5)
    assert other.calls == swept().calls


def test_images_over_tolerance_are_swept_again_on_a_finer_grid():
    low, high = waves()
    once = swept()
    worst = np.maximum(np.max([r.error for r in once.merged], axis=0), once.low.error)
    tolerance = float(np.median(worst))
    run = functools.partial(sweeps.sweep_likelihood, low, high, ETAS, images(), key=KEY, batch_size=6)
    twice = run(settings=SETTINGS, refinement=Refinement(tolerance, factor=4.0))
    finer = run(settings=SETTINGS.replace(control=flow.FixedGrid(16.0)))
    over = worst > tolerance
    assert 0 < over.sum() < 6
    for got, coarse, fine in zip(twice.merged, once.merged, finer.merged, strict=True):
        np.testing.assert_array_equal(got.refined, over)
        np.testing.assert_allclose(got.bpd[over], fine.bpd[over], atol=1e-5)
        np.testing.assert_allclose(got.bpd[~over], coarse.bpd[~over], atol=1e-5)
    np.testing.assert_array_equal(twice.low.refined, over)


def test_a_failed_image_is_named_in_every_row_it_spoils():
    """The low expert gives NaN for one image: all rows that use it lose this image, the high expert's does not."""
    low, high = waves(fails=True)
    x = images()
    x[4] = 16
    result = sweeps.sweep_likelihood(
        low, high, ETAS, x, key=KEY, settings=SETTINGS, refinement=Refinement(1e3), batch_size=6
    )
    want = np.arange(6) != 4
    for row in (result.low, *result.merged):
        np.testing.assert_array_equal(row.ok, want)
        assert likelihood.mean_bpd(row)[2:] == (5, 1)
    assert np.all(result.high.ok)
    plain = swept()
    np.testing.assert_allclose(result.merged[0].bpd[want], plain.merged[0].bpd[want], atol=1e-5)


@pytest.mark.parametrize(
    ("etas", "settings", "message"),
    [
        ((0.3, 0.9), SETTINGS, "threshold must lie inside both experts' ranges, eta from 0.05"),
        ((0.3,), SETTINGS.replace(draws=2), "one draw per image, got draws=2"),
    ],
)
def test_sweeps_of_likelihoods_refuse(etas, settings, message):
    with pytest.raises(ValueError, match=message):
        sweeps.sweep_likelihood(*waves(), etas, images(), key=KEY, settings=settings)


# Sweep of samples


@pytest.mark.parametrize(
    "settings",
    [
        sampling.Settings("heun", 9),
        pytest.param(sampling.Settings("heun", 9, decoder="sample"), marks=pytest.mark.slow),
        sampling.Settings("heun", 9, final="denoise"),
        sampling.Settings("ancestral", 20),
    ],
    ids=["argmax", "sample", "denoise", "ancestral"],
)
def test_swept_samples_are_the_separate_ones(settings):
    low, high = pair()
    found = sweeps.sweep_samples(low, high, ETAS, 60, key=KEY, settings=settings, batch_size=25)
    distinct = set()
    for eta, got, nfe in zip(ETAS, found.images, found.nfe, strict=True):
        want, want_nfe = sampling.generate(
            Switch(low, high, eta), 60, key=KEY, settings=settings, batch_size=60
        )
        assert np.mean(got == want) >= 0.999
        assert nfe == want_nfe.mean() and got.dtype == np.uint8
        distinct.add(got.tobytes())
    assert len(distinct) == len(ETAS) and found.calls < sum(found.nfe)


def test_swept_ancestral_steps_ask_each_expert_as_often_as_it_says():
    low, high, calls = recorders()
    settings = sampling.Settings("ancestral", 20)
    found = sweeps.sweep_samples(low, high, ETAS, 1, key=KEY, settings=settings)
    assert sum(calls.counts().values()) == found.calls < sum(found.nfe) == 20 * len(ETAS)


def test_swept_ode_samples_are_the_separate_ones_up_to_the_solver():
    low, high = pair()
    settings = sampling.Settings("ode", control=flow.FixedGrid(8.0))
    found = sweeps.sweep_samples(low, high, ETAS, 60, key=KEY, settings=settings, batch_size=60)
    for eta, got, nfe in zip(ETAS, found.images, found.nfe, strict=True):
        want, want_nfe = sampling.generate(
            Switch(low, high, eta), 60, key=KEY, settings=settings, batch_size=60
        )
        difference = np.abs(got.astype(int) - want)
        assert np.mean(difference == 0) >= 0.99 and difference.max() <= 1
        assert 0 <= nfe - want_nfe.mean() <= 4 * len(ETAS)
    assert found.calls < sum(found.nfe)


def test_swept_heun_asks_each_expert_on_its_own_side_and_counts_its_calls():
    low, high, calls = recorders()
    found = sweeps.sweep_samples(low, high, ETAS, 1, key=KEY, settings=sampling.Settings("heun", 18))
    gammas = LOW[0] + np.array(ETAS) * (HIGH[1] - LOW[0])
    assert min(calls.of("high")) > gammas.min() - 1e-4 and max(calls.of("low")) < gammas.max() + 1e-4
    assert sum(calls.counts().values()) == found.calls
    assert set(found.nfe) == {36.0}


@pytest.mark.parametrize(
    "settings",
    [sampling.Settings("heun", 6), sampling.Settings("ode", control=flow.FixedGrid(1.0))],
    ids=["heun", "ode"],
)
def test_empty_slots_cost_no_calls_and_change_nothing(settings):
    """One compiled program serves sweeps over fewer thresholds."""
    low, high, calls = recorders()
    run = functools.partial(sweeps.sweep_samples, low, high, (0.5, 0.1), 1, key=KEY, settings=settings)
    plain, asked = run(), sum(calls.counts().values())
    calls.clear()
    padded = run(slots=4)
    assert sum(calls.counts().values()) == asked == plain.calls == padded.calls
    assert padded.nfe == plain.nfe
    for a, b in zip(padded.images, plain.images, strict=True):
        np.testing.assert_array_equal(a, b)


def test_later_samples_continue_the_sweep():
    low, high = pair()
    settings = sampling.Settings("heun", 5)
    run = functools.partial(sweeps.sweep_samples, low, high, (0.3,), key=KEY, settings=settings, batch_size=3)
    np.testing.assert_array_equal(run(9).images[0][6:], run(3, first=6).images[0])


def test_sweeps_of_samples_refuse():
    with pytest.raises(ValueError, match="inside both experts' ranges"):
        sweeps.sweep_samples(*pair(), (0.01,), 2, key=KEY)
