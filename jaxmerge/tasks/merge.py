"""The paper's experiment: two experts, every merge of them, likelihood and sample quality.

The order is the order of honesty. Thresholds are proposed from validation images, the solver's grid is
chosen on training images, and only then the test images are looked at, once. Parts are left out where the
config asks for no images of them.
"""

import functools
from typing import Any

from ml_collections import ConfigDict

from jaxmerge.run import Run
from jaxmerge.tasks import bounds, costs, experts, likelihoods, reconstructions, samples, summary
from jaxmerge.tasks.setup import Setup, prepare


def run(config: ConfigDict, run: Run) -> None:
    """Proposes thresholds, measures, and writes results and report."""
    check_late_stages(config)
    setup = prepare(config, run.progress)
    reconstructions.check(config, setup)
    experts.pin(run, {"VDM": setup.low, "EDM": setup.high}, setup.records)
    measured = measure(config, run, setup)
    results, pictures = summary.summarise(config, setup, measured)
    run.finish(results, pictures)


def measure(config: ConfigDict, run: Run, setup: Setup) -> dict[str, Any]:
    """Every part that the config asks for, each a stage of the run."""
    measured: dict[str, Any] = {}
    etas = list(setup.fixed_etas)
    if config.merge.propose:
        measured["proposal"] = proposal = bounds.propose(config, run, setup)
        etas = sorted({*etas, proposal["best"], proposal["cautious"]})
    measured["etas"] = etas
    measured["chosen_eta"] = chosen = (
        measured["proposal"]["best"] if config.merge.propose else etas[len(etas) // 2]
    )
    if config.likelihood.n_images:
        grid = run.stage("grid", functools.partial(likelihoods.choose_grid, config, setup, chosen))
        settings, refinement = likelihoods.likelihood_settings(config, grid)
        common = (config, run, setup)
        measured["grid"] = grid
        measured["likelihood"] = likelihoods.measure_likelihoods(*common, etas, settings, refinement)
        measured["alignment"] = likelihoods.measure_alignment(*common, chosen, settings, refinement)
    if config.bound.n_images:
        measured["bound"] = bounds.measure_bound(config, run, setup, etas)
    measured["samples"] = samples.measure_samples(config, run, setup, etas, measured.get("proposal"))
    if config.reconstruction.n_images:
        measured["reconstructions"] = reconstructions.measure(config, run, setup, chosen)
    if config.cost.repeats:
        measured["cost"] = costs.measure(config, run, setup, chosen)
    return measured


def check_late_stages(config: ConfigDict) -> None:
    """Refuses now what a later stage would refuse after minutes of work."""
    if config.likelihood.draws != 1:
        raise ValueError(
            f"likelihood.draws must be 1 in a sweep over thresholds, got {config.likelihood.draws}; score single "
            "merges with several draws by jaxmerge.evaluate."
        )
    likelihoods.likelihood_settings(config, {"steps_per_gamma": 1.0, "error_scale": 1.0})
    for sampler in config.sampling.sampler:
        samples.sampler_settings(config, sampler)
