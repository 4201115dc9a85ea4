"""What the numbers of a run about mixtures mean, in words that follow from them and are no more favourable."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxmerge.report.tables import with_error
from jaxmerge.tasks.moe.models import Method
from jaxmerge.tasks.reconstructions import window_of

# Errors that a difference must exceed to count.
CLEAR = 2.0
Compare = Callable[[Method, Method, str], tuple[float, float, int] | None]


def distance_of(setup) -> tuple[str, str]:
    """Column and name of the run's distance."""
    names = None if setup.judge is None else setup.judge.names
    return ("frechet", "Fréchet") if names is None else (names.column, names.short)


def main_quantity(rows: Sequence[dict[str, Any]]) -> str:
    """What methods are ranked by: the exact likelihood, or the bound where that was not measured."""
    return "bpd" if any(line.get("bpd") is not None for line in rows) else "vlb"


def word_of(quantity: str) -> str:
    """A quantity in a sentence."""
    return {"bpd": "exact bpd", "vlb": "bound"}.get(quantity, quantity)


def ranked(
    methods: Sequence[Method], rows: Sequence[dict[str, Any]], quantity: str
) -> list[tuple[Method, float]]:
    """Methods that have the quantity, best (lowest) first."""
    values = {m.name: line.get(quantity) for m, line in zip(methods, rows, strict=True)}
    there = [(m, values[m.name]) for m in methods if values[m.name] is not None]
    return sorted(there, key=lambda pair: pair[1])


def against(a: Method, b: Method, quantity: str, compare: Compare) -> str:
    """A paired comparison in words: "0.012 ± 0.003 below the VDM"."""
    apart = compare(a, b, quantity)
    if apart is None:
        return f"not compared with {b.name}"
    value, error, _ = apart
    if abs(value) <= CLEAR * error:
        return f"not distinguishable from {b.name} (difference {with_error(value, error)})"
    return f"{with_error(abs(value), error)} {'below' if value < 0 else 'above'} {b.name}"


def is_clear(a: Method, b: Method, quantity: str, compare: Compare) -> bool:
    """Whether a is below b by more than two errors."""
    apart = compare(a, b, quantity)
    return apart is not None and apart[0] < -CLEAR * apart[1]


def merge_finding(methods: list[Method], rows: list[dict[str, Any]], compare: Compare) -> str:
    """Which merge is best on the test images, and whether the trained gate beats switch, tables and experts."""
    quantity = main_quantity(rows)
    order = ranked(methods, rows, quantity)
    known = {m.key: m for m in methods}
    best = order[0][0]
    same = [m.name for m, _ in order[1:] if not is_clear(best, m, quantity, compare)]
    place = [m.key for m, _ in order]
    gate = next(m for m, _ in order if m.key.startswith("gate_"))
    single = known[min(("edm", "vdm"), key=place.index)]
    tie = f", not told apart from {', '.join(same)}" if same else ", clearly below all others"
    others = [known["switch"], known["convex"], known["affine"], single]
    said = "; ".join(against(gate, other, quantity, compare) for other in others)
    return (
        f"Lowest {word_of(quantity)} on test images: {best.name}, {order[0][1]:.4f}{tie}. The best trained gate "
        f"({gate.name}) is {said}."
    )


