"""Figures of an expert on validation images, from the same noise at every evaluation."""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.data import Dataset
from jaxmerge.experts.base import Expert
from jaxmerge.noise import PixelScale
from jaxmerge.training import objectives

# Noise levels between which the diffusion term is told apart, the same for every expert.
LEVELS = (-9.0, -6.0, -3.0, 0.0, 3.0)
# In the name of every column about one part of the noise range.
BY_LEVEL = "_gamma_"


def parts_of(gamma_range: tuple[float, float]) -> dict[tuple[float, float], int]:
    """Ends of every part of the noise range that an expert knows, and the part's number."""
    ends = (-np.inf, *LEVELS, np.inf)
    found = {}
    for number, (low, high) in enumerate(itertools.pairwise(ends)):
        low, high = max(low, gamma_range[0]), min(high, gamma_range[1])
        if low < high:
            found[low, high] = number
    return found


def column(name: str, part: tuple[float, float]) -> str:
    """Column of a figure in one part of the noise range."""
    return f"{name}{BY_LEVEL}{part[0]:.4g}_to_{part[1]:.4g}"


@functools.partial(jax.jit, static_argnames=("objective", "scale"))
def _figures(expert, images, key, *, objective, scale):
    loss = objective(expert, images, key, scale, train=False)
    gamma, bits = objectives.diffusion_bits(expert, images, key, scale)
    part = jax.nn.one_hot(jnp.searchsorted(jnp.asarray(LEVELS), gamma), len(LEVELS) + 1)
    return jnp.concatenate([jnp.stack([loss, jnp.mean(bits)]), bits @ part / len(bits)])


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
        ``evaluate(expert) -> {"loss", "diffusion_bpd", "diffusion_bpd_se", "bpd_gamma_A_to_B" ...}``: the
        objective without dropout, the diffusion term over the expert's own range with the standard error of its
        `repeats` passes, and its parts between `LEVELS`, by which two experts in training can be compared.
    """
    scale = PixelScale(dataset.levels)
    key = jax.random.key(seed)

    def evaluate(expert: Expert) -> dict[str, float]:
        draws = np.zeros((3 + len(LEVELS), repeats))
        for number, batch in enumerate(dataset.batches(batch_size)):
            images, share = batch.images, len(batch) / len(dataset)
            for r in range(repeats):
                draw = jax.random.fold_in(key, number * repeats + r)
                figures = _figures(expert, images, draw, objective=objective, scale=scale)
                draws[:, r] += share * np.asarray(figures, np.float64)
        loss, bpd, *parts = draws
        se = float(np.std(bpd, ddof=1) / np.sqrt(repeats)) if repeats > 1 else float("nan")
        found = {"loss": float(loss.mean()), "diffusion_bpd": float(bpd.mean()), "diffusion_bpd_se": se}
        return found | {
            column("bpd", ends): float(parts[i].mean()) for ends, i in parts_of(expert.gamma_range).items()
        }

    return evaluate
