"""The experts' optimizers: Adam or AdamW under warm-up, cosine decay and a gradient clip."""

from typing import Any

import jax
import optax

SCHEDULES = ("cosine", "constant")


def learning_rate_schedule(
    peak: float, steps: int, warmup_steps: int, schedule: str = "cosine"
) -> optax.Schedule:
    """Linear from 0 to `peak` in `warmup_steps`, then half a cosine down to 0 at `steps`, or constant.

    Raises:
        ValueError: the warm-up is not shorter than the run, or an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}.")
    if not 0 <= warmup_steps < steps:
        raise ValueError(
            f"warmup_steps must be at least 0 and less than steps = {steps}, got {warmup_steps}; "
            "train longer or warm up for less."
        )
    if schedule == "constant":
        # Without a rise optax's own would stay at zero.
        return optax.warmup_constant_schedule(0.0 if warmup_steps else peak, peak, warmup_steps)
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, steps)


def decay_matrices(rate: float) -> optax.GradientTransformation:
    """Adds rate * parameter to the update of kernels (two axes or more), not of biases and norms."""

    def update(updates, params):
        return jax.tree.map(lambda u, p: u + rate * p if p.ndim >= 2 else u, updates, params)

    return optax.stateless(update)


def make_optimizer(*, clip: float = 1.0, **how: Any) -> optax.GradientTransformation:
    """AdamW (Adam for ``weight_decay=0``) after clipping the gradient's global norm.

    Args:
        clip: largest global norm of the gradient.
        how: see `adamw`.
    """
    return optax.chain(optax.clip_by_global_norm(clip), adamw(**how))


def adamw(
    *,
    learning_rate: float,
    steps: int,
    warmup_steps: int = 0,
    weight_decay: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.99,
    schedule: str = "cosine",
) -> optax.GradientTransformation:
    """AdamW (Adam for ``weight_decay=0``) with a learning rate that rises and falls.

    Args:
        learning_rate: the peak.
        steps: length of the run, where a cosine reaches 0.
        warmup_steps: steps of the linear rise.
        weight_decay: decoupled decay of kernels, per unit of learning rate (VDM: 0.01; EDM: none).
        b1, b2: Adam's decay rates; (0.9, 0.99) is the VDM's choice.
        schedule: "cosine" or "constant" after the warm-up.
    """
    return optax.chain(
        optax.scale_by_adam(b1, b2),
        decay_matrices(weight_decay),
        optax.scale_by_learning_rate(learning_rate_schedule(learning_rate, steps, warmup_steps, schedule)),
    )