def merge_narrative(
    methods: list[Method], rows: list[dict[str, Any]], compare: Compare, distance: tuple[str, str]
) -> list[str]:
    """Paragraphs: what a gate changes, in likelihood, bound and samples."""
    known = {m.key: m for m in methods}
    said = []
    for gate in (m for m in methods if m.key.startswith("gate_")):
        parts = []
        for quantity in ("bpd", "vlb"):
            if compare(gate, known["switch"], quantity) is None:
                continue
            words = ", ".join(
                against(gate, known[k], quantity, compare)
                for k in ("switch", "convex", "affine", "vdm", "edm")
            )
            parts.append(f"{word_of(quantity)} {words}")
        if parts:
            said.append(f"{gate.name[0].upper()}{gate.name[1:]}: {'; '.join(parts)}.")
    for how, where in (("", "trained on training images"), ("_held_out", "trained on held-out images")):
        seeing, blind = known[f"gate_z{how}"], known[f"gate_gamma{how}"]
        parts = [
            f"{word_of(q)} {against(seeing, blind, q, compare)}"
            for q in ("bpd", "vlb")
            if compare(seeing, blind, q)
        ]
        if parts:
            said.append(f"What seeing the image changes, {where}: {'; '.join(parts)}.")
    drawn = ranked(methods, rows, distance[0])
    if drawn:
        listed = ", ".join(f"{m.name} {value:.3f}" for m, value in drawn)
        said.append(
            f"{distance[1]} distance of samples, best first: {listed}. Methods share the noise of their samples seed "
            "by seed; the paired differences below say which of these can be told apart."
        )
    learned = [known[k] for k in ("gate_gamma", "gate_z")]
    parts = [
        f"{known[m.key + '_held_out'].name} {against(known[m.key + '_held_out'], m, 'vlb', compare)}"
        for m in learned
        if compare(known[m.key + "_held_out"], m, "vlb")
    ]
    said.append(
        "The experts have seen every training image, so a gate that learns there follows the expert that fits those "
        "images better, which need not be the better one elsewhere; the threshold, the tables and the held-out gates "
        f"are fitted to images that no expert has seen. In the bound: {'; '.join(parts)}."
    )
    return said


def definitions(frame, distance: tuple[str, str]) -> dict[str, str]:
    """What the columns mean in this run."""
    config, setup = frame.config, frame.setup
    said = {
        "errors": "After ±, the standard error over test images for bpd, bound, PSNR and SSIM, and the standard "
        "deviation over seeds for scores of samples; in brackets the standard deviation over the models of a "
        "method, each trained with its own seed. Methods share images and noise, so their paired differences are far "
        "more certain than the values.",
        "bound": f"Variational lower bound of {config.bound.n_images} {config.data.test_split} images in continuous "
        f"time, {len(frame.levels) - 1} strata that all methods share, {config.bound.n_times} draw(s) each, "
        f"{config.bound.repeats} repeat(s).",
        "PSNR, SSIM, LPIPS": f"Test images after one denoising call from γ = {config.moe.reconstruction_gamma:g} against the "
        f"originals, the same noise for all methods; SSIM with a window of {window_of(setup.test.shape)}.",
        "ms per image": f"Wall time of sampling, median of {config.moe.latency_repeats} repeats, batch "
        f"{config.moe.latency_batch}, on one device, without compilation.",
        "MiB planned": f"Memory that XLA plans for one call of the model on {config.moe.latency_batch} images.",
        "parameters": "Of all networks and the gate together.",
        "NFE": f"Calls of the model per sample ({config.sampling.sampler[0]}); a dense mixture's call runs all experts "
        "that answer.",
    }
    if frame.settings is not None:
        said["bpd, exact"] = (
            f"Exact likelihood of {config.likelihood.n_images} {config.data.test_split} images by the probability-flow "
            f"ODE, {config.likelihood.dequantization.replace('_', '-')} dequantisation, in bits per dimension. Not "
            "defined, and left out, where the field jumps with the image (a choice of the top k, random weights)."
        )
    if setup.judge is not None:
        said[distance[1]] = setup.judge.definition
    return said


def ablation_pairs(methods: Sequence[Method]) -> list[tuple[Method, Method]]:
    """What one change does: every other trained mixture against B."""
    known = {m.key: m for m in methods}
    if "B" not in known:
        return []
    keys = [k for k in known if k not in ("B", "vdm", "A_steps", "A_compute", "switch")]
    return [(known[k], known["B"]) for k in keys]


