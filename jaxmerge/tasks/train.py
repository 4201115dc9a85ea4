"""Tasks that make the checkpoints which come with the package."""

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxmerge import checkpoint, sampling
from jaxmerge.data import load
from jaxmerge.experts.base import Expert
from jaxmerge.files import make_folder, write_bytes
from jaxmerge.run import Run
from jaxmerge.training import classifier as classifier_training
from jaxmerge.training import recipes
from jaxmerge.training.tables import read


def expert(config: ConfigDict, run: Run) -> None:
    """Trains the expert that ``config.expert`` describes and shows its losses and samples."""
    data = load(config.data.name, config.data.train_split)
    validation = load(config.data.name, config.data.validation_split)
    settings = config.training
    if settings.export:
        # A place that cannot be written is known now, not after hours of training.
        make_folder(Path(settings.export).parent)
    pictures = run.path("samples")

    def on_eval(step: int, current: Expert) -> None:
        if settings.sample_every and step % settings.sample_every == 0:
            draw_samples(current, config.seed, pictures / f"step_{step:06d}.png", data.levels)

    result = recipes.train_expert(
        recipes.description(config.expert.to_dict(), data),
        data,
        validation,
        workdir=run.workdir,
        steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        clip=settings.clip,
        b2=settings.b2,
        ema_decay=settings.ema_decay,
        p_mean=settings.p_mean,
        p_std=settings.p_std,
        seed=config.seed,
        save_every=settings.checkpoint_every,
        eval_every=settings.eval_every,
        export=settings.export or None,
        command=run.command,
        on_eval=on_eval,
        progress=run.progress,
        log=run.log,
    )
    losses = read(run.path("losses.csv"))
    curve = read(run.path("validation.csv"))
    figures = {k: v for k, v in result.record["validation"].items() if k != "step"}
    images, _ = sampling.generate(result.expert, 60, key=jax.random.key(config.seed), batch_size=60)
    run.finish(
        {
            "title": f"Training of the {data.name} {config.expert.kind.upper()}",
            "levels": data.levels,
            "rows": [{"best step": result.record["best_step"], **figures}],
            "finding": f"The best weights are those of step {result.record['best_step']} of {settings.steps}; "
            f"they are in {run.path('expert')}.",
            "training": {
                "unit": "loss",
                "series": {
                    "training": _series(losses, "loss", every=max(1, len(losses) // 500)),
                    "validation": _series(curve, "loss"),
                },
            },
        },
        {"samples": images.reshape(5, 12, *images.shape[1:]), "sample_labels": np.array(["samples"] * 5)},
    )


def classifier(config: ConfigDict, run: Run) -> None:
    """Trains the digits classifier and shows its accuracies."""
    path, settings = run.path("classifier"), config.classifier
    checkpoint.remove(path)
    with run.progress(settings.steps, "training", "steps") as advance:
        done = [0]

        def on_progress(step, figures):
            advance(step - done[0])
            done[0] = step

        result = classifier_training.train_digits_classifier(
            steps=settings.steps,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            seed=config.seed,
            path=path,
            on_progress=on_progress,
        )
    record = {k: v for k, v in result.metadata.items() if isinstance(v, int | float | str)}
    run.finish(
        {
            "title": "Training of the digits classifier",
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
