"""Rows of the table: every method's values with their errors, costs, and what it takes to run it again.

`_se` is the standard error over test images (in gains, that of a paired ratio); `_sd` is the standard deviation over the
models of a method, each trained with its own seed, or over seeds for scores of samples.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from jaxmerge.files import write_bytes
from jaxmerge.report import tables
from jaxmerge.report.quality import SCORES
from jaxmerge.run import Run
from jaxmerge.tasks.moe.differences import (
    PER_IMAGE,
    Measured,
    gain,
    over_models,
    per_image,
    scores,
    solves,
)
from jaxmerge.tasks.moe.measure import Frame
from jaxmerge.tasks.moe.models import Method, seeds

RESTORED = ("psnr", "ssim", "lpips")
PARTS = ("experts", "trunk", "adapters", "gate")


def sd(values: Sequence[float]) -> float | None:
    """Standard deviation; None of a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def rows(frame: Frame, methods: Sequence[Method], measured: Measured) -> list[dict[str, Any]]:
    """Every method's line; its last columns name config, command and seeds."""
    config, drawn = frame.config, seeds(frame.config)
    asked = {"n_samples": config.sampling.n_samples, "config": frame.run.name, "command": frame.run.command}
    found = []
    for method in methods:
        # A method in which nothing is drawn at random has one model, and no seed.
        own = drawn if len(method.models) > 1 else []
        line = row(method, measured[method.key]) | asked
        found.append(line | {"seed": config.seed, "model_seeds": " ".join(map(str, own))})
    return found


def row(method: Method, found: dict[str, Any]) -> dict[str, Any]:
    """A method's values and costs."""
    line: dict[str, Any] = {"method": method.name, "experts": method.experts, "models": len(method.models)}
    for quantity in PER_IMAGE:
        line |= _over_images(quantity, per_image(found, quantity))
    line |= _of_samples(scores(found)) | _of_reconstructions(found["models"]) | _of_cost(found["cost"])
    solved = solves(found)
    if solved:
        line["nfe_likelihood"] = float(np.mean([np.mean(s.nfe) for s in solved]))
        line["n_failed"] = int(sum(np.sum(~np.asarray(s.ok)) for s in solved))
    return line | {"training_steps": method.steps}


def _over_images(quantity: str, values: Float[np.ndarray, "S N"] | None) -> dict[str, Any]:
    names = (quantity, f"{quantity}_se", f"{quantity}_sd", f"{quantity}_images")
    if values is None:
        return dict.fromkeys(names)
    mean, models = over_models(values[:, np.isfinite(values).any(axis=0)])
    error = float(mean.std(ddof=1) / math.sqrt(len(mean))) if len(mean) > 1 else None
    return dict(zip(names, (float(mean.mean()), error, sd(models), len(mean)), strict=True))


def _of_samples(by_seed: dict[str, dict[str, float]]) -> dict[str, Any]:
    if not by_seed:
        return {}
    line: dict[str, Any] = {}
    drawn = list(by_seed.values())
    for name in drawn[0]:
        values = [s[name] for s in drawn]
        if name == "nfe":
            line["nfe_sampling"] = float(np.mean(values))
        else:
            line |= {name: float(np.mean(values)), f"{name}_sd": sd(values)}
    return line | {"sample_seeds": " ".join(by_seed)}


def _of_reconstructions(models: Sequence[dict[str, Any]]) -> dict[str, Any]:
    line: dict[str, Any] = {}
    for name in (name for name in RESTORED if name in models[0]):
        values = [m[name] for m in models]
        line |= {name: float(np.mean(values)), f"{name}_sd": sd(values)}
        line[f"{name}_se"] = float(np.mean([m[f"{name}_se"] for m in models]))
    return line


def _of_cost(spent: dict[str, Any]) -> dict[str, Any]:
    latency = {f"latency{end}_ms": 1e3 * spent[f"latency{end}"] for end in ("", "_low", "_high")}
    planned = spent["planned_bytes"]
    parts = (f"{part}_parameters" for part in PARTS)
    return {
        **latency,
        "latency_definition": spent["latency_definition"],
        "memory_mb": planned / 2**20 if planned >= 0 else None,
        "parameters": spent["parameters"],
        **{part: spent[part] for part in parts if part in spent},
    }


