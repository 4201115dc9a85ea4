"""Figures that survey a run: every metric against the threshold, and a diagram of the method."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from jaxmerge.report import quality
from jaxmerge.report.style import COLORS, INK, MARKERS, color, new_figure, styled
from jaxmerge.report.tables import models, samplers

# Quantities of a row: (column, words, whether it belongs to a sampler).
QUANTITIES = (
    ("bpd", "bits per dimension, exact", False),
    ("vlb", "bits per dimension, bound", False),
    ("inception_score", "Inception score", True),
    ("classifier_score", "classifier score", True),
    ("kid", "KID", True),
    ("nfe_likelihood", "network calls, likelihood", False),
    ("nfe_sampling", "network calls, sampling", True),
)


@styled
def all_metrics(results: dict[str, Any]) -> Figure | None:
    """Every measured quantity against eta, log10 scale; the paper's Figures 4 and 5. None without any."""
    judged = quality.names(results)
    entries = [e for e in models(results["rows"]) if e.get("dequantization") in (None, "truncated_normal")]
    asked = [*QUANTITIES[:2], (judged.column, judged.long, True), *QUANTITIES[2:]]
    present = [
        (column, words, names)
        for column, words, sampled in asked
        if (names := _with_values(entries, column, samplers(results["rows"]) if sampled else [None]))
    ]
    if not present:
        return None
    columns = min(3, len(present))
    lines = -(-len(present) // columns)
    figure = new_figure(3.2 * columns, 2.5 * lines)
    for i, (column, words, names) in enumerate(present):
        axis = figure.add_subplot(lines, columns, i + 1)
        for marker, name in zip(MARKERS, names, strict=False):
            _against_eta(axis, entries, column, name, marker)
        _log_scale(axis)
        axis.set_title(words, loc="left", fontsize=9)
        axis.set_xlabel("threshold η")
    handles = {
        text: handle
        for axis in figure.axes
        for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4)
    return figure


def _log_scale(axis) -> None:
    """Logarithmic, with plain numbers at few ticks."""
    low, high = axis.get_ylim()
    if low == high:
        axis.set_ylim(0.9 * low, 1.1 * high)
    axis.set_yscale("log", base=10)
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    low, high = axis.get_ylim()
    if high / low < 4:
        axis.yaxis.set_major_locator(MaxNLocator(5))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _row(entry, sampler: str | None) -> dict[str, Any]:
    return entry if sampler is None else entry["samplers"].get(sampler, {})


def _with_values(entries, column: str, names) -> list[str | None]:
    """The samplers for which any model has a positive value."""
    return [name for name in names if any((_row(e, name).get(column) or 0) > 0 for e in entries)]


def _against_eta(axis, entries, column: str, sampler: str | None, marker: str) -> None:
    merged = [(e["eta"], _row(e, sampler)) for e in entries if e.get("eta") is not None]
    merged = [(eta, row[column], row.get(f"{column}_se") or 0.0) for eta, row in merged if row.get(column)]
    label = "merged" if sampler is None else f"merged, {sampler}"
    style = {"color": COLORS["merged"], "marker": marker, "capsize": 2}
    if merged:
        axis.errorbar(*np.array(merged, float).T, label=label, **style)
    for entry in entries:
        value = _row(entry, sampler).get(column)
        if entry.get("eta") is None and value:
            line = "-" if marker == MARKERS[0] else ":"
            axis.axhline(value, color=color(entry["model"]), ls=line, lw=1.2, label=entry["model"])


@styled
def diagram(
    gamma_range: tuple[float, float], gamma_eta: float, gamma_low: float, gamma_high: float
) -> Figure:
    """The method in one picture, the paper's Figure 1: which expert answers at which noise level.

    Args:
        gamma_range: of the merge.
        gamma_eta: the threshold.
        gamma_low: where the high-noise expert's own range begins.
        gamma_high: where the low-noise expert's own range ends.
    """
    low, high = gamma_range
    figure = new_figure(8.0, 2.6)
    axis = figure.add_subplot()
    for name, start, end, height in (("VDM", low, gamma_high, 1.0), ("EDM", gamma_low, high, 0.0)):
        used = (low, gamma_eta) if name == "VDM" else (gamma_eta, high)
        axis.barh(height, end - start, 0.5, left=start, color=COLORS[name], alpha=0.22)
        axis.barh(height, used[1] - used[0], 0.5, left=used[0], color=COLORS[name])
        words = "likelihood expert, low noise" if name == "VDM" else "quality expert, high noise"
        axis.text(
            np.mean(used), height, f"{name}\n{words}", ha="center", va="center", fontsize=8.5, color="white"
        )
    axis.axvline(gamma_eta, color=INK, lw=1.2, ls="--")
    axis.annotate(
        "switch at η", (gamma_eta, 1.42), (4, 0), textcoords="offset points", va="center", fontsize=9
    )
    arrow = {"arrowstyle": "->", "color": INK}
    for y, start, end, words in (
        (1.75, low, high, "likelihood: image to noise"),
        (-0.6, high, low, "sampling: noise to image"),
    ):
        axis.annotate("", (end, y), (start, y), arrowprops=arrow)
        axis.text((low + high) / 2, y + 0.08, words, ha="center", va="bottom", fontsize=8.5)
    axis.set_ylim(-0.75, 2.1)
    axis.set_xlim(low - 0.3, high + 0.3)
    axis.set_yticks([])
    axis.grid(visible=False)
    axis.spines["left"].set_visible(False)
    axis.set_xlabel("γ = −log SNR, from the clean image to pure noise; pale: the expert's own range")
    return figure
