"""The mixtures that are compared with one another, each an expert like any other."""

from collections.abc import Sequence
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from jaxmerge.data import Dataset
from jaxmerge.experts import io
from jaxmerge.experts.base import Expert
from jaxmerge.gate.gated import Gated, regions
from jaxmerge.gate.network import FixedGate, Gate, RandomGate
from jaxmerge.merge import Mixture, Switch
from jaxmerge.noise import PixelScale
from jaxmerge.training import recipes

# Between the seeds of the models of two runs.
SEEDS = 1000


class Method(NamedTuple):
    """One row of a table.

    Attributes:
        key: letters and digits, for files.
        name: for people.
        models: one expert per seed; a method in which nothing is drawn at random has one.
        what: one sentence.
        experts: number of networks.
        steps: training steps of this method alone; 0 for none.
    """

    key: str
    name: str
    models: tuple[Expert, ...]
    what: str
    experts: int
    steps: int = 0


@flax.struct.dataclass
class AtOneLevel(Expert):
    """An expert asked at levels [B] that all lie in one of its pieces, as in one stratum of a bound.

    A switch refuses levels per image; inside a stratum they cannot fall on both of its sides.

    Attributes:
        expert: any expert.
    """

    expert: Expert

    @property
    def gamma_range(self) -> tuple[float, float]:
        return self.expert.gamma_range

    @property
    def pixel_scale(self) -> PixelScale | None:
        return self.expert.pixel_scale

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        return self.expert.image_shape

    def eps_hat(self, z: Float[Array, "B H W C"], gamma) -> Float[Array, "B H W C"]:
        pieces = self.expert.pieces()
        level = jnp.mean(jnp.asarray(gamma, z.dtype))
        index = sum((jnp.asarray(level > p.gamma_high, jnp.int32) for p in pieces[:-1]), jnp.int32(0))
        return jax.lax.switch(index, [lambda p=p: p.expert.eps_hat(z, gamma) for p in pieces])


def by_level(
    experts: Sequence[Expert], gammas: Float[np.ndarray, " G"], weights: Float[np.ndarray, "G K"]
) -> Expert:
    """Experts with weights that depend on the noise level alone, over the union of their ranges.

    Where several experts answer it is a `Mixture` of them, with a switch to the next range at its end.

    Args:
        experts: K single-piece experts.
        gammas: increasing noise levels of the table.
        weights: affine or convex; zero for an expert that does not answer.

    Raises:
        ValueError: a range that no level of the table lies in.
    """
    parts = []
    for low, high, active in regions([e.gamma_range for e in experts]):
        inside = (gammas > low) & (gammas < high)
        chosen = [experts[k] for k in active]
        if len(chosen) == 1:
            parts.append((high, chosen[0]))
            continue
        if not inside.any():
            raise ValueError(
                f"the table of weights must have levels between gamma {low:.4f} and {high:.4f}, where "
                f"{len(chosen)} experts answer; use a finer one."
            )
        parts.append((high, Mixture(chosen, weights[inside][:, list(active)], gammas[inside])))
    whole = parts[-1][1]
    for high, part in reversed(parts[:-1]):
        whole = Switch(part, whole, gamma=high)
    return whole


def uniform(experts: Sequence[Expert]) -> Gated:
    """The average of the experts that answer."""
    return Gated(experts, FixedGate(jnp.zeros(len(experts))))


def at_random(experts: Sequence[Expert], seed: int) -> Gated:
    """Weights drawn for each image at each step."""
    return Gated(experts, RandomGate(jax.random.key(seed), len(experts)))


def span_of(experts: Sequence[Expert]) -> tuple[float, float]:
    """The union of the experts' ranges."""
    ranges = [e.gamma_range for e in experts]
    return min(r[0] for r in ranges), max(r[1] for r in ranges)


def fresh(
    asked: ConfigDict,
    experts: Sequence[Expert],
    *,
    seed: int,
    inputs: str = "z",
    width: int | None = None,
    top_k: int | None = None,
) -> Gated:
    """Experts under a new gate.

    Args:
        asked: the config's section `moe`.
        experts: single-piece experts, or an `AdapterBank`.
        seed: of the gate's initial weights.
        inputs: "z" or "gamma", see `Gate`.
        width: of the gate; the hidden layer is twice as wide. The config's by default.
        top_k: experts per image; None for all.
    """
    width = width or asked.width
    first = experts[0]
    gate = Gate(
        len(experts),
        gamma_range=span_of(list(experts)),
        shape=first.image_shape,
        inputs=inputs,
        width=width,
        depth=asked.depth,
        hidden=2 * width,
        embedding=asked.embedding,
        dropout=asked.dropout,
        rngs=nnx.Rngs(seed),
    )
    return Gated(experts, gate, top_k=top_k, capacity_factor=asked.capacity_factor)


def seeds(config: ConfigDict) -> list[int]:
    """Seeds of a method's models; they follow from the run's own."""
    return [SEEDS * config.seed + number for number in range(config.moe.seeds)]


def copies(expert: Expert, count: int) -> tuple[Expert, ...]:
    """The same expert several times, each with parameters of its own that training may give up."""
    return tuple(jax.tree.map(jnp.array, expert) for _ in range(count))


def fresh_expert(config: ConfigDict, data: Dataset, seed: int) -> Expert:
    """An untrained network of the config's section `expert` for these images."""
    return io.build(recipes.description(config.expert.to_dict(), data), seed=seed)
