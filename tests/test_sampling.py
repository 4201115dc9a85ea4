"""Samplers against EDM's public sampler, closed-form flows and rational arithmetic."""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from jaxmerge import decoder, noise, sampling
from jaxmerge import probability_flow as flow
from jaxmerge.experts.analytic import Discrete
from jaxmerge.experts.base import Expert, per_image
from jaxmerge.experts.edm import EDM
from jaxmerge.merge import Switch
from jaxmerge.noise import PixelScale
from jaxmerge.sampling import Settings
from tests import public, toys
from tests.toys import HIGH, LOW, MERGED, SHAPE, Calls, Recorder

KEY = jax.random.key(3)
SCALE = PixelScale(17)
SAMPLERS = {
    "heun": Settings("heun", 6),
    "ancestral": Settings("ancestral", 8),
    "ode": Settings("ode", control=flow.FixedGrid(1.0)),
}

draw = jax.jit(sampling.sample, static_argnames=("scale", "shape"))
heun = jax.jit(sampling.heun, static_argnums=2)
ancestral = jax.jit(sampling.ancestral, static_argnums=2)


@functools.cache
def atoms(seed, gamma_range=MERGED, count=9, shape=SHAPE):
    """A closed-form expert that knows its grey levels and image shape."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 17, (count, *shape)).astype(np.uint8)
    return Discrete.from_images(images, rng.dirichlet(np.ones(count)), scale=SCALE, gamma_range=gamma_range)


def recording(eta=None, gamma=None):
    calls = Calls()
    low, high = Recorder(0.5, "low", calls, LOW), Recorder(0.9, "high", calls, HIGH)
    return Switch(low, high, eta, gamma=gamma), calls


def edm_grid(steps, high, low, rho=7):
    """Karras et al. 2022, Eq. 5, one level at a time."""
    a, b = high ** (1 / rho), low ** (1 / rho)
    return np.array([(a + i / (steps - 1) * (b - a)) ** rho for i in range(steps)])


# Heun


@pytest.mark.parametrize("steps", [2, 18, 40])
def test_noise_grid_is_edms(steps):
    grid = sampling.noise_grid(steps, 2 * np.log(80), 2 * np.log(0.002))
    np.testing.assert_allclose(grid, edm_grid(steps, 80, 0.002), rtol=1e-12)
    merged = sampling.noise_grid(steps, 8.764, -13.3)
    assert merged[0] == np.exp(4.382) and merged[-1] == np.exp(-6.65) and np.all(np.diff(merged) < 0)


@struct.dataclass
class SingleNetwork(Expert):
    """An EDM network called in float32 inside a float64 solve, as EDM's public sampler does it."""

    edm: EDM

    @property
    def gamma_range(self):
        return self.edm.gamma_range

    def eps_hat(self, z, gamma):
        gamma = jnp.broadcast_to(jnp.asarray(gamma, z.dtype), z.shape[:1])
        x = z * (self.edm.c / noise.alpha(per_image(gamma, z)))
        sigma_edm = self.edm.c * noise.sigma_edm(gamma)
        denoised = self.edm.denoised(x.astype(jnp.float32), sigma_edm.astype(jnp.float32))
        return (x - denoised.astype(z.dtype)) / sigma_edm[:, None, None, None]


# The public sampler keeps the state in float64 and the network in float32; images are drawn here with
# both in float32. Measured: 5.4e-7 and 3.6e-7, the network's own error.
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_heun_is_edms_sampler(dtype):
    """18 steps from 80 to 0.002 and the last one to 0, in EDM's pixel scale: 35 calls."""
    data = public.arrays("edm_heun18_tiny")
    edm = public.edm("edm_ddpmpp_tiny")
    with jax.enable_x64(dtype == np.float64), jax.default_matmul_precision("highest"):
        expert = SingleNetwork(edm) if dtype == np.float64 else edm
        low, high = expert.gamma_range
        latents = np.moveaxis(data["latents"], 1, -1).astype(np.float64)
        z = jnp.asarray(latents * 80 / edm.c / np.sqrt(1 + np.exp(high)), dtype)
        z0, calls = heun(expert, z, 18)
        x = np.asarray(jax.jit(type(expert).denoise)(expert, z0, low), np.float64) * edm.c
        assert z0.dtype == dtype and int(calls) + 1 == 35
    want = np.moveaxis(data["samples"], 1, -1)
    assert np.max(np.abs(x - want)) < 5e-6 * np.max(np.abs(want))


