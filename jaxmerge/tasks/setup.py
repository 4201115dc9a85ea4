"""What every stage of an experiment needs: experts, images, keys, thresholds; refused early where they do not fit."""

import dataclasses

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxmerge import noise, thresholds
from jaxmerge.data import Dataset, load
from jaxmerge.experts import io
from jaxmerge.experts.base import Expert
from jaxmerge.merge import Switch, eta_range
from jaxmerge.tasks import experts


@dataclasses.dataclass(frozen=True)
class Setup:
    """What every stage needs.

    Attributes:
        low, high: the experts, called "VDM" and "EDM" in the results.
        train, validation, test: images.
        keys: one key per use.
        candidates: thresholds that a proposal may take.
        fixed_etas: thresholds that are measured whatever is proposed.
    """

    low: Expert
    high: Expert
    train: Dataset
    validation: Dataset
    test: Dataset
    keys: dict[str, jax.Array]
    candidates: list[float]
    fixed_etas: list[float]

    def gamma(self, eta: float) -> float:
        """The noise level of a threshold."""
        return noise.gamma_of_eta(eta, self.low.gamma_range[0], self.high.gamma_range[1])


def prepare(config: ConfigDict) -> Setup:
    """Experts, images and keys.

    Raises:
        ValueError: experts or images that do not fit each other, a threshold that the experts do not
            allow, or counts that the data set does not have.
    """
    experts.provide(config.experts)
    low, high = load_expert(config.experts.low), load_expert(config.experts.high)
    if hasattr(high, "align_pixel_scale"):
        high = high.replace(align_pixel_scale=config.experts.align_pixel_scale)
    lowest, highest = eta_range(low, high)
    train = load(config.data.name, config.data.train_split)
    Switch(low, high, 0.5 * (lowest + highest)).pixel_scale.check(train.images[:1], low.image_shape)
    asked = tuple(config.merge.etas)
    fixed = thresholds.standard_etas(low, high) if asked == ("auto",) else [float(eta) for eta in asked]
    for eta in fixed:
        Switch(low, high, eta)  # refuses what the experts do not allow, before anything is computed
    step = config.merge.candidate_step
    inner = np.arange(np.ceil(lowest / step), np.floor(highest / step) + 1) * step
    inner = [round(float(eta), 6) for eta in inner if lowest < eta < highest]
    candidates = sorted({lowest, highest, *inner, *fixed})
    key = jax.random.key(config.seed)
    uses = ("proposal", "grid", "likelihood", "bound", "sampling")
    test = load(config.data.name, config.data.test_split)
    test.take(max(config.likelihood.n_images, config.bound.n_images))
    return Setup(
        low,
        high,
        train,
        load(config.data.name, config.data.validation_split),
        test,
        {use: jax.random.fold_in(key, i) for i, use in enumerate(uses)},
        candidates,
        fixed,
    )


def load_expert(name: str) -> Expert:
    """A shipped expert by name, or any by the path of its checkpoint."""
    return io.shipped(name) if name in io.shipped_names() else io.load_expert(name)
