"""Choosing experts and running them on gathered images: the same numbers as masking, for any routing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from jaxmerge import sampling
from jaxmerge.experts.base import Expert, per_image
from jaxmerge.gate import routing
from jaxmerge.gate.cost import Tally, costs
from jaxmerge.gate.gated import Gated
from jaxmerge.gate.network import FixedGate
from tests import toys

BATCH, K = 13, 4
Z = jax.random.normal(jax.random.key(0), (BATCH, *toys.SHAPE))


@struct.dataclass
class Scripted:
    """A gate whose choice is written in each image's first value, so that tests decide the routing."""

    count: int = struct.field(pytree_node=False, default=K)
    smooth = False

    def __call__(self, z, gamma, *, keys=None):
        favourite = jnp.round(z[:, 0, 0, 0]).astype(int) % self.count
        distance = (jnp.arange(self.count) - favourite[:, None]) % self.count
        return -1.5 * distance.astype(z.dtype) + 0.1 * z[:, 1, 1, :]


@struct.dataclass
class Nonlinear(Expert):
    """tanh(slope z + gamma / 10), with every pixel of an image seeing the others."""

    slope: float
    gamma_range: tuple[float, float] = struct.field(pytree_node=False, default=toys.MERGED)

    def eps_hat(self, z, gamma):
        mixed = z + jnp.roll(z, 1, axis=1)
        return jnp.tanh(jnp.asarray(self.slope, z.dtype) * mixed + 0.1 * per_image(gamma, z))


EXPERTS = tuple(Nonlinear(s) for s in (0.3, 0.7, 1.1, -0.5))


@jax.jit
def ask(expert, z, gamma):
    return expert.eps_hat(z, gamma)


@jax.jit
def logits_and_each(gated, z, gamma):
    return gated.gate(z, jnp.full(len(z), gamma)), [e.eps_hat(z, gamma) for e in gated.experts]


def images_for(favourites):
    """Images whose favourite expert is given."""
    return Z.at[: len(favourites), 0, 0, 0].set(jnp.asarray(favourites, Z.dtype))[: len(favourites)]


def masked(gated, z, gamma):
    """Every expert on every image, one at a time, weights computed by hand in NumPy."""
    logits, each = jax.tree.map(
        lambda a: np.asarray(a, np.float64), logits_and_each(gated.but(top_k=None), z, gamma)
    )
    weights = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    order = np.argsort(-weights, axis=1, kind="stable")[:, : gated.top_k]
    kept = np.zeros_like(weights)
    np.put_along_axis(kept, order, np.take_along_axis(weights, order, 1), 1)
    if gated.renormalise:
        kept /= kept.sum(1, keepdims=True)
    return sum(w[:, None, None, None] * e for w, e in zip(kept.T, each, strict=True))


ROUTINGS = {
    "even": np.arange(BATCH) % K,
    "all to one": np.full(BATCH, 2),
    "two experts": np.where(np.arange(BATCH) < 5, 0, 3),
    "random": np.random.default_rng(3).integers(0, K, BATCH),
    "one image": np.array([1]),
    "two images": np.array([1, 1]),
}


@pytest.mark.parametrize("factor", [0.1, 0.4, 9.0])
@pytest.mark.parametrize("name", ROUTINGS)
def test_dispatch_equals_masking_for_every_routing_and_capacity(name, factor):
    gated = Gated(EXPERTS, Scripted(), top_k=2, capacity_factor=factor)
    z = images_for(ROUTINGS[name])
    np.testing.assert_allclose(ask(gated, z, 0.7), masked(gated, z, 0.7), atol=1e-5)


@pytest.mark.parametrize(("k", "renormalise"), [(1, True), (3, False)])
def test_dispatch_equals_masking_for_every_k_with_and_without_renormalising(k, renormalise):
    gated = Gated(EXPERTS, Scripted(), top_k=k, renormalise=renormalise)
    z = images_for(ROUTINGS["random"])
    np.testing.assert_allclose(ask(gated, z, -2.0), masked(gated, z, -2.0), atol=1e-5)
    # Levels per image take the other way, the masked one.
    np.testing.assert_allclose(ask(gated, z, jnp.full(BATCH, -2.0)), masked(gated, z, -2.0), atol=1e-5)


