"""Figures and sections of runs about gated mixtures; their keys in `results`, besides those of ``page.py``.

rows, columns    one row per method; columns [[header, value's key, error's key, deviation's key]]
gate_weights     {"experts": [name], "methods": {name: {"gamma" [G], "mean" [G][K], optionally "sd"}}}
gate_slices      {method: {kind: {"names" [S], "usage" [S][K], "bpd" [S], optionally "accuracy" [K]}}}
slices           [what `SliceSet.report` returns]
collapse         {"offset", "arms": {name: [{"usage_step" [T], "usage" [T][K]}]}}: one entry per seed
gates            [{"method", "entropy", "effective_experts", "least_used", "most_used", "experts"}]
tuning           [{"width", "diffusion_bpd", "se", "best_step"}], gate_width
narrative        [paragraph]
"""

import html
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxmerge.report import quality, style, tables
from jaxmerge.report.style import COLORS, MORE, new_figure, styled

CAPTIONS = {
    "method_plane": "Likelihood against sample quality of all methods; lower left is better. Bars: standard error over "
    "images (shared by all methods) and standard deviation over seeds.",
    "gate_weights": "Weights of every expert against the noise level: means over the test images; bands are the "
    "standard deviation over gates. Noise rises to the right.",
    "gate_slices": "Mean weight of every expert on the images of every slice, over all noise levels.",
    "collapse": "Usage of the experts during training, from a gate whose first logit starts high; one line per expert "
    "and seed.",
}
PALETTE = (COLORS["VDM"], COLORS["EDM"], COLORS["merged"], *MORE)


