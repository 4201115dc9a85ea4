"""What a gated mixture costs: parameters, and FLOPs of the passes that really ran."""

import threading
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxmerge.experts.adapters import AdapterBank
from jaxmerge.gate.gated import Gated


class Tally:
    """Counts, at run time, the passes of a mixture's experts in whatever program it runs.

    Attributes:
        passes: calls of each expert so far [K].
        batches: calls of the mixture.
        images: their images.

    Example:
        >>> tally = Tally(4)
        >>> generate(gated.but(tally=tally), 64, key=key)
        >>> costs(gated, 64).saving(tally)
    """

    def __init__(self, count: int):
        self._lock = threading.Lock()
        self._passes, self._slots = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self._batches = self._images = 0

    def add(self, passes: Int[np.ndarray, " K"], images: int, capacity: int) -> None:
        """Called by the running program: passes of each expert in one batch of so many images."""
        with self._lock:
            self._passes += np.asarray(passes)
            self._slots += np.asarray(passes) * int(capacity)
            self._batches += 1
            self._images += int(images)

    def _read(self, name: str):
        jax.effects_barrier()
        return getattr(self, name)

    @property
    def passes(self) -> Int[np.ndarray, " K"]:
        return self._read("_passes").copy()

    @property
    def slots(self) -> Int[np.ndarray, " K"]:
        """Images that each expert was run on, empty slots included [K]."""
        return self._read("_slots").copy()

    @property
    def batches(self) -> int:
        return self._read("_batches")

    @property
    def images(self) -> int:
        return self._read("_images")


def flops(fn, *arguments: Any) -> float:
    """Floating-point operations of one call, as XLA counts them; loops count once."""
    return float(jax.jit(fn).lower(*arguments).cost_analysis().get("flops", 0.0))


class Costs(NamedTuple):
    """FLOPs of a mixture's parts for one batch size.

    Attributes:
        batch: images.
        capacity: slots per pass of an expert.
        gate: the gate on the whole batch.
        dense: each expert on the whole batch [K].
        one_pass: each expert on `capacity` images [K].
    """

    batch: int
    capacity: int
    gate: float
    dense: Float[np.ndarray, " K"]
    one_pass: Float[np.ndarray, " K"]

    def of_dense(self) -> float:
        """One call of the dense mixture."""
        return self.gate + float(self.dense.sum())

    def of_passes(self, passes: Int[np.ndarray, " K"], calls: int = 1) -> float:
        """`calls` calls of the sparse mixture in which the experts ran this often, gate included."""
        return calls * self.gate + float(np.dot(self.one_pass, passes))

    def saving(self, tally: Tally) -> float:
        """FLOPs that ran, as a share of the dense mixture's for the same calls.

        Raises:
            ValueError: the tally has batches of another size.
        """
        if tally.images != tally.batches * self.batch:
            raise ValueError(
                f"the tally has {tally.images} images in {tally.batches} batches, the costs are of batches of "
                f"{self.batch}; count both with one batch size."
            )
        return self.of_passes(tally.passes, tally.batches) / (tally.batches * self.of_dense())


def costs(gated: Gated, batch: int, *, shape: tuple[int, int, int] | None = None) -> Costs:
    """FLOPs of gate and experts, from shapes alone: nothing runs.

    Args:
        gated: the mixture; its `top_k` and `capacity_factor` decide the slots per pass.
        batch: images per call.
        shape: (H, W, C), where the experts do not know it.

    Raises:
        ValueError: no shape known.
    """
    shape = shape or gated.image_shape
    if shape is None:
        raise ValueError("these experts do not know their image shape; pass shape=(H, W, C).")
    capacity = gated.capacity(batch)

    def call(expert, count):
        z, gamma = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((count, *shape), ()))
        return flops(lambda e, z, g: e.eps_hat(z, g), expert, z, gamma)

    experts = list(gated.experts)
    z, levels = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((batch, *shape), (batch,)))
    return Costs(
        batch=batch,
        capacity=capacity,
        gate=flops(lambda gate, z, g: gate(z, g), gated.gate, z, levels),
        dense=np.array([call(e, batch) for e in experts]),
        one_pass=np.array([call(e, capacity) for e in experts]),
    )


def parameter_counts(gated: Gated) -> dict[str, int]:
    """Parameters of "gate", "experts" (each full expert, summed) or "trunk" and "adapters", and "total"."""

    def count(tree) -> int:
        return sum(int(np.prod(np.shape(leaf))) for leaf in jax.tree.leaves(tree))

    if isinstance(gated.experts, AdapterBank):
        parts = {"trunk": count(gated.experts.trunk), "adapters": count(gated.experts.adapters)}
    else:
        parts = {"experts": count(gated.experts)}
    parts["gate"] = count(gated.gate)
    return {**parts, "total": sum(parts.values())}
