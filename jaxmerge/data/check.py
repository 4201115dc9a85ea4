"""Do an expert and the evaluated images belong together?"""

from collections.abc import Mapping
from typing import Any

from jaxmerge.data.dataset import Dataset

# What a converted checkpoint's record says where nobody said what it was trained on: no name.
UNKNOWN = "not known"
# How publishers and converted checkpoints call the sets, in lower case.
ALIASES = {
    "cifar-10": "cifar10",
    "imagenet 32x32, old version": "imagenet32_old",
    "imagenet 32x32, new version": "imagenet32_new",
    "celeba-hq 256x256": "celeba_hq_256",
    "celeba-hq 1024x1024": "celeba_hq_1024",
    "lsun-church 256x256": "lsun_church_256",
}


def canonical(name: str) -> str:
    """A data set's name as `load` knows it; how it was augmented in training is left away."""
    name = name.strip().lower().removesuffix(", augmented")
    return ALIASES.get(name, name)


def check_match(
    trained_on: str | Mapping[str, Any] | None,
    evaluated: Dataset,
    *,
    expert: str = "the expert",
    override: bool = False,
) -> None:
    """Compares what an expert was trained on with what it is evaluated on.

    Args:
        trained_on: from the expert's metadata: the set's name (`UNKNOWN` is none), or a record with "name" and,
            where known, "split", "images" and "sha256" (see `Dataset.record`).
        evaluated: the images that likelihoods or distances are measured on.
        expert: what the error calls the expert.
        override: accept a mismatch.

    Raises:
        ValueError: another set; the same split of the same set with other pixels; or nothing is known of the
            expert's data. Never with `override`.
    """
    if override:
        return
    record = {"name": trained_on} if isinstance(trained_on, str) else dict(trained_on or {})
    allow = "allow another one with --config.data.allow_other=True"
    advice = f"evaluate it on its own data set, or {allow}"
    if canonical(record.get("name") or UNKNOWN) == UNKNOWN:
        raise ValueError(
            f"{expert} must say what it was trained on, but its metadata names no data set (the images are "
            f"{evaluated.name}'s); convert it with --data-set NAME if you know it, or {allow}."
        )
    if canonical(record["name"]) != canonical(evaluated.name):
        raise ValueError(
            f"{expert} was trained on {record['name']}, the images are {evaluated.name}'s; {advice}."
        )
    same_part = record.get("split") == evaluated.split and record.get("images") == len(evaluated)
    if same_part and record.get("sha256", evaluated.identity) != evaluated.identity:
        raise ValueError(
            f"{expert} was trained on a {evaluated.name} whose {evaluated.split} split has the SHA-256 "
            f"{record['sha256'][:16]}..., this one has {evaluated.identity[:16]}...; {advice}."
        )
