"""Sharding over devices: nothing that is computed for an image depends on how many there are."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmerge import parallel
from tests.on_devices import BATCH_SIZES, COUNT

ROOT = pathlib.Path(__file__).parent.parent
DEVICES = (1, 2, 8)


@pytest.fixture(scope="module", params=["closed", pytest.param("shipped", marks=pytest.mark.slow)])
def found(request, tmp_path_factory):
    """The results of every number of devices."""
    outs = {n: tmp_path_factory.mktemp("devices") / f"{n}.npz" for n in DEVICES}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.on_devices", str(n), request.param, str(out)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n, out in outs.items()
    ]
    for process in started:
        _, errors = process.communicate(timeout=1800)
        assert process.returncode == 0, errors
    return {n: dict(np.load(out)) for n, out in outs.items()}


def everyone(found, name):
    return [(f"{n} devices, batches of {b}", found[n][f"{name}_{b}"]) for n in DEVICES for b in BATCH_SIZES]


def test_noise_of_an_image_is_the_same_on_any_devices_and_in_any_batch(found):
    (_, first), *others = everyone(found, "noise")
    assert first.shape == (COUNT, 8, 8, 1) and len(np.unique(first)) > 0.99 * first.size
    for where, other in others:
        np.testing.assert_array_equal(other, first, err_msg=where)


def test_likelihoods_are_the_same_on_any_devices_and_in_any_batch(found):
    (_, first), *others = everyone(found, "bpd")
    assert first.shape == (COUNT,) and all(np.all(ok) for _, ok in everyone(found, "ok"))
    for where, other in others:
        np.testing.assert_allclose(other, first, atol=1e-4, err_msg=where)


def test_samples_are_the_same_on_any_devices_and_in_any_batch(found):
    (_, first), *others = everyone(found, "samples")
    assert first.dtype == np.uint8 and first.shape == (40, 8, 8, 1)
    for where, other in others:
        difference = np.abs(other.astype(int) - first)
        assert np.mean(difference > 0) <= 1e-3 and difference.max() <= 1, where


def test_every_device_runs_only_the_expert_of_its_own_level(found):
    for devices in DEVICES:
        assert found[devices]["conditions"].tolist() == [(devices + 1) // 2, devices // 2]


# One device


def affine(factor, offset, x, index):
    traces.append(x.shape)
    return {"y": factor * x + offset, "sum": jnp.sum(x, axis=1), "index": index}


traces: list[tuple[int, ...]] = []


@pytest.mark.parametrize(("count", "batch_size"), [(1, 4), (4, 4), (7, 3), (7, 100), (6, 1)])
def test_any_number_of_images_comes_back_in_order(count, batch_size):
    x, index, done = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32), np.arange(count), []
    out = parallel.map_batches(
        affine, (2.0,), (jnp.float32(1.0),), (x, index), batch_size=batch_size, advance=done.append
    )
    np.testing.assert_allclose(out["y"], 2 * x + 1, rtol=1e-6)
    np.testing.assert_allclose(out["sum"], x.sum(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(out["index"], index)
    assert sum(done) == count and max(done) <= batch_size * jax.local_device_count()


def test_the_last_batch_is_padded_and_compiles_nothing():
    x = np.ones((7, 5), np.float32)
    traces.clear()
    for _ in range(2):
        parallel.map_batches(affine, (3.0,), (jnp.float32(0.0),), (x, np.arange(7)), batch_size=3)
    assert traces == [(3, 5)]


def test_stragglers_of_any_number_share_programs_of_a_power_of_two():
    devices = jax.local_device_count()
    x = np.random.default_rng(0).normal(size=(8 * devices, 4)).astype(np.float32)
    traces.clear()
    for count in (1, 3 * devices, 4 * devices, 5 * devices, 8 * devices):
        out = parallel.map_batches(
            affine, (5.0,), (jnp.float32(0.0),), (x[:count], np.arange(count)), batch_size=6, few=True
        )
        np.testing.assert_allclose(out["y"], 5 * x[:count], rtol=1e-6)
    assert traces == [(1, 4), (4, 4), (6, 4)]


@pytest.mark.parametrize(("count", "batch_size"), [(0, 3), (5, 0)])
def test_nothing_to_do_is_refused(count, batch_size):
    with pytest.raises(ValueError, match=f"at least 1, got {batch_size} and {count}"):
        parallel.map_batches(
            affine, (1.0,), (0.0,), (np.ones((count, 2)), np.arange(count)), batch_size=batch_size
        )


def test_devices_are_described():
    assert parallel.describe_devices().startswith(f"{jax.local_device_count()} x ")
    assert parallel.describe_devices().endswith("(cpu)")


# Training steps


def test_a_training_program_compiles_once_though_its_state_starts_elsewhere():
    compiled = []

    def step(state, rate, batch):
        compiled.append(1)
        return jax.tree.map(lambda s: s + rate * parallel.mean_over_devices(jnp.mean(batch)), state)

    program = parallel.training_program(step, 2)
    state, rate = {"a": jnp.zeros(3), "b": np.ones(2, np.float32)}, jnp.float32(2.0)
    for _ in range(3):
        state = program(state, rate, np.arange(8.0, dtype=np.float32))
        state["b"] = jnp.asarray(np.asarray(state["b"]))
    assert len(compiled) == 1
    np.testing.assert_allclose(state["a"], 3 * 2 * 3.5)


def test_a_batch_that_devices_cannot_share_is_refused():
    np.testing.assert_array_equal(parallel.shares(np.arange(6), 3), [[0, 1], [2, 3], [4, 5]])
    with pytest.raises(ValueError, match="a batch of 4 images cannot be shared evenly by 3 devices"):
        parallel.shares(np.zeros(4), 3)
