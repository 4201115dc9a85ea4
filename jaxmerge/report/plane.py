"""Likelihood against sample quality of many methods, numbered: the whole plane with errors, and a part of it close by."""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.figure import Figure

from jaxmerge.report import quality, style
from jaxmerge.report.style import COLORS, MORE, new_figure, styled

LETTER = 7  # size of the numbers, points


class Column(NamedTuple):
    """The methods that have one likelihood and the distance.

    Attributes:
        word: which likelihood.
        rows: (number of the method in the table, its row).
        points: likelihood and distance [P, 2].
        errors: of both [P, 2].
    """

    word: str
    rows: list[tuple[int, dict[str, Any]]]
    points: Float[np.ndarray, "P 2"]
    errors: Float[np.ndarray, "P 2"]


def look(number: int, name: str) -> dict[str, Any]:
    """Colour and marker of the n-th method; VDM and EDM have their own colours."""
    others = (COLORS["merged"], *MORE, style.INK)
    color = COLORS.get(name, others[number % len(others)])
    return {"color": color, "marker": "os^Dv"[number // len(others) % 5]}


@styled
def plane(results: dict[str, Any]) -> Figure | None:
    """Every method at its likelihood and distance, with bars above and close by below.

    One column for the exact likelihood, where it is defined, and one for the bound, which all methods have; None where
    fewer than two methods have either.
    """
    judged = quality.names(results)
    found = [_column(results["rows"], *what, judged.column) for what in (("bpd", "exact"), ("vlb", "bound"))]
    columns = [column for column in found if len(column.rows) > 1]
    if not columns:
        return None
    figure = new_figure(2.6 + 3.5 * len(columns), 7.0)
    axes = np.array(
        [
            [figure.add_subplot(2, len(columns), 1 + c + r * len(columns)) for c in range(len(columns))]
            for r in (0, 1)
        ]
    )
    for whole, close, column in zip(*axes, columns, strict=True):
        _draw(whole, close, column)
    for axis in axes[:, 0]:
        axis.set_ylabel(judged.long)
    handles, names = max((a.get_legend_handles_labels() for a in axes[0]), key=lambda pair: len(pair[0]))
    figure.legend([h[0] for h in handles], names, loc="outside right center", fontsize=7.5)
    figure.draw_without_rendering()  # numbers find their places once the axes have theirs
    for whole, close, column in zip(*axes, columns, strict=True):
        together, numbers = near(column.points), np.array([str(i + 1) for i, _ in column.rows])
        _number(close, column.points[together], numbers[together])
        _number(whole, column.points[~together], numbers[~together])
    return figure


def _column(rows: list[dict[str, Any]], quantity: str, word: str, distance: str) -> Column:
    here = [(i, r) for i, r in enumerate(rows) if None not in (r.get(quantity), r.get(distance))]
    points = [(r[quantity], r[distance]) for _, r in here]
    errors = [(joined_error(r, quantity), r.get(f"{distance}_sd") or 0.0) for _, r in here]
    return Column(word, here, np.array(points, float), np.array(errors, float))


def _draw(whole, close, column: Column) -> None:
    """All methods with their errors on one axis, those that lie together without them on the other."""
    together = near(column.points)
    for (i, line), point, error, shown in zip(
        column.rows, column.points, column.errors, together, strict=True
    ):
        looks, name = look(i, line["method"]), f"{i + 1}  {line['method']}"
        whole.errorbar(*point, xerr=error[0], yerr=error[1], **looks, elinewidth=0.7, ls="", label=name)
        if shown:
            close.plot(*point, **looks, ls="")
    close.set_xlabel(f"bits per dimension, {column.word}")
    for axis in (whole, close):
        axis.margins(0.08)
        axis.locator_params(axis="x", nbins=5)


def near(points: Float[np.ndarray, "P 2"]) -> Bool[np.ndarray, " P"]:
    """Which points lie within one and a half interquartile ranges of the middle half, in both coordinates."""
    low, high = np.quantile(points, (0.25, 0.75), axis=0)
    reach = 1.5 * (high - low)
    return np.all((points >= low - reach) & (points <= high + reach), axis=1)


def joined_error(line: dict[str, Any], quantity: str) -> float:
    """Standard error over images and models, sqrt(se^2 + sd^2 / S) with the deviation sd over S models."""
    over_images, over_models = line.get(f"{quantity}_se") or 0.0, line.get(f"{quantity}_sd") or 0.0
    return math.sqrt(over_images**2 + over_models**2 / line.get("models", 1))


def _number(axis, points: Float[np.ndarray, "P 2"], numbers: np.ndarray) -> None:
    """Writes a number beside each point, at the nearest place that is free of points and other numbers."""
    if not len(points):
        return
    taken = axis.transData.transform(points)
    pixels = axis.figure.dpi / 72
    around = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    circle = np.stack([np.cos(around), np.sin(around)], axis=1)
    offsets = np.concatenate([radius * LETTER * circle for radius in (1.3, 2.0, 2.7)])
    for place, point, number in zip(taken.copy(), points, numbers, strict=True):
        room = np.linalg.norm((place + pixels * offsets)[:, None] - taken, axis=-1).min(axis=1)
        # The nearest place with room for a number; the roomiest one where there is none.
        free = np.flatnonzero(room > pixels * LETTER)
        chosen = offsets[free[0] if len(free) else int(np.argmax(room))]
        taken = np.vstack([taken, place + pixels * chosen])
        axis.annotate(
            number, point, chosen, textcoords="offset points", ha="center", va="center", fontsize=LETTER
        )
