"""Figures of an expert on validation images, from the same noise at every evaluation."""

import functools
from collections.abc import Callable

import jax
import numpy as np

from jaxmerge.data import Dataset
from jaxmerge.experts.base import Expert
from jaxmerge.noise import PixelScale
from jaxmerge.training import objectives


@functools.partial(jax.jit, static_argnames=("objective", "scale"))
def _figures(expert, images, key, *, objective, scale):
    loss = objective(expert, images, key, scale, train=False)
    return loss, objectives.diffusion_bpd(expert, images, key, scale)


def validator(
    objective: Callable, dataset: Dataset, *, seed: int = 0, repeats: int = 8, batch_size: int = 256
) -> Callable[[Expert], dict[str, float]]:
    """A function from an expert to its figures on `dataset`.

    The noise is the same at every call, so that a change of the figures is a change of the expert.

    Args:
        objective: ``objective(expert, images, key, scale, train=False)``, as in `objectives`.
        dataset: the validation images.
        seed: of the noise.
        repeats: noise draws per image; more make the figures steadier.
        batch_size: images per call, at most; with less memory, less.

    Returns:
        ``evaluate(expert) -> {"loss", "diffusion_bpd", "diffusion_bpd_se"}``: the objective without
        dropout, and the diffusion term over the expert's own range with the standard error of its
        `repeats` passes.
    """
    scale = PixelScale(dataset.levels)
    key = jax.random.key(seed)

    def evaluate(expert: Expert) -> dict[str, float]:
        draws = np.zeros((2, repeats))
        for number, batch in enumerate(dataset.batches(batch_size)):
            images, share = batch.images, len(batch) / len(dataset)
            for r in range(repeats):
                draw = jax.random.fold_in(key, number * repeats + r)
                figures = _figures(expert, images, draw, objective=objective, scale=scale)
                draws[:, r] += share * np.asarray(figures, np.float64)
        loss, bpd = draws
        se = float(np.std(bpd, ddof=1) / np.sqrt(repeats)) if repeats > 1 else float("nan")
        return {"loss": float(loss.mean()), "diffusion_bpd": float(bpd.mean()), "diffusion_bpd_se": se}

    return evaluate
