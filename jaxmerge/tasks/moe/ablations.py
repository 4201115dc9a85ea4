"""Mixtures of K experts, their baselines and their ablations, in one table.

All methods start from one base expert. Phase 1 makes K specialists of it, one per slice of the data; phase 2
trains the gate, over frozen specialists (`moe.parts` "gate") or jointly with them ("all": then phases 1 and 2
are one training per row and seed, and experts vary with the seed as well). The rows are in
``rows.py``, their training in ``grid.py``; baseline A goes on training the base expert alone.
"""

import functools
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxmerge.run import Run
from jaxmerge.tasks import quality
from jaxmerge.tasks.moe import checks, diagnose, dry_run, measure, table, words
from jaxmerge.tasks.moe.grid import Grid
from jaxmerge.tasks.moe.measure import Frame
from jaxmerge.tasks.moe.models import Method
from jaxmerge.tasks.moe.rows import REFERENCE, wanted
from jaxmerge.tasks.moe.sources import setup_of


def run(config: ConfigDict, run: Run) -> None:
    """Trains and measures every row, and writes results and report."""
    if config.moe.dry_run:
        dry_run.run(config, run)
        return
    checks.check_settings(config)
    rows = wanted(config.moe)
    setup = setup_of(config, run)
    checks.check_measurements(config, setup)
    grid = Grid(config, run, setup)
    methods, gated = grid.methods(rows)
    frame = Frame(config, run, setup, measure.strata(config, setup, grid.cuts))
    frame = measure.with_grid(frame, next((m for m in gated if m.key == "B"), methods[0]).models[0])
    measured = {m.key: measure.measure(frame, m) for m in methods}
    diagnosed = {m.key: diagnose.diagnose(frame, m, grid.sources.sets(m.experts)) for m in gated}
    collapsed = grid.collapse() if config.moe.collapse_steps else {}
    results, pictures = summarise(frame, grid, methods, measured, diagnosed, collapsed)
    table.write_markdown(run, config, results)
    run.finish(results, pictures)


def summarise(
    frame: Frame,
    grid: Grid,
    methods: list[Method],
    measured: table.Measured,
    diagnosed: dict[str, list[dict[str, Any]]],
    collapsed: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(results, pictures) for `Run.finish`."""
    config, setup = frame.config, frame.setup
    rows = [table.row(m, measured[m.key]) for m in methods]
    distance = words.distance_of(setup)
    quantities = ("bpd", "vlb", *((distance[0],) if setup.judge is not None else ()))
    table.with_gains(rows, REFERENCE, quantities)
    reference = next(m for m in methods if m.name == REFERENCE)
    others = [m for m in methods if m is not reference]
    compare = functools.partial(table.difference, measured)
    gated = [m for m in methods if m.key in diagnosed]
    results = {
        "title": config.title or f"Mixtures of {config.data.name} experts",
        "finding": words.grid_finding(methods, reference, rows, compare),
        "levels": setup.low.pixel_scale.levels,
        "data": {split: getattr(setup, split).record for split in ("train", "validation", "test")},
        "experts": setup.records,
        "rows": rows,
        "columns": table.columns(rows, distance),
        "paired": table.paired(measured, [(m, reference) for m in others], quantities)
        + table.paired(measured, words.ablation_pairs(methods), quantities),
        "gate_weights": {
            "experts": [f"expert {k + 1}" for k in range(max(m.experts for m in gated))],
            "methods": {m.name: diagnose.weights(diagnosed[m.key]) for m in gated},
        },
        "gate_slices": {
            m.name: diagnose.by_slice(diagnosed[m.key], grid.sources.sets(m.experts)) for m in gated
        },
        "slices": [
            s.report(setup.train) for k in sorted({m.experts for m in gated}) for s in grid.sources.sets(k)
        ],
        "gates": [diagnose.gate_figures(m.name, m, diagnosed[m.key]) for m in gated],
        "collapse": collapsed,
        "definitions": words.definitions(frame, distance) | {m.name: m.what for m in methods},
        "narrative": words.grid_narrative(methods, reference, rows, compare, distance, collapsed),
        "notes": words.notes(rows, joint=grid.joint)
        + words.slice_notes(diagnose.subcategory_hashes(config.moe, setup.train)),
        **quality.describe(setup.judge),
    }
    return results, words.pictures(setup, methods, measured)
