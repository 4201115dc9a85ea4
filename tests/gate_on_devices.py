"""What `test_gate_training.py` runs in processes of their own, one for each number of devices.

python -m tests.gate_on_devices DEVICES FOLDER

writes FOLDER/steps.npz and a training for every entry of TRAININGS.
"""

import os
import sys

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={sys.argv[1]}"
    os.environ["JAX_PLATFORMS"] = "cpu"

import functools
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxmerge import parallel
from jaxmerge.data import digits
from jaxmerge.gate.gated import Gated
from jaxmerge.gate.network import Gate
from jaxmerge.noise import PixelScale
from jaxmerge.training import gate_objective, gate_parts, gate_recipe, gate_step
from jaxmerge.training.gate_objective import Penalties
from jaxmerge.training.step import initial_state
from tests import toys

COUNT, BATCH = 2, 16
# Far below the norm of every gradient here.
CLIP = 0.01
BIAS_RATE = 0.1


class Case(NamedTuple):
    """One step: of which phase, what it trains, of how many experts, and how many of them are chosen."""

    warm: bool
    parts: str
    count: int = COUNT
    top_k: int | None = None


STEPS = {
    "gate": Case(False, "gate"),
    "all": Case(False, "all"),
    "warm": Case(True, "all"),
    "warm of 4": Case(True, "all", 4),
    "top 2": Case(False, "all", 4, 2),
}
# Experts and batch size of whole trainings: 8 devices have fewer images each than experts, or cannot share a batch.
TRAININGS = ((8, 16), (4, 15))


def mixture(count: int = COUNT, top_k: int | None = None) -> Gated:
    """Linear experts with two different ranges under a gate that is not uniform."""
    gate = Gate(
        count,
        gamma_range=toys.MERGED,
        shape=(8, 8, 1),
        width=4,
        hidden=8,
        embedding=8,
        rngs=nnx.Rngs(0),
    )
    gate.dense1.kernel = nnx.Param(jax.random.normal(jax.random.key(1), (8, count)))
    ranges = (toys.LOW, toys.HIGH) * count
    slopes = np.linspace(0.4, 0.9, count, dtype=np.float32)
    experts = [
        toys.Recorder(jnp.float32(s), gamma_range=r) for s, r in zip(slopes, ranges[:count], strict=True)
    ]
    return Gated(experts, gate, top_k=top_k)


def members(data, count: int = COUNT) -> np.ndarray:
    return data.labels[:, None] % count == np.arange(count)


def remembered() -> optax.GradientTransformation:
    """Leaves gradients as they are and keeps them in its state."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda grads, state, params=None: (grads, grads)
    )


def step(case: Case) -> dict[str, np.ndarray]:
    """One step of plain gradient descent under a clip: figures, whole gradients, and how far every parameter moved."""
    data = digits.load("train")
    warm_steps = 10 if case.warm else 0
    batch = gate_step.batches(
        data, members(data, case.count), seed=0, size=BATCH, steps=10, warm_steps=warm_steps
    )(3)
    objective = functools.partial(
        gate_objective.warm_loss if case.warm else gate_objective.mixture_loss,
        total=BATCH,
        scale=PixelScale(17),
        # The load penalty weighs most, so that its average over devices is seen.
        penalties=Penalties(load=30.0, entropy=1.0, align=1.0),
    )
    optimizer = optax.chain(remembered(), optax.clip_by_global_norm(CLIP), optax.sgd(1.0))
    program = gate_step.make_program(
        objective,
        optimizer,
        ema_decay=0.9,
        bias_rate=BIAS_RATE if case.top_k else 0.0,
        dropout=False,
        shares=gate_step.groups_of(BATCH, case.count) if case.warm else BATCH,
    )
    before, frozen = gate_parts.split(mixture(case.count, case.top_k), case.parts)
    state, figures = program(initial_state(before, optimizer), frozen, jax.random.key(5), batch)
    moved = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), before, state.expert)
    found = {"figure": figures, "gradient": state.opt_state[0], "moved": moved}
    leaves = jax.tree_util.tree_flatten_with_path(found)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def train(folder: pathlib.Path, count: int, size: int) -> None:
    """A short training in both phases."""
    data, validation = digits.load("train").take(64), digits.load("validation").take(20)
    gate_recipe.train_gated(
        mixture(count),
        data,
        validation,
        workdir=folder / f"{count}_{size}",
        steps=4,
        batch_size=size,
        learning_rate=0.05,
        parts="all",
        members=members(data, count),
        warm_fraction=0.5,
        eval_every=2,
        repeats=2,
        seed=1,
        log=lambda line: None,
    )


def main(devices: int, folder: pathlib.Path) -> None:
    assert parallel.device_count() == devices
    found = {f"{name}/{key}": v for name, case in STEPS.items() for key, v in step(case).items()}
    folder.mkdir()
    np.savez(folder / "steps.npz", **found)
    for count, size in TRAININGS:
        train(folder, count, size)


if __name__ == "__main__":
    main(int(sys.argv[1]), pathlib.Path(sys.argv[2]))
