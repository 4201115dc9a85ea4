"""What the gates do: weights against the noise level, usage per slice of the data, collapse."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool
from ml_collections import ConfigDict

from jaxmerge.data import Dataset, slices
from jaxmerge.data.slices import SliceSet
from jaxmerge.gate.gated import Gated
from jaxmerge.gate.measure import Measured, measure
from jaxmerge.noise import PixelScale
from jaxmerge.run import Run
from jaxmerge.tasks.moe.measure import Frame
from jaxmerge.tasks.moe.models import Method

BINS = 24


def slice_sets(run: Run, asked: ConfigDict, count: int, train: Dataset) -> list[SliceSet]:
    """The config's kinds of slices, `count` of each.

    Raises:
        ValueError: slices that the images do not allow, or other subcategories than those this run began with.
    """
    found = [slices.fit(kind, count, train) for kind in asked.slices]
    made = {"kinds": ",".join(asked.slices)} | subcategory_hashes(asked, train)
    if run.stage(f"slices_{count}", lambda: made) != made:
        raise ValueError(
            f"the subcategories of {train.name} were made anew since this run began; choose another folder with "
            "--workdir, or put the earlier ones back."
        )
    return found


def subcategory_hashes(asked: ConfigDict, train: Dataset) -> dict[str, str]:
    """SHA-256 of what says which subcategory each training image belongs to, where slices are made of it.

    Everything else that slices depend on is in the identity of the images.
    """
    if not any("subcategory" in kind for kind in asked.slices):
        return {}
    return {
        name: hashlib.sha256(np.asarray(values, np.int32).tobytes()).hexdigest()
        for name, values in sorted(train.attributes.items())
        if name.startswith("subcategory_")
    }


def masks(frame: Frame, sets: Sequence[SliceSet]) -> dict[str, Bool[np.ndarray, " N"]]:
    """Which of the bound's test images belong to each slice, by the slice's name."""
    data = _test_images(frame)
    members = [(chosen.names, chosen.members(data)) for chosen in sets]
    return {name: inside[:, s] for names, inside in members for s, name in enumerate(names)}


def _test_images(frame: Frame) -> Dataset:
    return frame.setup.test.take(frame.config.bound.n_images or None)


def diagnose(
    frame: Frame, method: Method, sets: Sequence[SliceSet], *, specialised: bool = True
) -> list[dict[str, Any]]:
    """Figures of every gate of a method on the test images, one stage each.

    Args:
        frame: what the measurements share.
        method: one whose models are under gates.
        sets: kinds of slices.
        specialised: whether the experts were made for the slices of the first kind, one each.

    Returns:
        Per model {"gamma", "usage", "entropy", "effective" (by level), "total" [K] (usage), "bpd" (diffusion term),
        "slices" {kind: {"usage" [S, K], "bpd" [S], "accuracy" [K]}}}; the accuracy only of the kind that the experts were
        made for. Usages are of the weights that were used, after a choice of the top k; entropy, effective experts and
        accuracy of the gate's weights before it.
    """
    return [
        frame.run.stage(f"{method.key}_{i}_gates", lambda m=m: _diagnose(frame, m, sets, specialised))
        for i, m in enumerate(method.models)
    ]


def _diagnose(frame: Frame, gated: Gated, sets: Sequence[SliceSet], specialised: bool) -> dict[str, Any]:
    data = _test_images(frame)
    found = measure(
        gated,
        data.images,
        key=frame.setup.keys["bound"],
        index=data.index,
        repeats=frame.config.moe.eval_repeats,
        scale=PixelScale(data.levels),
        batch_size=frame.config.bound.batch_size,
    )
    return figures(found, {chosen.kind: chosen.members(data) for chosen in sets}, specialised)


def figures(
    found: Measured, members: Mapping[str, Bool[np.ndarray, "N S"]], specialised: bool
) -> dict[str, Any]:
    """What `diagnose` keeps of one mixture.

    Args:
        found: draws on N images.
        members: which images belong to which slice, by kind.
        specialised: see `diagnose`.
    """
    used = dataclasses.replace(found, weights=found.used)
    levels = found.by_level(BINS) | {"usage": used.by_level(BINS)["usage"]}
    by_kind = {}
    for number, (kind, inside) in enumerate(members.items()):
        by_kind[kind] = {"usage": used.usage_by_slice(inside), "bpd": found.bpd_by_slice(inside)}
        if specialised and number == 0 and inside.shape[1] == found.weights.shape[-1]:
            by_kind[kind]["accuracy"] = found.slice_accuracy(inside)
    return {**levels, "total": used.usage(), "bpd": found.diffusion_bpd()[0], "slices": by_kind}


def over_models(diagnosed: Sequence[dict[str, Any]], *path: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over models of one of their figures."""
    stacked = np.stack([np.asarray(functools.reduce(dict.__getitem__, path, d), float) for d in diagnosed])
    return stacked.mean(0), stacked.std(0, ddof=1) if len(stacked) > 1 else np.zeros_like(stacked[0])


def weights(diagnosed: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A method's weights by noise level, with their entropy and effective experts, for the report's figures."""
    mean, deviation = over_models(diagnosed, "usage")
    found = {"gamma": diagnosed[0]["gamma"], "mean": mean, "sd": deviation}
    return found | {name: over_models(diagnosed, name)[0] for name in ("entropy", "effective")}


def by_slice(diagnosed: Sequence[dict[str, Any]], sets: Sequence[SliceSet]) -> dict[str, Any]:
    """A method's usage per slice, {kind: {"names", "usage" [S, K], "bpd" [S], "accuracy" [K] where there is one}}."""
    return {
        chosen.kind: {"names": chosen.names}
        | {
            name: over_models(diagnosed, "slices", chosen.kind, name)[0]
            for name in diagnosed[0]["slices"][chosen.kind]
        }
        for chosen in sets
    }


def gate_figures(name: str, method: Method, diagnosed: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One line about the gates of a method: entropy, effective experts, smallest and largest usage."""
    total = np.stack([d["total"] for d in diagnosed])
    entropy = [float(np.nanmean(d["entropy"])) for d in diagnosed]
    return {
        "method": name,
        "entropy": float(np.mean(entropy)),
        "effective_experts": float(np.mean(np.exp(entropy))),
        "least_used": float(total.mean(0).min()),
        "most_used": float(total.mean(0).max()),
        "experts": method.experts,
    }
