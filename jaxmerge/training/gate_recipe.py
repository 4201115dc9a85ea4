"""From experts and a fresh gate to a trained mixture.

Two ways: experts frozen and the gate alone trained ("plug and play"), or all of it in two phases, a
warm-up of every expert on its own slice of the data and then joint training with the gate.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Bool

from jaxmerge.data import Dataset
from jaxmerge.gate.gated import Gated
from jaxmerge.gate.measure import Measured, measure
from jaxmerge.metrics.weights import weights_hash
from jaxmerge.noise import PixelScale
from jaxmerge.training import gate_objective, gate_step
from jaxmerge.training.gate_objective import PENALTIES, Penalties
from jaxmerge.training.gate_parts import join, optimizer_of, split
from jaxmerge.training.loop import train_by
from jaxmerge.training.optimizer import adamw
from jaxmerge.training.step import initial_state
from jaxmerge.training.validation import column, parts_of

CLIP = 5.0


@dataclasses.dataclass(frozen=True)
class GateResult:
    """What a finished training hands over.

    Attributes:
        gated: the mixture with the best EMA weights.
        last: with those of the last step.
        record: plain figures, as in `loop.TrainResult`.
    """

    gated: Gated
    last: Gated
    record: dict[str, Any]


def figures_of(measured: Measured, members: Bool[np.ndarray, "N K"] | None = None) -> dict[str, float]:
    """Scalars of a `Measured`, for tables: bound, entropy, usage, per slice accuracy and bound, and by noise level."""
    bpd, se = measured.diffusion_bpd()
    flat = {"diffusion_bpd": bpd, "diffusion_bpd_se": se, "entropy": measured.entropy()}
    flat["effective_experts"] = float(np.exp(flat["entropy"]))
    several = {"usage": measured.usage(), "expert": measured.expert_bpd()}
    if members is not None:
        several |= {"accuracy": measured.slice_accuracy(members), "slice": measured.bpd_by_slice(members)}
    for name, values in several.items():
        flat |= {f"{name}_{k}": float(v) for k, v in enumerate(values)}
    return flat | _by_level(measured)


def _by_level(measured: Measured) -> dict[str, float]:
    """Usage of every expert, entropy and effective experts in every part of the noise range."""
    parts = list(parts_of(measured.gamma_range))
    found = measured.by_level([parts[0][0], *(high for _, high in parts)])
    named = {f"usage_{k}": values for k, values in enumerate(found["usage"].T)}
    named |= {"entropy": found["entropy"], "effective_experts": found["effective"]}
    return {
        column(name, part): float(values[i]) for i, part in enumerate(parts) for name, values in named.items()
    }


def gate_validator(
    frozen: Gated,
    data: Dataset,
    *,
    members: Bool[np.ndarray, "N K"] | None = None,
    seed: int = 0,
    repeats: int = 8,
    batch_size: int = 128,
    log: Callable[[str], None] = print,
) -> Callable[[Gated], dict[str, float]]:
    """A function from the trained parts to figures on `data`, from the same noise at every call.

    The best weights are chosen by "diffusion_bpd": the penalties have no part in it. A collapsed gate is
    reported to `log`.

    Args:
        frozen: the other parts.
        data: validation images.
        members: which of them belong to slice k.
        seed: of the noise.
        repeats: noise draws per image.
        batch_size: images per device and call, each seen by all experts; changes memory, not the figures.
        log: takes a sentence.
    """
    key = jax.random.key(seed)
    scale = PixelScale(data.levels)

    def evaluate(trained: Gated) -> dict[str, float]:
        gated = join(trained, frozen)
        measured = measure(
            gated,
            data.images,
            key=key,
            index=data.index,
            repeats=repeats,
            scale=scale,
            batch_size=batch_size,
        )
        warning = measured.collapse_warning()
        if warning:
            log(warning)
        return figures_of(measured, members)

    return evaluate


def train_gated(
    gated: Gated,
    data: Dataset,
    validation: Dataset,
    *,
    workdir: str | os.PathLike,
    steps: int,
    batch_size: int,
    learning_rate: float,
    experts_learning_rate: float | None = None,
    parts: str = "gate",
    penalties: Penalties = PENALTIES,
    members: Bool[np.ndarray, "N K"] | None = None,
    validation_members: Bool[np.ndarray, "N K"] | None = None,
    warm_fraction: float = 0.0,
    bias_rate: float = 0.0,
    warmup_steps: int = 0,
    weight_decay: float = 0.0,
    clip: float = CLIP,
    b2: float = 0.99,
    ema_decay: float = 0.999,
    seed: int = 0,
    save_every: int = 1000,
    eval_every: int = 500,
    repeats: int = 8,
    eval_batch_size: int = 128,
    on_eval: Callable[[int, Gated], None] | None = None,
    on_rows: Callable[[str, list[dict[str, float]]], None] | None = None,
    settings: dict[str, Any] | None = None,
    progress: Callable | None = None,
    log: Callable[[str], None] = print,
) -> GateResult:
    """Trains a gate, with or without its experts, or continues the training that `workdir` holds.

    Args:
        gated: the mixture with a fresh gate; with `top_k` its choice is part of the objective.
        data, validation: training images, and those that choose the best weights.
        steps, batch_size, workdir, ema_decay, seed, save_every, eval_every, progress, log: see `loop.train`. A
            warm-up takes the next multiple of K images, shared by as many devices as divide its groups of K; an
            image passes through one expert there.
        learning_rate, warmup_steps, weight_decay, b2: see `adamw`; of the gate, whose schedule begins with its
            training: after the warm-up, which leaves it as it is unless it learns an alignment there.
        experts_learning_rate: the highest of the experts, where they are trained, over all steps; the gate's by
            default.
        clip: largest global norm of the gradient of gate and experts, which is averaged over devices before.
        parts: "gate", "adapters" or "all", see `gate_parts.split`.
        penalties: their weights.
        members, validation_members: which images belong to slice k; needed for a warm-up or an alignment.
        warm_fraction: share of the steps in which every expert trains on its own slice (with `parts` other
            than "gate").
        bias_rate: step of the bias that balances a top-k choice without a penalty; 0 leaves it alone.
        repeats, eval_batch_size: noise draws per validation image; images per device and call of a validation.
        on_eval: called after each evaluation with the steps done and the EMA mixture.
        on_rows: see `loop.train_by`.
        settings: what else makes this another run, plain JSON.

    Returns:
        The mixture with the best weights, that of the last step, and the record.

    Raises:
        ValueError: see `loop.train`, frozen weights and slices being part of what a run is; or a schedule, slices or a
            balancing that do not fit the mixture.
    """
    identity = _choice(gated) | _hashes(members=members, validation_members=validation_members)
    members = _checked(gated, data, members, penalties, parts, warm_fraction, bias_rate)
    trained, frozen = split(gated, parts)
    if jax.tree.leaves(frozen):
        identity["frozen"] = weights_hash(frozen)
    optimizer_settings = dict(
        learning_rate=learning_rate, warmup_steps=warmup_steps, weight_decay=weight_decay, clip=clip, b2=b2
    )
    rates = {} if parts == "gate" else {"experts_learning_rate": experts_learning_rate or learning_rate}
    warm_steps = round(warm_fraction * steps)
    optimizer, *programs = _programs(
        len(gated.experts),
        data.levels,
        (("steps", steps), *(optimizer_settings | rates).items()),
        # A warm-up without an alignment has no gradient for the gate.
        0 if penalties.align or warm_steps == steps else warm_steps,
        parts,
        penalties,
        batch_size,
        ema_decay,
        bias_rate,
    )
    chosen = dict(seed=seed, size=batch_size, steps=steps, warm_steps=warm_steps)
    step = gate_step.two_phases(
        *programs,
        frozen,
        warm_steps=warm_steps,
        batches=gate_step.batches(data, members, **chosen),
    )
    result = train_by(
        step,
        initial_state(trained, optimizer),
        data,
        steps=steps,
        workdir=workdir,
        seed=seed,
        save_every=save_every,
        eval_every=eval_every,
        evaluate=gate_validator(
            frozen,
            validation,
            members=validation_members,
            seed=seed,
            repeats=repeats,
            batch_size=eval_batch_size,
            log=log,
        ),
        monitor="diffusion_bpd",
        # Before the gate learns there is nothing to choose, unless that is all there is.
        best_after=warm_steps if warm_steps < steps else 0,
        on_eval=None if on_eval is None else lambda done, ema: on_eval(done, join(ema, frozen)),
        on_rows=on_rows,
        settings={
            "batch_size": batch_size,
            "ema_decay": ema_decay,
            **optimizer_settings,
            **rates,
            "parts": parts,
            "penalties": dataclasses.asdict(penalties),
            "warm_fraction": warm_fraction,
            "bias_rate": bias_rate,
            **identity,
            **(settings or {}),
        },
        progress=progress,
        log=log,
    )
    return GateResult(join(result.expert, frozen), join(result.last, frozen), result.record)


def _choice(gated: Gated) -> dict[str, Any]:
    """Which weights a mixture uses; those settings of a choice only where there is one."""
    names = ("top_k",) if gated.top_k is None else ("top_k", "renormalise", "capacity_factor")
    return {name: getattr(gated, name) for name in names}


def _hashes(**members: Bool[np.ndarray, "N K"] | None) -> dict[str, str]:
    """SHA-256 of which images belong to which slice, where there are slices."""
    return {
        name: hashlib.sha256(np.asarray(values, bool).tobytes()).hexdigest()
        for name, values in members.items()
        if values is not None
    }


@functools.lru_cache(maxsize=2)
def _programs(
    count: int,
    levels: int,
    optimizing: tuple[tuple[str, float], ...],
    gate_from: int,
    parts: str,
    penalties: Penalties,
    batch_size: int,
    ema_decay: float,
    bias_rate: float,
) -> tuple[optax.GradientTransformation, Callable, Callable]:
    """The optimizer, a step of the warm-up and one of the joint phase; kept, so that another seed compiles nothing."""
    optimizer = _optimizer(gate_from=gate_from, **dict(optimizing))
    make = functools.partial(
        gate_step.make_program, optimizer=optimizer, ema_decay=ema_decay, dropout=parts != "gate"
    )
    common = dict(scale=PixelScale(levels), penalties=penalties)
    groups = gate_step.groups_of(batch_size, count)
    warm = functools.partial(gate_objective.warm_loss, total=groups * count, **common)
    joint = functools.partial(gate_objective.mixture_loss, total=batch_size, **common)
    phases = make(warm, bias_rate=0.0, shares=groups), make(joint, bias_rate=bias_rate, shares=batch_size)
    return optimizer, *phases


def _optimizer(
    *,
    gate_from: int,
    steps: int,
    learning_rate: float,
    experts_learning_rate: float = 0.0,
    warmup_steps: int,
    clip: float,
    **how: float,
) -> optax.GradientTransformation:
    """That of a training whose gate begins to learn at step `gate_from`."""
    learning = steps - gate_from
    gate = adamw(
        learning_rate=learning_rate, steps=learning, warmup_steps=min(warmup_steps, learning - 1), **how
    )
    experts = adamw(learning_rate=experts_learning_rate, steps=steps, warmup_steps=warmup_steps, **how)
    return optimizer_of(gate, experts, clip=clip, gate_from=gate_from)


def _checked(gated, data, members, penalties, parts, warm_fraction, bias_rate) -> Bool[np.ndarray, "N K"]:
    """The slices (none of them, where there are none), after everything that can be refused beforehand."""
    count = len(gated.experts)
    if not 0 <= warm_fraction < 1:
        raise ValueError(f"warm_fraction must be at least 0 and less than 1, got {warm_fraction}.")
    if warm_fraction and parts == "gate":
        raise ValueError(
            "a warm-up trains experts, but only the gate is trained; set warm_fraction=0 or train 'all'."
        )
    if bias_rate and (gated.top_k is None or gated.top_k >= count):
        raise ValueError(
            "the balancing bias acts on the choice of the top k experts, a dense mixture has no choice; set top_k "
            "below the number of experts, or balance by the load penalty."
        )
    if members is None:
        if warm_fraction or penalties.align:
            raise ValueError("a warm-up and an alignment need slices; pass members= for the training images.")
        return np.zeros((len(data), count), bool)
    members = np.asarray(members, bool)
    if members.shape != (len(data), count):
        raise ValueError(
            f"members must have the shape [{len(data)} images, {count} experts], got {list(members.shape)}."
        )
    return members
