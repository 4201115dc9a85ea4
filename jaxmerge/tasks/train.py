"""Tasks that make the checkpoints which come with the package."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxmerge import checkpoint, parallel, sampling
from jaxmerge.data import Dataset, miniature
from jaxmerge.experts.base import Expert
from jaxmerge.files import make_folder, write_bytes
from jaxmerge.run import Run
from jaxmerge.tasks.setup import open_split
from jaxmerge.training import classifier as classifier_training
from jaxmerge.training import dry_run as dry_runs
from jaxmerge.training import recipes
from jaxmerge.training.loop import TrainResult
from jaxmerge.training.tables import read


def expert(config: ConfigDict, run: Run) -> None:
    """Trains the expert that ``config.expert`` describes and shows its losses and samples."""
    settings = config.training
    names = [field.name for field in dataclasses.fields(recipes.Recipe)]
    recipe = recipes.Recipe(**{name: settings[name] for name in names})
    if settings.dry_run:
        return dry_run(config, run, recipe)
    data = open_split(config, config.data.train_split)
    validation = open_split(config, config.data.validation_split)
    if settings.export:
        # A place that cannot be written is known now, not after hours of training.
        make_folder(Path(settings.export).parent)
    pictures = run.path("samples")

    def on_eval(step: int, current: Expert) -> None:
        if settings.sample_every and step % settings.sample_every == 0:
            draw_samples(current, config.seed, pictures / f"step_{step:06d}.png", data.levels)

    result = recipes.train_expert(
        recipes.description(config.expert.to_dict(), data, augmentation=recipe.augmentation),
        recipe,
        data,
        validation,
        workdir=run.workdir,
        seed=config.seed,
        save_every=settings.checkpoint_every,
        eval_every=settings.eval_every,
        eval_repeats=settings.eval_repeats,
        eval_batch_size=settings.eval_batch_size,
        export=settings.export or None,
        command=run.command,
        on_eval=on_eval,
        progress=run.progress,
        log=run.log,
    )
    show_training(config, run, result, data)


def dry_run(config: ConfigDict, run: Run, recipe: recipes.Recipe) -> None:
    """Shows the memory that the training would need, and takes one step of it on a few random images."""
    devices = parallel.device_count()
    data = miniature.of(config.data.name, 2)
    asked = recipes.description(config.expert.to_dict(), data, augmentation=recipe.augmentation)
    figures = dry_runs.dry_run(asked, recipe, data, devices=devices, log=run.log)
    run.finish(
        {
            "title": f"Dry run of the {config.data.name} {config.expert.kind.upper()}'s training",
            "rows": [figures],
            "finding": "One step at full size went through; nothing was trained.",
        }
    )


def show_training(config: ConfigDict, run: Run, result: TrainResult, data: Dataset) -> None:
    """The run's page: losses, the best step's figures, samples."""
    losses = read(run.path("losses.csv"))
    curve = read(run.path("validation.csv"))
    figures = {k: v for k, v in result.record["validation"].items() if k != "step"}
    images, _ = sampling.generate(result.expert, 60, key=jax.random.key(config.seed), batch_size=60)
    run.finish(
        {
            "title": f"Training of the {data.name} {config.expert.kind.upper()}",
            "levels": data.levels,
            "rows": [{"best step": result.record["best_step"], **figures}],
            "finding": f"The best weights are those of step {result.record['best_step']} of {config.training.steps}; "
            f"they are in {run.path('expert')}.",
            "training": {
                "unit": "loss",
                "series": {
                    "training": _series(losses, "loss", every=max(1, len(losses) // 500)),
                    "validation": _series(curve, "loss"),
                },
            },
            "training_levels": {
                "unit": "bits per dimension",
                "series": {
                    name.removeprefix("bpd_gamma_").replace("_to_", " < γ < "): _series(curve, name)
                    for name in curve[0]
                    if name.startswith("bpd_gamma_")
                },
            },
        },
        {"samples": images.reshape(5, 12, *images.shape[1:]), "sample_labels": np.array(["samples"] * 5)},
    )


def classifier(config: ConfigDict, run: Run) -> None:
    """Trains the classifier of the data set's labels and shows its accuracies."""
    path, settings = run.path("classifier"), config.classifier
    checkpoint.remove(path)
    splits = {"train": config.data.train_split, "validation": config.data.validation_split}
    splits["test"] = config.data.test_split
    with run.progress(settings.steps, "training", "steps") as advance:
        done = [0]

        def on_progress(step, figures):
            advance(step - done[0])
            done[0] = step

        result = classifier_training.train_classifier(
            {part: open_split(config, split) for part, split in splits.items()},
            steps=settings.steps,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            width=settings.width,
            augmentation=classifier_training.Augmentation(settings.shift, settings.fill, settings.flip),
            seed=config.seed,
            path=path,
            command=run.command,
            on_progress=on_progress,
        )
    record = {k: v for k, v in result.metadata.items() if isinstance(v, int | float | str)}
    run.finish(
        {
            "title": f"Training of the {config.data.name} classifier",
            "rows": [record],
            "finding": f"The classifier is in {path}.",
        }
    )


def draw_samples(current: Expert, seed: int, path, levels: int) -> None:
    """A picture of 60 samples of an expert in training, always from the same noise."""
    from jaxmerge.report import plots, style  # matplotlib takes a second

    images, _ = sampling.generate(current, 60, key=jax.random.key(seed), batch_size=60)
    make_folder(path.parent)
    rows = images.reshape(5, 12, *images.shape[1:])
    write_bytes(path, style.png(plots.sample_grid(rows, [""] * 5, levels)))


def _series(rows, name: str, every: int = 1) -> dict[str, list[float]]:
    return {
        "step": [int(row["step"]) for row in rows[::every]],
        "value": [float(row[name]) for row in rows[::every]],
    }
