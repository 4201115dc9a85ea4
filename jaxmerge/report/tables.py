"""Rows of measurements as text: terminal, HTML, Markdown; every value with its standard error."""

import html
import itertools
import math
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxmerge.report.quality import names as quality_names
from jaxmerge.report.quality import score_names

# What every column of the table means; a task may say it more exactly in results["definitions"].
DEFINITIONS = {
    "model": "EDM and VDM are the single experts over their own noise ranges, with the prior and the "
    "reconstruction of their own end points; a merge asks the VDM below its threshold and the EDM above it.",
    "eta": "Position of the threshold in the merged noise range, gamma = gamma_min + eta (gamma_max - gamma_min); "
    "a star marks a proposed threshold.",
    "bpd": "Exact likelihood of test images by the probability-flow ODE, in bits per dimension; lower is better. "
    "The error is the standard error over images; models share images, dequantisation noise and probes, so that "
    "their differences are far more certain than the values.",
    "vlb": "Variational lower bound in bits per dimension, another model (the SDE) of the same network; no order "
    "between the two is implied for trained networks.",
    "frechet": "Fréchet distance, digits classifier: between the penultimate features of samples and of training "
    "images; lower is better. The error is the standard error over seeds.",
    "nfe_likelihood": "Network calls per image for one likelihood; a call that carries tangents counts once.",
    "nfe_sampling": "Network calls per image for one sample.",
    "sampler": "ode: probability-flow solve. heun: Heun's method on EDM's noise grid, with the switch as a "
    "grid node. ancestral: uniform steps in gamma.",
    "n_images": "Test images behind bpd.",
    "n_samples": "Samples per seed behind the distance.",
}


def with_error(value: float | None, error: float | None = None) -> str:
    """A value and its standard error to two significant digits of the error.

    Example:
        >>> with_error(1.78512, 0.0123)
        '1.785 ± 0.012'
    """
    if value is None or not math.isfinite(value):
        return "–"
    if error is None or not math.isfinite(error) or error <= 0:
        return f"{value:.3f}"
    digits = min(max(1 - math.floor(math.log10(error)), 0), 6)
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def whole(value: float | None) -> str:
    """A count, without decimals."""
    return "–" if value is None else f"{value:.0f}"


def label(row: dict[str, Any]) -> str:
    """A row's model in words: "EDM", "EDM, uniform dequantisation", "merged, η = 0.200"."""
    name = row["model"] if row.get("eta") is None else f"{row['model']}, η = {row['eta']:.3f}"
    kind = row.get("dequantization")
    return name if kind in (None, "truncated_normal") else f"{name}, {kind} dequantisation"


def is_proposed(row: dict[str, Any], results: dict[str, Any]) -> bool:
    """Whether a row's threshold is one of the proposed ones."""
    etas = [eta for eta in results.get("proposed", {}).values() if eta is not None]
    return row.get("eta") is not None and any(abs(row["eta"] - eta) < 1e-9 for eta in etas)


