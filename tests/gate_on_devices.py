"""What `test_gate_training.py` runs in processes of their own, one for each number of devices.

python -m tests.gate_on_devices DEVICES OUT.npz
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
from flax import nnx

from jaxmerge import parallel
from jaxmerge.data import digits
from jaxmerge.gate.gated import Gated
from jaxmerge.gate.network import Gate
from jaxmerge.noise import PixelScale
from jaxmerge.training import gate_objective, gate_parts, gate_step
from jaxmerge.training.gate_objective import Penalties
from tests import toys

COUNT, BATCH = 2, 16


def mixture() -> Gated:
    """Two linear experts with different ranges under a gate that is not uniform."""
    gate = Gate(
        COUNT,
        gamma_range=toys.MERGED,
        shape=(8, 8, 1),
        width=4,
        hidden=8,
        embedding=8,
        rngs=nnx.Rngs(0),
    )
    gate.dense1.kernel = nnx.Param(jax.random.normal(jax.random.key(1), (8, COUNT)))
    experts = [
        toys.Recorder(jnp.float32(0.4), gamma_range=toys.LOW),
        toys.Recorder(jnp.float32(0.9), gamma_range=toys.HIGH),
    ]
    return Gated(experts, gate)


def members(data) -> np.ndarray:
    return data.labels[:, None] % COUNT == np.arange(COUNT)


def gradients(warm: bool, parts: str):
    """Loss, figures and gradients of one step's whole batch."""
    data = digits.load("train")
    slices = gate_step.check_slices(members(data), COUNT)
    chosen = dict(seed=0, step=3, size=BATCH)
    batch = (
        gate_step.warm_batch(data, members(data), slices, **chosen)
        if warm
        else gate_step.joint_batch(data, members(data), **chosen)
    )
    objective = functools.partial(
        gate_objective.warm_loss if warm else gate_objective.mixture_loss,
        total=BATCH,
        scale=PixelScale(17),
        # The load penalty weighs most, so that its average over devices is seen.
        penalties=Penalties(load=30.0, entropy=1.0, align=1.0),
    )
    trained, frozen = gate_parts.split(mixture(), parts)
    program = parallel.training_program(
        lambda trained, frozen, key, batch: gate_step.gradients(
            objective, trained, frozen, batch, key, False
        ),
        3,
    )
    return program(trained, frozen, jax.random.key(5), batch)


def main(devices: int, out: str) -> None:
    assert parallel.device_count() == devices
    found = {}
    for name, warm, parts in (("gate", False, "gate"), ("all", False, "all"), ("warm", True, "all")):
        named = jax.tree_util.tree_flatten_with_path(gradients(warm, parts))[0]
        found |= {f"{name}{jax.tree_util.keystr(path)}": leaf for path, leaf in named}
    np.savez(out, **found)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
