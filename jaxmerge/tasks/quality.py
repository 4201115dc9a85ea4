"""How a run judges samples: a classifier's features, or Inception's; each under its own name.

A judge turns images into named scores. The first of its scores is the distance that the trade-off is
drawn with; its column is "frechet" where a classifier's features are compared and "fid" only where FID is
what it is.
"""

import abc
import functools
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from jaxmerge.data import Dataset
from jaxmerge.metrics import classifier, extractor, fid, frechet, inception_score, kid, references
from jaxmerge.report.quality import FRECHET, Names

# Images of a data set that pass through a network at once.
CHUNK = 1000


class Judge(abc.ABC):
    """Scores samples of one data set."""

    @property
    @abc.abstractmethod
    def names(self) -> Names:
        """Column and names of the distance."""

    @property
    @abc.abstractmethod
    def definition(self) -> str:
        """What the distance is, in a sentence."""

    @abc.abstractmethod
    def check(self, count: int) -> None:
        """Refuses a number of samples that the scores do not allow.

        Raises:
            ValueError: too few.
        """

    @abc.abstractmethod
    def scores(self, images: UInt8[np.ndarray, "N H W C"], test_count: int) -> dict[str, float]:
        """Scores of samples; `test_count` is the number of test images, for distances at equal numbers."""

    @abc.abstractmethod
    def floor(self, test: Dataset, sample_count: int) -> dict[str, float]:
        """What real images score: "distance" of the test images, and "at_sample_count" if that can be told."""


class ClassifierJudge(Judge):
    """Fréchet distance of a small classifier's penultimate features to the training images."""

    def __init__(self, network: classifier.Classifier, train: Dataset):
        network.scale.check(train.take(1).images, network.shape)
        self.network, self.train = network, train

    @functools.cached_property
    def _train_features(self):
        return classifier.features(self.network, self.train.images)

    @functools.cached_property
    def _reference(self):
        return frechet.statistics(self._train_features, name="training set")

    @property
    def names(self) -> Names:
        return FRECHET

    @property
    def definition(self) -> str:
        size = self._train_features.shape[1]
        return (
            f"{classifier.frechet_name(self.train.name)}: between the {size} penultimate features of samples and of the "
            f"{len(self.train)} training images; lower is better. ± is the standard error over seeds, where there "
            "are several."
        )

    def check(self, count: int) -> None:
        if count < 2:
            raise ValueError(
                f"a Fréchet distance needs at least 2 samples per seed, got {count}; ask for more."
            )

    def scores(self, images, test_count):
        features = classifier.features(self.network, images)
        found = {
            "frechet": frechet.frechet_distance(
                frechet.statistics(features, name="samples"), self._reference
            ),
            "classifier_score": classifier.classifier_score(self.network, images),
        }
        if len(images) >= test_count:
            subsets = frechet.subset_distances(self._reference, features, test_count)
            found["frechet_at_test_count"] = float(np.mean(subsets))
        return found

    def floor(self, test, sample_count):
        features = classifier.features(self.network, test.images)
        found = frechet.frechet_floor(self._train_features, features, test_labels=test.labels)
        n = len(test)
        at = {"at_test_count": found.at(n), "at_sample_count": found.at(sample_count)}
        return {"distance": found.distance, "n_images": n} | at


class InceptionJudge(Judge):
    """FID, KID and Inception score."""

    def __init__(self, net: extractor.Extractor, reference: references.Reference, *, allow_few: bool):
        self.net, self.reference, self.allow_few = net, reference, allow_few

    @functools.cached_property
    def _is_fid(self) -> bool:
        return self.net.published

    @property
    def names(self) -> Names:
        if self._is_fid:
            return Names("fid", "FID", "FID")
        return Names("frechet", "Fréchet, Inception", "Fréchet distance, Inception with other weights")

    @property
    def definition(self) -> str:
        return (
            f"{self.names.long} to {self.reference.name}: Inception's 2048 pool features, weights "
            f"{self.net.weights[:12]}, {self.net.resize}; lower is better. ± is the standard error over seeds, where "
            "there are several."
        )

    def check(self, count: int) -> None:
        if count < fid.FEWEST and not self.allow_few:
            raise ValueError(
                f"{self.names.long} needs at least {fid.FEWEST} samples per seed, got {count}; ask for more or say "
                "--config.metric.allow_few=True."
            )

    def scores(self, images, test_count):
        keep = self.reference.features is not None
        seen = extractor.activations(self.net, as_rgb(images), keep_features=keep)
        found = {self.names.column: fid.fid(seen, self.reference, allow_few=True).value}
        found["inception_score"] = inception_score.inception_score(seen, allow_few=True).value
        if keep:
            size = min(1000, seen.count, len(self.reference.features))
            found["kid"] = kid.kid(seen, self.reference, size=size).value
        return found

    def floor(self, test, sample_count):
        batches = (as_rgb(part.images) for part in test.batches(CHUNK))
        seen = extractor.activations(self.net, batches, name="test images")
        found = fid.fid(seen, self.reference, allow_few=True).value
        return {"distance": found, "n_images": len(test)}


def as_rgb(images: UInt8[np.ndarray, "N H W C"]) -> UInt8[np.ndarray, "N H W 3"]:
    """Grey images three times over, colour images as they are."""
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def judge(config: ConfigDict, train: Dataset, progress) -> Judge | None:
    """The config's judge; None where samples are only drawn.

    Args:
        config: its section `metric` and the data's name.
        train: training images, the reference.
        progress: a run's.

    Raises:
        ValueError: a missing or foreign network or reference.
    """
    asked = config.metric
    if asked.kind == "none":
        return None
    if asked.kind == "classifier":
        return ClassifierJudge(load_classifier(asked.classifier), train)
    net = extractor.load(asked.inception)
    return InceptionJudge(net, _reference(asked, net, train, progress), allow_few=asked.allow_few)


def load_classifier(name: str) -> classifier.Classifier:
    """A shipped classifier by its name, "digits_classifier", or any by the path of its checkpoint."""
    if name in classifier.shipped_names():
        return classifier.shipped(name)
    return classifier.load_classifier(name)


def _reference(asked, net, train: Dataset, progress) -> references.Reference:
    if asked.reference.endswith(".npz"):
        return references.read_npz(asked.reference)
    folder = Path(asked.reference or "references") / f"{train.name}_{train.split}_{net.weights[:12]}"
    with progress(len(train), "reference features") as advance:
        return references.cached(
            folder,
            net,
            lambda: (as_rgb(part.images) for part in train.batches(CHUNK)),
            name=f"{train.name} {train.split}",
            identity=train.identity,
            keep_features=True,
            advance=advance,
        )


def check_counts(judged: Judge | None, asked: ConfigDict) -> None:
    """Refuses numbers of samples before anything is computed.

    Args:
        judged: the run's judge.
        asked: the config's section `sampling`.

    Raises:
        ValueError: too few samples for a score.
    """
    if judged is None:
        return
    for sampler in asked.sampler:
        ancestral = sampler == "ancestral"
        counts = (
            (asked.ancestral_samples, asked.ancestral_samples_other)
            if ancestral
            else (asked.n_samples, asked.n_samples_other)
        )
        for count in counts:
            if count:
                judged.check(count)


def describe(judged: Judge | None) -> dict[str, Any]:
    """What the report needs to know of the judge."""
    return {} if judged is None else {"quality": judged.names._asdict()}
