"""From measurements of methods to rows, paired differences and relative gains.

Errors. `_se` is the standard error over test images (over seeds of the noise for the samples' scores of a
method with one model); `_sd` is the standard deviation over the models of a method, each trained with its
own seed. A paired difference is the mean over images of the difference of two methods, each averaged over
its models; its error joins the one over images and those of the models' means,

    se^2 = sd_images^2 / N + sd_a^2 / S_a + sd_b^2 / S_b.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from jaxmerge.files import write_bytes
from jaxmerge.likelihood import Likelihood
from jaxmerge.report import tables
from jaxmerge.run import Run
from jaxmerge.tasks.moe.models import Method

Measured = dict[str, dict[str, Any]]
PER_IMAGE = ("bpd", "vlb")


def per_image(found: dict[str, Any], quantity: str) -> Float[np.ndarray, "S N"] | None:
    """bpd or bound of every model on every test image; None where it was not measured."""
    if quantity == "vlb":
        parts = [np.asarray(m["bound"]).sum(-1) for m in found["models"] if "bound" in m]
    else:
        parts = [_solved(Likelihood(**m["likelihood"])) for m in found["models"] if "likelihood" in m]
    return np.stack(parts).astype(np.float64) if parts else None


def _solved(result: Likelihood) -> np.ndarray:
    return np.where(result.ok, result.bpd, np.nan)


def _solved_by_any(values: Float[np.ndarray, "S N"]) -> np.ndarray:
    return np.isfinite(values).any(axis=0)


def scores(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Scores of samples by the seed of their noise."""
    return {seed: s for model in found["models"] for seed, s in model.get("samples", {}).items()}


def sd(values: Sequence[float]) -> float | None:
    """Standard deviation; None of a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def row(method: Method, found: dict[str, Any]) -> dict[str, Any]:
    """A method's line."""
    line: dict[str, Any] = {"method": method.name, "experts": method.experts, "models": len(method.models)}
    for quantity in PER_IMAGE:
        values = per_image(found, quantity)
        if values is None:
            line |= dict.fromkeys((quantity, f"{quantity}_se", f"{quantity}_sd"))
            continue
        mean = np.nanmean(values[:, _solved_by_any(values)], axis=0)
        line[quantity] = float(mean.mean())
        line[f"{quantity}_se"] = float(mean.std(ddof=1) / math.sqrt(len(mean)))
        line[f"{quantity}_sd"] = sd(np.nanmean(values, axis=1))
    drawn = list(scores(found).values())
    for name in drawn[0] if drawn else ():
        values = [s[name] for s in drawn]
        column = "nfe_sampling" if name == "nfe" else name
        line[column] = float(np.mean(values))
        if name != "nfe":
            line[f"{column}_sd"] = sd(values)
    for name in [name for name in ("psnr", "ssim", "lpips") if name in found["models"][0]]:
        values = [m[name] for m in found["models"]]
        line |= {name: float(np.mean(values)), f"{name}_sd": sd(values)}
        line[f"{name}_se"] = float(np.mean([m[f"{name}_se"] for m in found["models"]]))
    spent = found["cost"]
    line["latency_ms"] = 1e3 * spent["latency"]
    line["memory_mb"] = spent["planned_bytes"] / 2**20 if spent["planned_bytes"] >= 0 else None
    line |= {name: spent[name] for name in ("parameters", "gate_parameters")}
    solved = [Likelihood(**m["likelihood"]) for m in found["models"] if "likelihood" in m]
    if solved:
        line["nfe_likelihood"] = float(np.mean([np.mean(s.nfe) for s in solved]))
        line["n_failed"] = int(sum(np.sum(~np.asarray(s.ok)) for s in solved))
    line["training_steps"] = method.steps
    return line


