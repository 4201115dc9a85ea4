"""Costs: what is counted exactly, and what a time says of itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmerge import sampling
from jaxmerge.merge import Switch
from jaxmerge.metrics import classifier, cost
from jaxmerge.noise import PixelScale
from tests import toys


def test_latency_calls_as_often_as_it_says_and_leaves_warm_up_out():
    calls = []

    def call():
        calls.append(1)
        return jnp.zeros(3) + len(calls)

    found = cost.latency(call, batch_size=4, repeats=5, warmup=2)
    assert len(calls) == 7 and (found.repeats, found.batch_size) == (5, 4)
    assert (
        0 < found.extremes[0] <= found.quartiles[0] <= found.median <= found.quartiles[1] <= found.extremes[1]
    )
    assert found.device.startswith("1 x ") and found.device.endswith("(cpu)")
    for part in ("median", "5 calls", "batch 4", found.device, "without compilation"):
        assert part in found.definition
    with pytest.raises(ValueError, match="at least 1, got 4, 0 and 1"):
        cost.latency(call, batch_size=4, repeats=0)


def test_latency_takes_the_quantiles_of_times_per_image(monkeypatch):
    ticks = iter([0.0, 9.0, 10.0, 12.0, 20.0, 24.0, 30.0, 38.0])
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(ticks))
    found = cost.latency(lambda: np.zeros(1), batch_size=2, repeats=3, warmup=1)
    assert found.first_call == 9.0 and found.median == 2.0
    assert found.quartiles == (1.5, 3.0) and found.extremes == (1.0, 4.0)


def test_operations_of_a_matrix_product_are_counted_without_running_it():
    a, b = jax.ShapeDtypeStruct((64, 32), jnp.float32), jax.ShapeDtypeStruct((32, 16), jnp.float32)
    found = cost.program_cost(jnp.matmul, a, b)
    assert found.flops == 2 * 64 * 32 * 16
    assert found.argument_bytes == 4 * (64 * 32 + 32 * 16) and found.output_bytes >= 4 * 64 * 16
    assert found.planned_bytes == found.argument_bytes + found.output_bytes + found.temporary_bytes


def test_operations_of_a_loop_are_those_of_one_turn():
    # Why operations are asked of one network call, and multiplied by the number of calls.
    w = jnp.ones((64, 64))

    def turns(x, count):
        return jax.lax.fori_loop(0, count, lambda i, x: x @ w, x)

    x, count = jax.ShapeDtypeStruct((64, 64), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    once, many = cost.program_cost(lambda x: x @ w, x).flops, cost.program_cost(turns, x, count).flops
    assert once == 2 * 64**3 and many < 1.1 * once


def test_accounts_of_backends_that_say_nothing_are_none(monkeypatch):
    class Compiled:
        def __init__(self, costs):
            self.costs = costs

        def lower(self, *args):
            return self

        def compile(self):
            return self

        def cost_analysis(self):
            return self.costs

        def memory_analysis(self):
            return None

    for costs, flops in (
        (None, None),
        ([], None),
        ({}, None),
        ([{"flops": 5.0}], 5.0),
        ({"flops": 6.0}, 6.0),
    ):
        monkeypatch.setattr(cost.jax, "jit", lambda fn, costs=costs: Compiled(costs))
        found = cost.program_cost(abs, 1)
        assert (found.flops, found.argument_bytes, found.planned_bytes) == (flops, None, None)


def test_parameters_are_counted_once():
    net = {"kernel": np.ones((3, 4), np.float32), "bias": jnp.ones(5), "half": jnp.ones(2, jnp.bfloat16)}
    found = cost.parameter_count(net)
    assert found == (12 + 5 + 2, 4 * 17 + 2 * 2)
    assert cost.parameter_count({"a": net, "b": net, "steps": np.arange(3)}) == found
    assert cost.parameter_count({"a": net, "b": jax.tree.map(lambda w: w + 1, net)}).count == 2 * found.count


def test_parameters_of_a_network_are_counted_from_its_shapes():
    sizes = [
        np.prod(leaf.shape)
        for leaf in jax.tree.leaves(classifier.parameters(classifier.build(classifier.DIGITS)))
    ]
    assert (
        cost.parameter_count(classifier.build(classifier.DIGITS)) == (sum(sizes), 4 * sum(sizes))
        and 40_000 < sum(sizes) < 50_000
    )


def test_memory_is_that_of_the_process():
    found = cost.memory()
    assert 50e6 < found.host_peak < 1e12 and (found.device_peak is None or found.device_peak > 0)
    keep = np.ones(60_000_000)
    assert cost.memory().host_peak >= max(found.host_peak, keep.nbytes)


def test_cost_of_sampling_names_its_calls_and_memory():
    low, high = toys.gaussian(toys.LOW), toys.gaussian(toys.HIGH)
    settings = sampling.Settings(sampler="ancestral", steps=7, final="decode")
    arguments = dict(
        key=jax.random.key(0), settings=settings, scale=PixelScale(17), shape=toys.SHAPE, repeats=2
    )
    single = cost.sampling_cost(toys.gaussian(), 8, **arguments)
    merged = cost.sampling_cost(Switch(low, high, 0.5), 8, **arguments)
    assert single.nfe == merged.nfe == 7
    assert single.latency.batch_size == 8 and single.latency.median > 0 and single.call.flops > 0
    assert merged.parameters.count >= 2 * single.parameters.count
    assert "ancestral" in single.definition and "batch 8" in single.definition
