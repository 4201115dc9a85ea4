"""The gated mixture: weights, ranges, limiting cases, and that every room of the library takes it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, struct
from scipy import stats

from jaxmerge import likelihood, noise, sampling, sweeps, vlb
from jaxmerge import probability_flow as flow
from jaxmerge.dequantize import dequantize
from jaxmerge.experts import io
from jaxmerge.experts.adapters import AdapterBank, share_trunk
from jaxmerge.experts.analytic import Discrete
from jaxmerge.experts.base import Expert, per_image
from jaxmerge.gate import regularisers
from jaxmerge.gate.cost import parameter_counts
from jaxmerge.gate.gated import Gated, regions
from jaxmerge.gate.measure import measure
from jaxmerge.gate.network import FixedGate, Gate, RandomGate, offset_logits
from jaxmerge.merge import Mixture, Switch
from jaxmerge.noise import PixelScale
from jaxmerge.training import gate_parts
from jaxmerge.training.recipes import edm_description, vdm_description
from tests import toys

SCALE = PixelScale(17)
SHAPE = (4, 4, 1)
IMAGES = np.random.default_rng(0).integers(0, 17, (24, *SHAPE)).astype(np.uint8)
Z = jax.random.normal(jax.random.key(0), (6, *SHAPE))
FEW = jnp.asarray(IMAGES[:3])
KEY = jax.random.key(7)


@jax.jit
def bound(expert, images):
    return vlb.bound(expert, images, key=KEY, scale=SCALE, strata=8)


@struct.dataclass
class Slopes:
    """Logits that are linear in the image's mean and in gamma; a gate that compiles in no time."""

    image: jax.Array
    level: jax.Array
    smooth = True

    @property
    def count(self):
        return len(self.image)

    def __call__(self, z, gamma, *, keys=None):
        return jnp.mean(z, axis=(1, 2, 3))[:, None] * self.image + gamma[:, None] * self.level


def slopes(count):
    return Slopes(jnp.linspace(-4.0, 4.0, count), jnp.linspace(0.2, -0.3, count))


@struct.dataclass
class Held:
    """The same logits as if they did not depend on the image: what a lost derivative of the gate would be."""

    gate: Slopes
    smooth = True

    @property
    def count(self):
        return self.gate.count

    def __call__(self, z, gamma, *, keys=None):
        return self.gate(jax.lax.stop_gradient(z), gamma)


@struct.dataclass
class Tanh(Expert):
    """tanh(slope z + gamma / 10)."""

    slope: float
    gamma_range: tuple[float, float] = struct.field(pytree_node=False, default=toys.LOW)

    def eps_hat(self, z, gamma):
        return jnp.tanh(jnp.asarray(self.slope, z.dtype) * z + 0.1 * per_image(gamma, z))


@jax.jit
def log_weights(gated, z, gamma):
    return gated.log_weights(z, gamma)


@jax.jit
def ask(expert, z, gamma):
    return expert.eps_hat(z, gamma)


def atoms(weights, gamma_range=toys.LOW) -> Discrete:
    return Discrete.from_images(IMAGES[:8], np.asarray(weights, float), scale=SCALE, gamma_range=gamma_range)


STEEPNESS = np.array([0.3, 0.8, -0.5])


def experts(ranges=(toys.LOW,) * 3):
    return [Tanh(s, r) for s, r in zip(STEEPNESS.tolist(), ranges, strict=True)]


def gate(count, gamma_range=toys.LOW, *, spread=3.0, **settings):
    """A small gate whose last layer is random, so that its weights differ between images and levels."""
    settings = {"width": 4, "hidden": 8, "embedding": 8} | settings
    made = Gate(count, gamma_range=gamma_range, shape=SHAPE, rngs=nnx.Rngs(1), **settings)
    made.dense1.kernel = nnx.Param(spread * jax.random.normal(jax.random.key(2), (8, count)))
    return made


def both_ranges():
    """Two experts with different ranges, as VDM and EDM have."""
    return Gated([atoms(np.ones(8)), atoms(1.0 + np.arange(8), toys.HIGH)], slopes(2))


# --- weights -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", ["z", "gamma"])
def test_rows_of_weights_sum_to_one_and_a_gate_on_gamma_sees_no_image(inputs):
    gated = Gated(experts(), gate(3, inputs=inputs))
    levels = jnp.linspace(*toys.LOW, 6)
    weights = np.exp(log_weights(gated, Z, levels))
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    assert np.ptp(weights, axis=0).max() > 0.05
    others = np.exp(log_weights(gated, Z[::-1] + 1, levels))
    assert np.allclose(others, weights, atol=1e-6) == (inputs == "gamma")


