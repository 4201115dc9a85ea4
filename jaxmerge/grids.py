"""Choosing a likelihood's fixed grid once, on training images, by doubling.

The default step control is a grid of equal steps that does not depend on the batch and whose cost is known
beforehand. Its density is the coarsest whose doubling changes bpd by less than the asked tolerance; the ratio
of that change to the embedded error estimate then says which single images need a finer grid.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Key, UInt8

from jaxmerge import likelihood
from jaxmerge import probability_flow as flow
from jaxmerge.experts.base import Expert


class GridChoice(NamedTuple):
    """A fixed grid chosen by doubling, and the evidence.

    Attributes:
        control: the grid.
        refinement: for `evaluate`, with the measured ratio of error to estimate.
        densities: steps per unit of gamma that were tried [T].
        mean_change: mean |change of bpd| from each density to the next [T - 1].
        max_change: largest change of an image [T - 1].
        n_images: training images it was chosen on.
    """

    control: flow.FixedGrid
    refinement: likelihood.Refinement
    densities: list[float]
    mean_change: list[float]
    max_change: list[float]
    n_images: int


def choose_grid(
    expert: Expert,
    images: UInt8[np.ndarray, "N H W C"],
    *,
    key: Key[Array, ""],
    tolerance: float,
    settings: likelihood.Settings = likelihood.Settings(),
    first: float = 0.75,
    most: float = 128.0,
    batch_size: int = 64,
) -> GridChoice:
    """Doubles the grid on training images until the mean change of bpd is below `tolerance`.

    The coarser of the last two grids is taken: the change to the finer one is its error.

    Args:
        expert: the merge that will be evaluated.
        images: training images, a few dozen.
        key, settings, batch_size: as in `evaluate`; the settings' control says which kind of grid.
        tolerance: bits per dimension.
        first, most: densities to start from and to give up at, steps per unit of gamma.

    Raises:
        ValueError: the tolerance is not reached; float32 cannot resolve every tolerance.
    """
    kind = settings.control if isinstance(settings.control, flow.FixedGrid) else flow.FixedGrid()
    densities, results, mean_change, max_change = [first], [], [], []
    while densities[-1] <= most:
        control = kind.replace(steps_per_gamma=densities[-1])
        results.append(
            likelihood.evaluate(
                expert, images, key=key, settings=settings.replace(control=control), batch_size=batch_size
            )
        )
        if len(results) > 1:
            before, after = results[-2:]
            both = before.ok & after.ok
            change = np.abs(after.bpd - before.bpd)[both]
            if len(change) == 0:
                break
            mean_change.append(float(change.mean()))
            max_change.append(float(change.max()))
            if mean_change[-1] <= tolerance:
                scale = float(change.mean() / before.error[both].mean())
                return GridChoice(
                    kind.replace(steps_per_gamma=densities[-2]),
                    likelihood.Refinement(tolerance, scale),
                    densities,
                    mean_change,
                    max_change,
                    len(images),
                )
        densities.append(2 * densities[-1])
    raise ValueError(
        f"no fixed grid up to {most:g} steps per unit of gamma changes bpd by less than {tolerance:g} on "
        f"{len(images)} training images (the last change was {mean_change[-1] if mean_change else math.nan:.2g}); "
        "ask for a larger tolerance or check the expert."
    )