def test_single_edm_takes_35_calls_and_ends_with_its_denoised_image():
    calls = Calls()
    edm = Recorder(0.7, "edm", calls, HIGH, SCALE, SHAPE)
    images, nfe = draw(edm, jnp.arange(3), key=KEY, settings=Settings(final="denoise"))
    assert len(calls.of("edm")) == 35 and np.all(nfe == 35)
    z0, _ = heun(edm, sampling.initial_state(KEY, jnp.arange(3), SHAPE, HIGH[1]), 18)
    np.testing.assert_array_equal(images, SCALE.nearest(edm.denoise(z0, HIGH[0])))
    calls.clear()
    _, nfe = draw(edm, jnp.arange(3), key=KEY, settings=Settings())
    assert len(calls.of("edm")) == 34 and np.all(nfe == 34)


@pytest.mark.parametrize("eta", [0.06, 0.3, 0.77])
def test_switch_is_a_node_of_heuns_grid_and_each_expert_stays_on_its_side(eta):
    merged, calls = recording(eta)
    _, nfe = heun(merged, jnp.zeros((1, *SHAPE)), 18)
    gamma = float(merged.gamma)
    nodes = 2 * np.log(edm_grid(18, *np.exp(0.5 * np.array(MERGED[::-1]))))
    for name, mine in (("high", nodes[nodes > gamma]), ("low", nodes[nodes < gamma])):
        ends = np.sort(np.append(mine, gamma))
        want = np.sort(np.concatenate([ends[:-1], ends[1:]]))  # both ends of every step
        np.testing.assert_allclose(np.sort(calls.of(name)), want, atol=2e-5)
    assert nfe == 36 == len(calls.log)


def test_switch_on_a_node_of_the_grid_takes_no_extra_step():
    low, high = Recorder(0.5, "low", None, (-8.0, 8.0)), Recorder(0.9, "high", None, (-8.0, 8.0))
    grid = jnp.asarray([16.0, 4.0, 1.0, 0.25])
    y = jnp.ones((1, *SHAPE))
    _, above = sampling.heun_segment(high, y, grid[0], jnp.float32(4.0), grid)
    _, below = sampling.heun_segment(low, y, jnp.float32(4.0), grid[-1], grid)
    assert (above, below) == (2, 4)


def test_segment_without_length_asks_nobody():
    """A nested merge can hide an expert altogether."""
    calls = Calls()
    a, b, c = (Recorder(0.5, n, calls, (-8.0, 8.0)) for n in "abc")
    hidden = Switch(Switch(a, b, gamma=2.0), c, gamma=-1.3)
    plain = Switch(a, c, gamma=-1.3)
    y, nfe = heun(hidden, jnp.ones((1, *SHAPE)), 10)
    assert calls.of("b") == []
    want, want_nfe = heun(plain, jnp.ones((1, *SHAPE)), 10)
    np.testing.assert_allclose(y, want, rtol=1e-6)
    assert nfe == want_nfe == 20


def gaussian_map(expert, z, start, end):
    """A Gaussian's flow: in its eigenbasis the standard deviation sqrt(alpha^2 lambda + sigma^2) is carried along."""
    rows = np.asarray(z, np.float64).reshape(len(z), -1)
    alpha2 = [1 / (1 + np.exp(g)) for g in (start, end)]
    std = [np.sqrt(a * expert.variances + 1 - a) for a in alpha2]
    centred = (rows - np.sqrt(alpha2[0]) * expert.mean.reshape(-1)) @ expert.basis
    moved = (centred * std[1] / std[0]) @ expert.basis.T + np.sqrt(alpha2[1]) * expert.mean.reshape(-1)
    return moved.reshape(np.shape(z))