def test_a_fresh_gate_is_the_uniform_average_of_its_experts():
    fresh = gate(3, spread=0.0, depth=1)
    average = Mixture(experts(), np.full(3, 1 / 3))
    np.testing.assert_allclose(ask(Gated(experts(), fresh), Z, -1.0), ask(average, Z, -1.0), atol=1e-6)


def test_huge_logits_give_no_nan_in_weights_or_gradients():
    gated = Gated(experts(), FixedGate(jnp.array([1e5, -1e5, 0.0])))

    @jax.jit
    @jax.grad
    def push(logits):
        blend = gated.but(gate=FixedGate(logits)).blend(Z, jnp.zeros(6))
        return regularisers.negative_entropy(blend.log_weights) + jnp.sum(blend.eps_hat**2)

    assert np.all(np.isfinite(push(gated.gate.logits)))
    assert np.exp(log_weights(gated, Z, jnp.zeros(6)))[0].tolist() == [1, 0, 0]


def test_an_offset_moves_one_expert_s_logit():
    before = gate(3, inputs="gamma")
    after = offset_logits(before, np.array([3.0, 0, 0]))
    difference = after(Z, jnp.zeros(6)) - before(Z, jnp.zeros(6))
    np.testing.assert_allclose(difference, np.tile([3.0, 0, 0], (6, 1)), atol=1e-5)


def test_dropout_follows_the_image_s_key_alone():
    made = jax.jit(gate(3, dropout=0.5, inputs="gamma").__call__)
    keys = jax.random.split(KEY, 6)
    levels = jnp.zeros(6)
    dropped = made(Z, levels, keys=keys)
    assert not np.allclose(dropped, made(Z, levels))
    np.testing.assert_allclose(made(Z[2:4], levels[2:4], keys=keys[2:4]), dropped[2:4], atol=1e-5)


def test_random_weights_differ_between_images_and_steps_but_not_between_batches():
    gated = Gated(experts(), RandomGate(jax.random.key(0), 3))
    weights = np.exp(log_weights(gated, Z, jnp.zeros(6)))
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    assert np.abs(np.diff(weights, axis=0)).min(0).max() > 1e-3
    np.testing.assert_array_equal(np.exp(log_weights(gated, Z[3:5], jnp.zeros(2))), weights[3:5])
    assert np.abs(np.exp(log_weights(gated, Z, jnp.full(6, 1e-6))) - weights).max() > 0.1
    many = np.exp(log_weights(gated, jax.random.normal(KEY, (4000, *SHAPE)), jnp.zeros(4000)))
    np.testing.assert_allclose(many.mean(0), 1 / 3, atol=4 * np.sqrt(1 / 18 / 4000))  # Dirichlet(1, 1, 1)
    assert not gated.smooth


# --- limiting cases ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "top_k"), [(0, None), (2, None), (2, 2)])
def test_a_one_hot_gate_equals_the_chosen_expert(k, top_k):
    gated = Gated(experts(), FixedGate.of_weights(np.eye(3)[k]), top_k=top_k)
    for gamma in (-6.0, jnp.linspace(-7.0, 4.0, 6)):
        np.testing.assert_allclose(ask(gated, Z, gamma), ask(experts()[k], Z, gamma), atol=1e-6)


def test_a_constant_gate_equals_the_mixture():
    weights = np.array([0.5, 0.2, 0.3])
    gated, mixed = Gated(experts(), FixedGate.of_weights(weights)), Mixture(experts(), weights)
    for gamma in (-6.0, 3.0, jnp.linspace(-7.0, 4.0, 6)):
        np.testing.assert_allclose(ask(gated, Z, gamma), ask(mixed, Z, gamma), atol=1e-5)


def test_all_experts_as_the_top_k_are_the_dense_mixture():
    dense, top = Gated(experts(), slopes(3)), Gated(experts(), slopes(3), top_k=3)
    assert dense.smooth and top.smooth
    np.testing.assert_allclose(ask(top, Z, 0.5), ask(dense, Z, 0.5), atol=1e-6)


# --- ranges ------------------------------------------------------------------------------------------


