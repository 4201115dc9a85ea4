"""One training step: what it reads, what it writes, and which images and noise it sees.

Images and noise of step s follow from (seed, s) alone: the batch is a cut through per-epoch permutations,
the noise key is ``fold_in(key(seed), s)``.
"""

import functools
from collections.abc import Callable

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree, UInt8

from jaxmerge.experts.base import Expert

LossFn = Callable[[Expert, UInt8[Array, "B H W C"], Key[Array, ""]], Float[Array, ""]]


@flax.struct.dataclass
class TrainState:
    """All that a step reads and writes.

    Attributes:
        step: steps done.
        expert: the weights being trained.
        ema: their exponential moving average.
        opt_state: the optimizer's state.
        best: the EMA weights that were best on validation images.
        best_value: their monitored figure; infinite before the first evaluation.
        best_step: the step they are from.

    A state fresh from a checkpoint has numpy leaves.
    """

    step: Int[Array | np.ndarray, ""]
    expert: Expert
    ema: Expert
    opt_state: PyTree
    best: Expert
    best_value: Float[Array | np.ndarray, ""]
    best_step: Int[Array | np.ndarray, ""]


StepFn = Callable[[TrainState, int, Key[Array, ""]], tuple[TrainState, dict[str, Float[Array, ""]]]]


@functools.partial(jax.jit, static_argnames=("loss_fn", "optimizer"), donate_argnames="state")
def train_step(
    state: TrainState,
    images: UInt8[Array | np.ndarray, "B H W C"],
    key: Key[Array, ""],
    ema_decay: Float[Array, ""] | float,
    *,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Float[Array, ""]]:
    """One optimizer step and one EMA step; its noise is ``fold_in(key, state.step)``."""
    loss, grads = jax.value_and_grad(loss_fn)(state.expert, images, jax.random.fold_in(key, state.step))
    updates, opt_state = optimizer.update(grads, state.opt_state, state.expert)
    expert = optax.apply_updates(state.expert, updates)
    ema = optax.incremental_update(expert, state.ema, 1.0 - ema_decay_at(state.step, ema_decay))
    return state.replace(step=state.step + 1, expert=expert, ema=ema, opt_state=opt_state), loss


def ema_decay_at(step: Int[Array, ""], decay: Float[Array, ""] | float) -> Float[Array, ""]:
    """min(decay, (1 + step) / (10 + step)): early averages forget the random start."""
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def batch_indices(seed: int, step: int, size: int, batch_size: int) -> Int[np.ndarray, " B"]:
    """Positions of the images of one step: a cut through one permutation per epoch, end to end."""
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // size
    order = {epoch: _permutation(seed, int(epoch), size) for epoch in np.unique(epochs)}
    return np.array([order[e][p] for e, p in zip(epochs, positions % size, strict=True)])


@functools.lru_cache(maxsize=16)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(size)


def initial_state(expert: Expert, optimizer) -> TrainState:
    # Separate buffers: the step donates its whole state.
    def copy():
        return jax.tree.map(jnp.array, expert)

    return TrainState(
        step=jnp.zeros((), jnp.int32),
        expert=copy(),
        ema=copy(),
        opt_state=optimizer.init(expert),
        best=copy(),
        best_value=jnp.full((), jnp.inf, jnp.float32),
        best_step=jnp.zeros((), jnp.int32),
    )
