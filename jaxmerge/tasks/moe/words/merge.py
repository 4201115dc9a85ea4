"""What a run about gates over two pretrained experts found, in words."""

from typing import Any

from jaxmerge.tasks.moe.models import Method
from jaxmerge.tasks.moe.words.phrases import (
    Compare,
    Slices,
    against,
    called,
    is_clear,
    main_quantity,
    ranked,
    where,
    word_of,
)


def finding(methods: list[Method], rows: list[dict[str, Any]], compare: Compare) -> str:
    """Which merge is best on the test images, and whether the trained gate beats switch, tables and experts."""
    quantity = main_quantity(rows)
    order = ranked(methods, rows, quantity)
    known = {m.key: m for m in methods}
    best = order[0][0]
    same = [called(m) for m, _ in order[1:] if not is_clear(best, m, quantity, compare)]
    place = [m.key for m, _ in order]
    gate = next(m for m, _ in order if m.key.startswith("gate_"))
    single = known[min(("edm", "vdm"), key=place.index)]
    tie = f", not told apart from {', '.join(same)}" if same else ", clearly below all others"
    others = [known["switch"], known["convex"], known["affine"], single]
    said = "; ".join(against(gate, other, quantity, compare) for other in others)
    return (
        f"Lowest {word_of(quantity)} on test images: {called(best)}, {order[0][1]:.4f}{tie}. The best trained gate "
        f"({called(gate)}) is {said}."
    )


def narrative(
    methods: list[Method],
    rows: list[dict[str, Any]],
    compare: Compare,
    distance: tuple[str, str],
    slices: Slices | None = None,
) -> list[str]:
    """Paragraphs: what a gate changes in likelihood, bound and samples; what seeing the image and held-out images change.

    Args:
        methods, rows: the table.
        compare: paired differences.
        distance: column and name of the distance.
        slices: which of the bound's test images belong to a slice, by the slice's name; without them nothing is said
            of where a gate helps.
    """
    known = {m.key: m for m in methods}
    said = [text for m in methods if m.key.startswith("gate_") for text in _gate(m, known, compare)]
    for how, place in (("", "trained on training images"), ("_held_out", "trained on held-out images")):
        seeing, blind = known[f"gate_z{how}"], known[f"gate_gamma{how}"]
        parts = _both(seeing, [blind], compare)
        if parts:
            said.append(f"What seeing the image changes, {place}: {parts}.")
    gates = [m for m, _ in ranked(methods, rows, "vlb") if m.key.startswith("gate_")]
    if slices and gates:
        said.append(where(gates[0], known["switch"], compare, slices))
    drawn = ranked(methods, rows, distance[0])
    if drawn:
        listed = ", ".join(f"{called(m)} {value:.3f}" for m, value in drawn)
        said.append(
            f"{distance[1]} distance of samples, best first: {listed}. Methods share the noise of their samples seed "
            "by seed; the paired differences below say which of these can be told apart."
        )
    return [*said, _held_out(known, compare)]


def _gate(gate: Method, known: dict[str, Method], compare: Compare) -> list[str]:
    parts = _both(gate, [known[k] for k in ("switch", "convex", "affine", "vdm", "edm")], compare)
    return [f"{gate.name[0].upper()}{gate.name[1:]}: {parts}."] if parts else []


def _both(a: Method, others: list[Method], compare: Compare) -> str:
    """A method against others in exact bpd and in the bound, where both were measured."""
    return "; ".join(
        f"{word_of(quantity)} {', '.join(against(a, b, quantity, compare) for b in others)}"
        for quantity in ("bpd", "vlb")
        if compare(a, others[0], quantity) is not None
    )


def _held_out(known: dict[str, Method], compare: Compare) -> str:
    pairs = [(known[f"{key}_held_out"], known[key]) for key in ("gate_gamma", "gate_z")]
    parts = [
        f"{called(a)} {against(a, b, 'vlb', compare)}" for a, b in pairs if compare(a, b, "vlb") is not None
    ]
    said = (
        "The experts have seen every training image, so a gate that learns there follows the expert that fits those "
        "images better, which need not be the better one elsewhere; the threshold, the tables and the held-out gates "
        "are fitted to images that no expert has seen."
    )
    return f"{said} In the bound: {'; '.join(parts)}." if parts else said