def test_heun_converges_with_second_order():
    expert, errors = toys.gaussian(), []
    with jax.enable_x64(True):
        z = jnp.asarray(np.random.default_rng(0).normal(size=(16, *SHAPE)))
        want = gaussian_map(expert, z, *MERGED[::-1])
        for steps in (33, 65, 129):
            got, nfe = heun(expert, z, steps)
            assert nfe == 2 * (steps - 1)
            errors.append(np.abs(got - want).max())
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all(np.abs(orders - 2) < 0.35), orders
    assert errors[-1] < 1e-3


# ODE


@pytest.mark.parametrize("control", [flow.PerImage(), flow.FixedGrid(12.0)], ids=["per_image", "fixed"])
def test_ode_maps_the_prior_by_the_closed_form(control):
    expert, index = toys.gaussian(), jnp.arange(40)
    settings = Settings("ode", control=control)
    images, nfe = draw(expert, index, key=KEY, settings=settings, scale=SCALE, shape=SHAPE)
    start = sampling.initial_state(KEY, index, SHAPE, MERGED[1])
    z0 = gaussian_map(expert, start, *MERGED[::-1])
    position = (z0 * np.sqrt(1 + np.exp(MERGED[0])) + 1) * 17 / 2  # in levels; whole numbers are borders
    clear = np.abs(position - np.round(position)) > 2e-3
    assert clear.mean() > 0.98 and np.all(nfe > 50)
    want = np.clip(np.floor(position), 0, 16)
    np.testing.assert_array_equal(np.asarray(images)[clear], want[clear])


def test_ode_carries_the_prior_to_the_data_distribution():
    """Mean and covariance of 4000 samples against the Gaussian's, before the decoder."""
    expert, n = toys.gaussian(), 4000
    start = sampling.initial_state(KEY, jnp.arange(n), SHAPE, MERGED[1])
    solve = jax.jit(functools.partial(flow.solve, rising=False, control=flow.FixedGrid(8.0)))
    z0 = solve(expert, start, MERGED[1], MERGED[0]).z
    agree_with_moments(np.asarray(z0), *marginal(expert, MERGED[0]))


def marginal(expert, gamma):
    """Mean and covariance of z = alpha x + sigma eps for a Gaussian."""
    alpha2 = 1 / (1 + np.exp(gamma))
    sigma = expert.basis @ np.diag(expert.variances) @ expert.basis.T
    return np.sqrt(alpha2) * expert.mean.reshape(-1), alpha2 * sigma + (1 - alpha2) * np.eye(len(sigma))


def agree_with_moments(z, mean, cov, mean_bias=0.0, cov_bias=0.0):
    """Standard errors of a Gaussian's sample: sqrt(C_ii / n), sqrt((C_ii C_jj + C_ij^2) / n)."""
    rows = z.reshape(len(z), -1).astype(np.float64)
    n, var = len(rows), np.diag(cov)
    assert np.all(np.abs(rows.mean(0) - mean) < 4.5 * np.sqrt(var / n) + mean_bias)
    spread = np.sqrt((np.outer(var, var) + cov**2) / n)
    assert np.all(np.abs(np.cov(rows.T) - cov) < 4.5 * spread + cov_bias)


# Ancestral


def test_ancestral_step_is_the_posterior_given_the_denoised_image():
    """Kingma et al. 2021, appendix A: q(z_s | z_t, x) with x replaced by x_hat, in its own symbols."""
    expert = toys.mixture()
    rng = np.random.default_rng(0)
    z, fresh = (jnp.asarray(rng.normal(size=(5, *SHAPE)), jnp.float32) for _ in range(2))
    step = jax.jit(sampling.ancestral_step)
    for gamma_t, gamma_s in [(5.0, 4.5), (0.3, -0.9), (-6.0, -7.0)]:
        alpha_t, alpha_s = (1 / np.sqrt(1 + np.exp(g)) for g in (gamma_t, gamma_s))
        var_t, var_s = 1 - alpha_t**2, 1 - alpha_s**2
        alpha_ts = alpha_t / alpha_s
        var_ts = var_t - alpha_ts**2 * var_s
        eps_hat = np.asarray(expert.eps_hat(z, gamma_t), np.float64)
        x_hat = (np.asarray(z, np.float64) - np.sqrt(var_t) * eps_hat) / alpha_t
        mean = alpha_ts * var_s / var_t * np.asarray(z) + alpha_s * var_ts / var_t * x_hat
        want = mean + np.sqrt(var_ts * var_s / var_t) * np.asarray(fresh)
        np.testing.assert_allclose(step(expert, z, gamma_t, gamma_s, fresh), want, rtol=2e-4, atol=2e-5)


