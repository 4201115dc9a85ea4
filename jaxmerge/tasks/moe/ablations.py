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
from jaxmerge.tasks.moe import checks, diagnose, differences, dry_run, measure, table
from jaxmerge.tasks.moe.grid import Grid
from jaxmerge.tasks.moe.measure import Frame
from jaxmerge.tasks.moe.models import Method
from jaxmerge.tasks.moe.rows import REFERENCE, wanted
from jaxmerge.tasks.moe.sources import setup_of
from jaxmerge.tasks.moe.words import about
from jaxmerge.tasks.moe.words import grid as words


def run(config: ConfigDict, run: Run) -> None:
    """Trains and measures every row, and writes results and report."""
    checks.check_settings(config)
    rows = wanted(config.moe)
    if config.moe.dry_run:
        dry_run.run(config, run)
        return
    setup = setup_of(config, run)
    checks.check_measurements(config, setup)
    grid = Grid(config, run, setup)
    methods, gated = grid.methods(rows)
    frame = Frame(config, run, setup, measure.strata(config, setup, grid.cuts))
    frame = measure.with_grid(frame, next((m for m in gated if m.key == "B"), methods[0]).models[0])
    measured = {m.key: measure.measure(frame, m) for m in methods}
    # A pool's experts were made for no slices.
    look = functools.partial(diagnose.diagnose, frame, specialised=not config.moe.pool)
    diagnosed = {m.key: look(m, grid.sources.sets(m.experts)) for m in gated}
    collapsed = grid.collapse() if config.moe.collapse_steps else {}
    results, pictures = summarise(frame, grid, methods, measured, diagnosed, collapsed)
    table.write_markdown(run, config, results)
    run.finish(results, pictures)


def summarise(
    frame: Frame,
    grid: Grid,
    methods: list[Method],
    measured: differences.Measured,
    diagnosed: dict[str, list[dict[str, Any]]],
    collapsed: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(results, pictures) for `Run.finish`."""
    config, setup = frame.config, frame.setup
    rows = table.rows(frame, methods, measured)
    distance = about.distance_of(setup)
    quantities = ("bpd", "vlb", *((distance[0],) if setup.judge is not None else ()))
    table.with_gains(rows, REFERENCE, quantities, measured, methods)
    reference = next(m for m in methods if m.name == REFERENCE)
    others = [m for m in methods if m is not reference]
    compare = functools.partial(differences.difference, measured)
    gated = [m for m in methods if m.key in diagnosed]
    parts = diagnose.masks(frame, grid.sources.sets(config.moe.count))
    results = {
        "title": config.title or f"Mixtures of {config.data.name} experts",
        "finding": words.finding(methods, reference, rows, compare),
        "levels": setup.low.pixel_scale.levels,
        "data": {split: getattr(setup, split).record for split in ("train", "validation", "test")},
        "experts": setup.records,
        "rows": rows,
        "columns": table.columns(rows, distance),
        "paired": differences.paired(measured, [(m, reference) for m in others], quantities)
        + differences.paired(measured, words.ablation_pairs(methods), quantities),
        "gate_weights": {
            "experts": [f"expert {k + 1}" for k in range(max(m.experts for m in gated))],
            "methods": {m.name: diagnose.weights(diagnosed[m.key]) for m in gated},
        },
        "gate_slices": {
            m.name: diagnose.by_slice(diagnosed[m.key], grid.sources.sets(m.experts)) for m in gated
        },
        "slices": [
            s.report(data)
            for k in sorted({m.experts for m in gated})
            for s in grid.sources.sets(k)
            for data in (setup.train, setup.test)
        ],
        "gates": [diagnose.gate_figures(m.name, m, diagnosed[m.key]) for m in gated],
        "collapse": collapsed,
        "definitions": about.definitions(frame, distance, rows) | {m.name: m.what for m in methods},
        "narrative": words.narrative(methods, reference, rows, compare, distance, collapsed, parts),
        "notes": about.notes(rows, joint=grid.joint)
        + about.collapse_notes(gated, diagnosed)
        + about.slice_notes(diagnose.subcategory_hashes(config.moe, setup.train)),
        **quality.describe(setup.judge),
    }
    return results, about.pictures(setup, methods, measured)
