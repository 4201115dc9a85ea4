"""What the table of mixtures, baselines and ablations found, in words."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxmerge.tasks.moe.models import Method
from jaxmerge.tasks.moe.words.phrases import (
    Compare,
    Slices,
    against,
    called,
    is_clear,
    ranked,
    where,
    word_of,
)

# Rows that differ from B in more than one thing.
APART = ("B", "vdm", "A_steps", "A_compute", "switch")


def ablation_pairs(methods: Sequence[Method]) -> list[tuple[Method, Method]]:
    """What one change does: every other mixture against B."""
    known = {m.key: m for m in methods}
    return [(m, known["B"]) for m in methods if m.key not in APART] if "B" in known else []


def finding(methods: list[Method], reference: Method, rows: list[dict[str, Any]], compare: Compare) -> str:
    """Which methods are clearly better than a single expert with the same compute, and which is best."""
    quantity = "vlb" if any(line.get("vlb") is not None for line in rows) else "bpd"
    order = ranked(methods, rows, quantity)
    better, _, worse = _sides([m for m, _ in order], reference, quantity, compare)
    best = order[0][0]
    said = f"Lowest {word_of(quantity)} on test images: {called(best)}, {order[0][1]:.4f}"
    if best is not reference:
        said += f", {against(best, reference, quantity, compare)}"
    counted = f"{len(better)} of {len(order) - 1} other rows are clearly below {called(reference)}"
    listed = f" ({', '.join(better)})" if better else ""
    return f"{said}. {counted}{listed}, {len(worse)} clearly above."


def _sides(
    methods: Sequence[Method], reference: Method, quantity: str, compare: Compare
) -> tuple[list[str], list[str], list[str]]:
    """Names of the methods clearly below a reference, not told apart from it, and clearly above it."""
    found: dict[int, list[str]] = {-1: [], 0: [], 1: []}
    for method in methods:
        apart = None if method is reference else compare(method, reference, quantity)
        if apart is not None:
            found[apart.side].append(called(method))
    return found[-1], found[0], found[1]


def narrative(
    methods: list[Method],
    reference: Method,
    rows: list[dict[str, Any]],
    compare: Compare,
    distance: tuple[str, str],
    collapsed: dict[str, Any],
    slices: Slices | None = None,
) -> list[str]:
    """Paragraphs: every row against A, what each ablation changed, when and where a mixture helps, and when not.

    Args:
        methods, rows: the table.
        reference: baseline A.
        compare: paired differences.
        distance: column and name of the distance.
        collapsed: usage during training from a gate that began near a collapse; empty where that was left out.
        slices: which of the bound's test images belong to a slice, by the slice's name; without them nothing is said
            of where a mixture helps.
    """
    said = []
    quantities = {"vlb": "bound", "bpd": "exact bpd", distance[0]: f"{distance[1]} distance"}
    for quantity, name in quantities.items():
        order = [m for m, _ in ranked(methods, rows, quantity)]
        sides = ("clearly below", "not told apart from", "clearly above")
        groups = zip(sides, _sides(order, reference, quantity, compare), strict=True)
        listed = "; ".join(
            f"{side} {called(reference)}: {', '.join(names)}" for side, names in groups if names
        )
        if listed:
            said.append(f"In the {name}, {listed}.")
    helps = _when(methods, reference, rows, compare, quantities, slices)
    closing = [_changes(methods, compare, quantities), helps, collapse_words(collapsed) if collapsed else ""]
    return [*said, *filter(None, closing)]


def _changes(methods: Sequence[Method], compare: Compare, quantities: Mapping[str, str]) -> str:
    """What every change of B does to its bound, and what some of them clearly do to the rest; empty without B."""
    pairs = ablation_pairs(methods)
    said = []
    for quantity, name in quantities.items():
        found = [
            (called(a), against(a, b, quantity, compare, "it"), compare(a, b, quantity)) for a, b in pairs
        ]
        found = [(row, words, apart) for row, words, apart in found if apart is not None]
        if not found:
            continue
        if quantity != "vlb":
            found = [(row, words, apart) for row, words, apart in found if apart.side]
            name = f"{name}, where it is clear"
        listed = "; ".join(f"{row}: {words}" for row, words, _ in found) or "none"
        said.append(f"{'In' if said else 'in'} the {name}: {listed}.")
    if not said:
        return ""
    return f"What one change does to {called(pairs[0][1])} {' '.join(said)}"


def _mixtures(methods: Sequence[Method], rows: Sequence[dict[str, Any]], quantity: str) -> list[Method]:
    """Mixtures of specialists that have the quantity, best first."""
    return [m for m, _ in ranked(methods, rows, quantity) if m.experts > 1 and m.key != "switch"]


def _when(
    methods: Sequence[Method],
    reference: Method,
    rows: Sequence[dict[str, Any]],
    compare: Compare,
    quantities: Mapping[str, str],
    slices: Slices | None,
) -> str:
    """How many mixtures help, and in which slices the best of them does; empty without a bound."""
    counted = []
    for quantity, name in quantities.items():
        there = _mixtures(methods, rows, quantity)
        helped, same, hurt = map(len, _sides(there, reference, quantity, compare))
        if helped + same + hurt:
            counted.append(
                f"in the {name} {helped} of {helped + same + hurt} are clearly lower and {hurt} clearly higher"
            )
    mixtures = _mixtures(methods, rows, "vlb")
    if not counted or not mixtures:
        return ""
    said = (
        "When a mixture helps here, and when not: of the mixtures, against one expert trained with the same compute, "
        f"{'; '.join(counted)}."
    )
    base = next((m for m in methods if m.key == "vdm"), None)
    if base is not None and is_clear(base, reference, "vlb", compare):
        said += (
            f" That expert was better before it was trained on: {called(base)} has a bound "
            f"{against(base, reference, 'vlb', compare, 'its own')}."
        )
    if not slices:
        return said
    chosen = f" {called(mixtures[0])} is the mixture with the lowest bound, chosen on these same images."
    return f"{said} {where(mixtures[0], reference, compare, slices)}{chosen}"


def collapse_words(collapsed: dict[str, Any]) -> str:
    """Where the usage of all experts went from a gate that began near a collapse."""
    ends = {
        name: np.stack([np.asarray(curve["usage"])[-1] for curve in curves])
        for name, curves in collapsed["arms"].items()
    }
    starts = [float(np.asarray(c["usage"])[0, 0]) for curves in collapsed["arms"].values() for c in curves]
    listed = "; ".join(
        f"{name} {end[:, 0].mean():.3f} (seeds {', '.join(f'{v:.3f}' for v in end[:, 0])}), and of all experts between "
        f"{end.min():.3f} and {end.max():.3f}"
        for name, end in ends.items()
    )
    return (
        f"From a gate whose first logit starts {collapsed['offset']:g} higher (usage {np.mean(starts):.3f} of the first "
        f"expert in the first steps), without the entropy penalty in either arm, its usage at the end was {listed}."
    )