def difference(measured: Measured, a: Method, b: Method, quantity: str) -> tuple[float, float, int] | None:
    """(mean of a minus b, its error, number of pairs) of bpd, bound or a score of samples; None without both."""
    if quantity in PER_IMAGE:
        ours, theirs = (per_image(measured[m.key], quantity) for m in (a, b))
        if ours is None or theirs is None:
            return None
        both = _solved_by_any(ours) & _solved_by_any(theirs)
        apart = np.nanmean(ours[:, both], axis=0) - np.nanmean(theirs[:, both], axis=0)
        variance = np.var(apart, ddof=1) / len(apart)
        for values in (ours, theirs):
            if len(values) > 1:
                variance += np.var(np.nanmean(values, axis=1), ddof=1) / len(values)
        return float(apart.mean()), math.sqrt(variance), len(apart)
    ours, theirs = scores(measured[a.key]), scores(measured[b.key])
    apart = [ours[s][quantity] - theirs[s][quantity] for s in ours if s in theirs and quantity in ours[s]]
    if len(apart) < 2:
        return None
    return float(np.mean(apart)), float(np.std(apart, ddof=1) / math.sqrt(len(apart))), len(apart)


def paired(
    measured: Measured, pairs: Sequence[tuple[Method, Method]], quantities: Sequence[str]
) -> list[dict[str, Any]]:
    """Differences of pairs of methods, as the report lists them."""
    found = []
    for a, b in pairs:
        for quantity in quantities:
            apart = difference(measured, a, b, quantity)
            if apart is None:
                continue
            value, error, count = apart
            unit = "n_images" if quantity in PER_IMAGE else "n_seeds"
            found.append(
                {"model_a": a.name, "model_b": b.name, "quantity": quantity}
                | {"difference": value, "se": error, unit: count}
            )
    return found


def with_gains(rows: list[dict[str, Any]], reference: str, quantities: Sequence[str]) -> None:
    """Adds the relative gain over one row in percent, positive where a method is better (lower)."""
    base = next(r for r in rows if r["method"] == reference)
    for line in rows:
        for name in quantities:
            if line.get(name) is not None and base.get(name):
                line[f"gain_{name}"] = 100 * (base[name] - line[name]) / base[name]


def columns(rows: list[dict[str, Any]], distance: tuple[str, str]) -> list[list[str]]:
    """[header, value, error, deviation over models] of the compact table's columns that have values.

    Args:
        rows: the table.
        distance: the distance's column and its name.
    """
    everything = [
        ["bpd, exact", "bpd", "bpd_se", "bpd_sd"],
        ["bound", "vlb", "vlb_se", "vlb_sd"],
        [distance[1], distance[0], f"{distance[0]}_sd", ""],
        ["classifier score", "classifier_score", "classifier_score_sd", ""],
        ["Inception score", "inception_score", "inception_score_sd", ""],
        ["PSNR, dB", "psnr", "psnr_se", "psnr_sd"],
        ["SSIM", "ssim", "ssim_se", "ssim_sd"],
        ["LPIPS", "lpips", "lpips_se", "lpips_sd"],
        ["ms per image", "latency_ms", "", ""],
        ["MiB planned", "memory_mb", "", ""],
        ["parameters", "parameters", "", ""],
        ["of the gate", "gate_parameters", "", ""],
        ["NFE", "nfe_sampling", "", ""],
        ["gain bpd, %", "gain_bpd", "", ""],
        ["gain bound, %", "gain_vlb", "", ""],
        [f"gain {distance[1]}, %", f"gain_{distance[0]}", "", ""],
    ]
    return [c for c in everything if any(line.get(c[1]) is not None for line in rows)]


def write_markdown(run: Run, config: ConfigDict, results: dict[str, Any]) -> None:
    """results.md: title, finding, the compact table, what its errors are, config and seeds."""
    lines = [
        f"# {results['title']}",
        results["finding"],
        tables.markdown(results),
        results["definitions"]["errors"],
        *(text for text in results["notes"]),
        f"Config {run.name}, seed {config.seed}; models of a method have seeds 0 to {config.moe.seeds - 1}.",
    ]
    write_bytes(run.path("results.md"), ("\n\n".join(line.strip() for line in lines) + "\n").encode())
