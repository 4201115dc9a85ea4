"""Sentences about paired differences, which follow from the numbers and are no more favourable."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from jaxmerge.report.tables import with_error
from jaxmerge.tasks.moe.differences import Difference
from jaxmerge.tasks.moe.models import Method

# Called as compare(a, b, quantity) and, for a part of the test images, compare(a, b, quantity, images).
Compare = Callable[..., Difference | None]
Slices = Mapping[str, Bool[np.ndarray, " N"]]


def main_quantity(rows: Sequence[dict[str, Any]]) -> str:
    """What methods are ranked by: the exact likelihood, or the bound where that was not measured."""
    return "bpd" if any(line.get("bpd") is not None for line in rows) else "vlb"


def word_of(quantity: str) -> str:
    """A quantity in a sentence."""
    return {"bpd": "exact bpd", "vlb": "bound"}.get(quantity, quantity)


def called(method: Method) -> str:
    """A method's name in a sentence, in quotes where it has a comma of its own."""
    return f"“{method.name}”" if "," in method.name else method.name


def ranked(
    methods: Sequence[Method], rows: Sequence[dict[str, Any]], quantity: str
) -> list[tuple[Method, float]]:
    """Methods that have the quantity, best (lowest) first."""
    values = {m.name: line.get(quantity) for m, line in zip(methods, rows, strict=True)}
    there = [(m, values[m.name]) for m in methods if values[m.name] is not None]
    return sorted(there, key=lambda pair: pair[1])


def against(a: Method, b: Method, quantity: str, compare: Compare, word: str | None = None) -> str:
    """A paired comparison in words: "0.012 ± 0.003 below the VDM"; `word` stands for b's name, which it is by default."""
    apart, word = compare(a, b, quantity), word or called(b)
    if apart is None:
        return f"not compared with {word}"
    if apart.side == 0:
        return f"not distinguishable from {word} (difference {with_error(apart.value, apart.error)})"
    return f"{with_error(abs(apart.value), apart.error)} {'below' if apart.side < 0 else 'above'} {word}"


def is_clear(a: Method, b: Method, quantity: str, compare: Compare) -> bool:
    """Whether a is clearly below b (see ``differences.py``)."""
    apart = compare(a, b, quantity)
    return apart is not None and apart.side < 0


def where(a: Method, b: Method, compare: Compare, slices: Slices) -> str:
    """In which slices of the test images the bound of a is clearly below that of b, and in which not.

    Args:
        a, b: the methods.
        compare: paired differences.
        slices: which of the bound's test images belong to a slice, by the slice's name.

    Returns:
        Two sentences; empty where no slice could be compared.
    """
    groups: dict[int, list[str]] = {-1: [], 0: [], 1: []}
    for name, images in slices.items():
        apart = compare(a, b, "vlb", images)
        if apart is not None:
            groups[apart.side].append(f"{name} {with_error(apart.value, apart.error)}")
    total = sum(map(len, groups.values()))
    if not total:
        return ""
    words = {-1: "clearly below it in", 0: "not told apart in", 1: "clearly above it in"}
    parts = [
        f"{words[side]} {len(listed)} of {total}" + (f" ({', '.join(listed)})" if listed else "")
        for side, listed in groups.items()
        if listed or side < 0
    ]
    return (
        f"By slices of the test images, the bound of {called(a)} against {called(b)} is {'; '.join(parts)}. In brackets are "
        "paired differences; each slice is judged by itself."
    )
