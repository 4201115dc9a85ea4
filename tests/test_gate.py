"""The gated mixture: weights, ranges, limiting cases, and that every room of the library takes it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, struct

from jaxmerge import likelihood, sampling, sweeps, vlb
from jaxmerge import probability_flow as flow
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


def experts():
    return [Tanh(s) for s in (0.3, 0.8, -0.5)]


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
def test_sweeps_and_switches_take_a_gated_mixture():
    low, high = atoms(np.ones(8)), atoms(1.0 + np.arange(8), toys.HIGH)
    settings = sampling.Settings(sampler="heun", steps=6)
    found, plain = (
        sweeps.sweep_samples(e, high, [0.3, 0.5], 4, key=KEY, settings=settings)
        for e in (Gated([low, low], slopes(2)), low)
    )
    np.testing.assert_array_equal(found.images, plain.images)
    assert found.nfe == plain.nfe


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
