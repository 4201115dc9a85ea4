"""The checkpoints of a run: the last two states, each with what makes the run this one and no other."""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge import checkpoint
from jaxmerge.training.step import TrainState

KEPT_CHECKPOINTS = 2


def _checkpoints(workdir: pathlib.Path) -> list[pathlib.Path]:
    return sorted((workdir / "checkpoints").glob("step_*"))


def save(workdir: pathlib.Path, state: TrainState, identity: dict[str, Any]) -> None:
    """Writes the state and removes all but the last two."""
    path = workdir / "checkpoints" / f"step_{int(state.step):08d}"
    checkpoint.save(path, state, identity, overwrite=True)
    for old in _checkpoints(workdir)[:-KEPT_CHECKPOINTS]:
        checkpoint.remove(old)


def restore(workdir: pathlib.Path, fresh: TrainState, identity: dict[str, Any]) -> TrainState:
    """The newest checkpoint that is whole; `fresh` if the workdir has none at all.

    Raises:
        ValueError: the workdir holds another run, or its checkpoints are all damaged.
    """
    failure = None
    for path in reversed(_checkpoints(workdir)):
        try:
            stored = checkpoint.load_metadata(path)
            _refuse_another_run(workdir, stored, identity)
            return jax.tree.map(jnp.asarray, checkpoint.load(path, fresh))
        except AnotherRun:
            raise
        except ValueError as error:
            failure = failure or error
    if failure is not None:
        raise failure
    return fresh


class AnotherRun(ValueError):
    """The workdir holds a run with other settings."""


def _refuse_another_run(workdir: pathlib.Path, stored: dict[str, Any], identity: dict[str, Any]) -> None:
    ours = json.loads(json.dumps(identity))
    other = sorted(k for k in ours.keys() | stored.keys() if ours.get(k) != stored.get(k))
    if other:
        raise AnotherRun(
            f"{workdir} holds another run, which differs in {', '.join(other)}; choose another workdir "
            "or remove this one."
        )
