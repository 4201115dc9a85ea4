"""The stages that train mixtures: each resumes by its own folder in the workdir, and is loaded where it is finished.

gates/NAME/               losses.csv, validation.csv, checkpoints, best, tensorboard where it is asked for
stages/train_NAME.npz     what the report needs of it
"""

import contextlib
import importlib.util
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool
from ml_collections import ConfigDict

from jaxmerge.data import Dataset
from jaxmerge.experts.adapters import share_trunk
from jaxmerge.gate.gated import Gated
from jaxmerge.run import Run
from jaxmerge.tasks.moe import models
from jaxmerge.training import gate_parts, gate_recipe
from jaxmerge.training.gate_objective import Penalties
from jaxmerge.training.tables import read

# Points of a usage curve in the report.
POINTS = 60


def penalties(
    asked: ConfigDict, *, load: bool = True, entropy: bool = True, align: bool = False
) -> Penalties:
    """The config's penalties, some of them left out."""
    return Penalties(
        load=asked.load if load else 0.0,
        entropy=asked.entropy if entropy else 0.0,
        align=asked.align if align else 0.0,
    )


def train(
    config: ConfigDict,
    run: Run,
    name: str,
    gated: Gated,
    data: tuple[Dataset, Dataset],
    *,
    seed: int,
    parts: str = "gate",
    steps: int | None = None,
    members: tuple[Bool[np.ndarray, "N K"], Bool[np.ndarray, "M K"]] | None = None,
    last: bool = False,
    **settings: Any,
) -> tuple[Gated, dict[str, Any]]:
    """Trains a mixture once per workdir.

    Args:
        config: the run's.
        run: where it is kept.
        name: of the training, for files.
        gated: the mixture to start from; its frozen parts are taken from here also when it is loaded.
        data: training and validation images.
        seed: of batches, noise and dropout.
        parts, steps: as in `gate_recipe.train_gated`; the gate, for the config's steps, by default.
        members: slices of the training and of the validation images.
        last: take the EMA weights of the last step, not those that were best on the validation images.
        settings: further arguments of `train_gated`.

    Returns:
        The mixture, and {"steps", "best_step", "usage_step", "usage" [T, K], "seconds_per_step", validation
        figures}.
    """
    asked, folder = config.moe, run.path("gates", name)
    steps = steps or asked.steps
    settings |= dict(seed=seed, parts=parts, steps=steps)
    settings["members"], settings["validation_members"] = members or (None, None)

    def compute():
        result = _fit(config, run, name, gated, data, **settings)
        finished = result.last if last else result.gated
        gate_parts.save_gated(folder / "best", finished, {"name": name}, parts=parts, overwrite=True)
        figures = result.record["validation_last" if last else "validation"]
        curve = usage_curve(read(folder / "losses.csv"))
        return {"steps": steps, "best_step": result.record["best_step"], **figures, **curve}

    record = run.stage(f"train_{name}", compute)
    return gate_parts.load_gated(folder / "best", gated), record


def _fit(config, run, name, gated, data, *, steps: int, **settings: Any) -> gate_recipe.GateResult:
    """`gate_recipe.train_gated` with the config's sizes, in the training's folder."""
    asked, folder = config.moe, run.path("gates", name)
    with scalars(asked, folder) as on_rows:
        return gate_recipe.train_gated(
            gated,
            *data,
            workdir=folder,
            steps=steps,
            batch_size=asked.batch_size,
            learning_rate=asked.learning_rate,
            experts_learning_rate=asked.experts_learning_rate,
            warmup_steps=min(asked.warmup_steps, steps - 1),
            ema_decay=asked.ema_decay,
            save_every=asked.checkpoint_every,
            eval_every=min(asked.eval_every, steps),
            repeats=asked.eval_repeats,
            eval_batch_size=config.bound.batch_size,
            on_rows=on_rows,
            progress=lambda total, what, unit: run.progress(total, f"{name}, {what}", unit),
            log=lambda line: run.log(f"{name}: {line}"),
            **settings,
        )


