"""The stages that measure exact likelihoods: choosing the grid on training images, then scoring test images."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxmerge import grids, likelihood, sweeps
from jaxmerge import probability_flow as flow
from jaxmerge.likelihood import Likelihood
from jaxmerge.merge import Switch
from jaxmerge.tasks.setup import Setup

# Step controls whose density is chosen on training images.
GRIDS = {"fixed": flow.FixedGrid, "multistep": flow.MultistepGrid}
GRID_IMAGES = 32
# Step controls that choose their own steps.
ADAPTIVE = {"per_image": flow.PerImage, "batch": flow.BatchCoupled}


def choose_grid(config: ConfigDict, setup: Setup, eta: float) -> dict[str, Any]:
    """The fixed grid of the likelihood, by doubling on training images."""
    given = config.likelihood.steps_per_gamma
    if given and config.likelihood.control in GRIDS:
        return {"steps_per_gamma": given, "error_scale": 1.0}
    if config.likelihood.control not in GRIDS:
        return {"steps_per_gamma": 0.0, "error_scale": 1.0}
    data = setup.train.take(GRID_IMAGES)
    chosen = grids.choose_grid(
        Switch(setup.low, setup.high, eta),
        data.images,
        key=setup.keys["grid"],
        tolerance=config.likelihood.tolerance,
        settings=likelihood_settings(config, {"steps_per_gamma": 1.0, "error_scale": 1.0})[0],
        batch_size=GRID_IMAGES,
    )
    return {
        "steps_per_gamma": chosen.control.steps_per_gamma,
        "error_scale": chosen.refinement.error_scale,
        "densities": chosen.densities,
        "mean_change": chosen.mean_change,
        "max_change": chosen.max_change,
        "n_images": chosen.n_images,
    }


def likelihood_settings(config: ConfigDict, grid) -> tuple[likelihood.Settings, likelihood.Refinement | None]:
    """The config's likelihood on a chosen grid.

    Raises:
        ValueError: an unknown kind of step control, or several draws (a sweep takes one).
    """
    asked = config.likelihood
    if asked.control in GRIDS:
        control = GRIDS[asked.control](float(grid["steps_per_gamma"]))
    elif asked.control in ADAPTIVE:
        control = ADAPTIVE[asked.control](asked.rtol, asked.atol)
    else:
        known = ", ".join([*GRIDS, *ADAPTIVE])
        raise ValueError(f"likelihood.control must be one of {known}, got {asked.control!r}.")
    settings = likelihood.Settings(
        control=control,
        dequantization=asked.dequantization,
        trace=asked.trace,
        probes=asked.probes,
    )
    if asked.control not in GRIDS:
        return settings, None
    return settings, likelihood.Refinement(asked.image_tolerance, float(grid["error_scale"]))


def measure_likelihoods(config, run, setup, etas, settings, refinement) -> dict[str, Any]:
    """Exact likelihoods of both experts and of every merge on test images."""
    data = setup.test.take(config.likelihood.n_images)
    common = dict(
        key=setup.keys["likelihood"],
        index=data.index,
        refinement=refinement,
        batch_size=config.likelihood.batch_size,
    )

    def compute():
        with run.progress(len(data), "likelihoods") as advance:
            found = sweeps.sweep_likelihood(
                setup.low, setup.high, etas, data.images, settings=settings, advance=advance, **common
            )
        return {
            "VDM": as_arrays(found.low),
            "EDM": as_arrays(found.high),
            "merged": {str(i): as_arrays(r) for i, r in enumerate(found.merged)},
            "calls": found.calls,
            "calls_apart": found.calls_apart,
        }

    def uniform():
        return as_arrays(
            likelihood.evaluate(
                setup.high, data.images, settings=settings.replace(dequantization="uniform"), **common
            )
        )

    measured = run.stage("likelihood", compute)
    measured["EDM_uniform"] = run.stage("likelihood_uniform", uniform)
    return measured


def measure_alignment(config, run, setup, eta, settings, refinement) -> dict[str, Any]:
    """bpd with and without pixel-scale alignment, on the same images and noise."""
    count = min(config.likelihood.alignment_images, config.likelihood.n_images)
    if count == 0 or not getattr(setup.high, "align_pixel_scale", False):
        return {}
    data = setup.test.take(count)

    def compute():
        listing = setup.high.replace(align_pixel_scale=False)
        gamma = setup.gamma(eta)
        models = {"EDM": listing, "merged": Switch(setup.low, listing, gamma=gamma)}
        with run.progress(2 * len(data), "without alignment") as advance:
            return {
                name: as_arrays(
                    likelihood.evaluate(
                        model,
                        data.images,
                        key=setup.keys["likelihood"],
                        index=data.index,
                        settings=settings,
                        refinement=refinement,
                        batch_size=config.likelihood.batch_size,
                        advance=advance,
                    )
                )
                for name, model in models.items()
            }

    return run.stage("alignment", compute)


def as_arrays(result: Likelihood) -> dict[str, np.ndarray]:
    """A likelihood as a stage's dictionary."""
    return {name: np.asarray(value) for name, value in result._asdict().items()}


def as_likelihood(arrays: dict[str, np.ndarray]) -> Likelihood:
    """The inverse of `as_arrays`."""
    return Likelihood(**arrays)
