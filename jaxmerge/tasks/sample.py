"""Many samples of one model, in shards on disk; scored if the config has a judge.

A run that was stopped continues after its last whole shard, and its images are those of an undisturbed run.
"""

import functools
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxmerge import sampling, shards
from jaxmerge.experts.base import Expert
from jaxmerge.files import plain
from jaxmerge.merge import Switch
from jaxmerge.metrics.weights import weights_hash
from jaxmerge.run import Run
from jaxmerge.tasks import experts, quality
from jaxmerge.tasks.samples import sampler_settings
from jaxmerge.tasks.setup import check_experts, load_pair, open_split

NAMES = {"low": "VDM", "high": "EDM", "merged": "merged"}
ROWS, COLUMNS = 5, 12


def run(config: ConfigDict, run: Run) -> None:
    """Draws what ``config.shards`` asks for."""
    low, high = load_pair(config)
    asked, sampler = config.shards, config.sampling.sampler[0]
    expert = {"low": low, "high": high, "merged": Switch(low, high, asked.eta)}[asked.model]
    judge = None
    if config.metric.kind != "none":
        train = open_split(config, config.data.train_split)
        check_experts(config, records_of(config), train)
        judge = quality.judge(config, train, run.progress)
        judge.check(asked.count)
    settings = sampler_settings(config, sampler)
    if asked.model == "high" and sampler == "heun":
        settings = settings.replace(final="denoise")  # EDM's own sampler ends at sigma = 0
    drawn = draw(config, run, expert, settings)
    if asked.npz:
        shards.export_npz(drawn, run.path("samples.npz"))
    if asked.png:
        shards.export_png(drawn, run.path("png"), expert.pixel_scale.levels)
    scores = {} if judge is None else run.stage("scores", functools.partial(score, judge, drawn))
    finish(config, run, expert, drawn, judge, scores)


def records_of(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """Where the experts of the model that is drawn from come from, by their names in the results."""
    parts = ("low", "high") if config.shards.model == "merged" else (config.shards.model,)
    return {NAMES[part]: experts.record_of(config.experts[part]) for part in parts}


def draw(config: ConfigDict, run: Run, expert: Expert, settings: sampling.Settings) -> shards.Shards:
    """The shards, those of earlier runs included."""
    asked = config.shards
    layout = shards.Layout(asked.count, asked.size, tuple(expert.image_shape))
    key = jax.random.fold_in(jax.random.key(config.seed), asked.seed)
    sampler = {k: v for k, v in plain(config.sampling.to_dict()).items() if k != "batch_size"}
    identity = {
        "model": asked.model,
        "eta": asked.eta if asked.model == "merged" else None,
        "weights": weights_hash(expert),
        "sampler": sampler,
        "seed": [config.seed, asked.seed],
    }

    def make(first: int, count: int):
        return sampling.generate(
            expert, count, key=key, settings=settings, first=first, batch_size=config.sampling.batch_size
        )

    with run.progress(asked.count, "samples") as advance:
        return shards.write(run.path("samples"), layout, identity, make, advance=advance)


def score(judge: quality.Judge, drawn: shards.Shards) -> dict[str, float]:
    """The judge's scores of all samples."""
    images = np.concatenate(list(drawn))
    return judge.scores(images, test_count=len(images) + 1)


def finish(config: ConfigDict, run: Run, expert: Expert, drawn: shards.Shards, judge, scores) -> None:
    """Results, report and a picture of the first samples."""
    asked = config.shards
    said = {} if judge is None else judge.definitions
    row = {
        "model": NAMES[asked.model],
        "eta": asked.eta if asked.model == "merged" else None,
        "sampler": config.sampling.sampler[0],
        "nfe_sampling": float(np.mean([drawn.record(i)["nfe"] for i in range(len(drawn))])),
        "n_samples": drawn.layout.count,
        "n_seeds": 1,
    }
    results = {
        "title": config.title or f"{drawn.layout.count} samples of the {NAMES[asked.model]} model",
        "levels": expert.pixel_scale.levels,
        "rows": [row | scores],
        "definitions": {column: text for column, text in said.items() if column in scores},
        "notes": [*([] if judge is None else judge.notes), *filter(None, [config.report.published_note])],
        "finding": f"{drawn.layout.count} samples are in {len(drawn)} files in {run.path('samples')}.",
        **quality.describe(judge),
    }
    run.finish(results, first_pictures(drawn))


def first_pictures(drawn: shards.Shards) -> dict[str, np.ndarray]:
    """The first samples as whole lines of a grid."""
    most = min(ROWS, drawn.layout.count // COLUMNS) * COLUMNS
    if not most:
        return {}
    images = np.concatenate([drawn[i][:most] for i in range(-(-most // drawn.layout.size))])[:most]
    grid = images.reshape(-1, COLUMNS, *drawn.layout.shape)
    return {"samples": grid, "sample_labels": np.array(["samples"] * len(grid))}