def usage_curve(losses: list[dict[str, str]]) -> dict[str, np.ndarray]:
    """Usage during training, averaged over neighbouring steps: "usage_step" [T] and "usage" [T, K]."""
    names = sorted((n for n in losses[0] if n.startswith("usage_")), key=lambda n: int(n.split("_")[1]))
    usage = np.array([[float(row[n]) for n in names] for row in losses])
    parts = np.array_split(np.arange(len(losses)), min(POINTS, len(losses)))
    step = [float(losses[part[len(part) // 2]]["step"]) for part in parts]
    return {"usage_step": np.array(step), "usage": np.stack([usage[part].mean(0) for part in parts])}


def check_tensorboard(asked: ConfigDict) -> None:
    """Refuses scalars for TensorBoard where nothing can write them.

    Raises:
        ValueError: they are asked for and tensorboardX is not installed.
    """
    if asked.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise ValueError(
            "moe.tensorboard needs the package tensorboardX, which is not installed; run: pip install "
            "'.[tensorboard]', or set moe.tensorboard=False."
        )


@contextlib.contextmanager
def scalars(
    asked: ConfigDict, folder: pathlib.Path
) -> Iterator[Callable[[str, list[dict[str, float]]], None] | None]:
    """Where the config asks for them, a writer of TensorBoard's event files into ``folder/tensorboard``; else None.

    It is `on_rows` of a training. Each start of a run writes a file of its own, which hides the steps of earlier ones
    that it takes again.

    Raises:
        ValueError: tensorboardX is not installed.
    """
    if not asked.tensorboard:
        yield None
        return
    check_tensorboard(asked)
    from tensorboardX import SummaryWriter  # only where it is asked for

    with contextlib.ExitStack() as files:
        writer = None

        def write(kind: str, rows: list[dict[str, float]]) -> None:
            nonlocal writer
            if writer is None:
                first = int(rows[0]["step"])
                writer = files.enter_context(SummaryWriter(str(folder / "tensorboard"), purge_step=first))
            for row in rows:
                for name, value in row.items():
                    if name != "step":
                        writer.add_scalar(f"{kind}/{name}", value, int(row["step"]))
            writer.flush()

        yield write


def specialists(
    config: ConfigDict,
    run: Run,
    base,
    count: int,
    kind: str,
    data: tuple[Dataset, Dataset],
    members: tuple[Bool[np.ndarray, "N K"], Bool[np.ndarray, "M K"]],
) -> tuple[Any, dict[str, Any]]:
    """Phase 1 alone: every expert starts from `base` and trains on its own slice.

    Args:
        base: the expert that all start from.
        count: K.
        kind: "full" for K whole networks, "adapters" for one trunk with adapters.
        data, members: training and validation images, and their slices.

    Returns:
        A tuple of experts or an `AdapterBank`, and the training's record.
    """
    asked = config.moe
    start = starting(asked, base, count, kind, config.seed)
    steps = asked.warm_steps
    gated, record = train(
        config,
        run,
        f"experts_{kind}_{count}",
        models.uniform(start),
        data,
        seed=config.seed,
        parts=expert_parts(asked, kind),
        steps=steps,
        members=members,
        last=True,
        # The share is below 1 and rounds to all steps.
        warm_fraction=1 - 0.25 / steps,
    )
    return gated.experts, record


def expert_parts(asked: ConfigDict, kind: str) -> str:
    """What is trained where experts are: a trunk that comes from a checkpoint stays as it is under its adapters."""
    return "adapters" if kind == "adapters" and asked.base == "checkpoint" else "all"


def starting(asked: ConfigDict, base, count: int, kind: str, seed: int):
    """K experts before any training: copies of one network, or one trunk with adapters that do nothing yet."""
    if kind == "adapters":
        return share_trunk(base, count, rank=asked.rank, seed=seed)
    return models.copies(base, count)


def single(
    config: ConfigDict, run: Run, base, name: str, data: tuple[Dataset, Dataset], *, steps: int, seed: int
) -> tuple[Any, dict[str, Any]]:
    """Baseline A: one expert that goes on training, as a mixture of one."""
    gated, record = train(
        config,
        run,
        name,
        models.uniform(models.copies(base, 1)),
        data,
        seed=seed,
        parts="all",
        steps=steps,
    )
    return gated.experts[0], record
