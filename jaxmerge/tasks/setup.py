"""What every stage of an experiment needs: experts, images, keys, thresholds; refused early where they do not fit."""

import dataclasses
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxmerge import noise, thresholds
from jaxmerge.data import Dataset, check_match, load
from jaxmerge.experts.base import Expert
from jaxmerge.merge import Switch, eta_range
from jaxmerge.tasks import experts, quality


@dataclasses.dataclass(frozen=True)
class Setup:
    """What every stage needs.

    Attributes:
        low, high: the experts, called "VDM" and "EDM" in the results.
        train, validation, test: images.
        keys: one key per use.
        candidates: thresholds that a proposal may take.
        fixed_etas: thresholds that are measured whatever is proposed.
        judge: scores samples; None where they are only drawn.
        records: where the experts come from, by name.
    """

    low: Expert
    high: Expert
    train: Dataset
    validation: Dataset
    test: Dataset
    keys: dict[str, jax.Array]
    candidates: list[float]
    fixed_etas: list[float]
    judge: quality.Judge | None
    records: dict[str, dict[str, Any]]

    def gamma(self, eta: float) -> float:
        """The noise level of a threshold."""
        return noise.gamma_of_eta(eta, self.low.gamma_range[0], self.high.gamma_range[1])


def prepare(config: ConfigDict, progress) -> Setup:
    """Experts, images and keys.

    Raises:
        ValueError: experts or images that do not fit each other, a threshold that the experts do not
            allow, or counts that the data set does not have.
    """
    low, high = load_pair(config)
    candidates, fixed = etas_of(config, low, high)
    data = open_splits(config)
    eta = 0.5 * (candidates[0] + candidates[-1])
    Switch(low, high, eta).pixel_scale.check(data["train"].take(1).images, low.image_shape)
    data["test"].take(
        max(config.likelihood.n_images, config.bound.n_images, config.reconstruction.n_images, 1)
    )
    records = {"VDM": experts.record_of(config.experts.low), "EDM": experts.record_of(config.experts.high)}
    check_experts(config, records, data["train"])
    judge = quality.judge(config, data["train"], progress)
    quality.check_counts(judge, config.sampling)
    return Setup(
        low,
        high,
        **data,
        keys=keys_of(config.seed),
        candidates=candidates,
        fixed_etas=fixed,
        judge=judge,
        records=records,
    )


def check_experts(config: ConfigDict, records: dict[str, dict[str, Any]], data: Dataset) -> None:
    """Compares what experts were trained on with the config's images, unless it allows other ones.

    Args:
        config: the whole config.
        records: what is known of each expert's origin, by the expert's name (`experts.record_of`).
        data: the images that the experts are judged by.

    Raises:
        ValueError: an expert of another data set, or of an unknown one.
    """
    for name, record in records.items():
        trained_on = record.get("data", record.get("data_set"))
        check_match(trained_on, data, expert=f"the {name}", override=config.data.allow_other)


def etas_of(config: ConfigDict, low: Expert, high: Expert) -> tuple[list[float], list[float]]:
    """(thresholds that a proposal may take, thresholds that are measured whatever is proposed).

    Raises:
        ValueError: a threshold outside what the experts allow.
    """
    lowest, highest = eta_range(low, high)
    asked = tuple(config.merge.etas)
    fixed = thresholds.standard_etas(low, high) if asked == ("auto",) else [float(eta) for eta in asked]
    for eta in fixed:
        Switch(low, high, eta)  # refuses what the experts do not allow, before anything is computed
    step = config.merge.candidate_step
    inner = np.arange(np.ceil(lowest / step), np.floor(highest / step) + 1) * step
    inner = [round(float(eta), 6) for eta in inner if lowest < eta < highest]
    return sorted({lowest, highest, *inner, *fixed}), fixed


def open_splits(config: ConfigDict) -> dict[str, Dataset]:
    """The config's "train", "validation" and "test" images, the validation images as many as it asks for."""
    asked = config.data
    names = {"train": asked.train_split, "validation": asked.validation_split, "test": asked.test_split}
    data = {part: open_split(config, split) for part, split in names.items()}
    if asked.n_validation:
        data["validation"] = data["validation"].take(asked.n_validation)
    return data


def keys_of(seed: int) -> dict[str, jax.Array]:
    """One key per use of random numbers."""
    key = jax.random.key(seed)
    uses = ("proposal", "grid", "likelihood", "bound", "sampling")
    return {use: jax.random.fold_in(key, i) for i, use in enumerate(uses)}


def open_split(config: ConfigDict, split: str) -> Dataset:
    """One split of the config's data set."""
    return load(config.data.name, split, data_dir=config.data.data_dir or None)


def load_pair(config: ConfigDict) -> tuple[Expert, Expert]:
    """The low-noise and the high-noise expert, made on the way where the config says so.

    Raises:
        ValueError: a missing or damaged expert.
    """
    experts.provide(config.experts)
    low, high = experts.load_expert(config.experts.low), experts.load_expert(config.experts.high)
    if hasattr(high, "align_pixel_scale"):
        high = high.replace(align_pixel_scale=config.experts.align_pixel_scale)
    return low, high