def ancestral_moments(expert, steps):
    """Exact mean and covariance of T ancestral steps with a Gaussian expert: every step is affine."""
    d = len(expert.variances)
    gammas = np.linspace(*MERGED, steps + 1)
    mean, cov = np.zeros(d), np.eye(d) / (1 + np.exp(-MERGED[1]))
    for t in range(steps, 0, -1):
        alpha_t, alpha_s = (1 / np.sqrt(1 + np.exp(g)) for g in gammas[[t, t - 1]])
        c = -np.expm1(gammas[t - 1] - gammas[t])
        centre, spread = marginal(expert, gammas[t])
        linear = alpha_s / alpha_t * (np.eye(d) - c * (1 - alpha_t**2) * np.linalg.inv(spread))
        mean = linear @ (mean - centre) + alpha_s / alpha_t * centre
        cov = linear @ cov @ linear.T + (1 - alpha_s**2) * c * np.eye(d)
    return mean, cov


def test_ancestral_samples_have_the_datas_mean_and_covariance():
    """Against the exact moments of 256 steps, and those against the data's: the gap falls as 1/T."""
    expert, n, steps = toys.gaussian(), 4000, 256
    index = jnp.arange(n)
    start = sampling.initial_state(KEY, index, SHAPE, MERGED[1])
    z0, nfe = ancestral(expert, start, steps, key=KEY, index=index)
    mean, cov = ancestral_moments(expert, steps)
    agree_with_moments(np.asarray(z0), mean, cov)
    data_mean, data_cov = marginal(expert, MERGED[0])
    mean_bias, cov_bias = np.abs(mean - data_mean).max(), np.abs(cov - data_cov).max()
    assert nfe == steps and mean_bias < 0.01 and cov_bias < 0.04 * np.abs(data_cov).max()
    agree_with_moments(np.asarray(z0), data_mean, data_cov, mean_bias, cov_bias)
    finer = np.abs(ancestral_moments(expert, 4 * steps)[1] - data_cov).max()
    assert 3 < cov_bias / finer < 5


@pytest.mark.parametrize("span", [MERGED, (-13.3, 8.764), (-13.3, 5.0)])
@pytest.mark.parametrize("steps", [256, 10, 20, 100])
def test_ancestral_nodes_are_routed_as_in_rational_arithmetic(steps, span):
    low, high = Recorder(0.5, "low", None, span), Recorder(0.9, "high", None, span)
    last = jax.jit(
        lambda gamma: [b for _, _, b in sampling.piece_nodes(Switch(low, high, gamma=gamma), steps)]
    )
    for k in range(11):
        eta = Fraction(k, 10)
        want = max(t for t in range(steps + 1) if Fraction(t, steps) <= eta)
        merged = Switch(low, high, float(eta))
        (one, a, b), (two, c, d) = sampling.piece_nodes(merged, steps)
        assert one is low and two is high
        assert (a, b, c, d) == (0, want, want, steps)
        assert last(jnp.float32(merged.gamma)) == [want, steps]


def test_ancestral_asks_each_expert_on_its_own_side():
    merged, calls = recording(0.3)
    z, nfe = ancestral(merged, jnp.ones((1, *SHAPE)), 20, key=KEY, index=jnp.arange(1))
    levels = MERGED[0] + (MERGED[1] - MERGED[0]) * np.arange(21) / 20
    # eta = 6/20 is a node, and belongs to the low expert.
    np.testing.assert_allclose(np.sort(calls.of("low")), levels[1:7], atol=1e-5)
    np.testing.assert_allclose(np.sort(calls.of("high")), levels[7:], atol=1e-5)
    assert nfe == 20 and np.all(np.isfinite(z))


