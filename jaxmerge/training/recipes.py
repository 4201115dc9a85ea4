"""From an expert's description to a trained checkpoint: the two recipes, VDM's and EDM's."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any

import optax

from jaxmerge.data import Dataset, augment
from jaxmerge.experts import io
from jaxmerge.noise import VDM_GAMMA_MAX, PixelScale
from jaxmerge.training import objectives
from jaxmerge.training.loop import TrainResult, train
from jaxmerge.training.optimizer import make_optimizer
from jaxmerge.training.validation import validator

# Images of each split that are compared with the description before training.
CHECKED = 1000


def description(settings: dict[str, Any], data: Dataset, *, augmentation: float = 0.0) -> dict[str, Any]:
    """Description of the expert that a config's `expert` asks for, for the images of `data`.

    Args:
        settings: the config's section.
        data: gives shape and grey levels.
        augmentation: probability of EDM's augmentation; above 0 the network gets inputs for its labels.

    Raises:
        ValueError: a kind other than "vdm" and "edm", or a network that does not fit the images.
    """
    common = dict(
        levels=data.levels,
        shape=data.shape,
        width=settings["width"],
        dropout=settings["dropout"],
    )
    if settings["kind"] == "vdm":
        if augmentation:
            raise ValueError("training.augmentation is EDM's; set it to 0, or expert.kind to 'edm'.")
        names = ("depth", "fourier", "mid_attention")
        return vdm_description(**common, **{name: settings[name] for name in names})
    if settings["kind"] == "edm":
        names = ("channel_mult", "num_blocks", "attn_resolutions")
        asked = {name: settings[name] for name in names}
        return edm_description(**common, **asked, augment_dim=augment.LABELS if augmentation else 0)
    raise ValueError(f"expert.kind must be 'vdm' or 'edm', got {settings['kind']!r}.")


def vdm_description(
    *,
    levels: int,
    shape: tuple[int, int, int],
    width: int,
    depth: int,
    fourier: tuple[int, ...],
    dropout: float,
    mid_attention: bool = True,
) -> dict[str, Any]:
    """Description (see `io.build`) of a VDM for images of this shape, gamma from gamma_min to 5.

    Raises:
        ValueError: a width that the normalisation's groups do not divide.
    """
    if width < 4 or width % _groups(width):
        raise ValueError(
            "expert.width must be a multiple of the number of normalisation groups (width / 4, at most 32), "
            f"got {width}; choose a multiple of 4, above 128 of 32."
        )
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
            "mid_attention": mid_attention,
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
    augment_dim: int = 0,
) -> dict[str, Any]:
    """Description (see `io.build`) of an unconditional EDM for square images of this shape.

    Raises:
        ValueError: images that are not square, more levels than their side can be halved, or attention at a
            resolution that no level has.
    """
    _check_levels(shape, channel_mult, attn_resolutions)
    labels = {"augment_dim": augment_dim} if augment_dim else {}
    return {
        "kind": "edm",
        "architecture": {
            **labels,
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


def _check_levels(shape, channel_mult, attn_resolutions) -> None:
    side = shape[0]
    if side != shape[1]:
        raise ValueError(f"an EDM takes square images, got {shape[0]} x {shape[1]}; crop them.")
    halvings = len(channel_mult) - 1
    if side % 2**halvings:
        possible = (side & -side).bit_length() - 1
        raise ValueError(
            f"expert.channel_mult has {halvings + 1} levels, but images of side {side} can be halved {possible} "
            f"times only; give at most {possible + 1} levels."
        )
    levels = [side >> level for level in range(halvings + 1)]
    odd = [r for r in attn_resolutions if r not in levels]
    if odd:
        raise ValueError(
            f"expert.attn_resolutions must be among the levels' resolutions {', '.join(map(str, levels))}, got "
            f"{odd[0]}."
        )


def _groups(width: int) -> int:
    # Four channels per group, as in narrow SongUNets; the published 32 groups need wide networks.
    return min(32, width // 4)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How an expert is trained.

    Attributes:
        steps, batch_size, ema_decay: see `loop.train`.
        learning_rate, warmup_steps, weight_decay, clip, b2, schedule: see `make_optimizer`.
        p_mean, p_std: of ln sigma_edm in EDM's objective.
        augmentation: probability of EDM's augmentation; 0 for none.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 0
    weight_decay: float = 0.0
    clip: float = 1.0
    b2: float = 0.99
    schedule: str = "cosine"
    ema_decay: float = 0.999
    p_mean: float = objectives.P_MEAN
    p_std: float = objectives.P_STD
    augmentation: float = 0.0

    @property
    def optimizer_settings(self) -> dict[str, Any]:
        """Arguments of `make_optimizer` but the steps; those that later versions added only where they differ."""
        names = ["learning_rate", "warmup_steps", "weight_decay", "clip", "b2"]
        names += ["schedule"] if self.schedule != "cosine" else []
        return {name: getattr(self, name) for name in names}

    def optimizer(self) -> optax.GradientTransformation:
        """The optimizer of the whole run."""
        return make_optimizer(steps=self.steps, **self.optimizer_settings)

    def objective(self, kind: str) -> Callable:
        """The kind's objective, see `objectives`."""
        if kind == "vdm":
            return objectives.vdm_loss
        return functools.partial(objectives.edm_loss, **self._edm_settings)

    @property
    def _edm_settings(self) -> dict[str, float]:
        names = ["p_mean", "p_std"] + (["augmentation"] if self.augmentation else [])
        return {name: getattr(self, name) for name in names}

    def settings(self, kind: str) -> dict[str, Any]:
        """What makes a run with this recipe another one."""
        return self.optimizer_settings | (self._edm_settings if kind == "edm" else {})


