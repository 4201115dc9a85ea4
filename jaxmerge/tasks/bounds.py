"""The stages that measure error curves: thresholds from validation images, bounds of test images."""

from typing import Any

import jax
from ml_collections import ConfigDict

from jaxmerge import thresholds, vlb
from jaxmerge.data import Dataset
from jaxmerge.run import Run
from jaxmerge.tasks.setup import Setup


def error_curves(config, run: Run, setup: Setup, data: Dataset, what: str, key: jax.Array) -> vlb.Curves:
    """Both experts' error curves on some images; always the same strata, so that one program serves."""
    with run.progress(len(data) * config.bound.repeats, what) as advance:
        return vlb.error_curves(
            {"VDM": setup.low, "EDM": setup.high},
            data.images,
            key=key,
            thresholds=[setup.gamma(eta) for eta in setup.candidates],
            index=data.index,
            per_interval=config.bound.n_times,
            repeats=config.bound.repeats,
            batch_size=config.bound.batch_size,
            advance=advance,
        )


def propose(config: ConfigDict, run: Run, setup: Setup) -> dict[str, Any]:
    """Error curves on validation images, and what they propose."""
    data = setup.validation

    def compute():
        curves = error_curves(config, run, setup, data, "error curves", setup.keys["proposal"])
        found = thresholds.propose(curves, setup.candidates)
        weights = thresholds.best_weights(curves)
        return {
            **found._asdict(),
            "curve_gamma": curves.centres,
            "curve_density": curves.density(),
            "weights": weights._asdict(),
            "n_images": len(data),
        }

    return run.stage("proposal", compute)


def measure_bound(config, run, setup, etas) -> dict[str, Any]:
    """The bound of both experts and of every merge on test images: terms per image."""
    data = setup.test.take(config.bound.n_images)

    def compute():
        curves = error_curves(config, run, setup, data, "bounds", setup.keys["bound"])
        return {
            "VDM": curves.single(0),
            "EDM": curves.single(1),
            "merged": {str(i): curves.switch(setup.gamma(eta)) for i, eta in enumerate(etas)},
        }

    return run.stage("bound", compute)
