"""The training loop: EMA, early stopping, exact resume.

Everything that happens in step s follows from (seed, s) and the state before it: the batch is cut from
per-epoch permutations, the noise key is ``fold_in(key(seed), s)``. So a run that was killed and
continued from its last checkpoint on as many devices repeats the same losses bit for bit. Steps are called
from Python: on CPU, XLA runs the reverse mode of convolutions about fifty times slower inside ``lax.scan``.

With small sets an expert overfits long before its training loss says so. The loop therefore keeps the
EMA weights that were **best on validation images** apart from the running ones.

The workdir receives ``losses.csv`` (every step), ``validation.csv`` (every evaluation) and
``checkpoints/step_*`` (the last two).
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

import jaxmerge
from jaxmerge.data import Dataset
from jaxmerge.experts.base import Expert
from jaxmerge.progress import Progress
from jaxmerge.training import saved
from jaxmerge.training.step import LossFn, StepFn, TrainState, initial_state, make_step
from jaxmerge.training.stop import Interrupted, stop_requests
from jaxmerge.training.tables import Table, read
from jaxmerge.training.validation import BY_LEVEL

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


def train(
    expert: Expert,
    loss_fn: LossFn,
    dataset: Dataset,
    *,
    batch_size: int,
    optimizer: optax.GradientTransformation,
    ema_decay: float = 0.999,
    seed: int = 0,
    settings: dict[str, Any] | None = None,
    **how: Any,
) -> TrainResult:
    """Trains an expert on all devices, or continues the training that the workdir holds.

    Args:
        expert: fresh weights; a continued run only takes their structure.
        loss_fn: ``loss_fn(expert, images, key, part=)``, the mean loss of (a device's part of) a batch of
            grey levels.
        dataset: training images.
        batch_size: images per step; shared by as many devices as divide it.
        optimizer: see `make_optimizer`.
        ema_decay: limit of the EMA's decay, which warms up as (1 + step) / (10 + step).
        seed: decides order and noise of every batch.
        settings, how: see `train_by`.

    Returns:
        The best EMA weights, the last ones and the record of the run.

    Raises:
        ValueError, Interrupted: see `train_by`.
    """
    return train_by(
        make_step(
            loss_fn,
            optimizer,
            dataset,
            batch_size=batch_size,
            ema_decay=ema_decay,
            seed=seed,
            steps=how["steps"],
        ),
        initial_state(expert, optimizer),
        dataset,
        seed=seed,
        settings={"batch_size": batch_size, "ema_decay": ema_decay, **(settings or {})},
        **how,
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
    best_after: int = 0,
    on_eval: Callable[[int, Any], None] | None = None,
    on_best: Callable[[TrainResult], None] | None = None,
    on_rows: Callable[[str, list[dict[str, float]]], None] | None = None,
    settings: dict[str, Any] | None = None,
    progress: Callable | None = None,
    log: Callable[[str], None] = print,
) -> TrainResult:
    """Trains by any kind of step, which chooses its own batch and reports its own figures.

    Args:
        step: ``step(state, done, key)`` returns the next state and scalar figures with "loss" among them, the
            same names at every step. It must follow from its arguments alone.
        state: the state before the first step; a continued run only takes its structure.
        dataset: training images, for the record.
        steps: optimizer steps of the whole run.
        workdir: where tables and checkpoints go.
        seed: of the key that every step gets.
        save_every, eval_every: steps between checkpoints, and between evaluations of the EMA weights.
        evaluate: figures of an expert on validation images.
        monitor: the figure whose lowest value chooses the best weights.
        best_after: evaluations after so many steps or fewer choose nothing.
        on_eval: called after each evaluation with the steps done and the EMA weights (sample pictures).
        on_best: called with the result so far after each evaluation that found better weights.
        on_rows: called as rows are written with "training" and those of ``losses.csv``, with "validation" and
            that of ``validation.csv``; first with the first steps that this start of the run takes.
        settings: anything else that makes this another run (learning rate, architecture, ...), plain
            JSON; a workdir with other settings is refused.
        progress: ``progress(total, what, unit)``, a context manager that yields ``advance(n)``; by default
            a bar, or lines where there is no terminal.
        log: takes one line per evaluation.

    Raises:
        ValueError: the workdir holds another run, its checkpoints are damaged, or the loss is no
            longer finite.
        Interrupted: Ctrl-C or SIGTERM came; the state is saved and the same call continues.
    """
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    run = {"steps": steps, "seed": seed, "eval_every": eval_every, "monitor": monitor}
    identity = {**run, "data": _data_record(dataset), **(settings or {})}
    state = saved.restore(workdir, state, identity)
    if int(state.step):
        log(f"continuing after step {int(state.step)} of {steps}")
    on_rows = on_rows or (lambda kind, rows: None)
    choice = (monitor, best_after)
    evaluation = _Evaluation(workdir, int(state.step), evaluate, choice, on_eval, on_rows, log)
    losses = _Losses(workdir, int(state.step), on_rows)
    key = jax.random.key(seed)
    progress = progress or Progress(Console()).task
    with stop_requests() as stop, progress(steps - int(state.step), "training", "steps") as advance:
        for done in range(int(state.step) + 1, steps + 1):
            state, figures = step(state, done - 1, key)
            losses.add(done, figures)
            evaluating = done % eval_every == 0 or done == steps
            if evaluating or losses.are_many:
                advance(losses.flush())
            if evaluating:
                state = evaluation(state, losses.mean)
                if on_best is not None and int(state.best_step) == done:
                    on_best(_result(workdir, state, identity))
            stopping = stop.is_set() and done < steps
            if stopping or done % save_every == 0 or done == steps:
                advance(losses.flush())
                saved.save(workdir, state, identity)
            if stopping:
                message = f"stopped after step {done} of {steps}; give the same command again to continue."
                raise Interrupted(message, stop.number)
    return _result(workdir, state, identity)


def _data_record(dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "split": dataset.split,
        "images": len(dataset),
        "sha256": dataset.identity,
    }


class _Losses:
    """``losses.csv``; figures are fetched together, so that the device does not wait for Python in every step."""

    def __init__(self, workdir: pathlib.Path, last_step: int, on_rows):
        self.table = Table(workdir / "losses.csv", last_step=last_step)
        self.on_rows, self.pending, self.mean = on_rows, [], math.nan

    @property
    def are_many(self) -> bool:
        return len(self.pending) == FLUSH_EVERY

    def add(self, step: int, figures: dict[str, jax.Array]) -> None:
        self.pending.append((step, figures))

    def flush(self) -> int:
        """Writes what is pending and returns how many steps that were; their mean loss is `mean`."""
        rows = [{"step": step, **{k: float(v) for k, v in figures.items()}} for step, figures in self.pending]
        self.pending = []
        if not rows:
            return 0
        self.table.append(rows)
        self.on_rows("training", rows)
        self.mean = float(np.mean([row["loss"] for row in rows]))
        bad = [row["step"] for row in rows if not np.isfinite(row["loss"])]
        if bad:
            raise ValueError(
                f"the loss must stay finite, at step {bad[0]} it was not; lower training.learning_rate or "
                "training.clip and start in a new workdir."
            )
        return len(rows)


class _Evaluation:
    """``validation.csv``, and the choice of the best weights."""

    def __init__(
        self, workdir: pathlib.Path, last_step: int, evaluate, choice: tuple[str, int], on_eval, on_rows, log
    ):
        self.table = Table(workdir / "validation.csv", last_step=last_step)
        self.evaluate, self.log = evaluate, log
        self.monitor, self.best_after = choice
        self.on_eval, self.on_rows = on_eval, on_rows

    def __call__(self, state: TrainState, loss: float) -> TrainState:
        figures, step = self.evaluate(state.ema), int(state.step)
        if self.monitor not in figures:
            raise ValueError(
                f"monitor must be one of the evaluated figures {', '.join(figures)}, got {self.monitor!r}."
            )
        if step > self.best_after and figures[self.monitor] < float(state.best_value):
            state = state.replace(
                best=jax.tree.map(jnp.array, state.ema),
                best_value=jnp.asarray(figures[self.monitor], jnp.float32),
                best_step=jnp.array(state.step),
            )
        rows = [{"step": step, **figures}]
        self.table.append(rows)
        self.on_rows("validation", rows)
        line = ", ".join(f"{name} {value:.5g}" for name, value in figures.items() if BY_LEVEL not in name)
        self.log(f"step {step}: training loss {loss:.5g}; validation: {line}")
        if self.on_eval is not None:
            self.on_eval(step, state.ema)
        return state


def _result(workdir: pathlib.Path, state: TrainState, identity: dict[str, Any]) -> TrainResult:
    losses = [float(row["loss"]) for row in read(workdir / "losses.csv")]
    rows = [{k: float(v) for k, v in row.items()} for row in read(workdir / "validation.csv")]
    best = next((row for row in rows if int(row["step"]) == int(state.best_step)), None)
    record = {
        **identity,
        "steps_done": int(state.step),
        "best_step": int(state.best_step),
        "validation": best,
        "validation_last": rows[-1],
        "training_loss_last_100": float(np.mean(losses[-100:])),
        "versions": {"jax": jax.__version__, "flax": flax.__version__, "jaxmerge": jaxmerge.__version__},
    }
    return TrainResult(state.best, state.ema, record)
