"""The common look of the run's figures, and their way into files and pages.

Colours are Okabe and Ito's, told apart by every kind of colour vision; VDM, EDM and merge keep theirs
in all figures. Text and axes are drawn in `INK`, which `svg` turns into the page's own text colour.
"""

import functools
import io
import re

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK = "#1a1b1c"
COLORS = {"VDM": "#0072b2", "EDM": "#d55e00", "merged": "#009e73"}
MORE = ("#cc79a7", "#e69f00", "#56b4e9", "#999999", "#b8a800", "#7d4a9e")
PROPOSED = "#cc79a7"
MARKERS = ("o", "s", "^", "D")
STYLE = {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "savefig.transparent": True,
    "svg.fonttype": "path",
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    "grid.color": "#808080",
}


def styled(draw):
    """Draws inside the common style without touching the user's own."""

    @functools.wraps(draw)
    def wrapped(*args, **kwargs):
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapped


def color(name: str, i: int = 0) -> str:
    """The colour of an expert, a merge or the i-th other thing."""
    return COLORS.get(name, MORE[i % len(MORE)])


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure, dpi: int = 150) -> bytes:
    """The figure as PNG on white."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE | {"savefig.transparent": False}):
        figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()


def svg(figure: Figure, name: str) -> str:
    """The figure as an inline SVG element whose text has the page's colour.

    Args:
        figure: the figure.
        name: sets its identifiers apart from those of the page's other figures.
    """
    buffer = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata=metadata)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # Glyphs and groups are named alike in every figure; a page may hold each name once.
    text = re.sub(r'(id="|href="#|url\(#)', lambda m: f"{m[0]}{name}-", text)
    # On a wide page a figure keeps its letters near the text's size.
    text = text.replace("<svg ", f'<svg style="max-width: {figure.get_figwidth() * 118:.0f}px" ', 1)
    return text.replace(INK, "currentColor")
