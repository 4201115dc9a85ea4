"""A training at full size, proven without it: shapes, a memory estimate, and one step on a few images.

Memory per device is what a step must hold at once: the state (weights, their average, the best of it, the
optimizer's), the gradients, and what the backward pass keeps of the forward pass, counted by abstract
evaluation. Compilers fuse and recompute, so that the last may come out smaller.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge.data import Dataset
from jaxmerge.experts import io
from jaxmerge.noise import PixelScale
from jaxmerge.training.recipes import Recipe
from jaxmerge.training.step import initial_state, make_step


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Sizes of a training.

    Attributes:
        parameters: of the network.
        state, gradients: bytes on every device.
        activations: bytes that the backward pass keeps per image.
    """

    parameters: int
    state: int
    gradients: int
    activations: int

    def on_device(self, images: int) -> int:
        """Bytes on a device whose part of a batch is so many images."""
        return self.state + self.gradients + images * self.activations


def size_of(tree: Any) -> int:
    """Bytes of the arrays of a tree, abstract or not; random keys count as nothing."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def estimate(description: dict[str, Any], recipe: Recipe) -> Estimate:
    """Sizes of a training by abstract evaluation; nothing is computed.

    Args:
        description: see `io.build`.
        recipe: objective and optimizer.
    """
    expert, scale = io.build(description), PixelScale(description["levels"])
    objective = functools.partial(recipe.objective(description["kind"]), scale=scale)

    def kept(expert, images, key):
        return jax.vjp(lambda e: objective(e, images, key), expert)[1]

    def kept_for(count: int) -> int:
        images = jax.ShapeDtypeStruct((count, *description["shape"]), jnp.uint8)
        return size_of(jax.eval_shape(kept, expert, images, jax.eval_shape(lambda: jax.random.key(0))))

    state = jax.eval_shape(lambda e: initial_state(e, recipe.optimizer()), expert)
    return Estimate(
        parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(expert)),
        state=size_of(state),
        gradients=size_of(expert),
        activations=kept_for(2) - kept_for(1),
    )


def one_step(description: dict[str, Any], recipe: Recipe, data: Dataset, *, seed: int = 0) -> float:
    """The loss of one step of the full network on `data` as its only batch.

    Raises:
        ValueError: the loss or a weight is not finite afterwards.
    """
    scale = PixelScale(description["levels"])
    objective = functools.partial(recipe.objective(description["kind"]), scale=scale)
    optimizer = recipe.optimizer()
    step = make_step(objective, optimizer, data, batch_size=len(data), ema_decay=recipe.ema_decay, seed=seed)
    state, figures = step(initial_state(io.build(description, seed=seed), optimizer), 0, jax.random.key(seed))
    whole = jax.tree.all(jax.tree.map(lambda w: bool(jnp.isfinite(w).all()), state.expert))
    if not (whole and math.isfinite(float(figures["loss"])) and int(state.step) == 1):
        raise ValueError(f"a step must leave finite numbers, got the loss {float(figures['loss'])}.")
    return float(figures["loss"])


def dry_run(
    description: dict[str, Any], recipe: Recipe, data: Dataset, *, devices: int, log: Callable[[str], None]
) -> dict[str, Any]:
    """Estimate, then one step; the figures of both.

    Args:
        description, recipe: of the training.
        data: a few images, the step's batch.
        devices: that the training would have.
        log: takes a line per figure.
    """
    found = estimate(description, recipe)
    share = -(-recipe.batch_size // devices)
    gigabytes = found.on_device(share) / 1e9
    log(
        f"{found.parameters / 1e6:.1f} million parameters; {share} images per step on each of {devices} devices need "
        f"about {gigabytes:.1f} GB each ({(found.state + found.gradients) / 1e9:.2f} GB state and gradients, "
        f"{found.activations / 1e6:.0f} MB per image)"
    )
    loss = one_step(description, recipe, data)
    log(f"one step on {len(data)} images of {'x'.join(map(str, data.shape))}: loss {loss:.5g}")
    return {
        "parameters": found.parameters,
        "devices": devices,
        "images per device": share,
        "GB per device": round(gigabytes, 2),
        "MB per image": round(found.activations / 1e6, 1),
        "loss of one step": loss,
    }