def test_regions_cut_the_union_at_ends_of_ranges_and_forget_ends_within_the_slack():
    assert [tuple(r) for r in regions([toys.LOW, toys.HIGH])] == [
        (-7.864, -6.994, (0,)),
        (-6.994, 5.0, (0, 1)),
        (5.0, 8.764, (1,)),
    ]
    assert [r.active for r in regions([(-7.86, 5.0), (-7.85, 5.01)])] == [(0, 1)]
    with pytest.raises(ValueError, match=r"without a gap, between gamma 1.0000 and 2.0000 none"):
        regions([(-3.0, 1.0), (2.0, 5.0)])


def test_experts_with_different_ranges_answer_only_inside_their_own():
    gated = both_ranges()
    low, high = gated.experts
    assert gated.gamma_range == toys.MERGED
    for gamma, own in ((-7.5, low), (7.0, high)):
        np.testing.assert_allclose(ask(gated, Z, gamma), ask(own, Z, gamma), atol=1e-6)
        np.testing.assert_allclose(ask(gated, Z, jnp.full(6, gamma)), ask(own, Z, gamma), atol=1e-6)
    middle = ask(gated, Z, 0.0)
    assert np.abs(middle - ask(low, Z, 0.0)).max() > 1e-3 and np.abs(middle - ask(high, Z, 0.0)).max() > 1e-3
    levels = jnp.array([-7.5, -7.0, 0.0, 4.9, 5.1, 8.0])
    one_by_one = np.concatenate([ask(gated, Z[i : i + 1], float(g)) for i, g in enumerate(levels)])
    np.testing.assert_allclose(ask(gated, Z, levels), one_by_one, atol=1e-5)