def models(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry per model: its first row, with all its samplers' rows under "samplers"."""
    merged: dict[tuple, dict[str, Any]] = {}
    for row in rows:
        key = (row["model"], row.get("eta"), row.get("dequantization"))
        entry = merged.setdefault(key, {**row, "samplers": {}})
        for field in ("bpd", "bpd_se", "vlb", "vlb_se", "nfe_likelihood", "n_images"):
            if entry.get(field) is None:
                entry[field] = row.get(field)
        if row.get("sampler"):
            entry["samplers"].setdefault(row["sampler"], row)
    order = {"EDM": 0, "merged": 1, "VDM": 2}
    return sorted(merged.values(), key=lambda e: (order.get(e["model"], 1), e.get("eta") or 0.0))


def samplers(rows: list[dict[str, Any]]) -> list[str]:
    """The samplers that occur, in the rows' order."""
    return list(dict.fromkeys(row["sampler"] for row in rows if row.get("sampler")))


def columns(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the main table, one line per model."""
    rows = results.get("rows", [])
    if results.get("columns"):
        return method_columns(results)
    if not rows or "model" not in rows[0]:
        header = list(dict.fromkeys(key for row in rows for key in row))
        return header, [[plain_cell(row.get(key)) for key in header] for row in rows]
    names = samplers(rows)
    header = ["model", "bpd", "bound"]
    quality = quality_names(results)
    header += [f"{quality.short}, {name}" for name in names]
    scores = [
        (column, name, words)
        for column, words in score_names(results).items()
        for name in names
        if any(row.get("sampler") == name and row.get(column) is not None for row in rows)
    ]
    header += [f"{words}, {name}" for _, name, words in scores]
    header += ["NFE likelihood", *(f"NFE {name}" for name in names), "images", "samples"]
    cells = []
    for entry in models(rows):
        drawn = [entry["samplers"].get(name, {}) for name in names]
        star = " ★" if is_proposed(entry, results) else ""
        line = [label(entry) + star, with_error(entry.get("bpd"), entry.get("bpd_se"))]
        line.append(with_error(entry.get("vlb"), entry.get("vlb_se")))
        line += [with_error(row.get(quality.column), row.get(f"{quality.column}_se")) for row in drawn]
        line += [score_cell(entry["samplers"].get(name, {}), column) for column, name, _ in scores]
        line += [whole(entry.get("nfe_likelihood")), *(whole(row.get("nfe_sampling")) for row in drawn)]
        counts = dict.fromkeys(whole(row["n_samples"]) for row in drawn if row.get("n_samples"))
        line += [whole(entry.get("n_images")), ", ".join(counts) or "–"]
        cells.append(line)
    return header, cells


def score_cell(row: dict[str, Any], column: str) -> str:
    """A score with its error; without one to four digits, as a kernel distance is small."""
    text = with_error(row.get(column), row.get(f"{column}_se"))
    return text if "±" in text or text == "–" else plain_cell(row[column])


def method_columns(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a table of methods, whose columns the run chose (see ``report/moe.py``)."""

    def cell(row, value, error, deviation, *ends):
        number = row.get(value)
        if isinstance(number, int) or value.startswith("nfe"):
            return whole(number)
        if ends:
            low, high = (row.get(end) for end in ends)
            return "–" if number is None else f"{number:.3g} ({low:.3g} to {high:.3g})"
        text = with_error(number, row.get(error))
        return text if row.get(deviation) is None else f"{text} [{row[deviation]:.2g}]"

    chosen = results["columns"]
    cells = [[row["method"], *(cell(row, *keys) for _, *keys in chosen)] for row in results["rows"]]
    return ["method", *(header for header, *_ in chosen)], cells


def fitting(header: list[str], cells: list[list[str]], width: int) -> tuple[list[str], list[list[str]]]:
    """The first columns of a table that stand side by side in so many characters, two at least."""
    # A column's border and the blanks around its cells take three.
    widths = (3 + max(map(len, column)) for column in zip(header, *cells, strict=True))
    count = max(2, sum(total < width for total in itertools.accumulate(widths)))
    return header[:count], [line[:count] for line in cells]


def published_columns(paper: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of published values beside measured ones (see ``report/published.py``)."""
    cells = []
    for entry in paper["entries"]:
        eta, difference = entry["eta"], entry["difference"]
        cells.append(
            [
                entry["model"] if eta is None else f"{entry['model']}, η = {plain_cell(eta)}",
                " ".join(filter(None, (entry["quantity"], entry["sampler"]))),
                plain_cell(entry["published"]),
                with_error(entry["measured"], entry["se"]),
                "–" if difference is None else f"{difference:+.3g}",
            ]
        )
    return ["model", "quantity", "published", "measured here", "measured minus published"], cells


def plain_cell(value: Any) -> str:
    """Any value in a cell."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def markdown(results: dict[str, Any]) -> str:
    """The main table in Markdown, as the README shows it."""
    header, cells = columns(results)
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(line) + " |" for line in cells]) + "\n"


def html_table(header: list[str], cells: list[list[str]], marked: set[int] = frozenset()) -> str:
    """A table in HTML; the lines in `marked` stand out."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = []
    for i, line in enumerate(cells):
        style = ' class="marked"' if i in marked else ""
        body.append(f"<tr{style}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def main_table(results: dict[str, Any]) -> str:
    """The main table in HTML, proposed thresholds marked."""
    header, cells = columns(results)
    return html_table(header, cells, {i for i, line in enumerate(cells) if line and line[0].endswith("★")})


def print_table(title: str, header: list[str], cells: list[list[str]], console: Console) -> None:
    """A table on the terminal; lines with a star in bold."""
    table = Table(title=title)
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right")
    for line in cells:
        table.add_row(*line, style="bold" if line[0].endswith("★") else None)
    console.print(table)


def print_summary(results: dict[str, Any], console: Console) -> None:
    """The main table, the paper's if the run has any, what differs from the paper, and the finding on the terminal."""
    full, cells = columns(results)
    header, cells = fitting(full, cells, console.width) if results.get("columns") else (full, cells)
    if cells:
        print_table(results.get("title") or results.get("name"), header, cells, console)
        if any(line[0].endswith("★") for line in cells):
            console.print("★ proposed from training and validation images", highlight=False)
        if len(header) < len(full):
            left_out = ", ".join(full[len(header) :])
            console.print(f"in the report besides: {left_out}", highlight=False, markup=False, soft_wrap=True)
    for paper in results.get("published", []):
        title = f"Beside table {paper['table']} of {paper['source']}, {paper['data']}"
        print_table(title, *published_columns(paper), console)
    note = results.get("config", {}).get("report", {}).get("published_note")
    if note:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    console.print(results.get("finding", ""), highlight=False, markup=False, soft_wrap=True)