def train_expert(
    description: dict[str, Any],
    recipe: Recipe,
    data: Dataset,
    validation: Dataset,
    *,
    workdir: str | os.PathLike,
    seed: int = 0,
    eval_repeats: int = 8,
    eval_batch_size: int = 256,
    export: str | os.PathLike | None = None,
    command: str = "",
    **how: Any,
) -> TrainResult:
    """Trains an expert with its kind's objective; ``workdir/expert`` always holds the best weights so far.

    Args:
        description: of the expert, see `vdm_description`, `edm_description` and `io.build`.
        recipe: how.
        data: training images.
        validation: images that choose the best weights.
        workdir: of the run; a run that was stopped continues there.
        seed: of the initial weights and of every batch.
        eval_repeats, eval_batch_size: noise draws per validation image, and images per call.
        export: a second place for the finished checkpoint.
        command: the command line, for the record.
        how: save_every, eval_every, on_eval, progress and log of `loop.train_by`.

    Raises:
        ValueError: see `loop.train_by`; or the images do not fit the description.
    """
    kind, scale = description["kind"], PixelScale(description["levels"])
    for images in (data, validation):
        scale.check(images.take(min(len(images), CHECKED)).images, tuple(description["shape"]))
    objective = recipe.objective(kind)
    evaluation = {"eval_repeats": eval_repeats, "eval_batch_size": eval_batch_size}

    def write(result: TrainResult, path: str | os.PathLike = pathlib.Path(workdir) / "expert") -> None:
        io.save_expert(path, result.expert, {"command": command, **result.record}, overwrite=True)

    result = train(
        io.build(description, seed=seed),
        functools.partial(objective, scale=scale),
        data,
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        optimizer=recipe.optimizer(),
        workdir=workdir,
        ema_decay=recipe.ema_decay,
        seed=seed,
        evaluate=validator(
            objective, validation, seed=seed, repeats=eval_repeats, batch_size=eval_batch_size
        ),
        monitor="loss",
        on_best=write,
        settings={"expert": description, **recipe.settings(kind), **evaluation},
        **how,
    )
    write(result)
    if export:
        write(result, export)
    return result
