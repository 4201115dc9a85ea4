"""Mixtures of K experts, their baselines and their ablations, in one table.

All methods start from one base expert. Phase 1 makes K specialists of it, one per slice of the data; phase 2
trains the gate, over frozen specialists (`moe.parts` "gate") or jointly with them ("all": then phases 1 and 2
are one training per row and seed, and experts vary with the seed as well). The rows are in
``moe_rows.py``, their training in ``moe_grid.py``; baseline A goes on training the base expert alone.
"""

import functools
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxmerge.run import Run
from jaxmerge.tasks import merge, moe_diagnose, moe_dry_run, moe_measure, moe_table, moe_words, quality
from jaxmerge.tasks.moe_grid import Grid, fresh_setup
from jaxmerge.tasks.moe_measure import Frame
from jaxmerge.tasks.moe_models import Method
from jaxmerge.tasks.moe_rows import REFERENCE, wanted
from jaxmerge.tasks.setup import prepare


def run(config: ConfigDict, run: Run) -> None:
    """Trains and measures every row, and writes results and report."""
    if config.moe.dry_run:
        moe_dry_run.run(config, run)
        return
    merge.check_late_stages(config)
    rows = wanted(config.moe)
    setup = prepare(config, run.progress) if config.moe.base == "checkpoint" else fresh_setup(config, run)
    grid = Grid(config, run, setup)
    methods, gated = grid.methods(rows)
    frame = Frame(config, run, setup, moe_measure.strata(config, setup, grid.cuts))
    frame = moe_measure.with_grid(frame, next((m for m in gated if m.key == "B"), methods[0]).models[0])
    measured = {m.key: moe_measure.measure(frame, m) for m in methods}
    diagnosed = {m.key: moe_diagnose.diagnose(frame, m, grid.sets(m.experts)) for m in gated}
    collapsed = grid.collapse() if config.moe.collapse_steps else {}
    results, pictures = summarise(frame, grid, methods, measured, diagnosed, collapsed)
    moe_table.write_markdown(run, config, results)
    run.finish(results, pictures)


def summarise(
    frame: Frame,
    grid: Grid,
    methods: list[Method],
    measured: moe_table.Measured,
    diagnosed: dict[str, list[dict[str, Any]]],
    collapsed: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(results, pictures) for `Run.finish`."""
    config, setup = frame.config, frame.setup
    rows = [moe_table.row(m, measured[m.key]) for m in methods]
    distance = moe_words.distance_of(setup)
    quantities = ("bpd", "vlb", *((distance[0],) if setup.judge is not None else ()))
    moe_table.with_gains(rows, REFERENCE, quantities)
    reference = next(m for m in methods if m.name == REFERENCE)
    others = [m for m in methods if m is not reference]
    compare = functools.partial(moe_table.difference, measured)
    gated = [m for m in methods if m.key in diagnosed]
    results = {
        "title": config.title or f"Mixtures of {config.data.name} experts",
        "finding": moe_words.grid_finding(methods, reference, rows, compare),
        "levels": setup.low.pixel_scale.levels,
        "data": {split: getattr(setup, split).record for split in ("train", "validation", "test")},
        "experts": setup.records,
        "rows": rows,
        "columns": moe_table.columns(rows, distance),
        "paired": moe_table.paired(measured, [(m, reference) for m in others], quantities)
        + moe_table.paired(measured, moe_words.ablation_pairs(methods), quantities),
        "gate_weights": {
            "experts": [f"expert {k + 1}" for k in range(max(m.experts for m in gated))],
            "methods": {m.name: moe_diagnose.weights(diagnosed[m.key]) for m in gated},
        },
        "gate_slices": {m.name: moe_diagnose.by_slice(diagnosed[m.key], grid.sets(m.experts)) for m in gated},
        "slices": [s.report(setup.train) for k in config.moe.counts for s in grid.sets(k)],
        "gates": [moe_diagnose.gate_figures(m.name, m, diagnosed[m.key]) for m in gated],
        "collapse": collapsed,
        "definitions": moe_words.definitions(frame, distance) | {m.name: m.what for m in methods},
        "narrative": moe_words.grid_narrative(methods, reference, rows, compare, distance, collapsed),
        "notes": moe_words.notes(rows, joint=grid.joint),
        **quality.describe(setup.judge),
    }
    return results, moe_words.pictures(setup, methods, measured)