def with_gains(
    rows: list[dict[str, Any]],
    reference: str,
    quantities: Sequence[str],
    measured: Measured,
    methods: Sequence[Method],
) -> None:
    """Adds the relative gain over one row in percent, positive where a method is better (lower).

    Args:
        rows: the table.
        reference: name of the row that the others are compared with.
        quantities: columns.
        measured, methods: in the order of the rows; where they tell, gains are paired and have errors (`differences.gain`).
    """
    base = next(r for r in rows if r["method"] == reference)
    known = {m.name: m for m in methods}
    for line in rows:
        for name in quantities:
            if line.get(name) is None or not base.get(name):
                continue
            line[f"gain_{name}"] = 100 * (base[name] - line[name]) / base[name]
            if line is base:
                continue
            found = gain(measured, known[line["method"]], known[reference], name)
            if found is not None:
                line[f"gain_{name}"], line[f"gain_{name}_se"] = found


def columns(rows: list[dict[str, Any]], distance: tuple[str, str]) -> list[list[str]]:
    """The compact table's columns that have values.

    Args:
        rows: the table.
        distance: the distance's column and its name.

    Returns:
        [header, value, error, deviation over models], and for a range also its lower and upper end.
    """
    everything = [
        ["bpd, exact", "bpd", "bpd_se", "bpd_sd"],
        ["bound", "vlb", "vlb_se", "vlb_sd"],
        [distance[1], distance[0], f"{distance[0]}_sd", ""],
        *([header, column, f"{column}_sd", ""] for column, header in SCORES.items()),
        ["PSNR, dB", "psnr", "psnr_se", "psnr_sd"],
        ["SSIM", "ssim", "ssim_se", "ssim_sd"],
        ["LPIPS", "lpips", "lpips_se", "lpips_sd"],
        ["ms per image", "latency_ms", "", "", "latency_low_ms", "latency_high_ms"],
        ["MiB planned", "memory_mb", "", ""],
        ["parameters", "parameters", "", ""],
        *([f"of the {part}", f"{part}_parameters", "", ""] for part in PARTS),
        ["NFE", "nfe_sampling", "", ""],
        ["gain bpd, %", "gain_bpd", "gain_bpd_se", ""],
        ["gain bound, %", "gain_vlb", "gain_vlb_se", ""],
        [f"gain {distance[1]}, %", f"gain_{distance[0]}", f"gain_{distance[0]}_se", ""],
    ]
    return [c for c in everything if any(line.get(c[1]) is not None for line in rows)]


def write_markdown(run: Run, config: ConfigDict, results: dict[str, Any]) -> None:
    """results.md: title, finding, the compact table, what its errors are, the gate's width, and how it was run."""
    said = results["definitions"]
    lines = [
        f"# {results['title']}",
        results["finding"],
        tables.markdown(results),
        *(said[name] for name in ("errors", "gain") if name in said),
        *results["notes"],
        *tuning(results),
        provenance(run, config),
    ]
    write_bytes(run.path("results.md"), ("\n\n".join(line.strip() for line in lines) + "\n").encode())


def tuning(results: dict[str, Any]) -> list[str]:
    """The widths of the gate that were tried, as a table in Markdown; empty where none were."""
    tried = results.get("tuning")
    if not tried:
        return []
    lines = [
        f"| {t['width']} | {tables.with_error(t['diffusion_bpd'], t['se'])} | {t['best_step']} |"
        for t in tried
    ]
    head = ["| width of the gate | diffusion term, validation images, bpd | best step |", "|---|---|---|"]
    said = f"Width of the gate, tried once with one seed; chosen: {results['gate_width']}."
    return [said, "\n".join(head + lines)]


def provenance(run: Run, config: ConfigDict) -> str:
    """Config, command, images, samples and seeds of a run, in Markdown."""
    counts = {"exact bpd": config.likelihood.n_images, "bound": config.bound.n_images}
    listed = ", ".join(f"{what} of {n} {config.data.test_split} images" for what, n in counts.items() if n)
    drawn = config.sampling.n_samples
    samples = f", {drawn} samples with each of the seeds 0 to {config.moe.seeds - 1}" if drawn else ""
    return (
        f"Config {run.name}, seed {config.seed}; models of a method have the seeds "
        f"{', '.join(map(str, seeds(config)))}; {listed}{samples}. Command: `{run.command}`"
    )