def _grid(count: int, columns: int, width: float, height: float):
    columns = min(columns, count)
    lines = -(-count // columns)
    figure = new_figure(width * columns, height * lines)
    return figure, [figure.add_subplot(lines, columns, i + 1) for i in range(count)]


@styled
def plane(results: dict[str, Any]) -> Figure | None:
    """Every method at its likelihood and distance; the bound where no likelihood was measured."""
    judged = quality.names(results)
    rows = results["rows"]
    quantity = "bpd" if any(r.get("bpd") is not None for r in rows) else "vlb"
    here = [r for r in rows if r.get(quantity) is not None and r.get(judged.column) is not None]
    if len(here) < 2:
        return None
    figure = new_figure(8.6, 4.2)
    axis = figure.add_subplot()
    others = (COLORS["merged"], *MORE, style.INK)
    for i, line in enumerate(here):
        axis.errorbar(
            line[quantity],
            line[judged.column],
            line.get(f"{judged.column}_sd") or 0.0,
            line.get(f"{quantity}_sd") or 0.0,
            marker="os^Dv"[i // len(others) % 5],
            color=COLORS.get(line["method"], others[i % len(others)]),
            capsize=2,
            ls="",
            label=line["method"],
        )
    axis.set_xlabel("bits per dimension, " + ("exact" if quantity == "bpd" else "bound"))
    axis.set_ylabel(judged.long)
    figure.legend(loc="outside right center", fontsize=7.5)
    return figure


@styled
def weights(shown: dict[str, Any]) -> Figure:
    """One panel per method: the weights of all experts over the noise range."""
    methods = shown["methods"]
    figure, axes = _grid(len(methods), 3, 3.1, 2.3)
    for axis, (name, curve) in zip(axes, methods.items(), strict=True):
        gamma, mean = np.array(curve["gamma"], float), np.array(curve["mean"], float)
        deviation = np.array(curve["sd"], float) if curve.get("sd") is not None else np.zeros_like(mean)
        for k, expert in zip(range(mean.shape[1]), shown["experts"], strict=False):
            color = PALETTE[k % len(PALETTE)]
            axis.plot(gamma, mean[:, k], color=color, label=expert)
            axis.fill_between(
                gamma,
                mean[:, k] - deviation[:, k],
                mean[:, k] + deviation[:, k],
                color=color,
                alpha=0.25,
                lw=0,
            )
        low, high = np.nanmin(mean), np.nanmax(mean)
        axis.set_ylim(min(-0.03, max(low, -1.0) - 0.03), max(1.03, min(high, 2.0) + 0.03))
        axis.set_title(name, loc="left", fontsize=8.5)
        axis.set_xlabel("γ")
    handles, names = max((a.get_legend_handles_labels() for a in axes), key=lambda pair: len(pair[0]))
    figure.legend(handles, names, loc="outside upper center", ncols=8)
    return figure


@styled
def usage_by_slice(found: dict[str, Any]) -> Figure:
    """Stacked bars: one panel per method and kind of slice, one bar per slice."""
    panels = [(m, kind, part) for m, kinds in found.items() for kind, part in kinds.items()]
    figure, axes = _grid(len(panels), 4, 2.5, 2.1)
    for axis, (method, kind, part) in zip(axes, panels, strict=True):
        usage = np.array(part["usage"], float)
        floor = np.zeros(len(usage))
        for k in range(usage.shape[1]):
            axis.bar(np.arange(len(usage)), usage[:, k], 0.75, bottom=floor, color=PALETTE[k % len(PALETTE)])
            floor += usage[:, k]
        names = [
            str(n).removeprefix("class ").removeprefix(kind.replace("_", " ") + " ") for n in part["names"]
        ]
        axis.set_xticks(np.arange(len(usage)), names, rotation=35, ha="right", fontsize=6.5)
        axis.set_title(f"{method}\n{kind.replace('_', ' ')}", loc="left", fontsize=7.5)
        axis.set_ylim(0, 1)
        axis.grid(axis="x", visible=False)
    return figure


@styled
def collapse(found: dict[str, Any]) -> Figure:
    """Usage over training, one panel per arm."""
    figure, axes = _grid(len(found["arms"]), 2, 4.2, 2.8)
    for axis, (name, seeds) in zip(axes, found["arms"].items(), strict=True):
        for curve in seeds:
            usage = np.array(curve["usage"], float)
            for k in range(usage.shape[1]):
                axis.plot(
                    curve["usage_step"], usage[:, k], color=PALETTE[k % len(PALETTE)], alpha=0.75, lw=1.2
                )
        axis.axhline(0.95, color=style.INK, lw=0.8, ls=":")
        axis.set_title(name, loc="left", fontsize=9)
        axis.set_xlabel("step")
        axis.set_ylim(0, 1.02)
    axes[0].set_ylabel("usage; dotted: collapse")
    return figure


def figures(results: dict[str, Any]) -> dict[str, Figure]:
    """Every figure for which the run has data."""
    drawn = {}
    if results.get("columns"):
        shown = plane(results)
        if shown is not None:
            drawn["method_plane"] = shown
    for name, draw in (("gate_weights", weights), ("gate_slices", usage_by_slice), ("collapse", collapse)):
        if results.get(name):
            drawn[name] = draw(results[name])
    return drawn


def narrative(results: dict[str, Any]) -> str:
    """The paragraphs in HTML."""
    return "".join(f"<p>{html.escape(text)}</p>" for text in results.get("narrative", []))


def gates(results: dict[str, Any]) -> str:
    """Entropy and usage of every method's gates, per-slice accuracy and bound, and the gate's tuning."""
    cells = [
        [
            line["method"],
            tables.with_error(line["entropy"]),
            f"{line['effective_experts']:.2f} of {line['experts']}",
            f"{100 * line['least_used']:.1f} %",
            f"{100 * line['most_used']:.1f} %",
        ]
        for line in results.get("gates", [])
    ]
    header = ["method", "entropy of the weights, nats", "effective experts", "least used", "most used"]
    parts = [tables.html_table(header, cells)] if cells else []
    if results.get("tuning"):
        words = ", ".join(
            f"{t['width']}: {tables.with_error(t['diffusion_bpd'], t['se'])}" for t in results["tuning"]
        )
        parts.append(
            f"<p>Width of the gate, tried once with one seed; diffusion term of the validation images: {words}. Chosen: "
            f"{results['gate_width']}.</p>"
        )
    lines = [
        [method, kind, name, tables.with_error(part["bpd"][s]), _share(part, s)]
        for method, kinds in results.get("gate_slices", {}).items()
        for kind, part in kinds.items()
        for s, name in enumerate(part["names"])
    ]
    if lines:
        table = tables.html_table(
            ["method", "kind of slice", "slice", "diffusion term, bpd", "top weight is its expert's"], lines
        )
        parts.append(f"<details><summary>bound and accuracy per slice</summary>{table}</details>")
    return "".join(parts)


def _share(part: dict[str, Any], s: int) -> str:
    if part.get("accuracy") is None or part["accuracy"][s] is None:
        return "–"
    return f"{100 * part['accuracy'][s]:.1f} %"


def slices(results: dict[str, Any]) -> str:
    """Sizes, definitions and overlaps of the slices."""
    lines = []
    for found in results.get("slices", []):
        for one in found["slices"]:
            how = {k: v for k, v in one.items() if k not in ("name", "images")}
            lines.append([found["kind"], one["name"], str(one["images"]), _in_words(how)])
    text = "".join(
        f'<p class="soft">{html.escape(f["kind"])}, {len(f["slices"])} slices of {f["images"]} {f["split"]} images: '
        f"{f['in_several']} images in several, {f['in_none']} in none.</p>"
        for f in results.get("slices", [])
    )
    table = tables.html_table(["kind", "slice", "images", "definition"], lines)
    return f"<details><summary>sizes and thresholds</summary>{text}{table}</details>" if lines else ""


def _in_words(how: dict[str, Any]) -> str:
    parts = []
    for key, value in how.items():
        if key == "bounds":
            for statistic, ends in value.items():
                limits = " and ".join(f"{word} {number:.4g}" for word, number in ends.items())
                parts.append(f"{statistic.replace('_', ' ')} {limits}")
        else:
            parts.append(f"{key} {', '.join(map(str, value)) if isinstance(value, list) else value}")
    return "; ".join(parts)
