"""Figures and sections of runs about gated mixtures; their keys in `results`, besides those of ``page.py``.

rows, columns    one row per method; columns [[header, value's key, error's key, deviation's key]]
                 and for a range also [lower end's key, upper end's key]
gate_weights     {"experts": [name], "methods": {name: {"gamma" [G], "mean" [G][K], optionally "sd" [G][K], and of gates
                 "entropy" [G] (nats) and "effective" [G] (experts)}}}
gate_slices      {method: {kind: {"names" [S], "usage" [S][K], "bpd" [S], optionally "accuracy" [K]}}}
slices           [what `SliceSet.report` returns], one per kind, number and split
collapse         {"offset", "arms": {name: [{"usage_step" [T], "usage" [T][K]}]}}: one entry per seed
gates            [{"method", "entropy", "effective_experts", "least_used", "most_used", "experts"}]
tuning           [{"width", "diffusion_bpd", "se", "best_step"}], gate_width
narrative        [paragraph]
"""

import html
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxmerge.report import style, tables
from jaxmerge.report.plane import look, plane
from jaxmerge.report.style import COLORS, MORE, new_figure, styled

CAPTIONS = {
    "method_plane": "Likelihood against sample quality of all methods; lower left is better. The exact likelihood is not "
    "defined for every method, the bound is. Above: bars across are the standard error over images, which all methods "
    "share, joined with that over models, sqrt(se² + sd²/S); bars upwards the standard deviation over seeds. Below: those "
    "that lie together, without bars. What can be told apart, the paired differences say.",
    "gate_weights": "Weights of every expert that were used, against the noise level: means over the test images; bands are "
    "the standard deviation over gates. Noise rises to the right.",
    "effective_experts": "Effective experts, exp of the entropy of the gate's weights (before a choice of the top k), "
    "averaged over test images and gates: 1 where one expert has all the weight, K where all have the same.",
    "gate_slices": "Mean weight that was used of every expert on the images of every slice, over all noise levels.",
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
    _legend(figure, axes)
    return figure


def _legend(figure: Figure, axes: list) -> None:
    """One legend of the experts above all panels, that of the panel with the most of them."""
    handles, names = max((a.get_legend_handles_labels() for a in axes), key=lambda pair: len(pair[0]))
    figure.legend(handles, names, loc="outside upper center", ncols=8)


@styled
def effective(shown: dict[str, Any]) -> Figure | None:
    """Effective experts of every gate over the noise range; None where no method has them."""
    methods = {name: curve for name, curve in shown["methods"].items() if curve.get("effective") is not None}
    if not methods:
        return None
    figure = new_figure(8.6, max(3.0, 0.6 + 0.19 * len(methods)))
    axis = figure.add_subplot()
    for i, (name, curve) in enumerate(methods.items()):
        values = np.array(curve["effective"], float)
        axis.plot(curve["gamma"], values, **look(i, name), markersize=3, markevery=3, lw=1.1, label=name)
    axis.set_xlabel("γ")
    axis.set_ylabel("effective experts")
    axis.set_ylim(bottom=min(0.95, axis.get_ylim()[0]))
    figure.legend(loc="outside right center", fontsize=7.5)
    return figure


@styled
def usage_by_slice(found: dict[str, Any], experts: list[str] = ()) -> Figure:
    """Stacked bars: one panel per method and kind of slice, one bar per slice."""
    panels = [(m, kind, part) for m, kinds in found.items() for kind, part in kinds.items()]
    figure, axes = _grid(len(panels), 4, 2.5, 2.1)
    for axis, (method, kind, part) in zip(axes, panels, strict=True):
        usage = np.array(part["usage"], float)
        floor = np.zeros(len(usage))
        for k in range(usage.shape[1]):
            label = experts[k] if k < len(experts) else f"expert {k + 1}"
            color = PALETTE[k % len(PALETTE)]
            axis.bar(np.arange(len(usage)), usage[:, k], 0.75, bottom=floor, color=color, label=label)
            floor += usage[:, k]
        names = [
            str(n).removeprefix("class ").removeprefix(kind.replace("_", " ") + " ") for n in part["names"]
        ]
        axis.set_xticks(np.arange(len(usage)), names, rotation=35, ha="right", fontsize=6.5)
        axis.set_title(f"{method}\n{kind.replace('_', ' ')}", loc="left", fontsize=7.5)
        axis.set_ylim(0, 1)
        axis.grid(axis="x", visible=False)
    _legend(figure, axes)
    return figure


@styled
def collapse(found: dict[str, Any]) -> Figure:
    """Usage over training, one panel per arm."""
    figure, axes = _grid(len(found["arms"]), 2, 4.2, 2.8)
    for axis, (name, seeds) in zip(axes, found["arms"].items(), strict=True):
        for number, curve in enumerate(seeds):
            usage = np.array(curve["usage"], float)
            for k in range(usage.shape[1]):
                label = f"expert {k + 1}" if number == 0 else None
                color = PALETTE[k % len(PALETTE)]
                axis.plot(curve["usage_step"], usage[:, k], color=color, alpha=0.75, lw=1.2, label=label)
        axis.axhline(0.95, color=style.INK, lw=0.8, ls=":")
        axis.set_title(name, loc="left", fontsize=9)
        axis.set_xlabel("step")
        axis.set_ylim(0, 1.02)
    axes[0].set_ylabel("usage; dotted: collapse")
    _legend(figure, axes)
    return figure


def figures(results: dict[str, Any]) -> dict[str, Figure]:
    """Every figure for which the run has data."""
    drawn = {"method_plane": plane(results) if results.get("columns") else None}
    shown = results.get("gate_weights")
    if shown:
        drawn |= {"gate_weights": weights(shown), "effective_experts": effective(shown)}
    if results.get("gate_slices"):
        drawn["gate_slices"] = usage_by_slice(results["gate_slices"], shown["experts"] if shown else ())
    if results.get("collapse"):
        drawn["collapse"] = collapse(results["collapse"])
    return {name: figure for name, figure in drawn.items() if figure is not None}


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
    return "".join(parts) + per_slice(results)


def per_slice(results: dict[str, Any]) -> str:
    """Bound of every method on every slice, and how often the gate chose the expert that was made for it."""
    found = [
        (method, kind, part, s)
        for method, kinds in results.get("gate_slices", {}).items()
        for kind, part in kinds.items()
        for s in range(len(part["names"]))
    ]
    if not found:
        return ""
    header = ["method", "kind of slice", "slice", "diffusion term, bpd"]
    lines = [[m, kind, part["names"][s], tables.with_error(part["bpd"][s])] for m, kind, part, s in found]
    summary = "diffusion term per slice"
    if any(part.get("accuracy") for _, _, part, _ in found):
        header.append("top weight is its expert's")
        lines = [[*line, _share(part, s)] for line, (_, _, part, s) in zip(lines, found, strict=True)]
        summary += ", and accuracy on the slices that experts were made for"
    return f"<details><summary>{summary}</summary>{tables.html_table(header, lines)}</details>"


def _share(part: dict[str, Any], s: int) -> str:
    if not part.get("accuracy") or part["accuracy"][s] is None:
        return "–"
    return f"{100 * part['accuracy'][s]:.1f} %"


def slices(results: dict[str, Any]) -> str:
    """Sizes, definitions and overlaps of the slices, on every split that they were counted on."""
    found = results.get("slices", [])
    if not found:
        return ""
    splits = list(dict.fromkeys(f["split"] for f in found))
    groups: dict[tuple[str, int], dict[str, Any]] = {}
    for one in found:
        groups.setdefault((one["kind"], len(one["slices"])), {})[one["split"]] = one
    lines, overlaps = [], []
    for (kind, count), by_split in groups.items():
        first = next(iter(by_split.values()))
        for s, one in enumerate(first["slices"]):
            sizes = [str(by_split[p]["slices"][s]["images"]) if p in by_split else "–" for p in splits]
            how = {k: v for k, v in one.items() if k not in ("name", "images")}
            lines.append([f"{kind}, {count}", one["name"], *sizes, _in_words(how)])
        overlaps += [_overlap(one) for one in by_split.values()]
    header = ["kind, number", "slice", *(f"{split} images" for split in splits), "definition"]
    return (
        f"<details><summary>sizes and thresholds</summary>{tables.html_table(header, lines)}</details>"
        f"<details><summary>overlaps</summary>{''.join(overlaps)}</details>"
    )


def _overlap(found: dict[str, Any]) -> str:
    """How many images each two slices share, with a slice's own on the diagonal; in a sentence where they share none."""
    names = [one["name"] for one in found["slices"]]
    said = f"{found['kind']}, {len(names)} slices of {found['images']} {found['split']} images: "
    said += f"{found['in_several']} images in several, {found['in_none']} in none."
    if not found["in_several"]:
        return f'<p class="soft">{html.escape(said)}</p>'
    lines = [[name, *map(str, counts)] for name, counts in zip(names, found["overlap"], strict=True)]
    table = tables.html_table(["images in both", *names], lines)
    return f'<p class="soft">{html.escape(said)}</p>{table}'


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