def test_pieces_are_smooth_up_to_their_closed_ends_and_single_experts_stand_alone():
    gated = both_ranges()
    first, middle, last = gated.pieces()
    assert (first.expert, last.expert) == gated.experts
    np.testing.assert_allclose(
        ask(middle.expert, Z, middle.gamma_low), ask(middle.expert, Z, middle.gamma_low + 1e-4), atol=1e-2
    )
    # At the cut itself the mixture is still the first piece's.
    np.testing.assert_allclose(ask(gated, Z, -6.994), ask(first.expert, Z, -6.994), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gated(experts(), gate(2)), "one output per expert, got 2 for 3"),
        (lambda: Gated(experts(), gate(3), top_k=4), "between 1 and the number of experts 3, got 4"),
        (lambda: Gated(experts(), gate(3), capacity_factor=0), "capacity_factor must be positive, got 0"),
        (lambda: Gated([Switch(*both_ranges().experts, gamma=0.0)] * 2, gate(2)), "must be single networks"),
        (lambda: gate(3, inputs="x"), "inputs must be one of .*, got 'x'"),
        (lambda: gate(3, dropout=1.0), "dropout in"),
        (lambda: both_ranges().routed(Z, 0.0), "this mixture has 3 such ranges"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_experts_for_different_images_are_refused():
    other = toys.Recorder(0.1, pixel_scale=PixelScale(256))
    same = toys.Recorder(0.1, pixel_scale=PixelScale(17))
    with pytest.raises(ValueError, match="must have the same grey levels"):
        Gated([same, other], FixedGate(jnp.zeros(2)))


# --- regularisers ------------------------------------------------------------------------------------


def test_load_penalty_is_zero_exactly_at_uniform_usage_and_raises_the_unused_expert():
    assert regularisers.load_penalty(jnp.full(4, 0.25)) == 0
    usage = jnp.array([0.5, 0.3, 0.2, 0.0])
    assert regularisers.load_penalty(usage) == pytest.approx(4 * (0.0625 + 0.0025 + 0.0025 + 0.0625))
    push = -jax.grad(regularisers.load_penalty)(usage)
    assert push[3] > 0 and push[0] < 0 and int(jnp.argmax(push)) == 3
    # Through the softmax of a gate that starts near a collapse: every other logit rises.
    push = -jax.grad(lambda b: regularisers.load_penalty(jax.nn.softmax(b)))(jnp.array([3.0, 0.0, 0.0, 0.0]))
    assert push[0] < 0 and bool(jnp.all(push[1:] > 0))


def test_entropy_is_that_of_numpy_and_excluded_experts_add_nothing():
    weights = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
    log_weights = jnp.where(weights > 0, jnp.log(jnp.maximum(weights, 1e-9)), -1e30)
    by_hand = [np.log(2), 0.0, -(0.2 * np.log(0.2) + 0.3 * np.log(0.3) + 0.5 * np.log(0.5))]
    assert float(regularisers.negative_entropy(log_weights)) == pytest.approx(-np.mean(by_hand), rel=1e-5)
    np.testing.assert_allclose(regularisers.entropy_of(weights), by_hand, atol=1e-12)
    np.testing.assert_allclose(regularisers.effective_experts(np.log([1.0, 3.0])), [1, 3])


def test_alignment_is_the_cross_entropy_with_the_slices_of_an_image():
    log_weights = jnp.log(jnp.array([[0.5, 0.25, 0.25]] * 3))
    members = jnp.array([[1.0, 0, 0], [0, 1, 1], [0, 0, 0]])
    np.testing.assert_allclose(
        regularisers.alignment(log_weights, members), [np.log(2), np.log(4), 0], atol=1e-6
    )


def test_bias_rises_for_experts_below_their_share():
    moved = regularisers.balanced(jnp.zeros(4), jnp.array([0.5, 0.25, 0.15, 0.1]), 0.01)
    np.testing.assert_allclose(moved, [-0.01, 0, 0.01, 0.01])


# --- the gate's derivative ---------------------------------------------------------------------------
#
# With equal experts sum_k (dw_k / dz) eps_k is zero, so only different ones show whether it is there. It
# needs images that are dark or bright on the whole, too: in grey ones the experts' means are alike.

SHADES = jnp.array([-0.9, -0.6, -0.3, 0.3, 0.6, 0.9])
SHADED = 0.3 * Z + SHADES[:, None, None, None]
DARK_AND_BRIGHT = jnp.asarray(np.stack([IMAGES[0] // 2, IMAGES[1] // 3, 16 - IMAGES[2] // 2]))


def field_by_hand(z, gamma, *, moves=True, active=(0, 1, 2)):
    """h and div h of `experts()` under `slopes(3)`, in NumPy, with the product rule written out.

    With logits a_k mean(z) + b_k gamma, dw_k / dz_d = w_k (a_k - sum_j w_j a_j) / D, so

        div eps_hat = sum_d [ sum_k w_k eps_kd' + sum_k w_k (a_k - sum_j w_j a_j) eps_kd / D ].

    Args:
        z: states [B, D], float64.
        moves: whether the second term, the gate's own, is there.
        active: experts that answer.
    """
    active, size = list(active), z.shape[1]
    a, b = (np.linspace(*ends, 3)[active] for ends in ((-4.0, 4.0), (0.2, -0.3)))
    slope = STEEPNESS[active][:, None]
    weights = np.exp(z.mean(1)[:, None] * a + gamma * b)
    weights /= weights.sum(1, keepdims=True)
    each = np.tanh(slope * z[:, None] + 0.1 * gamma)
    trace = np.einsum("bk,bkd->b", weights, slope * (1 - each**2))
    if moves:
        trace += np.einsum("bk,bkd->b", weights * (a - (weights @ a)[:, None]), each) / size
    variance = 1 / (1 + np.exp(-gamma))
    h = 0.5 * (np.sqrt(variance) * np.einsum("bk,bkd->bd", weights, each) - variance * z)
    return h, 0.5 * (np.sqrt(variance) * trace - variance * size)


def walk_by_hand(z, parts, *, moves=True, steps=100):
    """State and integrated divergence after classical RK4 over [(low, high, active), ...]."""
    z = np.asarray(z, np.float64).reshape(len(z), -1)
    total = np.zeros(len(z))
    for low, high, active in parts:
        width = (high - low) / steps
        for gamma in low + width * np.arange(steps):
            stages = [field_by_hand(z, gamma, moves=moves, active=active)]
            for share in (0.5, 0.5, 1.0):
                ahead = z + share * width * stages[-1][0]
                stages.append(field_by_hand(ahead, gamma + share * width, moves=moves, active=active))
            dz, divergence = (
                sum(w * s[i] for w, s in zip((1, 2, 2, 1), stages, strict=True)) for i in (0, 1)
            )
            z, total = z + width / 6 * dz, total + width / 6 * divergence
    return z, total


@jax.jit
def rates(expert, z, gamma):
    return flow.drift_and_divergence(expert, z, gamma, flow.exact_probes(z.shape[1:], z.dtype))


@pytest.mark.parametrize("top_k", [None, 3])
def test_divergence_of_different_experts_has_the_derivative_of_the_gate(top_k):
    gated = Gated(experts(), slopes(3), top_k=top_k)
    z = np.asarray(SHADED, np.float64).reshape(6, -1)
    for gamma in (-3.0, 0.5, 4.0):
        h, divergence = rates(gated, SHADED, gamma)
        want_h, want = field_by_hand(z, gamma)
        np.testing.assert_allclose(np.reshape(h, (6, -1)), want_h, atol=1e-5)
        np.testing.assert_allclose(divergence, want, atol=1e-5)

        # A gate whose derivative is lost has the same field and another divergence.
        held_h, held = rates(gated.but(gate=Held(gated.gate)), SHADED, gamma)
        np.testing.assert_allclose(held_h, h, atol=1e-6)
        np.testing.assert_allclose(held, field_by_hand(z, gamma, moves=False)[1], atol=1e-5)
        assert np.abs(held - want).max() > 1e-2


@pytest.mark.parametrize("kind", ["network", "two ranges"])
def test_divergence_is_that_of_finite_differences_of_the_field(kind):
    """In float64, where differences are exact to 1e-8; they see every way in which the field depends on z."""
    with jax.enable_x64(True):
        gated = both_ranges() if kind == "two ranges" else Gated(experts(), gate(3))
        z, size, step = jnp.asarray(SHADED[1:3], jnp.float64), Z[0].size, 1e-5
        moves = step * jnp.eye(size).reshape(size, 1, *SHAPE)
        ends = [jnp.reshape(z + sign * moves, (2 * size, *SHAPE)) for sign in (1, -1)]
        ahead, behind = (jnp.reshape(rates(gated, e, 0.3)[0], (size, 2, size)) for e in ends)
        want = jnp.einsum("dbd->b", ahead - behind) / (2 * step)
        np.testing.assert_allclose(rates(gated, z, 0.3)[1], want, rtol=1e-6)


RANGES = {
    "one range": ((toys.LOW,) * 3, [(*toys.LOW, (0, 1, 2))]),
    "two ranges": (
        (toys.LOW, toys.LOW, toys.HIGH),
        [(-7.864, -6.994, (0, 1)), (-6.994, 5.0, (0, 1, 2)), (5.0, 8.764, (2,))],
    ),
}
EXACT = likelihood.Settings(control=flow.FixedGrid(4.0), trace="exact")


def start_of(images):
    """The dequantised states of the first draw, and their entropy in nats."""
    keys = noise.image_keys(KEY, jnp.arange(len(images)))
    draw_keys = jax.vmap(lambda k: jax.random.fold_in(jax.random.fold_in(k, 0), 0))(keys)
    drawn = dequantize("truncated_normal", images, scale=SCALE, keys=draw_keys, gamma=toys.LOW[0])
    return drawn.z, np.asarray(drawn.entropy, np.float64)


def bpd_by_hand(images, parts, *, moves=True):
    """Bits per dimension of `experts()` under `slopes(3)`: NumPy, RK4, SciPy's prior."""
    z, entropy = start_of(images)
    end, divergence = walk_by_hand(z, parts, moves=moves)
    std = np.sqrt(1 / (1 + np.exp(-parts[-1][1])))
    log_prob = stats.norm.logpdf(end, scale=std).sum(1) + divergence + entropy
    return -log_prob / (end.shape[1] * np.log(2))


@pytest.mark.parametrize("name", RANGES)
def test_exact_likelihood_of_different_experts_is_that_of_a_fine_integration(name):
    ranges, parts = RANGES[name]
    gated = Gated(experts(ranges), slopes(3))
    score = jax.jit(
        lambda e: likelihood.log_likelihood(e, DARK_AND_BRIGHT, key=KEY, settings=EXACT, scale=SCALE)
    )
    want, held = (bpd_by_hand(DARK_AND_BRIGHT, parts, moves=moves) for moves in (True, False))
    np.testing.assert_allclose(score(gated).bpd, want, atol=5e-5)
    # Without the gate's derivative it would be another likelihood.
    np.testing.assert_allclose(score(gated.but(gate=Held(gated.gate))).bpd, held, atol=5e-5)
    assert np.abs(held - want).min() > 5e-3


# --- every room takes it -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole():
    """The same distribution in every expert: whatever the gate does, the mixture is that expert."""
    one = atoms(np.ones(8), toys.MERGED)
    return one, Gated([one, one, one], slopes(3))


def test_exact_likelihood_and_bound_of_equal_experts_are_the_expert_s(whole):
    one, gated = whole
    settings = likelihood.Settings(control=flow.FixedGrid(1.0), probes=2)
    single, mixed = (
        jax.jit(lambda e: likelihood.log_likelihood(e, FEW, key=KEY, settings=settings, scale=SCALE))(e)
        for e in (one, gated)
    )
    np.testing.assert_allclose(mixed.bpd, single.bpd, atol=2e-3)
    np.testing.assert_array_equal(mixed.nfe, single.nfe)


def test_bound_of_equal_experts_is_the_expert_s(whole):
    single, mixed = (bound(e, FEW) for e in whole)
    np.testing.assert_allclose(mixed, single, rtol=1e-3)


@pytest.mark.slow
def test_likelihood_walks_the_pieces_of_experts_with_different_ranges():
    settings = likelihood.Settings(control=flow.FixedGrid(1.0))
    score = jax.jit(lambda e: likelihood.log_likelihood(e, FEW, key=KEY, settings=settings, scale=SCALE))
    result = score(both_ranges())
    assert bool(jnp.all(result.ok))
    # One piece of 0.87, one of 11.994 and one of 3.764: each rounds its steps up and pays its start.
    assert result.nfe.tolist() == [3 * (1 + 12 + 4) + 3] * 3


@pytest.mark.slow
@pytest.mark.parametrize("sampler", sampling.SAMPLERS)
def test_samplers_take_dense_and_sparse_mixtures(sampler):
    dense = both_ranges()
    assert len(dense.pieces()) == 3
    settings = sampling.Settings(sampler=sampler, steps=6, control=flow.FixedGrid(0.5))

    @jax.jit
    def draw(expert):
        return sampling.sample(expert, jnp.arange(5), key=KEY, settings=settings, scale=SCALE, shape=SHAPE)[0]

    images = draw(dense)
    assert images.shape == (5, *SHAPE) and len(np.unique(images)) > 3
    # Where one weight is all but one, the best expert alone draws the same images.
    chosen = FixedGate.of_weights([0.0, 1.0])
    one, both = (Gated(dense.experts, chosen, top_k=k) for k in (1, 2))
    np.testing.assert_array_equal(draw(one), draw(both))


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["heun", "ancestral"])
def test_a_sweep_of_samples_over_a_gated_mixture_of_different_experts_is_each_switch_s(sampler):
    low, high = Gated(experts(), slopes(3)), atoms(1.0 + np.arange(8), toys.HIGH)
    common = dict(key=KEY, settings=sampling.Settings(sampler=sampler, steps=12))
    etas = (0.3, 0.5)
    found = sweeps.sweep_samples(low, high, etas, 6, **common)
    for eta, images in zip(etas, found.images, strict=True):
        alone, *singles = (
            sampling.generate(Switch(e, high, eta), 6, **common)[0] for e in (low, *low.experts)
        )
        assert np.mean(images != alone) < 0.01
        assert min(np.mean(single != alone) for single in singles) > 0.1


@pytest.mark.slow
def test_a_sweep_of_likelihoods_over_a_gated_mixture_of_different_experts_is_each_switch_s():
    low, high = Gated(experts(), slopes(3)), atoms(1.0 + np.arange(8), toys.HIGH)
    etas, images = (0.3, 0.5), np.asarray(DARK_AND_BRIGHT)
    found = sweeps.sweep_likelihood(low, high, etas, images, key=KEY, settings=EXACT)
    np.testing.assert_allclose(found.low.bpd, bpd_by_hand(images, RANGES["one range"][1]), atol=1e-4)
    z, entropy = start_of(images)
    for eta, merged in zip(etas, found.merged, strict=True):
        gamma = noise.gamma_of_eta(eta, *toys.MERGED)
        # By hand up to the threshold; from there the closed-form expert's own solve.
        middle, below = walk_by_hand(z, [(toys.LOW[0], gamma, (0, 1, 2))])
        end = flow.solve(
            high,
            jnp.asarray(middle.reshape(z.shape), jnp.float32),
            gamma,
            toys.HIGH[1],
            rising=True,
            control=EXACT.control,
            probes=flow.exact_probes(SHAPE),
        )
        log_prob = likelihood.gaussian_prior(end.z, toys.HIGH[1]) + below + end.divergence + entropy
        np.testing.assert_allclose(merged.bpd, -log_prob / (16 * np.log(2)), atol=1e-4)


def test_exact_likelihood_of_a_choice_that_jumps_is_refused_also_inside_a_switch(whole):
    _, gated = whole
    top = gated.but(top_k=1)
    for expert in (top, Switch(top, atoms(np.ones(8), toys.HIGH), gamma=0.0)):
        assert not top.smooth
        with pytest.raises(
            ValueError, match=r"continuous in z only, and this mixture's choice .* use the bound"
        ):
            likelihood.log_likelihood(expert, FEW, key=KEY, scale=SCALE)
    assert np.all(np.isfinite(bound(top, FEW)))


# --- what a gate does on data ------------------------------------------------------------------------


def test_measured_figures_are_those_of_a_gate_whose_weights_are_known():
    weights = np.array([0.7, 0.2, 0.1])
    gated = Gated(experts(), FixedGate.of_weights(weights))
    measured = measure(gated, IMAGES, key=KEY, repeats=3, scale=SCALE)
    np.testing.assert_allclose(measured.usage(), weights, atol=1e-6)
    assert measured.entropy() == pytest.approx(-np.sum(weights * np.log(weights)), abs=1e-5)
    levels = measured.by_level(4)
    assert levels["count"].tolist() == [18] * 4  # 24 images in three draws, evenly
    np.testing.assert_allclose(levels["usage"], np.tile(weights, (4, 1)), atol=1e-6)
    np.testing.assert_allclose(levels["effective"], np.exp(measured.entropy()), rtol=1e-5)
    members = np.arange(24)[:, None] % 3 == np.arange(3)
    assert measured.slice_accuracy(members).tolist() == [1, 0, 0]
    assert np.mean(measured.bpd_by_slice(members)) == pytest.approx(measured.diffusion_bpd()[0])
    np.testing.assert_allclose(measured.usage_by_slice(members), np.tile(weights, (3, 1)), atol=1e-6)
    assert measured.collapse_warning() is None
    # Equal weights name no expert: a right one in a third of the cases. What is used is what collapses.
    even = Gated(experts(), FixedGate(jnp.zeros(3)))
    tied = measure(even, IMAGES, key=KEY, repeats=3, scale=SCALE)
    np.testing.assert_allclose(tied.slice_accuracy(members), 1 / 3)
    chosen = measure(gated.but(top_k=1), IMAGES, key=KEY, repeats=1, scale=SCALE)
    assert "expert 0 has 100.0 % of the weight" in chosen.collapse_warning()


def test_one_expert_s_measured_error_is_its_diffusion_term():
    gated = Gated([atoms(np.ones(8)), atoms(1.0 + np.arange(8))], FixedGate.of_weights([1, 0]))
    measured = measure(gated, IMAGES, key=KEY, repeats=4)
    bpd, se = measured.diffusion_bpd()
    assert measured.expert_bpd()[0] == pytest.approx(bpd, rel=1e-5)
    terms = bound(gated.experts[0], jnp.asarray(IMAGES))
    assert abs(bpd - terms[:, 2].mean()) < 5 * se + 0.05 * bpd
    assert measured.collapse_warning() == (
        "the gate has collapsed: expert 0 has 100.0 % of the weight; raise the load penalty, or use its expert alone."
    )


# --- adapters ----------------------------------------------------------------------------------------


class Small(nnx.Module):
    """Two convolutions and a dense layer."""

    def __init__(self, rngs):
        self.conv0 = nnx.Conv(1, 4, (3, 3), padding=1, rngs=rngs)
        self.conv1 = nnx.Conv(4, 4, (3, 3), padding=1, rngs=rngs)
        self.dense = nnx.Linear(4, 4, rngs=rngs)
        self.out = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, z, gamma):
        h = jnp.tanh(self.conv1(jnp.tanh(self.conv0(z)) + 0.1 * per_image(gamma, z)))
        return self.out(jnp.tanh(self.dense(h)))


@struct.dataclass
class Network(Expert):
    net: Small
    gamma_range: tuple[float, float] = struct.field(pytree_node=False, default=toys.LOW)

    def eps_hat(self, z, gamma):
        return self.net(z, gamma)


CONV1 = "net/conv1/kernel"


@pytest.fixture(scope="module")
def trunk():
    return Network(Small(nnx.Rngs(0)))


def test_fresh_adapters_leave_the_trunk_as_it_is_and_trained_ones_change_one_expert(trunk):
    bank = share_trunk(trunk, 3, rank=2)
    assert len(bank) == 3 and sorted(bank.adapters[0]) == [CONV1, "net/dense/kernel"]
    plain = ask(trunk, Z, 0.0)
    np.testing.assert_allclose(ask(bank[1], Z, 0.0), plain, atol=1e-6)
    adapters = [dict(a) for a in bank.adapters]
    down, up = adapters[1][CONV1]
    adapters[1][CONV1] = (down, up + 0.5)
    changed = AdapterBank(trunk, tuple(adapters))
    assert np.abs(ask(changed[1], Z, 0.0) - plain).max() > 1e-2
    np.testing.assert_allclose(ask(changed[2], Z, 0.0), plain, atol=1e-6)
    assert not np.allclose(bank.adapters[0][CONV1][0], bank.adapters[1][CONV1][0])


def test_an_adapter_is_a_parallel_one_by_one_convolution(trunk):
    down, up = jax.random.normal(KEY, (4, 2)), jax.random.normal(jax.random.key(8), (2, 4))
    adapted = AdapterBank(trunk, ({CONV1: (down, up)},))[0]
    x = jax.random.normal(KEY, (2, 4, 4, 4))
    np.testing.assert_allclose(adapted.net.conv1(x), trunk.net.conv1(x) + x @ down @ up, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vdm", "edm"])
def test_networks_of_both_kinds_take_adapters(kind):
    common = {"levels": 17, "shape": (8, 8, 1), "width": 8, "dropout": 0.0}
    if kind == "vdm":
        made = io.build(vdm_description(depth=1, fourier=(), **common), seed=0)
    else:
        made = io.build(
            edm_description(channel_mult=(1,), num_blocks=1, attn_resolutions=(), **common), seed=0
        )
    bank = share_trunk(made, 2, rank=2)
    z = jax.random.normal(KEY, (2, 8, 8, 1))
    np.testing.assert_allclose(ask(bank[1], z, 0.0), ask(made, z, 0.0), atol=1e-6)
    filled = jax.tree.map(lambda a: a + 0.1, bank.adapters)
    different = AdapterBank(made, filled)[1]
    # The published last layers start at zero, so that the difference shows inside.
    pairs = zip(jax.tree.leaves(different), jax.tree.leaves(made), strict=True)
    changed = sum(not np.array_equal(a, b) for a, b in pairs)
    assert changed == len(bank.adapters[0]) > 5
    gated = Gated(bank, slopes(2))
    np.testing.assert_allclose(ask(gated, z, 0.0), ask(made, z, 0.0), atol=1e-6)


def test_parameters_of_a_shared_trunk_are_counted_once(trunk):
    size = (9 * 4 + 4) + (9 * 16 + 4) + (16 + 4) + (4 + 1)
    fixed = FixedGate(jnp.zeros(3))
    full = parameter_counts(Gated([trunk] * 3, fixed))
    assert full == {"experts": 3 * size, "gate": 3, "total": 3 * size + 3}
    shared = parameter_counts(Gated(share_trunk(trunk, 3, rank=2), fixed))
    adapters = 3 * 2 * (2 * 4 + 2 * 4)
    assert shared == {"trunk": size, "adapters": adapters, "gate": 3, "total": size + adapters + 3}
    with pytest.raises(ValueError, match="adapters of rank 64 need kernels with more than 64 channels"):
        share_trunk(trunk, 3, rank=64)


def test_a_split_mixture_joins_to_itself(trunk):
    gated = Gated(share_trunk(trunk, 2, rank=1), gate(2, inputs="gamma"), top_k=1)
    sizes = {}
    for parts in gate_parts.PARTS:
        trained, frozen = gate_parts.split(gated, parts)
        sizes[parts] = len(jax.tree.leaves(trained))
        again = gate_parts.join(trained, frozen)
        assert jax.tree.structure(again) == jax.tree.structure(gated)
        for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(gated), strict=True):
            assert a is b
    assert sizes == {"gate": 5, "adapters": 5 + 8, "all": 5 + 8 + 8}


def test_a_mixture_comes_back_from_disk(trunk, tmp_path):
    gated = Gated([trunk, trunk], gate(2, inputs="gamma"))
    fresh = Gated([trunk, trunk], gate(2, inputs="gamma", spread=0.0))
    gate_parts.save_gated(tmp_path / "mixture", gated, {"note": 1})
    loaded = gate_parts.load_gated(tmp_path / "mixture", fresh)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(gated), strict=True):
        np.testing.assert_array_equal(a, b)
    io.save_expert(tmp_path / "expert", trunk, {"expert": {}})
    with pytest.raises(ValueError, match="not of a gated mixture"):
        gate_parts.load_gated(tmp_path / "expert", fresh)
    with pytest.raises(ValueError, match="must be one of gate, adapters, all, got 'x'"):
        gate_parts.split(gated, "x")
    with pytest.raises(ValueError, match="no adapters to train"):
        gate_parts.split(gated, "adapters")