@functools.partial(jax.jit, static_argnames="capacity")
def dispatched(experts, z, gamma, weights, capacity):
    return routing.dispatch(experts, z, gamma, weights, capacity=capacity)


@pytest.mark.parametrize("factor", [0.1, 0.3])
@pytest.mark.parametrize(("count", "batch"), [(2, 17), (4, 13), (8, 11)])
def test_all_weights_sent_through_the_dispatch_are_the_dense_mixture(count, batch, factor):
    """A dense mixture never dispatches, so its experts' weights are handed over here."""
    experts = tuple(Nonlinear(s) for s in np.linspace(-0.9, 1.2, count).tolist())
    dense = Gated(experts, Scripted(count))
    capacity = routing.slots(batch, count, count, factor)
    full = -(-batch // capacity)
    assert batch % capacity and full > 2
    noisy = jax.random.normal(jax.random.key(5), (batch, *toys.SHAPE))
    for favourites in (np.random.default_rng(4).integers(0, count, batch), np.full(batch, 1)):
        z = noisy.at[:, 0, 0, 0].set(jnp.asarray(favourites, noisy.dtype))
        weights = jnp.exp(dense.log_weights(z, jnp.full(batch, 0.7)))
        assert np.argmax(weights, axis=1).tolist() == favourites.tolist() and np.all(weights > 0)
        got, passes = dispatched(experts, z, 0.7, weights, capacity)
        np.testing.assert_allclose(got, ask(dense, z, 0.7), atol=1e-5)
        np.testing.assert_allclose(got, masked(dense, z, 0.7), atol=1e-5)
        assert passes.tolist() == [full] * count

    # Every image with all its weight on one and the same expert.
    got, passes = dispatched(experts, noisy, 0.7, jnp.eye(count)[jnp.full(batch, count - 1)], capacity)
    np.testing.assert_allclose(got, ask(experts[-1], noisy, 0.7), atol=1e-5)
    assert passes.tolist() == [0] * (count - 1) + [full]


def test_an_image_alone_asks_every_expert_and_two_images_only_the_chosen():
    calls = toys.Calls()
    experts = [toys.Recorder(s, f"expert {k}", calls) for k, s in enumerate((0.1, 0.2, 0.3, 0.4))]
    gated = Gated(experts, Scripted(), top_k=2)
    run = jax.jit(lambda g, z: g.routed(z, 0.5))
    alone, passes = run(gated, images_for([1]))
    assert passes.tolist() == [1, 1, 1, 1]
    assert calls.counts() == {f"expert {k}": 1 for k in range(4)}
    # The numbers are those of its two experts all the same.
    np.testing.assert_allclose(alone, masked(gated, images_for([1]), 0.5), atol=1e-6)
    calls.clear()
    together, passes = run(gated, images_for([1, 1]))
    assert passes.tolist() == [0, 2, 2, 0]
    assert calls.counts() == {"expert 1": 2, "expert 2": 2}
    np.testing.assert_allclose(together[:1], alone, atol=1e-6)


def test_passes_are_counted_and_an_expert_without_images_does_not_run():
    calls = toys.Calls()
    experts = [toys.Recorder(s, f"expert {k}", calls) for k, s in enumerate((0.1, 0.2, 0.3, 0.4))]
    gated = Gated(experts, Scripted(), top_k=2, capacity_factor=0.5)
    z = images_for(ROUTINGS["all to one"])  # everyone takes experts 2 and 3
    capacity = gated.capacity(BATCH)
    assert capacity == 4  # ceil(0.5 * 2 * 13 / 4)
    _, passes = jax.jit(lambda g, z: g.routed(z, 0.0))(gated, z)
    assert passes.tolist() == [0, 0, 4, 4]
    assert calls.counts() == {"expert 2": 4, "expert 3": 4}


def test_a_state_that_is_not_a_number_stays_visible_and_stays_alone():
    gated = Gated(EXPERTS, Scripted(), top_k=2)
    z = images_for(ROUTINGS["even"]).at[5].set(jnp.nan)
    got = ask(gated, z, 0.0)
    assert bool(jnp.all(jnp.isnan(got[5])))
    np.testing.assert_allclose(
        np.delete(got, 5, axis=0),
        np.delete(masked(gated, images_for(ROUTINGS["even"]), 0.0), 5, axis=0),
        atol=1e-5,
    )


def test_dispatch_works_in_scan_vmap_and_pmap():
    gated = Gated(EXPERTS, Scripted(), top_k=2)
    z = images_for(ROUTINGS["random"])
    levels = jnp.array([-3.0, 0.0, 2.0])
    scanned = jax.jit(lambda e: jax.lax.map(lambda g: e.eps_hat(z, g), levels))(gated)
    mapped = jax.jit(lambda e: jax.vmap(lambda g: e.eps_hat(z, g))(levels))(gated)
    parallel = jax.pmap(lambda e, z: e.eps_hat(z, 0.0), in_axes=(None, 0))(gated, z[None])
    for i, gamma in enumerate((-3.0, 0.0, 2.0)):
        np.testing.assert_allclose(scanned[i], masked(gated, z, gamma), atol=1e-5)
        np.testing.assert_allclose(mapped[i], masked(gated, z, gamma), atol=1e-5)
    np.testing.assert_allclose(parallel[0], masked(gated, z, 0.0), atol=1e-5)


def test_the_bias_changes_the_choice_but_not_the_weights():
    logits = jnp.array([[2.0, 1.0, 0.0, -1.0]])
    log_weights = routing.normalised(logits, jnp.ones((1, 4), bool))
    plain = routing.select(log_weights, 2)
    moved = routing.select(log_weights, 2, bias=jnp.array([0.0, 0.0, 0.0, 9.0]))
    np.testing.assert_allclose(np.exp(plain), [[np.e / (1 + np.e), 1 / (1 + np.e), 0, 0]], atol=1e-6)
    # Experts 0 and 3 are kept, in the proportion e^2 to e^-1 of their own weights.
    np.testing.assert_allclose(np.exp(moved), [[np.e**3 / (1 + np.e**3), 0, 0, 1 / (1 + np.e**3)]], atol=1e-6)
    assert (
        jax.grad(lambda b: jnp.sum(jnp.exp(routing.select(log_weights, 2, bias=b)) ** 2))(
            jnp.zeros(4)
        ).tolist()
        == [0] * 4
    )


def test_an_expert_that_does_not_answer_is_never_chosen():
    allowed = jnp.array([[True, False, True, True], [False, False, True, False]])
    log_weights = routing.normalised(jnp.array([[0.0, 9.0, 1.0, -1.0]] * 2), allowed)
    chosen = np.exp(routing.select(log_weights, 2))
    np.testing.assert_allclose(chosen, [[1 / (1 + np.e), 0, np.e / (1 + np.e), 0], [0, 0, 1, 0]], atol=1e-6)


def test_slots_per_pass_follow_the_factor_and_stay_within_the_batch():
    assert routing.slots(64, 2, 4, 1.0) == 32
    assert routing.slots(64, 2, 4, 0.25) == 8
    assert routing.slots(64, 2, 8, 0.25) == 4
    assert routing.slots(10, 2, 4, 100.0) == 10
    assert routing.slots(1, 2, 8, 0.1) == 1


def test_flops_are_those_of_the_passes_that_ran_in_a_whole_sampling_run():
    gated = Gated(EXPERTS, FixedGate.of_weights([0.4, 0.3, 0.2, 0.1]), top_k=2, capacity_factor=0.25)
    tally = Tally(K)
    settings = sampling.Settings(sampler="heun", steps=4)
    sample = jax.jit(
        lambda e: sampling.sample(
            e,
            jnp.arange(16),
            key=jax.random.key(0),
            settings=settings,
            scale=toys.PixelScale(17),
            shape=toys.SHAPE,
        )
    )
    images, nfe = sample(gated.but(tally=tally))
    np.testing.assert_array_equal(images, sample(gated)[0])
    calls = int(nfe[0])
    assert calls == 6 and tally.batches == calls and tally.images == 16 * calls
    # Everyone chooses experts 0 and 1: 16 images in passes of ceil(0.25 * 2 * 16 / 4) = 2.
    assert tally.passes.tolist() == [8 * calls, 8 * calls, 0, 0]
    assert tally.slots.tolist() == [16 * calls, 16 * calls, 0, 0]
    cost = costs(gated, 16, shape=toys.SHAPE)
    assert cost.capacity == 2
    by_hand = (cost.gate + 8 * (cost.one_pass[0] + cost.one_pass[1])) / (cost.gate + cost.dense.sum())
    assert cost.saving(tally) == pytest.approx(by_hand)
    assert 0.4 < cost.saving(tally) < 0.6
    with pytest.raises(ValueError, match="96 images in 6 batches, the costs are of batches of 8"):
        costs(gated, 8, shape=toys.SHAPE).saving(tally)


@struct.dataclass
class Told:
    """A gate whose logits are written in the first row of each image."""

    count: int = struct.field(pytree_node=False, default=K)
    smooth = False

    def __call__(self, z, gamma, *, keys=None):
        return z[:, 0, : self.count, 0]


@struct.dataclass
class Matrix(Expert):
    """tanh of the image times a matrix: 2 D^2 operations per image and few others."""

    kernel: jax.Array
    gamma_range: tuple[float, float] = struct.field(pytree_node=False, default=toys.MERGED)

    def eps_hat(self, z, gamma):
        return jnp.tanh(z.reshape(len(z), -1) @ self.kernel).reshape(z.shape)


def images_with_loads(loads):
    """Images of 8x8 whose two largest logits give each expert a number of images."""
    left, chosen = np.array(loads), []
    for _ in range(sum(loads) // 2):
        chosen.append(np.argsort(-left, kind="stable")[:2])
        left[chosen[-1]] -= 1
    assert not left.any()
    z = np.random.default_rng(0).normal(size=(len(chosen), 8, 8, 1)).astype(np.float32)
    z[:, 0, :K, 0] = -1.0
    for row, two in zip(z, chosen, strict=True):
        row[0, two, 0] = (2.0, 1.0)
    return jnp.asarray(z)


@pytest.mark.parametrize(
    ("loads", "passes"),
    [
        ((32, 32, 32, 32), (4, 4, 4, 4)),
        ((45, 37, 28, 18), (6, 5, 4, 3)),  # about as uneven as a trained gate's
        ((37, 33, 33, 25), (5, 5, 5, 4)),  # as many empty slots as 64 images can leave
        ((64, 64, 0, 0), (8, 8, 0, 0)),
    ],
)
def test_the_best_two_of_four_cost_less_than_two_thirds_of_dense_at_batch_64(loads, passes):
    """FLOPs of passes that ran, 2 D^2 per slot in closed form; the limit is 0.65."""
    kernels = jax.random.normal(jax.random.key(1), (K, 64, 64)) / 8
    gated = Gated(tuple(Matrix(k) for k in kernels), Told(), top_k=2)
    tally = Tally(K)
    z = images_with_loads(loads)
    np.testing.assert_allclose(ask(gated.but(tally=tally), z, 0.0), masked(gated, z, 0.0), atol=1e-5)
    assert tally.batches == 1 and tally.passes.tolist() == list(passes)
    cost = costs(gated, 64, shape=(8, 8, 1))
    assert cost.capacity == 8
    np.testing.assert_allclose(cost.dense, 64 * 2 * 64**2, rtol=0.02)
    assert cost.saving(tally) == pytest.approx(8 * sum(passes) / (K * 64), rel=0.02)
    assert cost.saving(tally) < 0.65
