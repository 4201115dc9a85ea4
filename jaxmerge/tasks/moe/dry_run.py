"""What a mixture's config needs at full size, without its data or a large machine.

Shapes and memory come from abstract evaluation: nothing is computed. In training there are per device the trained
parameters six times in float32 (weights, average, best, gradients, Adam's two moments), the frozen ones once, and
what the backward pass keeps of the forward pass, for this device's part of a batch (the leaves of ``jax.vjp``'s
result). XLA may keep less, by computing again, and needs temporaries besides: the sum is an estimate. A training
needs what the larger of its two phases does. Sampling and the bound need the parameters once and the arrays of one
call that are alive at the same time; of shipped experts XLA planned 1.2 to 1.5 times as much on a CPU.

Then a step of each phase runs on miniature images, through the same code, with narrow experts, as many of them and as
many images per device as in the config.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from ml_collections import ConfigDict

from jaxmerge import parallel
from jaxmerge.data import EMBEDDED, Dataset, builders, load, slices, subcategories
from jaxmerge.data.dataset import in_memory
from jaxmerge.experts import io
from jaxmerge.experts.base import Expert
from jaxmerge.gate.cost import parameter_counts
from jaxmerge.gate.gated import Gated
from jaxmerge.noise import PixelScale
from jaxmerge.run import Run
from jaxmerge.tasks import experts
from jaxmerge.tasks.moe import models, train
from jaxmerge.training import gate_objective, gate_parts, gate_step, recipes

GIB = 2**30
# Copies of every trained parameter on a device.
COPIES = 6
MINI_SIDE, MINI_IMAGES = 16, 48
HAIR = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair")


def run(config: ConfigDict, run: Run) -> None:
    """Writes the memory plan and the miniature steps' figures as results."""
    asked = config.moe
    # A pool is as large as it is.
    largest = asked.count if asked.pool else max(asked.count, *asked.counts)
    planned = {
        count: run.stage(f"plan_{count}", lambda k=count: plan(config, k)) for count in (asked.count, largest)
    }
    done = run.stage("miniature", lambda: miniature(config, run))
    rows = [
        {"part": f"{name}, K = {count}", "value": value}
        for count, found in planned.items()
        for name, value in found.items()
    ]
    run.finish(
        {
            "title": f"Dry run: {asked.count} experts of {config.data.name}",
            "rows": rows + [{"part": name, "value": value} for name, value in done.items()],
            "finding": finding(config, planned),
        }
    )


def finding(config: ConfigDict, planned: dict[int, dict[str, Any]]) -> str:
    """The plans, by number of experts, in three sentences."""
    asked, most = config.moe, planned[max(planned)]
    needs = [f"{_gib(found['total_gib'])} for {count} experts" for count, found in planned.items()]
    fits = max(most[name] for name in ("total_gib", "sampling_gib", "bound_gib")) <= asked.device_memory
    verdict = "fits into" if fits else "does not fit into"
    return (
        f"A training step at batch {asked.batch_size} over {asked.devices} devices needs per device, by estimate, "
        f"{' and '.join(needs)}, a call of sampling with {config.sampling.batch_size} images "
        f"{_gib(most['sampling_gib'])} and one of the bound with {config.bound.batch_size} images "
        f"{_gib(most['bound_gib'])}, which {verdict} {asked.device_memory:g} GiB. The {config.sampling.n_samples} samples "
        f"of a model take {_gib(most['samples_host_gib'])} of host memory, twice that while they are put together. "
        f"Experts: {most['network']}; one step of each phase ran on miniature data."
    )


def _gib(value: float) -> str:
    return f"{value:.1f} GiB" if value >= 0.1 else "under 0.1 GiB"


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


def base_experts(config: ConfigDict) -> tuple[Callable[[], list[Expert]], str]:
    """What makes the network that all experts start from, or those of a pool, and where they are described.

    They are those of the checkpoints where the run starts from some that are there, else that of section `expert`.
    """
    names = list(config.moe.pool) or [config.experts.low]
    asked = config.moe.base == "checkpoint"
    absent = [name for name in names if not experts.is_here(name)]
    if asked and not absent:
        return lambda: [experts.load_expert(name) for name in names], f"the networks of {', '.join(names)}"
    described = recipes.description(config.expert.to_dict(), _stand_in(*shape_of(config), 1, 0, "train"))
    reason = f", since there is no {' and no '.join(absent)}" if asked else ""
    return (
        lambda: [io.build(described, seed=0) for _ in names],
        f"the network of the config's section expert{reason}",
    )


def abstract_mixture(config: ConfigDict, count: int) -> Gated:
    """The config's mixture of so many experts at full size, as shapes."""
    asked, make_experts = config.moe, base_experts(config)[0]

    def make():
        made = make_experts()
        started = tuple(made) if asked.pool else train.starting(asked, *made, count, asked.experts, 0)
        return models.fresh(asked, started, seed=0)

    return jax.eval_shape(make)


def on_each(count: int, devices: int) -> int:
    """So many parts of a batch are on each device; as many devices as divide them take part."""
    return count // max(n for n in range(1, devices + 1) if count % n == 0)


