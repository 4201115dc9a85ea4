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

from jaxmerge import parallel
from jaxmerge.data import Dataset
from jaxmerge.data.dataset import InMemory
from jaxmerge.data.feed import feed
from jaxmerge.experts.base import Expert
from jaxmerge.training.objectives import Part

LossFn = Callable[..., Float[Array, ""]]


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


@functools.lru_cache(maxsize=8)  # runs in one process with the same objective share the compiled program
def make_program(
    loss_fn: LossFn, optimizer: optax.GradientTransformation, *, batch_size: int, ema_decay: float
) -> Callable[..., tuple[TrainState, dict[str, Float[Array, ""]]]]:
    """``program(state, key, images)``: one optimizer step and one EMA step, on all devices that share a batch.

    Its noise is ``fold_in(key, state.step)``'s. Gradients are averaged over devices before they are clipped.
    """

    def program(state: TrainState, key: Key[Array, ""], images: UInt8[Array, "b H W C"]):
        part = Part(parallel.device_number(), batch_size // len(images))
        step_key = jax.random.fold_in(key, state.step)
        found = jax.value_and_grad(loss_fn)(state.expert, images, step_key, part=part)
        loss, grads = parallel.mean_over_devices(found)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.expert)
        expert = optax.apply_updates(state.expert, updates)
        ema = optax.incremental_update(expert, state.ema, 1.0 - ema_decay_at(state.step, ema_decay))
        state = state.replace(step=state.step + 1, expert=expert, ema=ema, opt_state=opt_state)
        return state, {"loss": loss}

    return parallel.training_program(program, replicated=2, batch_size=batch_size)


def make_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    dataset: Dataset,
    *,
    batch_size: int,
    ema_decay: float,
    seed: int,
    steps: int = 1,
) -> StepFn:
    """The step of `loop.train`: the images of `batch_indices`, then `make_program`'s program.

    Images on disk are read ahead by threads, up to the last of `steps`; which ones does not depend on it.
    """
    program = make_program(loss_fn, optimizer, batch_size=batch_size, ema_decay=ema_decay)

    def places(done: int) -> Int[np.ndarray, " B"]:
        return batch_indices(seed, done, len(dataset), batch_size)

    images = ReadAhead(dataset, places, steps)

    def step(state, done, key):
        return program(state, key, images(done))

    return step


class ReadAhead:
    """The images of a step; steps that follow each other find theirs read already, where they are on disk."""

    def __init__(self, dataset: Dataset, places: Callable[[int], Int[np.ndarray, " B"]], steps: int):
        self.dataset, self.places, self.steps = dataset, places, steps
        self.following, self.fed = -1, iter(())

    def __call__(self, step: int) -> UInt8[np.ndarray, "B H W C"]:
        if isinstance(self.dataset.source, InMemory) or step >= self.steps:
            return self.dataset.read(self.places(step))
        if step != self.following:
            self.fed = feed(self.dataset, self.places, start=step, stop=self.steps)
        self.following = step + 1
        return next(self.fed)[0]


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
