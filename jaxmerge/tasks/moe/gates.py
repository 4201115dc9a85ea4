"""Two pretrained experts under a trained gate, experts frozen: against every way of merging them without training.

The order is that of ``tasks/merge.py``: thresholds and weights per noise level come from validation images,
gates are trained on training images and chosen on validation images, and the test images judge.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from jaxmerge.merge import Switch
from jaxmerge.run import Run
from jaxmerge.tasks import bounds, experts
from jaxmerge.tasks.moe import checks, diagnose, differences, dry_run, measure, table
from jaxmerge.tasks.moe.measure import Frame
from jaxmerge.tasks.moe.models import Method, by_level, fresh, seeds, uniform
from jaxmerge.tasks.moe.train import train
from jaxmerge.tasks.moe.words import about
from jaxmerge.tasks.moe.words import merge as words
from jaxmerge.tasks.quality import describe
from jaxmerge.tasks.setup import Setup, prepare
from jaxmerge.training.gate_objective import Penalties

# Which weights are best is asked here, not how evenly experts are used.
NONE = Penalties(load=0.0, entropy=0.0)


class Kind(NamedTuple):
    """A kind of gate.

    Attributes:
        key, name, what: as of a `Method`.
        inputs: "gamma" or "z".
        held_out: fitted to the validation images, which no expert has seen, for a number of steps that is fixed
            beforehand; else to the training images, and the step is chosen by the validation images.
    """

    key: str
    name: str
    what: str
    inputs: str
    held_out: bool = False


_SEEN = "trained on the training images; the step is chosen by the validation images."
_HELD_OUT = "trained on the validation images, as the tables of weights are, for a fixed number of steps."
GATES = (
    Kind("gate_gamma", "gate on γ", f"Sees the noise level alone; {_SEEN}", "gamma"),
    Kind("gate_z", "gate on (z, γ)", f"Sees the noisy image and the noise level; {_SEEN}", "z"),
    Kind(
        "gate_gamma_held_out",
        "gate on γ, held out",
        f"Sees the noise level alone; {_HELD_OUT}",
        "gamma",
        True,
    ),
    Kind(
        "gate_z_held_out", "gate on (z, γ), held out", f"Sees image and noise level; {_HELD_OUT}", "z", True
    ),
)


def run(config: ConfigDict, run: Run) -> None:
    """Trains the gates, measures every method, and writes results and report."""
    checks.check_pair_settings(config)
    checks.check_settings(config)
    if config.moe.dry_run:
        dry_run.run(as_pool(config), run)
        return
    setup = prepare(config, run.progress)
    checks.check_measurements(config, setup)
    checks.check_gates(config, setup)
    experts.pin(run, {"VDM": setup.low, "EDM": setup.high}, setup.records)
    sets = diagnose.slice_sets(run, config.moe, config.moe.count, setup.train)
    proposal = bounds.propose(config, run, setup)
    cut = setup.gamma(proposal["best"])
    frame = Frame(config, run, setup, measure.strata(config, setup, [cut]))
    width, tuning = tune(frame)
    methods = untrained(setup, proposal, cut) + gates(frame, width)
    gated = [m for m in methods if m.key.startswith("gate_")]
    frame = measure.with_grid(frame, next(m for m in gated if m.key == "gate_z").models[0])
    measured = {m.key: measure.measure(frame, m) for m in methods}
    diagnosed = {m.key: diagnose.diagnose(frame, m, sets, specialised=False) for m in gated}
    results, pictures = summarise(frame, methods, measured, diagnosed, sets, proposal)
    results |= {"tuning": tuning, "gate_width": width}
    table.write_markdown(run, config, results)
    run.finish(results, pictures)


def as_pool(config: ConfigDict) -> ConfigDict:
    """The grid's config for the same two frozen experts under the widest gate, which is what the dry run plans."""
    pooled = config.copy_and_resolve_references()
    pooled.moe.pool, pooled.moe.count = (config.experts.low, config.experts.high), 2
    pooled.moe.width = max(config.moe.widths)
    return pooled


def untrained(setup: Setup, proposal: dict[str, Any], cut: float) -> list[Method]:
    """Single experts and the merges that need no training."""
    pair, weights = (setup.low, setup.high), proposal["weights"]
    gammas = np.asarray(weights["gamma"])
    fitted = "that minimise the bound of the validation images, a table over γ."
    eta = f"η = {proposal['best']:.3f}"
    return [
        Method("edm", "EDM", (setup.high,), "The single expert over its own noise range.", 1),
        Method("vdm", "VDM", (setup.low,), "The single expert over its own noise range.", 1),
        Method(
            "switch",
            f"hard switch, {eta}",
            (Switch(*pair, gamma=cut),),
            "The VDM below and the EDM above the threshold with the best bound of the validation images.",
            2,
        ),
        Method("uniform", "uniform average", (uniform(pair),), "Equal weights where both experts answer.", 2),
        Method(
            "convex",
            "convex weights per γ",
            (by_level(pair, gammas, np.asarray(weights["convex"])),),
            f"Weights between 0 and 1 {fitted}",
            2,
        ),
        Method(
            "affine",
            "affine weights per γ",
            (by_level(pair, gammas, np.asarray(weights["affine"])),),
            f"Weights that sum to 1 {fitted}",
            2,
        ),
    ]


