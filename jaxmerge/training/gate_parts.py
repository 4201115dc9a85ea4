"""Which parts of a gated mixture are trained, and the mixture to and from disk.

A mixture is split into two trees of its own structure: leaves that are trained and leaves that are not,
each with None in place of the other's. Only the first is averaged, differentiated and stored with every
checkpoint of a run.
"""

import os
from typing import Any

import jax
import optax
from jaxtyping import PyTree

from jaxmerge import checkpoint
from jaxmerge.gate.gated import Gated

# What is trained -> where these leaves are in the mixture.
PARTS = {
    "gate": ("gate", "bias"),
    "adapters": ("gate", "bias", "experts/adapters"),
    "all": ("gate", "bias", "experts"),
}


def split(gated: Gated, parts: str) -> tuple[Gated, Gated]:
    """(trained, frozen): two mixtures that `join` puts together again.

    Args:
        parts: "gate" (experts frozen), "adapters" (their trunk frozen) or "all".

    Raises:
        ValueError: another name, or adapters of experts that have none.
    """
    if parts not in PARTS:
        raise ValueError(f"the trained parts must be one of {', '.join(PARTS)}, got {parts!r}.")

    def inside(path) -> bool:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return any(name == p or name.startswith(p + "/") for p in PARTS[parts])

    trained = jax.tree_util.tree_map_with_path(lambda p, leaf: leaf if inside(p) else None, gated)
    frozen = jax.tree_util.tree_map_with_path(lambda p, leaf: None if inside(p) else leaf, gated)
    if parts == "adapters" and not jax.tree.leaves(trained.experts):
        raise ValueError(
            "these experts have no adapters to train; build them with share_trunk, or train 'all'."
        )
    return trained, frozen


def join(trained: PyTree, frozen: PyTree) -> Gated:
    """The mixture from its two parts."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, trained, frozen, is_leaf=lambda leaf: leaf is None
    )


def optimizer_of(
    gate: optax.GradientTransformation,
    experts: optax.GradientTransformation,
    *,
    clip: float,
    gate_from: int = 0,
) -> optax.GradientTransformation:
    """One optimizer for the gate, one for the experts, after clipping the global norm of both gradients together.

    Args:
        gate, experts: theirs.
        clip: largest global norm of the gradient.
        gate_from: steps in which the gate stays as it is; its optimizer starts afterwards.
    """
    waiting = optax.conditionally_mask(gate, lambda step: step >= gate_from)

    def init(trained: Gated):
        return {"gate": waiting.init(trained.but(experts=None)), "experts": experts.init(trained.experts)}

    def update(updates: Gated, state, params: Gated):
        gates, gate_state = waiting.update(updates.but(experts=None), state["gate"], params.but(experts=None))
        moved, experts_state = experts.update(updates.experts, state["experts"], params.experts)
        return gates.but(experts=moved), {"gate": gate_state, "experts": experts_state}

    return optax.chain(optax.clip_by_global_norm(clip), optax.GradientTransformation(init, update))


def save_gated(
    path: str | os.PathLike, gated: Gated, metadata: dict[str, Any], *, parts: str = "gate", **options: Any
) -> None:
    """Writes the trained parts of a mixture as a checkpoint; ``metadata["parts"]`` says which.

    Args:
        path: the folder.
        gated: the mixture.
        metadata: plain JSON, enough to build the mixture again.
        parts: as in `split`.
        options: of `checkpoint.save`.
    """
    trained, _ = split(gated, parts)
    checkpoint.save(path, trained, {**metadata, "parts": parts}, **options)


def load_gated(path: str | os.PathLike, like: Gated) -> Gated:
    """Reads the trained parts of a mixture into one of the same structure.

    Args:
        path: written by `save_gated`.
        like: a mixture with the same gate, whose other parts are taken as they are.

    Raises:
        ValueError: no checkpoint there, a damaged one, one that is not of a mixture, or of another one.
    """
    metadata = checkpoint.load_metadata(path)
    if metadata.get("parts") not in PARTS:
        raise ValueError(f"{path} is a checkpoint but not of a gated mixture; give the folder of one.")
    trained, frozen = split(like, metadata["parts"])
    return join(jax.device_put(checkpoint.load(path, trained)), frozen)
