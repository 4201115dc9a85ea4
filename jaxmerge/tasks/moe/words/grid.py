"""What the table of mixtures, baselines and ablations found, in words."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxmerge.tasks.moe.models import Method
from jaxmerge.tasks.moe.words.phrases import Compare, Slices, against, called, ranked, where, word_of

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
    for quantity, name in (("vlb", "bound"), ("bpd", "exact bpd"), (distance[0], f"{distance[1]} distance")):
        order = [m for m, _ in ranked(methods, rows, quantity)]
        sides = ("clearly below", "not told apart from", "clearly above")
        groups = zip(sides, _sides(order, reference, quantity, compare), strict=True)
        listed = "; ".join(
            f"{side} {called(reference)}: {', '.join(names)}" for side, names in groups if names
        )
        if listed:
            said.append(f"In the {name}, {listed}.")
    changes = [
        f"{called(a)}: {against(a, b, 'vlb', compare, 'it')}"
        for a, b in ablation_pairs(methods)
        if compare(a, b, "vlb") is not None
    ]
    if changes:
        base = next(m for m in methods if m.key == "B")
        said.append(f"What one change does to the bound of {called(base)}: {'; '.join(changes)}.")
    helps = _when(methods, reference, rows, compare, slices)
    return [*said, *([helps] if helps else []), *([collapse_words(collapsed)] if collapsed else [])]


def _when(
    methods: Sequence[Method],
    reference: Method,
    rows: Sequence[dict[str, Any]],
    compare: Compare,
    slices: Slices | None,
) -> str:
    """How many mixtures help, and in which slices the best of them does; empty without a bound."""
    mixtures = [m for m, _ in ranked(methods, rows, "vlb") if m.experts > 1 and m.key != "switch"]
    helped, same, hurt = _sides(mixtures, reference, "vlb", compare)
    if not helped and not same and not hurt:
        return ""
    said = (
        f"When a mixture helps here, and when not: {len(helped)} of {len(mixtures)} mixtures have a bound clearly lower "
        f"than one expert trained with the same compute, and {len(hurt)} a clearly higher one."
    )
    if not slices:
        return said
    chosen = f" {called(mixtures[0])} is the mixture with the lowest bound, chosen on these same images."
    return f"{said} {where(mixtures[0], reference, compare, slices)}{chosen}"


def collapse_words(collapsed: dict[str, Any]) -> str:
    """Where the usage went from a gate that began near a collapse."""
    ends = {
        name: [float(np.asarray(curve["usage"])[-1, 0]) for curve in curves]
        for name, curves in collapsed["arms"].items()
    }
    starts = [float(np.asarray(c["usage"])[0, 0]) for curves in collapsed["arms"].values() for c in curves]
    listed = "; ".join(
        f"{name} {np.mean(e):.3f} (seeds {', '.join(f'{v:.3f}' for v in e)})" for name, e in ends.items()
    )
    return (
        f"From a gate whose first logit starts {collapsed['offset']:g} higher (usage {np.mean(starts):.3f} of the first "
        f"expert in the first steps), without the entropy penalty in either arm, its usage at the end was {listed}."
    )
