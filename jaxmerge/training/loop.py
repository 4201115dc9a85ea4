"""The training loop of the experts: EMA, early stopping, exact resume.

Everything that happens in step s follows from (seed, s) and the state before it: the batch is cut from
per-epoch permutations, the noise key is ``fold_in(key(seed), s)``. So a run that was killed and
continued from its last checkpoint repeats the same losses bit for bit. Steps are called from Python:
on CPU, XLA runs the reverse mode of convolutions about fifty times slower inside ``lax.scan``.

With small sets an expert overfits long before its training loss says so. The loop therefore keeps the
EMA weights that were **best on validation images** apart from the running ones.

The workdir receives ``losses.csv`` (every step), ``validation.csv`` (every evaluation) and
``checkpoints/step_*`` (the last two).
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

import jaxmerge
from jaxmerge import checkpoint
from jaxmerge.data import Dataset
from jaxmerge.experts.base import Expert
from jaxmerge.progress import Progress
from jaxmerge.training.step import LossFn, StepFn, TrainState, batch_indices, initial_state, train_step
from jaxmerge.training.tables import Table, read

KEPT_CHECKPOINTS = 2
FLUSH_EVERY = 50


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a finished training hands over.

    Attributes:
        expert: the best EMA weights.
        last: the EMA weights of the last step.
        record: plain figures for a checkpoint's metadata: steps, seed, losses, validation, versions.
    """

    expert: Expert
    last: Expert
    record: dict[str, Any]


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop (Ctrl-C or SIGTERM) and has saved its state.

    Attributes:
        number: the signal's number.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


def train(
    expert: Expert,
    loss_fn: LossFn,
    dataset: Dataset,
    *,
    steps: int,
    batch_size: int,
    optimizer: optax.GradientTransformation,
    workdir: str | os.PathLike,
    ema_decay: float = 0.999,
    seed: int = 0,
    save_every: int = 1000,
    eval_every: int = 500,
    evaluate: Callable[[Expert], dict[str, float]],
    monitor: str = "loss",
    on_eval: Callable[[int, Expert], None] | None = None,
    settings: dict[str, Any] | None = None,
    progress: Callable | None = None,
    log: Callable[[str], None] = print,
) -> TrainResult:
    """Trains an expert, or continues the training that `workdir` holds.

    Args:
        expert: fresh weights; a continued run only takes their structure.
        loss_fn: ``loss_fn(expert, images, key)``, the mean loss of a batch of grey levels.
        dataset: training images.
        steps: optimizer steps of the whole run.
        batch_size: images per step.
        optimizer: see `make_optimizer`.
        workdir: where tables and checkpoints go.
        ema_decay: limit of the EMA's decay, which warms up as (1 + step) / (10 + step).
        seed: decides order and noise of every batch.
        save_every: steps between checkpoints.
        eval_every: steps between evaluations of the EMA weights.
        evaluate: figures of an expert on validation images.
        monitor: the figure whose lowest value chooses the best weights.
        on_eval: called after each evaluation with the steps done and the EMA weights (sample pictures).
        settings: anything else that makes this another run (learning rate, architecture, ...), plain
            JSON; a workdir with other settings is refused.
        progress: ``progress(total, what, unit)``, a context manager that yields ``advance(n)``; by default
            a bar, or lines where there is no terminal.
        log: takes one line per evaluation.

    Returns:
        The best EMA weights, the last ones and the record of the run.

    Raises:
        ValueError: the workdir holds another run, its checkpoints are damaged, or the loss is no
            longer finite.
        Interrupted: Ctrl-C or SIGTERM came; the state is saved and the same call continues.
    """

    def step(state, done, key):
        images = dataset.read(batch_indices(seed, done, len(dataset), batch_size))
        state, loss = train_step(state, images, key, ema_decay, loss_fn=loss_fn, optimizer=optimizer)
        return state, {"loss": loss}

    return train_by(
        step,
        initial_state(expert, optimizer),
        dataset,
        steps=steps,
        workdir=workdir,
        seed=seed,
        save_every=save_every,
        eval_every=eval_every,
        evaluate=evaluate,
        monitor=monitor,
        on_eval=on_eval,
        settings={"batch_size": batch_size, "ema_decay": ema_decay, **(settings or {})},
        progress=progress,
        log=log,
    )