# Randomness, decoder, settings


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_samples_noise_follows_from_key_and_index_alone(name):
    settings = SAMPLERS[name].replace(decoder="sample")
    merged = Switch(atoms(0, LOW), atoms(1, HIGH), 0.3)
    whole, nfe = sampling.generate(merged, 12, key=KEY, settings=settings, batch_size=12)
    assert whole.dtype == np.uint8 and whole.shape == (12, *SHAPE) and nfe.shape == (12,)
    parts, _ = sampling.generate(merged, 12, key=KEY, settings=settings, batch_size=4)
    np.testing.assert_array_equal(parts, whole)
    later, _ = sampling.generate(merged, 4, key=KEY, settings=settings, first=8, batch_size=4)
    np.testing.assert_array_equal(later, whole[8:])
    other, _ = sampling.generate(merged, 12, key=jax.random.key(4), settings=settings, batch_size=12)
    assert np.any(other != whole)


def test_models_start_from_the_same_noise():
    index = jnp.array([7, 2])
    a, b = (sampling.initial_state(KEY, index, SHAPE, g) / noise.sigma(g) for g in (5.0, 8.764))
    np.testing.assert_allclose(a, b, rtol=1e-6)
    np.testing.assert_array_equal(
        a[1:], sampling.initial_state(KEY, index[1:], SHAPE, 5.0) / noise.sigma(5.0)
    )


def test_decoder_takes_the_argmax_or_draws():
    """At gamma_min = -3 the decoder is broad: the drawn levels' frequencies are its probabilities."""
    expert, index = atoms(2, (-3.0, 6.0)), jnp.arange(500)
    start = sampling.initial_state(KEY, index, SHAPE, 6.0)
    z0, _ = heun(expert, start, 6)
    x = np.asarray(z0, np.float64) * np.sqrt(1 + np.exp(-3.0))
    logits = -0.5 * np.exp(3.0) * (x[..., None] - SCALE.values()) ** 2
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    best, _ = draw(expert, index, key=KEY, settings=Settings(steps=6))
    assert np.mean(np.asarray(best) == probs.argmax(-1)) > 0.999
    drawn, _ = draw(expert, index, key=KEY, settings=Settings(steps=6, decoder="sample"))
    counts = np.bincount(np.asarray(drawn).ravel(), minlength=17)
    flat = probs.reshape(-1, 17)
    assert np.all(np.abs(counts - flat.sum(0)) < 4.5 * np.sqrt((flat * (1 - flat)).sum(0)) + 1e-6)


def test_argmax_of_the_decoder_is_the_default():
    assert Settings().decoder == "argmax"
    expert = atoms(2)
    z0, _ = heun(expert, sampling.initial_state(KEY, jnp.arange(9), SHAPE, MERGED[1]), 18)
    images, _ = draw(expert, jnp.arange(9), key=KEY)
    np.testing.assert_array_equal(images, decoder.decode(z0, MERGED[0], SCALE))


@pytest.mark.parametrize("name", SAMPLERS)
def test_another_threshold_compiles_nothing(name):
    traced = []

    @jax.jit
    def program(expert):
        traced.append(expert)
        return sampling.sample(expert, jnp.arange(2), key=KEY, settings=SAMPLERS[name])

    for eta in (0.1, 0.3, 0.7):
        program(Switch(atoms(0, LOW), atoms(1, HIGH), eta))
    assert len(traced) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(sampler="euler"), "sampler must be one of .*'euler'"),
        (dict(decoder="mean"), "decoder must be 'argmax' or 'sample', got 'mean'"),
        (dict(final="stop"), "final must be 'decode' or 'denoise', got 'stop'"),
        (dict(steps=1), "steps must be at least 2, got 1"),
    ],
)
def test_settings_refuse_what_they_do_not_know(arguments, message):
    with pytest.raises(ValueError, match=message):
        Settings(**arguments)


def test_sampling_needs_grey_levels_and_a_shape():
    with pytest.raises(ValueError, match="pass scale= and shape="):
        sampling.sample(toys.gaussian(), jnp.arange(2), key=KEY)
