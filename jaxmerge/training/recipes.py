"""From an expert's description to a trained checkpoint: the two recipes, VDM's and EDM's."""

import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any

from jaxmerge.data import Dataset
from jaxmerge.experts import io
from jaxmerge.experts.base import Expert
from jaxmerge.noise import VDM_GAMMA_MAX, PixelScale
from jaxmerge.training import objectives
from jaxmerge.training.loop import TrainResult, train
from jaxmerge.training.optimizer import make_optimizer
from jaxmerge.training.validation import validator


def description(settings: dict[str, Any], data: Dataset) -> dict[str, Any]:
    """Description of the expert that a config's `expert` asks for, for the images of `data`.

    Raises:
        ValueError: a kind other than "vdm" and "edm".
    """
    common = dict(
        levels=data.levels,
        shape=data.images.shape[1:],
        width=settings["width"],
        dropout=settings["dropout"],
    )
    if settings["kind"] == "vdm":
        return vdm_description(**common, depth=settings["depth"], fourier=settings["fourier"])
    if settings["kind"] == "edm":
        names = ("channel_mult", "num_blocks", "attn_resolutions")
        return edm_description(**common, **{name: settings[name] for name in names})
    raise ValueError(f"expert.kind must be 'vdm' or 'edm', got {settings['kind']!r}.")


def vdm_description(
    *,
    levels: int,
    shape: tuple[int, int, int],
    width: int,
    depth: int,
    fourier: tuple[int, ...],
    dropout: float,
) -> dict[str, Any]:
    """Description (see `io.build`) of a VDM for images of this shape, gamma from gamma_min to 5."""
    bounds = [PixelScale(levels).gamma_min, VDM_GAMMA_MAX]
    return {
        "kind": "vdm",
        "architecture": {
            "channels": shape[-1],
            "width": width,
            "depth": depth,
            "fourier": list(fourier),
            "norm_groups": _groups(width),
            "dropout": dropout,
        },
        "levels": levels,
        "shape": list(shape),
        "bounds": bounds,
        "native_range": bounds,
    }


def edm_description(
    *,
    levels: int,
    shape: tuple[int, int, int],
    width: int,
    channel_mult: tuple[int, ...],
    num_blocks: int,
    attn_resolutions: tuple[int, ...],
    dropout: float,
) -> dict[str, Any]:
    """Description (see `io.build`) of an unconditional EDM for square images of this shape."""
    return {
        "kind": "edm",
        "architecture": {
            "resolution": shape[0],
            "channels": shape[-1],
            "model_channels": width,
            "channel_mult": list(channel_mult),
            "num_blocks": num_blocks,
            "attn_resolutions": list(attn_resolutions),
            "dropout": dropout,
        },
        "levels": levels,
        "shape": list(shape),
        "sigma_range": list(PixelScale(levels).edm_sigma_range),
        "preconditioner": "edm",
    }


def _groups(width: int) -> int:
    # Four channels per group, as in narrow SongUNets; the published 32 groups need wide networks.
    return min(32, width // 4)


def train_expert(
    description: dict[str, Any],
    data: Dataset,
    validation: Dataset,
    *,
    workdir: str | os.PathLike,
    steps: int,
    batch_size: int,
    learning_rate: float,
    warmup_steps: int = 0,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    b2: float = 0.99,
    ema_decay: float = 0.999,
    p_mean: float = objectives.P_MEAN,
    p_std: float = objectives.P_STD,
    seed: int = 0,
    save_every: int = 1000,
    eval_every: int = 500,
    export: str | os.PathLike | None = None,
    command: str = "",
    on_eval: Callable[[int, Expert], None] | None = None,
    progress: Callable | None = None,
    log: Callable[[str], None] = print,
) -> TrainResult:
    """Trains an expert with its kind's objective and writes the best weights to ``workdir/expert``.

    Args:
        description: of the expert, see `vdm_description`, `edm_description` and `io.build`.
        data: training images.
        validation: images that choose the best weights.
        workdir: of the run; a run that was stopped continues there.
        steps, batch_size, ema_decay, save_every, eval_every, on_eval, progress, log: see `loop.train`.
        learning_rate, warmup_steps, weight_decay, clip, b2: see `make_optimizer`.
        p_mean, p_std: of ln sigma_edm in EDM's objective.
        seed: of the initial weights and of every batch.
        export: a second place for the finished checkpoint.
        command: the command line, for the record.

    Raises:
        ValueError: see `loop.train`; or the images do not fit the description.
    """
    scale = PixelScale(description["levels"])
    for images in (data.images, validation.images):
        scale.check(images, tuple(description["shape"]))
    optimizer_settings = {
        "learning_rate": learning_rate,
        "warmup_steps": warmup_steps,
        "weight_decay": weight_decay,
        "clip": clip,
        "b2": b2,
    }
    settings = {"expert": description, **optimizer_settings}
    objective = objectives.vdm_loss
    if description["kind"] == "edm":
        objective = functools.partial(objectives.edm_loss, p_mean=p_mean, p_std=p_std)
        settings |= {"p_mean": p_mean, "p_std": p_std}
    result = train(
        io.build(description, seed=seed),
        functools.partial(objective, scale=scale),
        data,
        steps=steps,
        batch_size=batch_size,
        optimizer=make_optimizer(steps=steps, **optimizer_settings),
        workdir=workdir,
        ema_decay=ema_decay,
        seed=seed,
        save_every=save_every,
        eval_every=eval_every,
        evaluate=validator(objective, validation, seed=seed),
        monitor="loss",
        on_eval=on_eval,
        settings=settings,
        progress=progress,
        log=log,
    )
    for path in filter(None, (pathlib.Path(workdir) / "expert", export)):
        io.save_expert(path, result.expert, {"command": command, **result.record}, overwrite=True)
    return result
