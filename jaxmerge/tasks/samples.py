"""The stages that draw samples of every model and sampler, and score them."""

import functools
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxmerge import probability_flow as flow
from jaxmerge import sampling, sweeps


def measure_samples(config, run, setup, etas, proposal) -> dict[str, Any]:
    """Samples of every model and sampler: their scores and a few pictures."""
    judge = setup.judge
    measured: dict[str, Any] = {}
    for sampler in config.sampling.sampler:
        settings = sampler_settings(config, sampler)
        for seed, swept, count in sample_plan(config.sampling, sampler, etas, proposal):
            name = f"samples_{sampler}_{seed}_{len(swept)}x{count}"
            slots = len(etas) if sampler != "ancestral" or len(swept) > 1 else 1
            compute = functools.partial(draw, config, run, setup, swept, slots, count, settings, seed)
            measured[name] = run.stage(name, compute)
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


def sampler_settings(config: ConfigDict, sampler: str) -> sampling.Settings:
    """The config's settings of one sampler."""
    steps = config.sampling.ancestral_steps if sampler == "ancestral" else config.sampling.heun_steps
    return sampling.Settings(
        sampler=sampler,
        steps=steps,
        control=flow.FixedGrid(config.sampling.ode_steps_per_gamma),
        decoder=config.sampling.decoder,
    )


def draw(config, run, setup, etas, slots, count, settings, seed) -> dict[str, Any]:
    """One seed's samples of the single experts and of the merges, scored."""
    key = jax.random.fold_in(setup.keys["sampling"], seed)
    common = dict(key=key, batch_size=config.sampling.batch_size)
    models = {"EDM": setup.high, "VDM": setup.low}
    found: dict[str, Any] = {}
    units = count * (len(models) + 1)
    with run.progress(units, f"samples, {settings.sampler}, seed {seed}") as advance:
        for name, model in models.items():
            own = settings
            if name == "EDM" and settings.sampler == "heun":
                own = settings.replace(final="denoise")  # EDM's own sampler ends at sigma = 0
            images, nfe = sampling.generate(model, count, settings=own, advance=advance, **common)
            found[name] = (images, float(nfe.mean()))
        swept = sweeps.sweep_samples(
            setup.low, setup.high, etas, count, settings=settings, slots=slots, advance=advance, **common
        )
    merged = list(zip(swept.images, swept.nfe, strict=True))
    found |= {f"eta_{i}": pair for i, pair in enumerate(merged)}
    scored = {
        name: {"nfe": nfe} | ({} if setup.judge is None else setup.judge.scores(images, len(setup.test)))
        for name, (images, nfe) in found.items()
    }
    columns = config.report.columns
    shown = {name: images[:columns] for name, (images, _) in found.items()}
    return {"etas": np.asarray(etas, np.float64), "count": count, "scores": scored, "pictures": shown}
