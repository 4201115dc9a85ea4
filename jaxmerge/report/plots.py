"""The run's figures, drawn with matplotlib without a display."""

from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

from jaxmerge.report import quality
from jaxmerge.report.style import COLORS, INK, MARKERS, MORE, PROPOSED, color, new_figure, styled
from jaxmerge.report.tables import is_proposed, models, samplers


@styled
def trade_off(results: dict[str, Any]) -> Figure:
    """bpd and Frechet distance against eta, and against each other; the paper's Figure 2."""
    entries = models(results["rows"])
    main = [e for e in entries if e.get("dequantization") in (None, "truncated_normal")]
    figure = new_figure(9.2, 4.6)
    grid = figure.add_gridspec(2, 2, width_ratios=(1.25, 1))
    names = samplers(results["rows"])
    judged = quality.names(results)
    top = figure.add_subplot(grid[0, 0])
    bottom = figure.add_subplot(grid[1, 0], sharex=top)
    plane = figure.add_subplot(grid[:, 1])
    for quantity, axis, label in (
        ("bpd", top, "bits per dimension"),
        (judged.column, bottom, judged.long),
    ):
        _against_eta(axis, main, quantity, names)
        _mark_proposed(axis, results.get("proposed", {}))
        axis.set_ylabel(label)
    top.tick_params(labelbottom=False)
    bottom.set_xlabel("threshold η")
    shown = _handles(top) | {
        f"merged, {name}": handle for name, handle in _handles(bottom).items() if name in names
    }
    if len(names) > 1:
        shown.pop("merged", None)
    figure.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=6 if len(shown) <= 6 else 4)
    floor = results.get("floor") or {}
    if floor.get(judged.column) is not None:
        bottom.axhline(floor[judged.column], color=INK, lw=1, ls=":")
        bottom.annotate("floor", (1, floor[judged.column]), (0, 2), ("axes fraction", "data"), "offset points",
                        fontsize=8, ha="right")  # fmt: skip
    _plane(plane, main, results)
    return figure


def _handles(axis) -> dict[str, Any]:
    handles, names = axis.get_legend_handles_labels()
    return dict(zip(names, handles, strict=True))


def _against_eta(axis, entries, quantity: str, names: list[str]) -> None:
    # Likelihoods do not depend on the sampler: one line; distances have a line per sampler.
    lines = [None] if quantity == "bpd" else names
    for marker, sampler in zip(MARKERS, lines, strict=False):
        points = [(e["model"], e.get("eta"), *_value(e, quantity, sampler)) for e in entries]
        points = [p for p in points if p[2] is not None]
        label = "merged" if sampler is None else sampler
        etas, values, errors = [
            np.array([p[i] for p in points if p[1] is not None], float) for i in (1, 2, 3)
        ]
        if len(etas):
            style = {"color": COLORS["merged"], "alpha": 1 if marker == MARKERS[0] else 0.55, "capsize": 2}
            axis.errorbar(
                etas, values, errors, marker=marker, label=label, ls="-" if len(etas) > 2 else "", **style
            )
        for name, eta, value, error in points:
            if eta is not None or sampler != lines[0]:
                continue
            axis.axhline(value, color=color(name), lw=1.4, label=name if sampler is None else None)
            axis.axhspan(value - error, value + error, color=color(name), alpha=0.15, lw=0)


def _value(entry, quantity: str, sampler: str | None) -> tuple[float | None, float]:
    row = entry if sampler is None else entry["samplers"].get(sampler, {})
    return row.get(quantity), row.get(f"{quantity}_se") or 0.0


def _mark_proposed(axis, proposed: dict[str, float]) -> None:
    styles = {"cautious": "-", "best_bound": "--"}
    for name, eta in proposed.items():
        if eta is not None:
            label = f"proposed ({name.replace('_', ' ')})"
            axis.axvline(eta, color=PROPOSED, lw=1.2, ls=styles.get(name, "-."), label=label, zorder=0)


