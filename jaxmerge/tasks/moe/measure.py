"""What is measured of every method, on the same test images and the same noise.

bound           every model on common strata, so that differences between methods are paired
likelihood      exact, by the probability flow; only where the field is smooth
samples         a model that was drawn with seed s samples with noise s; a method with one model, with every seed
reconstruction  PSNR, SSIM and LPIPS of one denoising call from a fixed noise level
cost            seconds per image, network calls, planned memory, parameters; of a method's first model
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxmerge import grids, likelihood, sampling, vlb
from jaxmerge.experts.base import Expert
from jaxmerge.gate.cost import parameter_counts
from jaxmerge.gate.gated import Gated
from jaxmerge.metrics import lpips, reconstruction
from jaxmerge.run import Run
from jaxmerge.tasks import costs as sampling_costs
from jaxmerge.tasks import likelihoods, reconstructions
from jaxmerge.tasks.likelihoods import as_arrays
from jaxmerge.tasks.moe.models import AtOneLevel, Method
from jaxmerge.tasks.samples import sampler_settings
from jaxmerge.tasks.setup import Setup

GRID_IMAGES = 24
SHOWN = 12


@dataclasses.dataclass(frozen=True)
class Frame:
    """What all measurements share.

    Attributes:
        config: the run's.
        run: where stages are kept.
        setup: images, keys, judge.
        levels: noise levels that are edges of the bound's strata.
        settings, refinement: of the exact likelihood; None where it is left out.
    """

    config: ConfigDict
    run: Run
    setup: Setup
    levels: tuple[float, ...]
    settings: likelihood.Settings | None = None
    refinement: likelihood.Refinement | None = None


def strata(config: ConfigDict, setup: Setup, cuts: list[float]) -> tuple[float, ...]:
    """Edges: evenly over the merged range, and every level at which a field jumps."""
    low, high = setup.low.gamma_range[0], setup.high.gamma_range[1]
    ends = [g for e in (setup.low, setup.high) for g in e.gamma_range]
    even = np.linspace(low, high, config.moe.strata + 1).tolist()
    # An even edge next to a cut would make a stratum of almost no width.
    near = 0.2 * (high - low) / config.moe.strata
    kept = [g for g in even[1:-1] if all(abs(g - c) > near for c in (*cuts, *ends))]
    return tuple(sorted({*kept, *cuts, *ends}))


def with_grid(frame: Frame, expert: Expert) -> Frame:
    """The frame with the likelihood's grid, chosen on training images for one mixture."""
    config, setup = frame.config, frame.setup
    if not config.likelihood.n_images:
        return frame

    def compute():
        if config.likelihood.control not in likelihoods.GRIDS:
            return {"steps_per_gamma": 0.0, "error_scale": 1.0}
        first = likelihoods.likelihood_settings(config, {"steps_per_gamma": 1.0, "error_scale": 1.0})[0]
        chosen = grids.choose_grid(
            expert,
            setup.train.take(GRID_IMAGES).images,
            key=setup.keys["grid"],
            tolerance=config.likelihood.tolerance,
            settings=first,
            batch_size=GRID_IMAGES,
        )
        return {
            "steps_per_gamma": chosen.control.steps_per_gamma,
            "error_scale": chosen.refinement.error_scale,
            "n_images": chosen.n_images,
        }

    grid = frame.run.stage("grid", compute)
    settings, refinement = likelihoods.likelihood_settings(config, grid)
    return dataclasses.replace(frame, settings=settings, refinement=refinement)


def measure(frame: Frame, method: Method) -> dict[str, Any]:
    """Every model of a method, one stage each, and the method's cost.

    Returns:
        {"models": [{"bound" [N, 3], "likelihood", "samples" {seed: scores}, "psnr", "ssim", "pictures"}], "cost"}.
    """
    found = []
    for number, model in enumerate(method.models):
        seeds = range(frame.config.moe.seeds) if len(method.models) == 1 else (number,)

        def compute(model=model, seeds=seeds, number=number):
            return measure_model(
                frame, model, tuple(seeds), f"{method.name}, {number + 1} of {len(method.models)}"
            )

        found.append(frame.run.stage(f"{method.key}_{number}", compute))
    spent = frame.run.stage(f"{method.key}_cost", lambda: costs(frame, method.models[0]))
    return {"models": found, "cost": spent}


