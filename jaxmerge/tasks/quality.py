"""How a run judges samples: a classifier's features, or Inception's; each under its own name.

A judge turns images into named scores and says of each what it is. The first of its scores is the distance that
the trade-off is drawn with; its column is "frechet" where a classifier's features are compared and "fid" only where
FID is what it is.
"""

import abc
import functools
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from jaxmerge.data import Dataset
from jaxmerge.metrics import classifier, extractor, fid, frechet, inception_score, kid, references, seeds
from jaxmerge.metrics.weights import weights_hash
from jaxmerge.report.quality import FRECHET, SCORES, Names

# Images per block of KID, where there are as many.
BLOCK = 1000


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

    @property
    @abc.abstractmethod
    def definitions(self) -> dict[str, str]:
        """What every score is, by its column: method, weights, resizing, reference."""

    @property
    @abc.abstractmethod
    def notes(self) -> list[str]:
        """What readers must know besides, such as scores that are left out."""

    @property
    @abc.abstractmethod
    def score_names(self) -> dict[str, str]:
        """Short names of the scores besides the distance, by their columns."""

    @property
    @abc.abstractmethod
    def fewest_seeds(self) -> int:
        """How many seeds the scores need at least."""

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
            f"{len(self.train)} training images; lower is better."
        )

    @property
    def definitions(self) -> dict[str, str]:
        weights = f"weights {weights_hash(classifier.parameters(self.network))[:12]}, images not resized"
        reference = f"{self.train.name} {self.train.split} (identity {self.train.identity[:12]})"
        return {
            "frechet": f"{self.definition} {weights[0].upper()}{weights[1:]}; reference: {reference}.",
            "classifier_score": "exp of the mean Kullback-Leibler divergence of a sample's class probabilities from "
            f"those of all samples of a seed, by the same classifier; {weights}; no reference; higher is better.",
            "frechet_at_test_count": "The same Fréchet distance, mean over disjoint random subsets of as many samples "
            f"as there are test images; {weights}; reference: {reference}.",
        }

    @property
    def notes(self) -> list[str]:
        return []

    @property
    def score_names(self) -> dict[str, str]:
        return {"classifier_score": SCORES["classifier_score"]}

    @property
    def fewest_seeds(self) -> int:
        return 1

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
            f"{self.net.weights[:12]}, {self.net.resize}; lower is better."
        )

    @property
    def definitions(self) -> dict[str, str]:
        network = f"weights {self.net.weights[:12]}, {self.net.resize}; float64"
        said = {
            self.names.column: f"{self.definition} Float64, unbiased covariances.",
            "inception_score": f"{self.score_names['inception_score']}: exp of the mean Kullback-Leibler divergence "
            "of a sample's class probabilities from those of its split, logits without bias, mean over "
            f"{inception_score.SPLITS} splits of a seed's samples; {network}; no reference; higher is better.",
        }
        if self.reference.features is None:
            return said
        size = min(BLOCK, len(self.reference.features))
        said["kid"] = (
            f"{self.score_names['kid']}: squared maximum mean discrepancy of the 2048 pool features, kernel "
            f"(a.b / 2048 + 1)^3, unbiased, mean over disjoint blocks of {size} images (of all samples where they are "
            f"fewer), to {self.reference.images_with_features}; {network}; not multiplied by 1000; lower is better."
        )
        said["kid_block_error"] = "Standard error of one seed's kid over its blocks, where there are several."
        return said

    @property
    def notes(self) -> list[str]:
        if self.reference.features is not None:
            return []
        return [
            f"{self.score_names['kid']} is left out: it needs the features of every reference image, and "
            f"{self.reference.name} has their mean and covariance only."
        ]

    @property
    def score_names(self) -> dict[str, str]:
        name = kid.kernel_name(self.names.long)
        score = inception_score.name_of(self.net.published)
        return {"inception_score": score, "kid": name}

    @property
    def fewest_seeds(self) -> int:
        return 1 if self.allow_few else seeds.FEWEST

    def check(self, count: int) -> None:
        if count < inception_score.SPLITS:
            raise ValueError(
                f"{self.score_names['inception_score']} needs at least {inception_score.SPLITS} samples per seed, one "
                f"for each of its splits, got {count}; ask for more."
            )
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
            size = min(BLOCK, seen.count, len(self.reference.features))
            kernel = kid.kid(seen, self.reference, size=size)
            found["kid"] = kernel.value
            if np.isfinite(kernel.se):
                found["kid_block_error"] = kernel.se
        return found

    def floor(self, test, sample_count):
        batches = (as_rgb(part.images) for part in test.parts())
        seen = extractor.activations(self.net, batches, name="test images", keep_logits=False)
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
        ValueError: a missing or foreign network or reference, or images that the network does not take.
    """
    asked = config.metric
    if asked.kind == "none":
        return None
    if asked.kind == "classifier":
        return ClassifierJudge(load_classifier(asked.classifier), train)
    check_images(train)
    net = extractor.load(asked.inception)
    return InceptionJudge(net, _reference(asked, net, train, progress), allow_few=asked.allow_few)


def check_images(data: Dataset) -> None:
    """Refuses images that Inception would take for others.

    Raises:
        ValueError: other than 256 grey levels, or neither grey nor RGB.
    """
    if data.levels != 256 or data.shape[-1] not in (1, 3):
        raise ValueError(
            f"metric.kind 'inception' needs grey or RGB images with 256 grey levels, {data.name} has {data.levels} in "
            f"{data.shape[-1]} channel(s); take --config.metric.kind=classifier."
        )


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
            lambda: (as_rgb(part.images) for part in train.parts()),
            name=f"{train.name} {train.split}",
            identity=train.identity,
            keep_features=True,
            count=len(train),
            advance=advance,
        )


def check_counts(judged: Judge | None, asked: ConfigDict) -> None:
    """Refuses numbers of samples and of seeds before anything is computed.

    Args:
        judged: the run's judge.
        asked: the config's section `sampling`.

    Raises:
        ValueError: too few samples or seeds for a score.
    """
    if judged is None:
        return
    for sampler in asked.sampler:
        own, seeds_own = ("n_samples", "seeds")
        if sampler == "ancestral":
            own, seeds_own = ("ancestral_samples", "ancestral_seeds")
        for counted, repeated in ((own, seeds_own), (f"{own}_other", "seeds_other")):
            if not asked[counted]:
                continue
            judged.check(asked[counted])
            if asked[repeated] < judged.fewest_seeds:
                raise ValueError(
                    f"{judged.names.long} needs at least {judged.fewest_seeds} seeds, got sampling.{repeated}="
                    f"{asked[repeated]} with sampling.{counted}={asked[counted]}; ask for more or say "
                    "--config.metric.allow_few=True."
                )


def describe(judged: Judge | None) -> dict[str, Any]:
    """What the report needs to know of the judge."""
    if judged is None:
        return {}
    return {"quality": judged.names._asdict(), "score_names": judged.score_names}
