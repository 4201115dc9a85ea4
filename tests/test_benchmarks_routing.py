"""The routing benchmark's count of FLOPs on the shipped network: the limit of 0.65 of dense for the best 2 of 4."""

import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks import routing
from jaxmerge.experts import io
from jaxmerge.gate.gated import Gated
from jaxmerge.gate.network import Gate, RandomGate

K, BATCH, LIMIT = 4, 64, 0.65


def check(sparse: Gated, heun: int) -> np.ndarray:
    """Asserts the limit; returns the passes per call of each expert."""
    share, tally = routing.share_of_flops(sparse, BATCH, heun)
    assert tally.batches == 2 * (heun - 1) and tally.images == BATCH * tally.batches
    # Every image is served by two experts, and each expert leaves less than a pass of 8 slots empty.
    assert sparse.capacity(BATCH) == 8
    per_call = tally.passes / tally.batches
    assert 2 * BATCH <= 8 * per_call.sum() <= 2 * BATCH + 7 * K
    # The networks' FLOPs are proportional to their slots, and the gate's are few.
    assert share == pytest.approx(8 * per_call.sum() / (K * BATCH), abs=0.02)
    assert share < LIMIT
    return per_call


@pytest.mark.slow
@pytest.mark.parametrize("name", ["network", "random"])
def test_two_of_four_networks_stay_below_the_limit_under_an_untrained_gate(name):
    vdm = io.shipped("digits_vdm")
    gate = RandomGate(jax.random.key(1), K)
    if name == "network":
        shape = dict(gamma_range=vdm.gamma_range, shape=vdm.image_shape, width=16, hidden=32)
        gate = Gate(K, **shape, rngs=nnx.Rngs(0))
        gate.dense1.kernel = nnx.Param(3.0 * jax.random.normal(jax.random.key(2), (32, K)))
    per_call = check(Gated((vdm,) * K, gate, top_k=2), heun=3)
    # Uneven, as a trained gate's routing is; one drawn at random serves all alike.
    assert (np.ptp(per_call) > 1) == (name == "network")


@pytest.mark.full
def test_two_of_four_specialists_stay_below_the_limit_under_a_trained_gate():
    dense = routing.prepared(K, warm=60, steps=150, width=16)
    assert dense.smooth and len(dense.experts) == K
    check(dense.but(top_k=2, capacity_factor=0.25), heun=6)