def train_by(
    step: StepFn,
    state: TrainState,
    dataset: Dataset,
    *,
    steps: int,
    workdir: str | os.PathLike,
    seed: int = 0,
    save_every: int = 1000,
    eval_every: int = 500,
    evaluate: Callable[[Any], dict[str, float]],
    monitor: str = "loss",
    on_eval: Callable[[int, Any], None] | None = None,
    on_losses: Callable[[list[dict[str, float]]], None] | None = None,
    settings: dict[str, Any] | None = None,
    progress: Callable | None = None,
    log: Callable[[str], None] = print,
) -> TrainResult:
    """`train` for any kind of step: it chooses its own batch and reports its own figures.

    Args:
        step: ``step(state, done, key)`` returns the next state and scalar figures with "loss" among them, the
            same names at every step. It must follow from its arguments alone.
        state: the state before the first step; a continued run only takes its structure.
        dataset: training images, for the record.
        on_losses: called with the rows of ``losses.csv`` as they are written.
        steps, workdir, seed, save_every, eval_every, evaluate, monitor, on_eval, settings, progress, log: as
            in `train`.

    Raises:
        ValueError, Interrupted: as `train`.
    """
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    identity = {
        "steps": steps,
        "seed": seed,
        "eval_every": eval_every,
        "monitor": monitor,
        "data": {
            "name": dataset.name,
            "split": dataset.split,
            "images": len(dataset),
            "sha256": dataset.identity,
        },
        **(settings or {}),
    }
    state = _restore(workdir, state, identity)
    done = int(state.step)
    losses = Table(workdir / "losses.csv", last_step=done)
    validation = Table(workdir / "validation.csv", last_step=done)
    if done:
        log(f"continuing after step {done} of {steps}")

    def evaluated(state: TrainState, loss: float) -> TrainState:
        state, figures = _evaluate(state, evaluate, monitor)
        step = int(state.step)
        validation.append([{"step": step, **figures}])
        line = ", ".join(f"{name} {value:.5g}" for name, value in figures.items())
        log(f"step {step}: training loss {loss:.5g}; validation: {line}")
        if on_eval is not None:
            on_eval(step, state.ema)
        return state

    key = jax.random.key(seed)
    progress = progress or Progress(Console()).task
    pending: list[tuple[int, dict[str, jax.Array]]] = []
    with _stop_requests() as stop, progress(steps - done, "training", "steps") as advance:
        while done < steps:
            state, figures = step(state, done, key)
            done += 1
            pending.append((done, figures))
            evaluating = done % eval_every == 0 or done == steps
            if evaluating or len(pending) == FLUSH_EVERY:
                advance(len(pending))
                mean_loss = _flush(losses, pending, on_losses)
            if evaluating:
                state = evaluated(state, mean_loss)
            stopping = stop.is_set() and done < steps
            if stopping or done % save_every == 0 or done == steps:
                advance(len(pending))
                _flush(losses, pending, on_losses)
                _save(workdir, state, identity)
            if stopping:
                message = f"stopped after step {done} of {steps}; give the same command again to continue."
                raise Interrupted(message, stop.number)
    return TrainResult(state.best, state.ema, _record(workdir, state, identity))


def _evaluate(state: TrainState, evaluate, monitor: str) -> tuple[TrainState, dict[str, float]]:
    figures = evaluate(state.ema)
    if monitor not in figures:
        raise ValueError(
            f"monitor must be one of the evaluated figures {', '.join(figures)}, got {monitor!r}."
        )
    if figures[monitor] < float(state.best_value):
        state = state.replace(
            best=jax.tree.map(jnp.array, state.ema),
            best_value=jnp.asarray(figures[monitor], jnp.float32),
            best_step=jnp.array(state.step),
        )
    return state, figures


def _flush(losses: Table, pending: list[tuple[int, dict[str, jax.Array]]], on_losses) -> float:
    # Losses are fetched together, so that the device does not wait for Python in every step.
    rows = [{"step": step, **{name: float(v) for name, v in figures.items()}} for step, figures in pending]
    pending.clear()
    losses.append(rows)
    if on_losses is not None and rows:
        on_losses(rows)
    bad = [row["step"] for row in rows if not np.isfinite(row["loss"])]
    if bad:
        raise ValueError(
            f"the loss must stay finite, at step {bad[0]} it was not; lower training.learning_rate or "
            "training.clip and start in a new workdir."
        )
    return float(np.mean([row["loss"] for row in rows])) if rows else math.nan


def _checkpoints(workdir: pathlib.Path) -> list[pathlib.Path]:
    return sorted((workdir / "checkpoints").glob("step_*"))


def _save(workdir: pathlib.Path, state: TrainState, identity: dict[str, Any]) -> None:
    path = workdir / "checkpoints" / f"step_{int(state.step):08d}"
    checkpoint.save(path, state, identity, overwrite=True)
    for old in _checkpoints(workdir)[:-KEPT_CHECKPOINTS]:
        checkpoint.remove(old)


def _restore(workdir: pathlib.Path, fresh: TrainState, identity: dict[str, Any]) -> TrainState:
    # The newest checkpoint that is whole; `fresh` if the workdir has none at all.
    failure = None
    for path in reversed(_checkpoints(workdir)):
        try:
            stored = checkpoint.load_metadata(path)
            _refuse_another_run(workdir, stored, identity)
            return jax.tree.map(jnp.asarray, checkpoint.load(path, fresh))
        except AnotherRun:
            raise
        except ValueError as error:
            failure = failure or error
    if failure is not None:
        raise failure
    return fresh


class AnotherRun(ValueError):
    """The workdir holds a run with other settings."""


def _refuse_another_run(workdir: pathlib.Path, stored: dict[str, Any], identity: dict[str, Any]) -> None:
    ours = json.loads(json.dumps(identity))
    other = sorted(k for k in ours.keys() | stored.keys() if ours.get(k) != stored.get(k))
    if other:
        raise AnotherRun(
            f"{workdir} holds another run, which differs in {', '.join(other)}; choose another workdir "
            "or remove this one."
        )


class _StopRequest:
    """The first Ctrl-C or SIGTERM: lets the step finish and the state be saved. A second one ends at once."""

    number: int | None = None

    def is_set(self) -> bool:
        return self.number is not None

    def __call__(self, number, frame):
        if self.is_set():
            raise Interrupted("stopped at once, without saving.", number)
        self.number = number


@contextlib.contextmanager
def _stop_requests() -> Iterator[_StopRequest]:
    stop = _StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals reach the main thread only
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _record(workdir: pathlib.Path, state: TrainState, identity: dict[str, Any]) -> dict[str, Any]:
    losses = [float(row["loss"]) for row in read(workdir / "losses.csv")]
    rows = [{k: float(v) for k, v in row.items()} for row in read(workdir / "validation.csv")]
    best = next((row for row in rows if int(row["step"]) == int(state.best_step)), None)
    return {
        **identity,
        "best_step": int(state.best_step),
        "validation": best,
        "validation_last": rows[-1],
        "training_loss_last_100": float(np.mean(losses[-100:])),
        "versions": {"jax": jax.__version__, "flax": flax.__version__, "jaxmerge": jaxmerge.__version__},
    }