def grid_finding(
    methods: list[Method], reference: Method, rows: list[dict[str, Any]], compare: Compare
) -> str:
    """Which methods are clearly better than a single expert with the same compute, and which is best."""
    quantity = "vlb" if any(line.get("vlb") is not None for line in rows) else "bpd"
    order = ranked(methods, rows, quantity)
    better = [m.name for m, _ in order if m is not reference and is_clear(m, reference, quantity, compare)]
    worse = [m.name for m, _ in order if m is not reference and is_clear(reference, m, quantity, compare)]
    best = order[0][0]
    said = f"Lowest {word_of(quantity)} on test images: {best.name}, {order[0][1]:.4f}"
    if best is not reference:
        said += f", {against(best, reference, quantity, compare)}"
    counted = f"{len(better)} of {len(order) - 1} other rows are clearly below {reference.name}"
    listed = f" ({', '.join(better)})" if better else ""
    return f"{said}. {counted}{listed}, {len(worse)} clearly above."


def grid_narrative(
    methods: list[Method],
    reference: Method,
    rows: list[dict[str, Any]],
    compare: Compare,
    distance: tuple[str, str],
    collapsed: dict[str, Any],
) -> list[str]:
    """Paragraphs: every row against A, what each ablation changed, when a mixture helps and when not."""
    said = []
    for quantity, word in (("vlb", "bound"), ("bpd", "exact bpd"), (distance[0], distance[1])):
        others = [m for m, _ in ranked(methods, rows, quantity) if m is not reference]
        groups: dict[str, list[str]] = {"below": [], "not told apart from": [], "above": []}
        for m in others:
            if compare(m, reference, quantity) is None:
                continue
            if is_clear(m, reference, quantity, compare):
                groups["below"].append(m.name)
            elif is_clear(reference, m, quantity, compare):
                groups["above"].append(m.name)
            else:
                groups["not told apart from"].append(m.name)
        listed = "; ".join(
            f"{group} {reference.name}: {', '.join(names)}" for group, names in groups.items() if names
        )
        if listed:
            said.append(f"In the {word}, clearly (by two errors) {listed}.")
    known = {m.key: m for m in methods}
    changes = [
        f"{a.name}: {against(a, b, 'vlb', compare)}"
        for a, b in ablation_pairs(methods)
        if compare(a, b, "vlb")
    ]
    if changes:
        said.append(f"What one change does to the bound of {known['B'].name}: {'; '.join(changes)}.")
    best_soft = [m for m in methods if m.experts > 1 and m.key != "switch"]
    helped = [m.name for m in best_soft if is_clear(m, reference, "vlb", compare)]
    hurt = [m.name for m in best_soft if is_clear(reference, m, "vlb", compare)]
    if helped or hurt:
        said.append(
            f"When a mixture helps here, and when not: of {len(best_soft)} mixtures {len(helped)} have a clearly lower "
            f"bound than one expert trained with the same compute, {len(hurt)} a clearly higher one."
        )
    if collapsed:
        said.append(collapse_words(collapsed))
    return said


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


def notes(rows: Sequence[dict[str, Any]], *, joint: bool = False) -> list[str]:
    """What a reader must know besides the table."""
    failed = sum(line.get("n_failed") or 0 for line in rows)
    fixed = "± over gates means: the experts are fixed and only the gate's training varies with the seed."
    varied = "± is over seeds with which experts and gates were trained together."
    said = [varied if joint else fixed]
    if failed:
        said.append(f"{failed} likelihood solves failed; their images are left out.")
    return said


def slice_notes(hashes: dict[str, str]) -> list[str]:
    """Which subcategories the slices were made of."""
    return [
        f"Slices by {name} are those whose assignment of the training images has the SHA-256 {value[:16]}...; their features "
        "and seed are in the file that made them (docs/data.md)."
        for name, value in hashes.items()
    ]


def pictures(setup, methods: Sequence[Method], measured: dict[str, Any]) -> dict[str, np.ndarray]:
    """Samples of every method from the same noise, beside real images."""
    shown = [(m.name, measured[m.key]["models"][0].get("pictures")) for m in methods]
    shown = [(name, images) for name, images in shown if images is not None]
    if not shown:
        return {}
    columns = min(len(images) for _, images in shown)
    return {
        "samples": np.stack([images[:columns] for _, images in shown]),
        "sample_labels": np.array([name for name, _ in shown]),
        "data": setup.test.take(min(columns, len(setup.test))).images,
    }
