"""The probability flow against closed forms, its divergence against exact traces, and its step controls."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from jaxmerge import multistep
from jaxmerge import probability_flow as flow
from jaxmerge.experts.analytic import Gaussian
from jaxmerge.experts.base import Expert
from jaxmerge.merge import Switch
from tests import public, toys
from tests.toys import MERGED, SHAPE, Recorder

D = 4
BIG = (8, 8, 1)

solve = jax.jit(flow.solve, static_argnames="rising")
rates = jax.jit(flow.drift_and_divergence)
drift = jax.jit(flow.drift)
ask = jax.jit(lambda expert, z, gamma: expert.eps_hat(z, gamma))
log_prob = jax.jit(lambda expert, z, gamma: expert.log_prob(z, gamma))

# Tolerances and densities are leaves, so both tables share compiled programs; most tests take six states.
CONTROLS = {
    "fixed": flow.FixedGrid(6.0),
    "multistep": flow.MultistepGrid(24.0),
    "per_image": flow.PerImage(1e-6, 1e-6, max_steps=256),
    "batch_coupled": flow.BatchCoupled(1e-6, 1e-6, max_steps=256),
}
COARSE = {
    "fixed": flow.FixedGrid(2.0),
    "multistep": flow.MultistepGrid(2.0),
    "per_image": flow.PerImage(1e-3, 1e-3, max_steps=256),
    "batch_coupled": flow.BatchCoupled(1e-3, 1e-3, max_steps=256),
}


def relative(a, b):
    return float(np.max(np.abs(np.asarray(a) - np.asarray(b))) / np.max(np.abs(np.asarray(b))))


def exact(dtype=jnp.float32, shape=SHAPE):
    return flow.exact_probes(shape, dtype)


def log_density(expert, result):
    """log p(z_0) from the end of a rising solve and the expert's exact terminal density."""
    return log_prob(expert, result.z, MERGED[1]) + result.divergence


# The field


def test_drift_is_that_of_the_scaled_state_y():
    """With y = z / alpha, dy/dgamma = 1/2 exp(gamma / 2) eps_hat (method of arXiv 2511.19434, Eq. 11)."""
    expert = toys.mixture()
    for gamma in (-7.0, 0.3, 8.0):
        z = toys.states(expert, gamma, 5)
        y_rate = 0.5 * np.exp(gamma / 2) * ask(expert, z, gamma)
        alpha, sigma2 = 1 / np.sqrt(1 + np.exp(gamma)), 1 / (1 + np.exp(-gamma))
        np.testing.assert_allclose(
            drift(expert, z, gamma), alpha * y_rate - 0.5 * sigma2 * z, rtol=1e-5, atol=2e-6
        )


