"""What `test_parallel.py` runs in processes of their own, one for each number of devices.

    python -m tests.on_devices DEVICES EXPERTS OUT.npz

EXPERTS is "closed" (a merge of closed-form experts) or "shipped" (the digits experts).
"""

import os
import sys

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={sys.argv[1]}"
    os.environ["JAX_PLATFORMS"] = "cpu"

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge import likelihood, noise, parallel, sampling
from jaxmerge import probability_flow as flow
from jaxmerge.data import digits
from jaxmerge.experts import io
from jaxmerge.experts.analytic import Discrete
from jaxmerge.merge import Switch
from jaxmerge.noise import PixelScale
from tests import toys

KEY = jax.random.key(0)
BATCH_SIZES = (3, 16)
COUNT = 11


def normal(shape, key, index):
    return noise.image_normal(key, index, shape)


def merge(kind: str):
    """A merged expert and the images to score."""
    if kind == "shipped":
        low, high = io.shipped("digits_vdm"), io.shipped("digits_edm")
        images = digits.load("test").images
    else:
        images = np.random.default_rng(0).integers(0, 17, (20, 8, 8, 1)).astype(np.uint8)
        make = functools.partial(Discrete.from_images, images, scale=PixelScale(17))
        low, high = make(np.ones(20), gamma_range=toys.LOW), make(1.0 + np.arange(20), gamma_range=toys.HIGH)
    return Switch(low, high, eta=0.3), images[:COUNT]


def conditions(devices: int) -> list[int]:
    """How often each expert of a switch ran when every device asked at a level of its own."""
    calls = toys.Calls()
    merged = Switch(toys.Recorder(0.5, "low", calls), toys.Recorder(0.9, "high", calls), gamma=0.0)
    levels = np.where(np.arange(devices) % 2 == 0, -1.0, 1.0).astype(np.float32)
    z = np.ones((devices, 3, *toys.SHAPE), np.float32)
    ask = jax.pmap(lambda expert, z, gamma: expert.eps_hat(z, gamma), in_axes=(None, 0, 0))
    jax.block_until_ready(ask(merged, z, levels))
    counts = calls.counts()
    return [counts.get("low", 0), counts.get("high", 0)]


def main(devices: int, kind: str, out: str) -> None:
    assert parallel.device_count() == devices
    expert, images = merge(kind)
    settings = likelihood.Settings(control=flow.FixedGrid(2.0), probes=2)
    found = {"conditions": conditions(devices)}
    for size in BATCH_SIZES:
        index = np.arange(COUNT)
        found[f"noise_{size}"] = parallel.map_batches(normal, ((8, 8, 1),), (KEY,), (index,), batch_size=size)
        scored = likelihood.evaluate(expert, images, key=KEY, settings=settings, batch_size=size)
        found[f"bpd_{size}"], found[f"ok_{size}"] = scored.bpd, scored.ok
        drawn = sampling.Settings(sampler="heun", steps=12)
        found[f"samples_{size}"], _ = sampling.generate(expert, 40, key=KEY, settings=drawn, batch_size=size)
    np.savez(out, **{k: jnp.asarray(v) for k, v in found.items()})


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