def _plane(axis, entries, results) -> None:
    """Distance against bpd: better is lower left; the merge's path runs from the EDM to the VDM."""
    names, judged = samplers(results["rows"])[:1], quality.names(results)
    points, names_of_points = [], []
    for entry in entries:
        sampler = names[0] if names else None
        bpd, bpd_se = _value(entry, "bpd", None)
        distance, distance_se = _value(entry, judged.column, sampler) if sampler else (None, 0.0)
        if bpd is None or distance is None:
            continue
        star = is_proposed(entry, results)
        shape = {"marker": "*" if star else "o", "ms": 11 if star else 5, "color": color(entry["model"])}
        axis.errorbar(bpd, distance, distance_se, bpd_se, elinewidth=0.8, zorder=3, **shape)
        single = entry.get("eta") is None
        text = entry["model"] if single else f"{entry['eta']:.2f}".rstrip("0")
        names_of_points.append((text, (bpd, distance), 8.5 if single else 7.5, single or star))
        if not single:
            points.append((bpd, distance))
    axis.plot(*np.array(points).reshape(-1, 2).T, color=COLORS["merged"], lw=0.8, zorder=1)
    axis.set_xlabel("bits per dimension")
    axis.set_ylabel(f"{judged.long} ({names[0]})" if names else judged.long)
    axis.set_title("merges by their η, ★ proposed; lower left is better", loc="left", fontsize=9)
    _name_points(axis, names_of_points)


def _name_points(axis, entries) -> None:
    """Writes names beside their points, the important ones first; a name that has no room is left out.

    Args:
        axis: limits and labels are set already.
        entries: (text, (x, y), font size, important).
    """
    axis.figure.draw_without_rendering()
    taken: list[np.ndarray] = []
    for text, point, size, _ in sorted(entries, key=lambda entry: not entry[3]):
        # In points of the page: a name is about 30 wide and 10 high.
        place = axis.transData.transform(point) / axis.figure.dpi * 72
        if all(np.any(np.abs(place - other) > (30, 10)) for other in taken):
            axis.annotate(text, point, (5, 4), textcoords="offset points", fontsize=size)
            taken.append(place)


@styled
def sample_grid(
    images: UInt8[np.ndarray, "R N H W C"], labels: list[str], levels: int, *, zoom: int = 5
) -> Figure:
    """Rows of samples; a column has the same noise in every row.

    Args:
        images: grey levels 0 ... levels - 1; C is 1 or 3.
        labels: one per row.
        levels: the number of grey levels.
        zoom: screen pixels per pixel, so that browsers do not smooth.
    """
    rows, columns, height, width, _ = images.shape
    gap = 1
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 4), 0.0)
    for r, c in np.ndindex(rows, columns):
        tile = np.broadcast_to(images[r, c] / (levels - 1), (height, width, 3))
        y, x = r * (height + gap), c * (width + gap)
        sheet[y : y + height, x : x + width] = np.concatenate([tile, np.ones((height, width, 1))], axis=-1)
    sheet = sheet.repeat(zoom, 0).repeat(zoom, 1)
    inches = 7.4 / sheet.shape[1]
    figure = new_figure(9.0, sheet.shape[0] * inches + 0.1)
    axis = figure.add_subplot()
    axis.imshow(sheet, interpolation="none")
    axis.set_xticks([])
    axis.set_yticks([(r * (height + gap) + height / 2) * zoom for r in range(rows)], labels)
    axis.tick_params(length=0)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    return figure


@styled
def error_curves(
    curves: dict[str, Any], proposed: dict[str, float], gamma_range: list[float] | None
) -> Figure:
    """Every expert's squared error over the noise range, and the difference of the first two.

    Args:
        curves: gamma, experts {name: values}, optionally se {name: values}, ranges {name: [low, high]}
            and unit.
        proposed: thresholds by name.
        gamma_range: the merged range, which turns a threshold into gamma.
    """
    figure = new_figure(7.6, 4.6)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(1.5, 1))
    gamma = np.array(curves["gamma"], float)
    values = {name: np.array(curve, float) for name, curve in curves["experts"].items()}
    for i, (name, curve) in enumerate(values.items()):
        top.plot(gamma, curve, color=color(name, i), label=name)
        for end in curves.get("ranges", {}).get(name, ()):
            top.axvline(end, color=color(name, i), lw=0.8, ls=":")
    top.set_ylabel(curves.get("unit", "bits per dimension\nper unit of γ"))
    positive = np.concatenate([curve[np.isfinite(curve)] for curve in values.values()])
    if positive.size and positive.min() > 0 and positive.max() / positive.min() > 30:
        top.set_yscale("log")
    if len(values) >= 2:
        (first, a), (second, b) = list(values.items())[:2]
        bottom.plot(gamma, a - b, color=INK, lw=1.2)
        bottom.axhline(0, color=INK, lw=0.8)
        bottom.fill_between(gamma, a - b, 0, where=a > b, color=color(second), alpha=0.3, lw=0)
        bottom.fill_between(gamma, a - b, 0, where=a < b, color=color(first), alpha=0.3, lw=0)
        bottom.set_ylabel(f"{first} − {second}")
    if gamma_range:
        low, high = gamma_range
        at = {name: low + eta * (high - low) for name, eta in proposed.items() if eta is not None}
        for axis in (top, bottom):
            _mark_proposed(axis, at)
    bottom.set_xlabel("γ = −log SNR (noise rises to the right)")
    shown = _handles(top)
    figure.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=4)
    return figure