def test_exact_probes_give_the_trace_of_the_jacobian():
    expert = toys.mixture()
    z = toys.states(expert, -1.0, 5)
    jacobian = jax.jit(
        jax.vmap(jax.jacfwd(lambda one: flow.drift(expert, one.reshape(1, *SHAPE), -1.0).reshape(-1)))
    )(z.reshape(5, D))
    h, divergence = rates(expert, z, -1.0, exact())
    np.testing.assert_allclose(divergence, np.trace(jacobian, axis1=1, axis2=2), rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(h, drift(expert, z, -1.0), rtol=1e-6, atol=1e-7)


def test_velocity_network_has_the_public_codes_drift_and_divergence():
    expert, data = public.vdm_flax("idode_vp_tiny"), public.arrays("idode_vp_tiny")
    probe = data["probe"][None]
    for z, gamma, want, want_div in zip(
        data["z"], data["gamma"], data["drift"], data["divergence"], strict=True
    ):
        with jax.default_matmul_precision("highest"):
            h, divergence = rates(expert, jnp.asarray(z), jnp.float32(gamma), probe)
        assert relative(h, want) < 1e-5, gamma
        assert relative(divergence, want_div) < 5e-5, gamma


def straight_path_rates(expert, z, gamma, probe):
    """dz/dgamma = alpha sigma F / sqrt(2) of i-DODE's straight path (SP), and its trace estimate."""
    alpha, sigma = jax.nn.sigmoid(-0.5 * gamma), jax.nn.sigmoid(0.5 * gamma)

    def field(z):
        return alpha * sigma / np.sqrt(2.0) * expert.raw(z, jnp.full(len(z), gamma, z.dtype))

    h, tangent = jax.linearize(field, z)
    return h, jnp.sum(probe * tangent(probe), axis=(1, 2, 3))


def test_straight_path_network_has_the_public_codes_drift_and_divergence():
    """Against the fixture in its own schedule and float32; then the VP flow against that field in float64.

    At one gamma the two states differ by a factor, r = z_SP / z_VP = sigma_SP / sigma_VP. Both drifts are
    sigma eps_hat / 2 - s z with s = sigmoid(gamma) / 2 (VP) or sigmoid(gamma / 2) / 2 (SP), so the SP drift
    is r (h + s_VP z_VP) - s_SP z_SP. Float64, since the Fourier features multiply the rounding of z_VP by 400.
    """
    expert, data = public.vdm_flax("idode_sp_tiny"), public.arrays("idode_sp_tiny")
    probe = data["probe"]
    for z, gamma, want, want_div in zip(
        data["z"], data["gamma"], data["drift"], data["divergence"], strict=True
    ):
        with jax.default_matmul_precision("highest"):
            h, divergence = jax.jit(straight_path_rates)(expert, z, jnp.float32(gamma), probe)
        assert relative(h, want) < 1e-5, gamma
        assert relative(divergence, want_div) < 5e-5, gamma
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        z, gamma, v = data["z"][2].astype(np.float64), data["gamma"][2], probe.astype(np.float64)
        sigma_vp, sigma_sp = 1 / np.sqrt(1 + np.exp(-gamma)), 1 / (1 + np.exp(-gamma / 2))
        ratio, s_vp, s_sp = sigma_sp / sigma_vp, 0.5 * sigma_vp**2, 0.5 * sigma_sp
        h, divergence = rates(expert, jnp.asarray(z / ratio), gamma, v[None])
        want, want_div = jax.jit(straight_path_rates)(expert, jnp.asarray(z), gamma, v)
        assert relative(ratio * (h + s_vp * z / ratio) - s_sp * z, want) < 1e-9
        assert relative(divergence + (s_vp - s_sp) * np.sum(v**2, axis=(1, 2, 3)), want_div) < 1e-9


# Hutchinson's estimate


@functools.cache
def big_jacobian(gamma=-1.0):
    """A state of a non-linear expert in 64 dimensions and the Jacobian of the drift there, float64."""
    expert = toys.mixture(shape=BIG, spread=0.25)
    z = toys.states(expert, gamma, 1)
    jacobian = jax.jit(jax.jacfwd(lambda one: flow.drift(expert, one.reshape(1, *BIG), gamma).reshape(-1)))
    return expert, z, np.asarray(jacobian(z.reshape(-1)), np.float64)


@pytest.mark.parametrize("count", [1, 4, 16])
def test_hutchinson_estimate_has_the_exact_mean_and_variance(count):
    """For Rademacher v, E v^T A v = tr A and Var v^T A v = 2 sum_{i != j} A_ij^2 (A symmetric), per probe."""
    expert, z, jacobian = big_jacobian()
    symmetric = 0.5 * (jacobian + jacobian.T)
    variance = 2 * (np.sum(symmetric**2) - np.sum(np.diag(symmetric) ** 2)) / count
    n = 800
    probes = flow.rademacher_probes(jax.random.split(jax.random.key(count), n), count, BIG)
    one = jax.jit(
        lambda probes: jax.lax.map(
            lambda v: flow.drift_and_divergence(expert, z, -1.0, v[:, None])[1][0], probes, batch_size=100
        )
    )
    sample = np.asarray(one(jnp.moveaxis(probes, 1, 0)), np.float64)
    # Standard errors of a mean and of a variance: sqrt(var / n) and var sqrt((kurtosis - 1) / n).
    kurtosis = np.mean((sample - sample.mean()) ** 4) / sample.var() ** 2
    assert abs(sample.mean() - np.trace(jacobian)) < 4 * np.sqrt(variance / n)
    assert abs(sample.var(ddof=1) / variance - 1) < 4 * np.sqrt((kurtosis - 1) / n)


def test_variance_of_the_solved_divergence_falls_as_one_over_probes():
    """Many copies of one state take the same path, so that their divergences differ by their probes only."""
    shape, n, control = (4, 4, 1), 400, flow.MultistepGrid(1.0)
    expert = toys.mixture(shape=shape)
    start = toys.states(expert, MERGED[0], 1)
    truth = float(
        solve(expert, start, *MERGED, rising=True, control=control, probes=exact(shape=shape)).divergence[0]
    )
    start = jnp.broadcast_to(start, (n, *shape))
    variances, errors = [], []
    for count in (1, 4, 16):
        probes = flow.rademacher_probes(jax.random.split(jax.random.key(count), n), count, shape)
        sample = np.asarray(
            solve(expert, start, *MERGED, rising=True, control=control, probes=probes).divergence
        )
        sample = sample.astype(np.float64)
        assert abs(sample.mean() - truth) < 4 * sample.std(ddof=1) / np.sqrt(n)
        kurtosis = np.mean((sample - sample.mean()) ** 4) / sample.var() ** 2
        variances.append(sample.var(ddof=1))
        errors.append(np.sqrt((kurtosis - 1) / n))  # relative standard error of the variance
    for k, factor in ((1, 4), (2, 16)):
        ratio = np.log(variances[0] / variances[k] / factor)
        assert abs(ratio) < 4 * np.hypot(errors[0], errors[k])


def test_probes_are_signs_drawn_from_each_images_key():
    keys = jax.random.split(jax.random.key(0), 3)
    probes = flow.rademacher_probes(keys, 5, SHAPE)
    assert probes.shape == (5, 3, *SHAPE) and set(np.unique(probes)) == {-1.0, 1.0}
    np.testing.assert_array_equal(probes[:, 1:2], flow.rademacher_probes(keys[1:2], 5, SHAPE))
    assert np.any(probes[:, 0] != probes[:, 1])


# Closed forms


def linear_flow(expert: Gaussian, z, start, end):
    """The flow of a Gaussian and its log-determinant, in the eigenbasis of its covariance.

    The drift is linear there, and the standard deviation of each coordinate, sqrt(alpha^2 lambda + sigma^2),
    is carried along: z(end) = s_end / s_start (z - alpha_start m) + alpha_end m.
    """
    rows = np.asarray(z, np.float64).reshape(len(z), -1)
    mean, basis, lam = expert.mean.reshape(-1), expert.basis, expert.variances
    alpha2 = [1 / (1 + np.exp(g)) for g in (start, end)]
    std = [np.sqrt(a2 * lam + 1 - a2) for a2 in alpha2]
    ratio = std[1] / std[0]
    moved = ((rows - np.sqrt(alpha2[0]) * mean) @ basis * ratio) @ basis.T + np.sqrt(alpha2[1]) * mean
    return moved.reshape(np.shape(z)), np.sum(np.log(ratio))


@pytest.mark.parametrize(
    ("name", "rising"),
    [
        ("fixed", True),
        ("fixed", False),
        ("multistep", True),
        ("multistep", False),
        ("per_image", False),
        ("batch_coupled", False),
    ],
)
def test_gaussian_flow_is_linear(name, rising):
    expert = toys.gaussian()
    start, end = MERGED if rising else MERGED[::-1]
    z = toys.states(expert, start, 6)
    result = solve(expert, z, start, end, rising=rising, control=CONTROLS[name], probes=exact())
    want, log_det = linear_flow(expert, z, start, end)
    np.testing.assert_allclose(result.z, want, atol=2e-4)
    np.testing.assert_allclose(result.divergence, log_det, atol=2e-4)
    assert np.all(result.ok)


@pytest.mark.parametrize(
    ("make", "name"),
    [(toys.gaussian, "fixed"), (toys.gaussian, "multistep"), *((toys.mixture, name) for name in CONTROLS)],
)
def test_exact_experts_recover_their_own_density(make, name):
    expert = make()
    z = toys.states(expert, MERGED[0], 6)
    result = solve(expert, z, *MERGED, rising=True, control=CONTROLS[name], probes=exact())
    error = log_density(expert, result) - log_prob(expert, z, MERGED[0])
    assert np.max(np.abs(error)) / (D * np.log(2)) < 1e-4


@pytest.mark.parametrize(
    ("make", "control"),
    [
        (toys.gaussian, flow.PerImage(1e-8, 1e-8)),
        (toys.mixture, flow.PerImage(1e-8, 1e-8)),
        (toys.mixture, flow.FixedGrid(120.0)),
        (toys.mixture, flow.MultistepGrid(400.0)),
    ],
)
def test_exact_experts_recover_their_own_density_in_float64(make, control):
    with jax.enable_x64(True):
        expert = make()
        z = toys.states(expert, MERGED[0], 6, np.float64)
        result = solve(expert, z, *MERGED, rising=True, control=control, probes=exact(jnp.float64))
        error = log_density(expert, result) - log_prob(expert, z, MERGED[0])
        assert result.z.dtype == result.divergence.dtype == jnp.float64
        assert np.max(np.abs(error)) / (D * np.log(2)) < 1e-6


def test_merge_of_an_exact_expert_with_itself_is_exact_at_any_threshold():
    low, high = toys.mixture(toys.LOW), toys.mixture(toys.HIGH)
    z = toys.states(low, MERGED[0], 6)
    for eta in (0.06, 0.4, 0.75):
        merged = Switch(low, high, eta=eta)
        result = solve(merged, z, *MERGED, rising=True, control=CONTROLS["fixed"], probes=exact())
        error = log_density(low, result) - log_prob(low, z, MERGED[0])
        assert np.max(np.abs(error)) / (D * np.log(2)) < 1e-4


# The fixed grid


@pytest.mark.parametrize("rising", [True, False], ids=["up", "down"])
@pytest.mark.parametrize("kind", [flow.FixedGrid, flow.MultistepGrid])
def test_fixed_grids_are_of_third_order(kind, rising):
    with jax.enable_x64(True):
        expert = toys.mixture()
        start, end = (-2.0, 4.0) if rising else (4.0, -2.0)
        z = toys.states(expert, start, 6, np.float64)
        run = functools.partial(solve, expert, z, start, end, rising=rising, probes=exact(jnp.float64))
        truth = run(control=flow.FixedGrid(400.0))
        errors = []
        for steps in (32.0, 64.0, 128.0):
            got = run(control=kind(steps))
            errors.append(
                (np.max(np.abs(got.z - truth.z)), np.max(np.abs(got.divergence - truth.divergence)))
            )
        orders = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    np.testing.assert_allclose(orders[-1], 3.0, atol=0.15)
    np.testing.assert_allclose(orders[0], 3.0, atol=0.3)


ADAPTIVE = [pytest.param(name, marks=pytest.mark.slow) for name in ("per_image", "batch_coupled")]


@pytest.mark.parametrize("name", ["fixed", "multistep", *ADAPTIVE])
def test_up_and_down_again_returns_to_the_start(name):
    expert = Switch(toys.mixture(toys.LOW), toys.mixture(toys.HIGH), eta=0.3)
    z = toys.states(expert.low, MERGED[0], 6)
    up = solve(expert, z, *MERGED, rising=True, control=CONTROLS[name], probes=exact())
    down = solve(expert, up.z, *MERGED[::-1], rising=False, control=CONTROLS[name], probes=exact())
    np.testing.assert_allclose(down.z, z, atol=1e-3)
    np.testing.assert_allclose(down.divergence, -up.divergence, atol=1e-3)


def test_error_estimate_is_above_the_true_error():
    with jax.enable_x64(True):
        expert = toys.mixture()
        z = toys.states(expert, MERGED[0], 6, np.float64)
        run = functools.partial(solve, expert, z, *MERGED, rising=True, probes=exact(jnp.float64))
        truth = run(control=flow.FixedGrid(64.0)).divergence
        for steps in (1.0, 2.0, 4.0):
            got = run(control=flow.FixedGrid(steps))
            assert np.all(got.error > np.abs(got.divergence - truth)), steps


def test_fixed_grid_cost_is_known_beforehand():
    expert = Switch(Recorder(0.5, gamma_range=toys.LOW), Recorder(0.9, gamma_range=toys.HIGH), gamma=0.0)
    z = jnp.zeros((2, *SHAPE))
    for steps in (0.5, 2.0, 3.0):
        want = sum(3 * np.ceil(width * steps) + 1 for width in (7.864, 8.764))
        control = flow.FixedGrid(steps)
        np.testing.assert_array_equal(solve(expert, z, *MERGED, rising=True, control=control).nfe, want)
    assert flow.FixedGrid(1.5).refined(2) == flow.FixedGrid(3.0)


def test_multistep_cost_is_known_beforehand():
    """Equal steps in s = -2 asinh(exp(-gamma / 2)), an even number and at least four, and four calls to start."""
    expert = Switch(Recorder(0.5, gamma_range=toys.LOW), Recorder(0.9, gamma_range=toys.HIGH), gamma=0.0)
    z = jnp.zeros((2, *SHAPE))
    s = [-2 * np.arcsinh(np.exp(-gamma / 2)) for gamma in (MERGED[0], 0.0, MERGED[1])]
    for density in (0.5, 2.0, 3.0):
        steps = sum(2 * max(np.ceil(width * density / 2), 2) for width in np.diff(s))
        control = flow.MultistepGrid(density)
        for probes, last in ((None, 0), (exact(), 1)):
            result = solve(expert, z, *MERGED, rising=True, control=control, probes=probes)
            np.testing.assert_array_equal(result.nfe, steps + 2 * (4 + last))
    assert flow.MultistepGrid(1.5).refined(2) == flow.MultistepGrid(3.0)


def test_gregorys_rule_is_of_fourth_order():
    """Exact for cubics on any grid, and Simpson's rule on two steps."""
    for n in (2, 4, 5, 10):
        x = np.linspace(0.0, 2.0, n + 1)
        weights = np.array([multistep.gregory(jnp.int32(i), jnp.int32(n), jnp.float32) for i in range(n + 1)])
        np.testing.assert_allclose(2.0 / n * weights @ (x**3 - x**2), 4 - 8 / 3, rtol=1e-6)
    np.testing.assert_allclose(weights[3:-3], 1.0)


def test_multistep_coordinate_and_its_inverse():
    gamma = jnp.linspace(-13.3, 8.764, 9)
    back = jax.vmap(lambda g: multistep.level(multistep.position(g)))(gamma)
    np.testing.assert_allclose(back, gamma, atol=2e-5)
    slope = jax.vmap(jax.grad(multistep.position))(gamma)
    np.testing.assert_allclose(slope, 1 / np.sqrt(1 + np.exp(gamma)), rtol=1e-4)


@pytest.mark.parametrize(("control", "calls"), [(flow.FixedGrid(2.0), 4), (flow.MultistepGrid(2.0), 8)])
def test_a_narrow_piece_is_not_lost(control, calls):
    expert = Recorder(0.5)
    width = 2e-4
    result = solve(expert, jnp.ones((1, *SHAPE)), 0.0, width, rising=True, control=control)
    rate = drift(expert, jnp.ones((1, *SHAPE)), 0.0)
    np.testing.assert_allclose((result.z - 1.0) / width, rate, rtol=2e-2)
    assert result.nfe[0] == calls


@pytest.mark.parametrize("name", CONTROLS)
def test_empty_range_leaves_the_state(name):
    z = jnp.ones((2, *SHAPE))
    result = solve(Recorder(0.5), z, 1.0, 1.0, rising=True, control=CONTROLS[name], probes=exact())
    np.testing.assert_array_equal(result.z, z)
    np.testing.assert_array_equal(result.divergence, 0)
    np.testing.assert_array_equal(result.nfe, 0)
    assert np.all(result.ok)


# Neighbours


@pytest.mark.parametrize("name", ["fixed", "multistep", "per_image"])
def test_a_result_does_not_depend_on_the_neighbours(name):
    """Among others and among copies of itself."""
    expert, control = toys.mixture(), COARSE[name]
    z = toys.states(expert, MERGED[0], 6)
    run = functools.partial(solve, expert, rising=True, control=control, probes=exact())
    together, alone = run(z, *MERGED), run(jnp.broadcast_to(z[:1], z.shape), *MERGED)
    np.testing.assert_allclose(together.z[0], alone.z[0], atol=1e-5)
    np.testing.assert_allclose(together.divergence[0], alone.divergence[0], atol=1e-5)
    assert together.nfe[0] == alone.nfe[0]
    if name == "per_image":
        assert len(set(np.asarray(together.nfe).tolist())) > 1


def test_coupled_steps_depend_on_the_neighbours():
    expert, control = toys.mixture(), COARSE["batch_coupled"]
    z = toys.states(expert, MERGED[0], 6)
    run = functools.partial(solve, expert, rising=True, control=control, probes=exact())
    together, alone = run(z, *MERGED), run(jnp.broadcast_to(z[:1], z.shape), *MERGED)
    assert len(set(np.asarray(together.nfe).tolist())) == 1
    assert abs(together.divergence[0] - alone.divergence[0]) > 1e-5


# Failures


@struct.dataclass
class NanWhere(Expert):
    """Fails for images whose first pixel is above a bound, once gamma passes 1."""

    bound: float
    gamma_range: tuple[float, float] = struct.field(pytree_node=False, default=MERGED)

    def eps_hat(self, z, gamma):
        bad = (z[:, :1, :1, :1] > self.bound) & (jnp.asarray(gamma) > 1)
        return jnp.where(bad, jnp.nan, 0.5 * z)


@pytest.mark.parametrize("name", CONTROLS)
def test_a_nan_is_reported_for_its_image(name):
    z = jnp.zeros((3, *SHAPE)).at[1].set(2.0)
    result = solve(NanWhere(0.5), z, *MERGED, rising=True, control=COARSE[name], probes=exact())
    # One step size for all: a failing image takes its neighbours along.
    want = [False, False, False] if name == "batch_coupled" else [True, False, True]
    np.testing.assert_array_equal(result.ok, want)


@pytest.mark.parametrize("control", [flow.PerImage(1e-6, 1e-6, 5), flow.BatchCoupled(1e-6, 1e-6, 5)])
def test_too_few_steps_are_a_failed_solve(control):
    result = solve(Recorder(0.5), jnp.ones((2, *SHAPE)), *MERGED, rising=True, control=control)
    assert not np.any(result.ok)


@pytest.mark.parametrize("steps", [0.0, -1.0, float("nan")])
def test_a_grid_without_steps_is_refused(steps):
    with pytest.raises(ValueError, match="steps_per_gamma must be positive"):
        flow.FixedGrid(steps)


def test_levels_outside_the_experts_range_are_refused():
    expert, z = Recorder(0.5, gamma_range=(-7.0, 5.0)), jnp.zeros((1, *SHAPE))
    with pytest.raises(ValueError, match=r"from -7\.8640 to 5\.0000.*made for -7\.0000 to 5\.0000"):
        flow.solve(expert, z, -7.864, 5.0, rising=True, control=flow.FixedGrid(1.0))
    with pytest.raises(ValueError, match="rising"):
        flow.solve(expert, z, 5.0, -7.0, rising=True, control=flow.FixedGrid(1.0))


def test_image_shape_scales_the_exact_probes():
    probes = exact(shape=(2, 3, 1))
    assert probes.shape == (6, 1, 2, 3, 1)
    np.testing.assert_allclose(jnp.mean(probes.reshape(6, 6) ** 2, axis=0), np.ones(6), rtol=1e-6)
