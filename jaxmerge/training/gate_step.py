"""One training step of a gated mixture, on all devices, and the batches it sees.

Gradients are averaged over devices before they are clipped. Experts that are not trained are an argument
of the step, not part of its state.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from jaxmerge import parallel
from jaxmerge.data import Dataset
from jaxmerge.gate import regularisers
from jaxmerge.gate.gated import Gated
from jaxmerge.training.gate_objective import Batch
from jaxmerge.training.gate_parts import join
from jaxmerge.training.step import ReadAhead, StepFn, TrainState, batch_indices, ema_decay_at

# A number for the experts' dropout keys that no other use of a step's key has.
DROPOUT = 0x0D0


def groups_of(size: int, count: int) -> int:
    """Images of each of `count` slices in a warm-up step: the fewest that make at least `size` in all."""
    return -(-size // count)


def warm_places(
    slices: Sequence[Int[np.ndarray, " n"]], *, seed: int, step: int, groups: int
) -> Int[np.ndarray, " B"]:
    """Positions of the images of one warm-up step: row b is from slice b mod K, each slice with its own permutations.

    Args:
        slices: positions of each slice's images.
        seed, step: what the images follow from.
        groups: images of each slice.
    """
    # Streams of different slices and of the joint steps must not meet.
    chosen = [
        s[batch_indices(1_000_003 * (k + 1) + seed, step, len(s), groups)] for k, s in enumerate(slices)
    ]
    return np.stack(chosen, axis=1).ravel()


def batches(
    data: Dataset,
    members: Bool[np.ndarray, "N K"],
    *,
    seed: int,
    size: int,
    steps: int,
    warm_steps: int = 0,
) -> Callable[[int], Batch]:
    """The batch of every step of a training, which follows from (seed, step) alone; images on disk are read ahead.

    In the warm-up every expert's own slice takes turns (`warm_places`), afterwards the batch is a cut through
    per-epoch permutations of all images.

    Args:
        data: training images.
        members: which images belong to slice k.
        seed: of the permutations.
        size: images per step; in the warm-up the next multiple of K.
        steps: of the whole training.
        warm_steps: how many of them are the warm-up.

    Raises:
        ValueError: a warm-up with an empty slice.
    """
    slices = places_of_slices(members) if warm_steps else []
    groups = groups_of(size, members.shape[1])

    def places(step: int) -> Int[np.ndarray, " B"]:
        if step < warm_steps:
            return warm_places(slices, seed=seed, step=step, groups=groups)
        return batch_indices(seed, step, len(data), size)

    images = ReadAhead(data, places, steps)

    def batch(step: int) -> Batch:
        chosen = places(step)
        return Batch(images(step), np.arange(len(chosen)), members[chosen].astype(np.float32))

    return batch


def places_of_slices(members: Bool[np.ndarray, "N K"]) -> list[Int[np.ndarray, " n"]]:
    """Positions of each slice's images.

    Raises:
        ValueError: an empty slice.
    """
    slices = [np.flatnonzero(column) for column in members.T]
    empty = [k for k, s in enumerate(slices) if len(s) == 0]
    if empty:
        raise ValueError(f"slice {empty[0]} has no training images; choose other slices or fewer experts.")
    return slices


def gradients(
    objective: Callable, trained: Gated, frozen: Gated, batch: Batch, key: Key[Array, ""], dropout: bool
):
    """Loss, figures and gradients of the whole batch; inside a `parallel.training_program`.

    Args:
        objective: ``objective(gated, batch, key, dropout_key=, mean=)`` returns (loss, figures).
        trained, frozen: see `gate_parts.split`.
        batch: this device's part.
        key: of the step.
        dropout: whether the experts' dropout is on.
    """
    dropout_key = None
    if dropout:
        dropout_key = jax.random.fold_in(jax.random.fold_in(key, DROPOUT), parallel.device_number())

    def loss_fn(trained):
        mixture = join(trained, frozen)
        return objective(mixture, batch, key, dropout_key=dropout_key, mean=parallel.mean_over_devices)

    (loss, figures), grads = jax.value_and_grad(loss_fn, has_aux=True)(trained)
    return parallel.mean_over_devices((loss, figures, grads))


def update(
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    bias_rate: float,
    state: TrainState,
    figures,
    grads,
) -> TrainState:
    """One optimizer step, one step of the choice's bias and one of the EMA."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.expert)
    trained = optax.apply_updates(state.expert, updates)
    if bias_rate:
        trained = trained.but(bias=regularisers.balanced(state.expert.bias, figures["share"], bias_rate))
    ema = optax.incremental_update(trained, state.ema, 1.0 - ema_decay_at(state.step, ema_decay))
    return state.replace(step=state.step + 1, expert=trained, ema=ema, opt_state=opt_state)


def named(loss: Float[Array, ""], figures: dict[str, Float[Array, "..."]]) -> dict[str, Float[Array, ""]]:
    """Scalars under flat names: "usage" [K] becomes "usage_0" to "usage_K-1"."""
    flat = {"loss": loss}
    for name, value in figures.items():
        if jnp.ndim(value) == 0:
            flat[name] = value
        else:
            flat |= {f"{name}_{k}": value[k] for k in range(len(value))}
    return flat


def make_program(
    objective: Callable,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float,
    bias_rate: float,
    dropout: bool,
    shares: int,
) -> Callable:
    """``program(state, frozen, key, batch)`` -> (state, figures), on as many devices as divide `shares`.

    Args:
        objective: see `gradients`.
        optimizer, ema_decay, bias_rate: see `update`.
        dropout: whether the experts' dropout is on.
        shares: equal parts that a batch can be cut into: its images, in a warm-up its groups of K images.
    """

    def program(state: TrainState, frozen: Gated, key: Key[Array, ""], batch: Batch):
        step_key = jax.random.fold_in(key, state.step)
        loss, figures, grads = gradients(objective, state.expert, frozen, batch, step_key, dropout)
        return update(optimizer, ema_decay, bias_rate, state, figures, grads), named(loss, figures)

    return parallel.training_program(program, replicated=3, batch_size=shares)


def two_phases(
    warm: Callable | None, joint: Callable, frozen: Gated, *, warm_steps: int, batches: Callable[[int], Batch]
) -> StepFn:
    """The step of `loop.train_by`: `warm` for the first `warm_steps` steps, then `joint`."""

    placed = parallel.on_all_devices(frozen)

    def step(state, done, key):
        program = warm if done < warm_steps else joint
        return program(state, placed, key, batches(done))

    return step