@styled
def bound_against_eta(
    bound: dict[str, Any], proposed: dict[str, float], rows: list[dict[str, Any]]
) -> Figure:
    """The bound at every eta from one pass; the test images' values as points."""
    figure = new_figure(7.6, 3.4)
    axis = figure.add_subplot()
    eta, value = np.array(bound["eta"], float), np.array(bound["bpd"], float)
    axis.plot(eta, value, color=COLORS["merged"], label=f"bound, {bound.get('split', 'all η in one pass')}")
    if bound.get("se") is not None:
        error = np.array(bound["se"], float)
        axis.fill_between(eta, value - error, value + error, color=COLORS["merged"], alpha=0.2, lw=0)
    for quantity, marker, label in (("vlb", "s", "bound, test"), ("bpd", "o", "exact likelihood, test")):
        points = [e for e in models(rows) if e.get("eta") is not None and e.get(quantity) is not None]
        if points:
            shown = [[e["eta"], e[quantity], e.get(f"{quantity}_se") or 0.0] for e in points]
            x, y, error = np.array(shown, float).T
            shade = MORE[1] if quantity == "vlb" else MORE[2]
            axis.errorbar(x, y, error, marker=marker, ls="", capsize=2, color=shade, label=label)
    _mark_proposed(axis, proposed)
    axis.set_xlabel("threshold η")
    axis.set_ylabel("bits per dimension")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


@styled
def stacked_terms(terms: list[dict[str, Any]], which: str) -> Figure:
    """The named terms of the "likelihood" or the "bound" of every model; the mark is their sum."""
    entries = [entry for entry in terms if entry.get(which)]
    names = list(dict.fromkeys(name for entry in entries for name in entry[which]))
    figure = new_figure(7.6, 0.9 + 0.3 * len(entries))
    axis = figure.add_subplot()
    place = np.arange(len(entries))
    positive, negative = np.zeros(len(entries)), np.zeros(len(entries))
    shades = (COLORS["VDM"], MORE[1], COLORS["merged"], MORE[0], MORE[2], COLORS["EDM"], MORE[3], MORE[4])
    for i, name in enumerate(names):
        value = np.array([entry[which].get(name) or 0.0 for entry in entries])
        left = np.where(value >= 0, positive, negative)
        axis.barh(place, value, 0.7, left=left, color=shades[i % len(shades)], label=name)
        positive, negative = positive + np.maximum(value, 0), negative + np.minimum(value, 0)
    axis.plot(positive + negative, place, "d", color=INK, ms=5, label="sum")
    axis.axvline(0, color=INK, lw=0.8)
    axis.set_yticks(place, [_short(entry) for entry in entries])
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("bits per dimension")
    figure.legend(loc="outside upper center", ncols=4)
    return figure


def _short(entry: dict[str, Any]) -> str:
    return entry["model"] if entry.get("eta") is None else f"η = {entry['eta']:.3g}"


@styled
def weights_per_gamma(weights: dict[str, Any]) -> Figure:
    """The best affine and convex weights of the experts over the noise range.

    Args:
        weights: gamma, experts (names), affine and convex (one list per gamma, one value per expert).
    """
    figure = new_figure(7.6, 3.0)
    axis = figure.add_subplot()
    gamma = np.array(weights["gamma"], float)
    for kind, line in (("affine", "-"), ("convex", "--")):
        if weights.get(kind) is None:
            continue
        values = np.array(weights[kind], float)
        for i, name in enumerate(weights["experts"]):
            axis.plot(gamma, values[:, i], line, color=color(name, i), label=f"{name}, {kind}")
    axis.axhline(0, color=INK, lw=0.8)
    axis.axhline(1, color=INK, lw=0.8)
    axis.set_xlabel("γ = −log SNR")
    axis.set_ylabel("weight")
    axis.legend(ncols=2)
    return figure


@styled
def training_curves(training: dict[str, Any]) -> Figure:
    """Losses over the steps of a training.

    Args:
        training: series {name: {"step": [...], "value": [...]}}.
    """
    figure = new_figure(7.6, 3.2)
    axis = figure.add_subplot()
    for i, (name, series) in enumerate(training["series"].items()):
        axis.plot(series["step"], series["value"], color=(*COLORS.values(), *MORE)[i], label=name)
    axis.set_xlabel("step")
    axis.set_ylabel(training.get("unit", "loss"))
    axis.legend()
    return figure
