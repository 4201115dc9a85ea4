"""Which scores a run's samples were judged by, and what they may be called."""

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
# Short names of the scores besides the distance, by column, in the order of the table.
SCORES = {"inception_score": "Inception score", "classifier_score": "classifier score", "kid": "KID"}


def names(results: dict[str, Any]) -> Names:
    """The names that a run's results state; those of the Fréchet distance where they state none."""
    return Names(**results["quality"]) if results.get("quality") else FRECHET


def score_names(results: dict[str, Any]) -> dict[str, str]:
    """Short names of the scores besides the distance, by column; a run's own where its results state them."""
    return SCORES | (results.get("score_names") or {})