def measure_model(frame: Frame, model: Expert, seeds: tuple[int, ...], name: str) -> dict[str, Any]:
    """All figures of one model, as a stage keeps them."""
    found: dict[str, Any] = {}
    if frame.config.bound.n_images:
        found["bound"] = bound(frame, model, name)
    if frame.settings is not None and model.smooth:
        found["likelihood"] = exact(frame, model, name)
    if frame.config.sampling.n_samples:
        drawn = {seed: samples(frame, model, seed, name) for seed in seeds}
        found["samples"] = {str(seed): scores for seed, (_, scores) in drawn.items()}
        found["pictures"] = drawn[seeds[0]][0][:SHOWN]
    return found | restored(frame, model)


def bound(frame: Frame, model: Expert, name: str) -> np.ndarray:
    """(prior, reconstruction, diffusion) per test image [N, 3], bits per dimension."""
    asked, data = frame.config.bound, frame.setup.test.take(frame.config.bound.n_images)
    with frame.run.progress(len(data) * asked.repeats, f"{name}, bound") as advance:
        curves = vlb.error_curves(
            {"model": AtOneLevel(model)},
            data.images,
            key=frame.setup.keys["bound"],
            thresholds=frame.levels,
            index=data.index,
            per_interval=asked.n_times,
            repeats=asked.repeats,
            batch_size=asked.batch_size,
            advance=advance,
        )
    return curves.single(0)


def exact(frame: Frame, model: Expert, name: str) -> dict[str, np.ndarray]:
    """Exact likelihoods of test images."""
    asked, data = frame.config.likelihood, frame.setup.test.take(frame.config.likelihood.n_images)
    with frame.run.progress(len(data), f"{name}, likelihood") as advance:
        return as_arrays(
            likelihood.evaluate(
                model,
                data.images,
                key=frame.setup.keys["likelihood"],
                index=data.index,
                settings=frame.settings,
                refinement=frame.refinement,
                batch_size=asked.batch_size,
                advance=advance,
            )
        )


def samples(frame: Frame, model: Expert, seed: int, name: str) -> tuple[np.ndarray, dict[str, float]]:
    """One seed's samples and their scores."""
    config, setup = frame.config, frame.setup
    asked = config.sampling
    with frame.run.progress(asked.n_samples, f"{name}, samples {seed}") as advance:
        images, nfe = sampling.generate(
            model,
            asked.n_samples,
            key=jax.random.fold_in(setup.keys["sampling"], seed),
            settings=sampler_settings(config, asked.sampler[0]),
            batch_size=asked.batch_size,
            advance=advance,
        )
    scores = {} if setup.judge is None else setup.judge.scores(images, len(setup.test))
    return images, {"nfe": float(nfe.mean()), **scores}


def restored(frame: Frame, model: Expert) -> dict[str, float]:
    """PSNR, SSIM and, if asked for, LPIPS of test images after one denoising call, on the same noise for every model."""
    setup, gamma = frame.setup, frame.config.moe.reconstruction_gamma
    network = frame.config.reconstruction.lpips
    data = setup.test.take(max(frame.config.bound.n_images, 1))
    images = reconstruction.reconstruct(
        model,
        data.images,
        gamma,
        key=jax.random.fold_in(setup.keys["bound"], reconstructions.NOISE),
        index=data.index,
        batch_size=frame.config.bound.batch_size,
    )
    found = reconstruction.score(
        data.images,
        images,
        gamma=gamma,
        scale=setup.low.pixel_scale,
        window=reconstructions.window_of(data.shape),
        lpips=reconstruction.perceptual(lpips.load(network)) if network else None,
    )
    chosen = ("psnr", "psnr_se", "ssim", "ssim_se", *(("lpips", "lpips_se") if network else ()))
    return {name: getattr(found, name) for name in chosen}


def costs(frame: Frame, model: Expert) -> dict[str, Any]:
    """Latency of sampling, network calls, planned memory of one call, parameters.

    Returns:
        What `sampling_costs.of_sampling` measures; for a mixture under a gate "parameters" is the sum of its parts, which
        stand beside it: "experts_parameters", or "trunk_parameters" and "adapters_parameters", and "gate_parameters".
    """
    asked = frame.config.moe
    spent = sampling_costs.of_sampling(
        model,
        frame.setup.keys["sampling"],
        sampler_settings(frame.config, frame.config.sampling.sampler[0]),
        batch_size=asked.latency_batch,
        repeats=asked.latency_repeats,
    )
    if not isinstance(model, Gated):
        return spent | {"gate_parameters": 0}
    parts = parameter_counts(model)
    total = parts.pop("total")
    return spent | {"parameters": total} | {f"{part}_parameters": count for part, count in parts.items()}
