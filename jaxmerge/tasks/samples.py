"""The stages that draw samples of every model and sampler, and score them."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxmerge import probability_flow as flow
from jaxmerge import sampling, sweeps

# Images per model that are drawn at once; more are drawn part by part, and a stopped run goes on with the next part.
PART = 5000


def measure_samples(config, run, setup, etas, proposal) -> dict[str, Any]:
    """Samples of every model and sampler: their scores and a few pictures."""
    judge = setup.judge
    measured: dict[str, Any] = {}
    for sampler in config.sampling.sampler:
        settings = sampler_settings(config, sampler)
        for seed, swept, count in sample_plan(config.sampling, sampler, etas, proposal):
            name = f"samples_{sampler}_{seed}_{len(swept)}x{count}"
            slots = len(etas) if sampler != "ancestral" or len(swept) > 1 else 1
            plan = Plan(name, tuple(swept), slots, count, settings, seed)
            measured[name] = run.stage(name, functools.partial(scored, config, run, setup, plan))
            run.forget(f"{name}_from_")
    if judge is not None and measured:
        measured["floor"] = run.stage("floor", lambda: judge.floor(setup.test, config.sampling.n_samples))
    return measured


def sample_plan(asked: ConfigDict, sampler: str, etas, proposal) -> list[tuple[int, list[float], int]]:
    """(seed, thresholds, images) of every set of samples of one sampler; each also has both experts.

    All seeds have the proposed thresholds; the others come along in the first `seeds_other` seeds where
    the number of images is the same, else in a set of their own.
    """
    ancestral = sampler == "ancestral"
    count = asked.ancestral_samples if ancestral else asked.n_samples
    seeds = asked.ancestral_seeds if ancestral else asked.seeds
    others = asked.ancestral_samples_other if ancestral else asked.n_samples_other
    proposed = []
    if proposal is not None:
        proposed = sorted({float(proposal["cautious"]), *([] if ancestral else [float(proposal["best"])])})
    plan = []
    for seed in range(seeds if count else 0):
        with_others = seed < asked.seeds_other and others == count
        plan.append((seed, etas if with_others or not proposed else proposed, count))
    if others not in (0, count):
        plan += [(seed, etas, others) for seed in range(asked.seeds_other)]
    return plan


def settings_of(model: str, settings: sampling.Settings) -> sampling.Settings:
    """The settings that a model of this name samples with: EDM's own Heun sampler ends at sigma = 0."""
    return settings.replace(final="denoise") if model == "EDM" and settings.sampler == "heun" else settings


def sampler_settings(config: ConfigDict, sampler: str) -> sampling.Settings:
    """The config's settings of one sampler."""
    steps = config.sampling.ancestral_steps if sampler == "ancestral" else config.sampling.heun_steps
    return sampling.Settings(
        sampler=sampler,
        steps=steps,
        control=flow.FixedGrid(config.sampling.ode_steps_per_gamma),
        decoder=config.sampling.decoder,
    )


class Plan(NamedTuple):
    """One seed's samples of both experts and of merges.

    Attributes:
        name: of the stage.
        etas: thresholds of the merges.
        slots: see `sweeps.sweep_samples`.
        count: images per model.
        settings: sampler.
        seed: which noise.
    """

    name: str
    etas: tuple[float, ...]
    slots: int
    count: int
    settings: sampling.Settings
    seed: int


def scored(config, run, setup, plan: Plan) -> dict[str, Any]:
    """The scores of a plan's samples, and a few pictures."""
    firsts = range(0, plan.count, PART)
    parts = [draw_part(config, run, setup, plan, first, len(firsts) > 1) for first in firsts]
    scores, shown = {}, {}
    for name in parts[0]:
        images = np.concatenate([part[name]["images"] for part in parts])
        calls = sum(part[name]["nfe"] * len(part[name]["images"]) for part in parts)
        judged = {} if setup.judge is None else setup.judge.scores(images, len(setup.test))
        scores[name] = {"nfe": calls / plan.count} | judged
        shown[name] = images[: config.report.columns]
    etas = np.asarray(plan.etas, np.float64)
    return {"etas": etas, "count": plan.count, "scores": scores, "pictures": shown}


def draw_part(config, run, setup, plan: Plan, first: int, kept: bool) -> dict[str, Any]:
    """The samples from number `first` on, at most `PART` of every model; kept as a stage where there are more."""
    compute = functools.partial(draw, config, run, setup, plan, first, min(PART, plan.count - first))
    return run.stage(f"{plan.name}_from_{first}", compute) if kept else compute()


def draw(config, run, setup, plan: Plan, first: int, count: int) -> dict[str, Any]:
    """{model: {"images", "nfe" (mean)}} of the single experts and of the merges."""
    key = jax.random.fold_in(setup.keys["sampling"], plan.seed)
    common = dict(key=key, first=first, batch_size=config.sampling.batch_size)
    models = {"EDM": setup.high, "VDM": setup.low}
    found: dict[str, Any] = {}
    what = f"samples, {plan.settings.sampler}, seed {plan.seed}" + (f", from {first}" if first else "")
    with run.progress(count * (len(models) + 1), what) as advance:
        for name, model in models.items():
            own = settings_of(name, plan.settings)
            images, nfe = sampling.generate(model, count, settings=own, advance=advance, **common)
            found[name] = {"images": images, "nfe": float(nfe.mean())}
        swept = sweeps.sweep_samples(
            setup.low,
            setup.high,
            plan.etas,
            count,
            settings=plan.settings,
            slots=plan.slots,
            advance=advance,
            **common,
        )
    merged = zip(swept.images, swept.nfe, strict=True)
    return found | {
        f"eta_{i}": {"images": images, "nfe": float(nfe)} for i, (images, nfe) in enumerate(merged)
    }
