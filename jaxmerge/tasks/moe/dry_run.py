"""What a mixture's config needs at full size, without its data or a large machine.

Shapes and memory come from `jax.eval_shape`: nothing is computed. Per device there are the trained parameters
six times in float32 (weights, average, best, gradients, Adam's two moments), the frozen ones once, and what the
backward pass keeps of the forward pass, for this device's part of a batch (the leaves of ``jax.vjp``'s result).
XLA may keep less, by computing again, and needs temporaries besides: the sum is an estimate. Then a step of
each phase runs on miniature images with two narrow experts, through the same code.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxmerge import parallel
from jaxmerge.data import EMBEDDED, Dataset, builders, load, slices, subcategories
from jaxmerge.data.dataset import in_memory
from jaxmerge.experts import io
from jaxmerge.gate.cost import parameter_counts
from jaxmerge.gate.gated import Gated
from jaxmerge.noise import PixelScale
from jaxmerge.run import Run
from jaxmerge.tasks.moe import models, train
from jaxmerge.training import gate_objective, gate_parts, recipes

GIB = 2**30
# Copies of every trained parameter on a device.
COPIES = 6
MINI_SIDE, MINI_IMAGES = 16, 48
HAIR = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair")


def run(config: ConfigDict, run: Run) -> None:
    """Writes the memory plan and the miniature steps' figures as results."""
    asked = config.moe
    largest = max(asked.count, *asked.counts)
    planned = {
        count: run.stage(f"plan_{count}", lambda k=count: plan(config, k)) for count in (asked.count, largest)
    }
    done = run.stage("miniature", lambda: miniature(config, run))
    needs = [f"{found['total_gib']:.1f} GiB for {count} experts" for count, found in planned.items()]
    fits = planned[largest]["total_gib"] <= asked.device_memory
    verdict = "fits into" if fits else "does not fit into"
    rows = [
        {"part": f"{name}, K = {count}", "value": value}
        for count, found in planned.items()
        for name, value in found.items()
    ]
    run.finish(
        {
            "title": f"Dry run: {asked.count} experts of {config.data.name}",
            "rows": rows + [{"part": name, "value": value} for name, value in done.items()],
            "finding": f"A training step at batch {asked.batch_size} over {asked.devices} devices needs per device about "
            f"{' and '.join(needs)}, which {verdict} {asked.device_memory:g} GiB; one step of each phase ran on "
            "miniature data.",
        }
    )


def shape_of(config: ConfigDict) -> tuple[tuple[int, int, int], int]:
    """(shape, grey levels) of the config's images, also where the data set is not there."""
    if config.data.name in EMBEDDED:
        data = load(config.data.name, config.data.train_split)
        return data.shape, data.levels
    return builders.find(config.data.name).published.shape, 256


def _stand_in(shape: tuple[int, int, int], levels: int, count: int, seed: int, split: str) -> Dataset:
    """Random images with labels, hair attributes and subcategories."""
    draw = np.random.Generator(np.random.PCG64(seed))
    attributes = {name: (np.arange(count) % len(HAIR) == i).astype(np.int64) for i, name in enumerate(HAIR)}
    attributes |= {subcategories.attribute(k): np.arange(count) % k for k in range(1, 17)}
    return in_memory(
        "stand-in",
        split,
        draw.integers(0, levels, (count, *shape)).astype(np.uint8),
        np.arange(count),
        np.arange(count) % 10,
        levels,
        attributes,
    )


def abstract_mixture(config: ConfigDict, count: int) -> Gated:
    """The config's mixture of so many experts at full size, as shapes."""
    shape, levels = shape_of(config)
    data = _stand_in(shape, levels, 1, 0, "train")
    described = recipes.description(config.expert.to_dict(), data)
    asked = config.moe

    def make():
        base = io.build(described, seed=0)
        experts = train.starting(asked, base, count, asked.experts, 0)
        return models.fresh(asked, experts, seed=0)

    return jax.eval_shape(make)


