"""The paper's experiment: two experts, every merge of them, likelihood and sample quality.

The order is the order of honesty. Thresholds are proposed from validation images, the solver's grid is
chosen on training images, and only then the test images are looked at, once.
"""

import functools

from ml_collections import ConfigDict

from jaxmerge.run import Run
from jaxmerge.tasks import bounds, likelihoods, samples, summary
from jaxmerge.tasks.setup import prepare


def run(config: ConfigDict, run: Run) -> None:
    """Proposes thresholds, measures, and writes results and report."""
    check_late_stages(config)
    setup = prepare(config)
    proposal = bounds.propose(config, run, setup)
    etas = sorted({*setup.fixed_etas, proposal["best"], proposal["cautious"]})
    grid = run.stage("grid", functools.partial(likelihoods.choose_grid, config, setup, proposal["best"]))
    settings, refinement = likelihoods.likelihood_settings(config, grid)
    measured = {
        "etas": etas,
        "proposal": proposal,
        "grid": grid,
        "likelihood": likelihoods.measure_likelihoods(config, run, setup, etas, settings, refinement),
        "alignment": likelihoods.measure_alignment(
            config, run, setup, proposal["best"], settings, refinement
        ),
        "bound": bounds.measure_bound(config, run, setup, etas),
        "samples": samples.measure_samples(config, run, setup, etas, proposal),
    }
    results, pictures = summary.summarise(config, setup, measured)
    run.finish(results, pictures)


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
    samples.load_classifier(config.metric.classifier)
