"""Which distance a run's samples were judged by, and what it may be called."""

from typing import Any, NamedTuple


class Names(NamedTuple):
    """Names of the distance.

    Attributes:
        column: key of the rows, "frechet" or "fid".
        short: for a table's header.
        long: for sentences and axes.
    """

    column: str
    short: str
    long: str


FRECHET = Names("frechet", "Fréchet", "Fréchet distance")


def names(results: dict[str, Any]) -> Names:
    """The names that a run's results state; those of the Fréchet distance where they state none."""
    return Names(**results["quality"]) if results.get("quality") else FRECHET