def plan(config: ConfigDict, count: int) -> dict[str, float | int]:
    """Parameters of a mixture of so many experts, and memory per device in GiB."""
    asked, gated = config.moe, abstract_mixture(config, count)
    shape, levels = shape_of(config)
    trained, frozen = gate_parts.split(
        gated, "gate" if asked.parts == "gate" else train.expert_parts(asked, asked.experts)
    )
    # Every device has whole images.
    batch = max(1, -(-asked.batch_size // asked.devices))
    found: dict[str, float | int] = {"experts": count, "images_per_device": batch}
    found |= {f"parameters_{name}": value for name, value in parameter_counts(gated).items()}
    state = (COPIES * _bytes(trained) + _bytes(frozen)) / GIB
    joint = kept_bytes(trained, frozen, batch, shape, levels) / GIB
    out = jax.eval_shape(lambda g, z, gamma: g.eps_hat(z, gamma), gated, *_states(batch, shape))
    assert out.shape == (batch, *shape)
    return found | {"state_gib": state, "kept_for_backward_gib": joint, "total_gib": state + joint}


def _states(batch: int, shape: tuple[int, int, int]):
    return jax.ShapeDtypeStruct((batch, *shape), jnp.float32), jax.ShapeDtypeStruct((batch,), jnp.float32)


def _bytes(tree) -> int:
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def kept_bytes(trained: Gated, frozen: Gated, batch: int, shape: tuple[int, int, int], levels: int) -> int:
    """Bytes that the backward pass of phase 2 keeps of the forward pass, parameters not counted again."""
    count = len(trained.experts if trained.experts is not None else frozen.experts)
    images = gate_objective.Batch(
        jax.ShapeDtypeStruct((batch, *shape), jnp.uint8),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
        jax.ShapeDtypeStruct((batch, count), jnp.float32),
    )

    def pullback(trained, frozen, images, key):
        def loss(trained):
            mixture = gate_parts.join(trained, frozen)
            scale = PixelScale(levels)
            return gate_objective.mixture_loss(mixture, images, key, total=batch, scale=scale)[0]

        return jax.vjp(loss, trained)[1]

    kept = jax.eval_shape(pullback, trained, frozen, images, jax.eval_shape(lambda: jax.random.key(0)))
    return max(0, _bytes(kept) - _bytes(trained) - _bytes(frozen))


def miniature(config: ConfigDict, run: Run) -> dict[str, Any]:
    """One step of each phase with two narrow experts on random images of the config's kind."""
    small = config.copy_and_resolve_references()
    asked, shape = small.moe, (MINI_SIDE, MINI_SIDE, shape_of(config)[0][-1])
    small.expert.width, small.expert.depth, small.expert.num_blocks = 8, 1, 1
    small.expert.channel_mult, small.expert.attn_resolutions = (1, 2), (MINI_SIDE // 2,)
    asked.count = 2
    asked.width, asked.depth, asked.batch_size = 4, 2, asked.count * parallel.device_count()
    asked.eval_repeats, asked.rank = 2, min(asked.rank, 2)
    levels = shape_of(config)[1]
    parts = [
        _stand_in(shape, levels, MINI_IMAGES, i, split) for i, split in enumerate(("train", "validation"))
    ]
    chosen = slices.fit(asked.slices[0], asked.count, parts[0])
    base = io.build(recipes.description(small.expert.to_dict(), parts[0]), seed=0)
    gated = models.fresh(asked, train.starting(asked, base, asked.count, asked.experts, 0), seed=0)
    _, record = train.train(
        small,
        run,
        "miniature",
        gated,
        (parts[0], parts[1]),
        seed=0,
        parts=train.expert_parts(asked, asked.experts),
        steps=2,
        learning_rate=asked.experts_learning_rate,
        members=(chosen.members(parts[0]), chosen.members(parts[1])),
        last=True,
        warm_fraction=0.5,
    )
    return {"miniature_steps": record["steps"], "miniature_diffusion_bpd": record["diffusion_bpd"]}