def tune(frame: Frame) -> tuple[int, list[dict[str, Any]]]:
    """The gate's width, tried once and chosen by the validation images; with what was tried."""
    asked, setup = frame.config.moe, frame.setup
    if len(asked.widths) == 1:
        return int(asked.widths[0]), []
    tried = []
    for width in asked.widths:
        gated = fresh(asked, (setup.low, setup.high), seed=frame.config.seed, width=width)
        _, record = train(
            frame.config,
            frame.run,
            f"width_{width}",
            gated,
            (setup.train, setup.validation),
            seed=frame.config.seed,
            steps=asked.tuning_steps,
            penalties=NONE,
        )
        entry = {"width": int(width), "diffusion_bpd": record["diffusion_bpd"]}
        tried.append(entry | {"se": record["diffusion_bpd_se"], "best_step": record["best_step"]})
    return min(tried, key=lambda t: t["diffusion_bpd"])["width"], tried


def gates(frame: Frame, width: int) -> list[Method]:
    """Every kind of gate, trained with every seed."""
    config, setup = frame.config, frame.setup
    found = []
    for kind in GATES:
        data = (setup.validation if kind.held_out else setup.train, setup.validation)
        steps = config.moe.held_out_steps if kind.held_out else config.moe.steps
        models = []
        for seed in seeds(config):
            gated = fresh(config.moe, (setup.low, setup.high), seed=seed, inputs=kind.inputs, width=width)
            settings = dict(seed=seed, steps=steps, last=kind.held_out, penalties=NONE)
            models.append(train(config, frame.run, f"{kind.key}_{seed}", gated, data, **settings)[0])
        found.append(Method(kind.key, kind.name, tuple(models), kind.what, 2, steps))
    return found


def pairs_of(methods: list[Method]) -> list[tuple[Method, Method]]:
    """Gates against everything, and the untrained merges against experts and switch."""
    known = {m.key: m for m in methods}
    learned = [m for m in methods if m.key.startswith("gate_")]
    others = [known[k] for k in ("edm", "vdm", "switch", "uniform", "convex", "affine")]
    pairs = [(gate, other) for gate in learned for other in others]
    pairs += [(known[f"gate_z{how}"], known[f"gate_gamma{how}"]) for how in ("", "_held_out")]
    pairs += [(known[f"gate_{what}_held_out"], known[f"gate_{what}"]) for what in ("gamma", "z")]
    pairs += [(known[k], known[e]) for k in ("switch", "convex", "affine") for e in ("edm", "vdm")]
    return [*pairs, *((known[k], known["switch"]) for k in ("uniform", "convex", "affine"))]


def summarise(
    frame: Frame,
    methods: list[Method],
    measured: differences.Measured,
    diagnosed: dict[str, list[dict[str, Any]]],
    sets: list[Any],
    proposal: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(results, pictures) for `Run.finish`."""
    config, setup = frame.config, frame.setup
    rows = table.rows(frame, methods, measured)
    distance = about.distance_of(setup)
    quantities = ("bpd", "vlb", *((distance[0],) if setup.judge is not None else ()))
    compare = functools.partial(differences.difference, measured)
    weights = proposal["weights"]
    names = ["VDM", "EDM"]
    gammas = np.asarray(weights["gamma"])
    cut = setup.gamma(proposal["best"])
    step = np.stack([gammas <= cut, gammas > cut], axis=1).astype(float)
    shown = {methods[2].name: {"gamma": gammas, "mean": step}}
    shown |= {
        f"{kind} weights per γ": {"gamma": gammas, "mean": weights[kind]} for kind in ("convex", "affine")
    }
    shown |= {m.name: diagnose.weights(diagnosed[m.key]) for m in methods if m.key in diagnosed}
    results = {
        "title": config.title or f"Two experts of {config.data.name} under a trained gate",
        "finding": words.finding(methods, rows, compare),
        "levels": setup.low.pixel_scale.levels,
        "data": {split: getattr(setup, split).record for split in ("train", "validation", "test")},
        "experts": setup.records,
        "rows": rows,
        "columns": table.columns(rows, distance),
        "paired": differences.paired(measured, pairs_of(methods), quantities),
        "gate_weights": {"experts": names, "methods": shown},
        "gate_slices": {
            m.name: diagnose.by_slice(diagnosed[m.key], sets) for m in methods if m.key in diagnosed
        },
        "slices": [s.report(data) for s in sets for data in (setup.train, setup.test)],
        "gates": [diagnose.gate_figures(m.name, m, diagnosed[m.key]) for m in methods if m.key in diagnosed],
        "definitions": about.definitions(frame, distance, rows) | {m.name: m.what for m in methods},
        "narrative": words.narrative(methods, rows, compare, distance, diagnose.masks(frame, sets)),
        "notes": about.notes(rows)
        + about.collapse_notes([m for m in methods if m.key in diagnosed], diagnosed, names)
        + about.slice_notes(diagnose.subcategory_hashes(config.moe, setup.train)),
        "proposed": {"best_bound": proposal["best"], "cautious": proposal["cautious"]},
        **describe(setup.judge),
    }
    return results, about.pictures(setup, methods, measured)
