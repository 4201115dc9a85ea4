"""What the gates do: weights against the noise level, usage per slice of the data, collapse."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxmerge.data import Dataset, slices
from jaxmerge.data.slices import SliceSet
from jaxmerge.gate.gated import Gated
from jaxmerge.gate.measure import measure
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


def diagnose(frame: Frame, method: Method, sets: Sequence[SliceSet]) -> list[dict[str, Any]]:
    """Figures of every gate of a method on the test images, one stage each.

    Returns:
        Per model {"gamma", "usage", "entropy", "effective" (by level), "total" [K] (usage), "bpd" (diffusion term),
        "slices" {kind: {"usage" [S, K], "bpd" [S], "accuracy" [K]}}}; the accuracy where there is a slice per expert.
    """
    return [
        frame.run.stage(f"{method.key}_{i}_gate", lambda m=m: _diagnose(frame, m, sets))
        for i, m in enumerate(method.models)
    ]


def _diagnose(frame: Frame, gated: Gated, sets: Sequence[SliceSet]) -> dict[str, Any]:
    data = frame.setup.test.take(frame.config.bound.n_images or None)
    found = measure(
        gated,
        data.images,
        key=frame.setup.keys["bound"],
        index=data.index,
        repeats=frame.config.moe.eval_repeats,
        scale=PixelScale(data.levels),
        batch_size=frame.config.bound.batch_size,
    )
    kept: dict[str, Any] = {**found.by_level(BINS), "total": found.usage(), "bpd": found.diffusion_bpd()[0]}
    kept["slices"] = {}
    for chosen in sets:
        members = chosen.members(data)
        one = {"usage": found.usage_by_slice(members), "bpd": found.bpd_by_slice(members)}
        if len(chosen) == len(gated.experts):
            one["accuracy"] = found.slice_accuracy(members)
        kept["slices"][chosen.kind] = one
    return kept


def over_models(diagnosed: Sequence[dict[str, Any]], *path: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over models of one of their figures."""
    values = []
    for one in diagnosed:
        for name in path:
            one = one[name]
        values.append(np.asarray(one, np.float64))
    stacked = np.stack(values)
    return stacked.mean(0), stacked.std(0, ddof=1) if len(stacked) > 1 else np.zeros_like(stacked[0])


def weights(diagnosed: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A method's weights against the noise level, for the report's figure."""
    mean, deviation = over_models(diagnosed, "usage")
    return {"gamma": diagnosed[0]["gamma"], "mean": mean, "sd": deviation}


def by_slice(diagnosed: Sequence[dict[str, Any]], sets: Sequence[SliceSet]) -> dict[str, Any]:
    """A method's usage per slice, {kind: {"names", "usage" [S, K], "bpd" [S], "accuracy" [K] or None}}."""
    found = {}
    for chosen in sets:
        part = diagnosed[0]["slices"][chosen.kind]
        found[chosen.kind] = {
            "names": chosen.names,
            **{name: over_models(diagnosed, "slices", chosen.kind, name)[0] for name in part},
        }
    return found


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
