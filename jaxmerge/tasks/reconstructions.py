"""The stage that removes noise from test images in one call and compares with the originals: PSNR, SSIM, LPIPS."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxmerge.experts.base import check_range
from jaxmerge.merge import Switch
from jaxmerge.metrics import lpips, reconstruction
from jaxmerge.run import Run
from jaxmerge.tasks.setup import Setup

# Largest window of SSIM that images of this side allow is odd; 11 is the usual one.
USUAL_WINDOW = 11
# Sets the noise of reconstructions apart from the bound's.
NOISE = 0x5EC
# Columns of a result; the rest of a score is the same for all models.
FIGURES = ("psnr", "psnr_se", "psnr_pooled", "exact", "ssim", "ssim_se", "lpips", "lpips_se")


def window_of(shape: tuple[int, int, int]) -> int:
    """SSIM's window: the usual one, or the largest odd one that fits."""
    side = min(shape[:2])
    return min(USUAL_WINDOW, side - (side + 1) % 2)


def check(config: ConfigDict, setup: Setup) -> None:
    """Refuses now what the stage would refuse after hours.

    Raises:
        ValueError: see `check_levels` and `check_lpips`.
    """
    asked = config.reconstruction
    if asked.n_images:
        check_levels(asked.gammas, setup, what="reconstruction.gammas")
        check_lpips(asked.lpips, setup)


def check_levels(gammas: Sequence[float], setup: Setup, *, what: str) -> None:
    """Refuses noise levels of reconstructions.

    Raises:
        ValueError: a level outside the range of an expert; `what` names the setting.
    """
    for gamma in gammas:
        for expert in (setup.low, setup.high):
            check_range(expert, gamma, gamma, what=what)


def check_lpips(network: str, setup: Setup) -> None:
    """Refuses an LPIPS network by its path; empty for none.

    Raises:
        ValueError: no LPIPS there, or images too small for it.
    """
    if network:
        image = setup.test.take(1).images
        lpips.distances(lpips.load(network), image, image, scale=setup.low.pixel_scale)


def measure(config: ConfigDict, run: Run, setup: Setup, eta: float) -> dict[str, Any]:
    """Both experts and their merge at `eta`, at every level of `reconstruction.gammas`, on the same noise.

    Returns:
        {level: {model: {figure: value}}, "definition"}; a level's key is its place among the gammas.
    """
    asked = config.reconstruction
    models = {"EDM": setup.high, "merged": Switch(setup.low, setup.high, eta), "VDM": setup.low}
    data = setup.test.take(asked.n_images)

    def compute() -> dict[str, Any]:
        perceptual = reconstruction.perceptual(lpips.load(asked.lpips)) if asked.lpips else None
        compare = functools.partial(
            reconstruction.compare,
            models,
            data.images,
            key=jax.random.fold_in(setup.keys["bound"], NOISE),
            index=data.index,
            scale=setup.low.pixel_scale,
            window=window_of(data.shape),
            lpips=perceptual,
            batch_size=asked.batch_size,
        )
        found: dict[str, Any] = {}
        with run.progress(len(asked.gammas), "reconstructions", unit="levels") as advance:
            for number, gamma in enumerate(asked.gammas):
                scores = compare(gamma)
                found[str(number)] = {name: figures(score) for name, score in scores.items()}
                found["definition"] = scores["VDM"].definition
                advance(1)
        return found

    return run.stage("reconstructions", compute)


def figures(score: reconstruction.Scores) -> dict[str, float]:
    """A score's numbers; those of LPIPS only where it was asked for."""
    values = {name: getattr(score, name) for name in FIGURES}
    return {name: value for name, value in values.items() if value is not None}


def entries(config: ConfigDict, found: dict[str, Any], eta: float) -> list[dict[str, Any]]:
    """One row per noise level and model."""
    return [
        {"gamma": float(gamma), "model": name, "eta": eta if name == "merged" else None} | values
        for number, gamma in enumerate(config.reconstruction.gammas)
        for name, values in found[str(number)].items()
    ]
