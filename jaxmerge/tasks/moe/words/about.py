"""What the table of mixtures means: its columns, what a reader must know besides, the pictures.

What was found is in ``merge.py`` and ``grid.py``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxmerge.gate.regularisers import COLLAPSE
from jaxmerge.report.quality import SCORES
from jaxmerge.tasks.moe.models import Method
from jaxmerge.tasks.moe.words.phrases import called
from jaxmerge.tasks.reconstructions import window_of


def distance_of(setup) -> tuple[str, str]:
    """Column and name of the run's distance."""
    names = None if setup.judge is None else setup.judge.names
    return ("frechet", "Fréchet") if names is None else (names.column, names.short)


def definitions(frame, distance: tuple[str, str], rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """What the columns mean in this run.

    Args:
        frame: what the measurements share.
        distance: column and name of the distance.
        rows: the table, which knows on what device times were taken, and whether gains are in it.
    """
    config, setup = frame.config, frame.setup
    said = {
        "errors": "After ±, the standard error over test images for bpd, bound, PSNR and SSIM, and the standard "
        "deviation over seeds for scores of samples; in brackets the standard deviation over the models of a "
        "method, each trained with its own seed. Methods share images and noise, so their paired differences are far "
        "more certain than the values.",
        "clear": "A difference between two methods counts, as clearly below or above, where Student's 95 % interval of the "
        "paired difference excludes zero: 4.3 standard errors where three seeds decide, 1.96 where many images do, between "
        "them where both do (Cochran's weighted mean). Models of the same seed are paired. Every comparison is judged by "
        "itself.",
        "bound": f"Variational lower bound of {config.bound.n_images} {config.data.test_split} images in continuous "
        f"time, {len(frame.levels) - 1} strata that all methods share, {config.bound.n_times} draw(s) each, "
        f"{config.bound.repeats} repeat(s).",
        "PSNR, SSIM, LPIPS": f"Test images after one denoising call from γ = {config.moe.reconstruction_gamma:g} against the "
        f"originals, the same noise for all methods; SSIM with a window of {window_of(setup.test.shape)}.",
        "ms per image": f"Time of sampling, the quartiles in round brackets: {_latency(config, rows)}.",
        "MiB planned": f"Memory that XLA plans for one call of the model on {config.moe.latency_batch} images.",
        "parameters": "Of all networks and the gate together; then, of mixtures under a gate, of the experts, or of the "
        "trunk that they share and their adapters, and of the gate.",
        "NFE": f"Calls of the model per sample ({config.sampling.sampler[0]}); a dense mixture's call runs all experts "
        "that answer.",
        "weights of the gates": "Weights against γ, usage and usage per slice are of the weights that were used, after the "
        "choice of a sparse mixture; entropy, effective experts and the accuracy per slice are of the gate's weights "
        "before any choice.",
    }
    if any(name.startswith("gain_") for line in rows for name in line):
        said["gain"] = (
            "Gains are relative, 100 (1 − value / baseline A's), positive where a row is lower. After ± the standard error: "
            "paired over images, or over seeds for scores of samples, with the error of the baseline in it."
        )
    if frame.settings is not None:
        said["bpd, exact"] = (
            f"Exact likelihood of {config.likelihood.n_images} {config.data.test_split} images by the probability-flow "
            f"ODE, {config.likelihood.dequantization.replace('_', '-')} dequantisation, in bits per dimension. Not "
            "defined, and left out, where the field jumps with the image (a choice of the top k, random weights)."
        )
    if setup.judge is not None:
        headers = {distance[0]: distance[1]} | SCORES
        said |= {
            headers[column]: f"{text} ± is the standard deviation over seeds."
            for column, text in setup.judge.definitions.items()
            if column in headers and any(line.get(column) is not None for line in rows)
        }
    return said


def _latency(config, rows: Sequence[dict[str, Any]]) -> str:
    """How times were taken; several ways where a run went on on another machine."""
    known = dict.fromkeys(line["latency_definition"] for line in rows)
    usual = (
        f"wall seconds per image, median (quartiles) of {config.moe.latency_repeats} calls after warm-up, batch "
        f"{config.moe.latency_batch}, without compilation"
    )
    return "; or ".join(known) or usual


def notes(rows: Sequence[dict[str, Any]], *, joint: bool = False) -> list[str]:
    """What a reader must know besides the table."""
    failed = sum(line.get("n_failed") or 0 for line in rows)
    fixed = "± over gates means: the experts are fixed and only the gate's training varies with the seed."
    if any(line["models"] > 1 and line["experts"] == 1 for line in rows):
        fixed += " Of a single expert that is trained on, that training varies."
    varied = "± is over seeds with which experts and gates were trained together."
    said = [varied if joint else fixed]
    if failed:
        said.append(f"{failed} likelihood solves failed; their images are left out.")
    return said


def collapse_notes(
    methods: Sequence[Method], diagnosed: Mapping[str, Sequence[dict[str, Any]]], names: Sequence[str] = ()
) -> list[str]:
    """Rows in which a gate gave nearly all weight over the test images to one expert.

    Args:
        methods: the table's.
        diagnosed: `diagnose.diagnose` of the gated methods, by key.
        names: of the experts; "expert 1", "expert 2", ... by default.

    Returns:
        One sentence per row with a collapse.
    """
    said = []
    for method in methods:
        found = []
        for number, one in enumerate(diagnosed.get(method.key, ()), 1):
            share = np.asarray(one["total"], np.float64) / np.sum(one["total"])
            first = int(np.argmax(share))
            if len(share) > 1 and share[first] > COLLAPSE:
                name = names[first] if len(names) > first else f"expert {first + 1}"
                found.append(f"{name} has {100 * share[first]:.1f} % of the weight in gate {number}")
        if found:
            said.append(
                f"Collapse (one expert over {100 * COLLAPSE:.0f} % on test images) of {called(method)}: "
                f"{', '.join(found)} of {len(diagnosed[method.key])}."
            )
    return said


def slice_notes(hashes: dict[str, str]) -> list[str]:
    """Which subcategories the slices were made of."""
    return [
        f"Slices by {name} are those whose assignment of the training images has the SHA-256 {value[:16]}...; their features "
        "and seed are in the file that made them (docs/data.md)."
        for name, value in hashes.items()
    ]


def pictures(setup, methods: Sequence[Method], measured: dict[str, Any]) -> dict[str, np.ndarray]:
    """Samples of every method from the same noise, beside real images."""
    shown = [(m.name, measured[m.key]["models"][0].get("pictures")) for m in methods]
    shown = [(name, images) for name, images in shown if images is not None]
    if not shown:
        return {}
    columns = min(len(images) for _, images in shown)
    return {
        "samples": np.stack([images[:columns] for _, images in shown]),
        "sample_labels": np.array([name for name, _ in shown]),
        "data": setup.test.take(min(columns, len(setup.test))).images,
    }