def plan(config: ConfigDict, count: int) -> dict[str, float | int | str]:
    """Parameters of a mixture of so many experts, and memory per device in GiB."""
    asked, gated = config.moe, abstract_mixture(config, count)
    batch = on_each(asked.batch_size, asked.devices)
    groups = on_each(gate_step.groups_of(asked.batch_size, count), asked.devices)
    parts = train.expert_parts(asked, asked.experts)
    # The experts of a pool are not warmed up.
    warm = () if asked.pool else training(config, gated, parts, gate_objective.warm_loss, groups * count)
    state, kept = training(
        config, gated, "gate" if asked.parts == "gate" else parts, gate_objective.mixture_loss, batch
    )
    found = {"experts": count, "network": base_experts(config)[1], "images_per_device": batch}
    found |= {f"parameters_{name}": value for name, value in parameter_counts(gated).items()}
    found |= {"state_gib": state, "kept_for_backward_gib": kept, "warm_up_gib": sum(warm)}
    return found | {"total_gib": max(state + kept, sum(warm))} | evaluation(config, gated)


def training(
    config: ConfigDict, gated: Gated, parts: str, objective: Callable, images: int
) -> tuple[float, float]:
    """GiB per device of the parameters in all their copies, and of what a step keeps for the backward pass.

    Args:
        config: the run's.
        gated: the mixture, abstract.
        parts: what is trained, see `gate_parts.split`.
        objective: of `gate_objective`.
        images: on the device.
    """
    trained, frozen = gate_parts.split(gated, parts)
    kept = kept_bytes(objective, trained, frozen, images, *shape_of(config))
    return (COPIES * _bytes(trained) + _bytes(frozen)) / GIB, kept / GIB


def evaluation(config: ConfigDict, gated: Gated) -> dict[str, float]:
    """GiB per device for a call of the dense mixture in sampling and in the bound, and on the host for its samples."""
    shape = shape_of(config)[0]

    def call(ask: Callable, images: int, levels: tuple[int, ...]) -> float:
        arrays = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((images, *shape), levels)]
        return (_bytes(gated) + alive_bytes(jax.make_jaxpr(ask)(gated, *arrays).jaxpr)) / GIB

    drawn, judged = config.sampling.batch_size, config.bound.batch_size
    return {
        "sampling_gib": call(Gated.eps_hat, drawn, ()),
        "bound_gib": call(Gated.blend, judged, (judged,)),
        "samples_host_gib": config.sampling.n_samples * int(np.prod(shape)) / GIB,
    }


def alive_bytes(program: Jaxpr) -> int:
    """Bytes of a program's arrays that are alive at once, at most, its arguments left out; nothing is fused.

    An array lives from the equation that makes it to the last that reads it, those of an inner program while it runs.
    """
    last = {v: i for i, e in enumerate(program.eqns) for v in e.invars if not isinstance(v, Literal)}
    last |= {v: len(program.eqns) for v in program.outvars if not isinstance(v, Literal)}
    made, alive, most = set(), 0, 0
    for i, equation in enumerate(program.eqns):
        made.update(equation.outvars)
        alive += _bytes([v.aval for v in equation.outvars])
        most = max(most, alive + max(map(alive_bytes, _inner(equation.params)), default=0))
        seen = {v for v in (*equation.invars, *equation.outvars) if not isinstance(v, Literal)}
        alive -= _bytes([v.aval for v in seen & made if last.get(v, i) == i])
    return most


def _inner(parameters: dict[str, Any]) -> list[Jaxpr]:
    """Programs inside an equation: of a call, of a loop, the branches of a choice."""
    flat = [p for value in parameters.values() for p in (value if isinstance(value, tuple) else (value,))]
    return [getattr(p, "jaxpr", p) for p in flat if isinstance(p, Jaxpr | ClosedJaxpr)]


def _bytes(tree) -> int:
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def kept_bytes(
    objective: Callable, trained: Gated, frozen: Gated, batch: int, shape: tuple[int, int, int], levels: int
) -> int:
    """Bytes that the backward pass keeps of the forward pass, without parameters and images."""
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
            return objective(mixture, images, key, total=batch, scale=scale)[0]

        return jax.vjp(loss, trained)[1]

    key = jax.eval_shape(lambda: jax.random.key(0))
    program = jax.make_jaxpr(pullback)(trained, frozen, images, key).jaxpr
    kept = {v for v in program.outvars if not isinstance(v, Literal)} - set(program.invars)
    return _bytes([v.aval for v in kept])


def miniature(config: ConfigDict, run: Run) -> dict[str, Any]:
    """One step of each phase with narrow experts on random images of the config's kind."""
    small = config.copy_and_resolve_references()
    asked, shape = small.moe, (MINI_SIDE, MINI_SIDE, shape_of(config)[0][-1])
    small.expert.width, small.expert.depth, small.expert.num_blocks = 8, 1, 1
    small.expert.channel_mult, small.expert.attn_resolutions = (1, 2), (MINI_SIDE // 2,)
    asked.batch_size = on_each(asked.batch_size, asked.devices) * parallel.device_count()
    asked.width, asked.depth, asked.eval_repeats, asked.rank = 4, 2, 2, min(asked.rank, 2)
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
        members=(chosen.members(parts[0]), chosen.members(parts[1])),
        last=True,
        warm_fraction=0.5,
    )
    return {"miniature_steps": record["steps"], "miniature_diffusion_bpd": record["diffusion_bpd"]}
