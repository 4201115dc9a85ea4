"""Differences, rows, words and figures of the tasks about gated mixtures, from hand-made measurements."""

import csv
import json
import math
import re
import types
import xml.etree.ElementTree as ElementTree

import jax
import numpy as np
import pytest
from rich.console import Console

from configs import default
from jaxmerge.data import load, slices
from jaxmerge.files import plain
from jaxmerge.gate.gated import Gated
from jaxmerge.gate.measure import Measured
from jaxmerge.gate.network import FixedGate
from jaxmerge.noise import PixelScale
from jaxmerge.report import moe, page, plane, tables
from jaxmerge.run import Run
from jaxmerge.tasks import costs as sampling_costs
from jaxmerge.tasks.moe import diagnose, differences, dry_run, measure, table
from jaxmerge.tasks.moe.differences import Difference
from jaxmerge.tasks.moe.models import Method
from jaxmerge.tasks.moe.words import about, phrases
from jaxmerge.tasks.moe.words import grid as grid_words
from jaxmerge.tasks.moe.words import merge as merge_words
from tests import toys

# Student's 97.5 % quantiles for 2 degrees of freedom (from tables), and its limit for many.
T_TWO, NORMAL = 4.302653, 1.959964
NOISE = np.random.default_rng(0).normal(size=40)


def method(key, count, experts=2):
    return Method(key, f"the {key}", (None,) * count, "Made up.", experts)


def found(offsets, seeds=None, smooth=True):
    """Measurements of models whose bounds are one image's noise plus an offset each."""
    models, zero = [], np.zeros(len(NOISE))
    for i, offset in enumerate(offsets):
        scores = {"nfe": 35.0, "frechet": 1.0 + offset, "classifier_score": 9.0}
        model = {"bound": np.stack([zero, zero, 1.7 + NOISE + offset], axis=1)}
        model |= {"samples": {str(s): scores for s in (seeds or (i,))}}
        model |= {"psnr": 20.0, "psnr_se": 0.1, "ssim": 0.9, "ssim_se": 0.01}
        if smooth:
            names = ("prior", "trace", "dequantization", "decoder", "error")
            model["likelihood"] = {
                "bpd": 1.8 + NOISE + offset,
                **dict.fromkeys(names, zero),
                "nfe": zero + 75,
                "ok": np.ones(len(NOISE), bool),
                "refined": np.zeros(len(NOISE), bool),
            }
        models.append(model)
    cost = {
        "latency": 0.002,
        "latency_low": 0.0019,
        "latency_high": 0.0022,
        "latency_definition": "seconds, a device",
    }
    cost |= {"planned_bytes": 2**20, "parameters": 1000, "experts_parameters": 990, "gate_parameters": 10}
    return {"models": models, "cost": cost}


ONE, THREE, SPARSE = method("one", 1), method("three", 3), method("sparse", 3)
METHODS = (ONE, THREE, SPARSE)
MEASURED = {
    "one": found([0.5], seeds=(0, 1, 2)),
    "three": found([0.0, 0.1, 0.2]),
    "sparse": found([0.1, 0.1, 0.1], smooth=False),
}


def frame(run=None, *, seed=0, judge=None):
    config = default.get_config()
    config.moe.seeds, config.seed = 3, seed
    setup = types.SimpleNamespace(test=load("digits", "test"), judge=judge, keys={"sampling": None})
    return measure.Frame(config, run, setup, (0.0, 1.0, 2.0))


# --- differences -------------------------------------------------------------------------------------


def test_paired_differences_lose_the_images_noise_and_keep_that_of_the_models():
    apart = differences.difference(MEASURED, ONE, THREE, "vlb")
    assert apart.value == pytest.approx(0.4) and apart.count == 40
    assert apart.error == pytest.approx(0.1 / math.sqrt(3))
    assert apart.quantile == pytest.approx(T_TWO)  # nothing but the three models varies
    apart = differences.difference(MEASURED, ONE, THREE, "frechet")
    assert apart.value == pytest.approx(0.4) and apart.error == pytest.approx(0.1 / math.sqrt(3))
    assert (apart.count, apart.quantile) == (3, pytest.approx(T_TWO))
    assert differences.difference(MEASURED, ONE, SPARSE, "bpd") is None
    listed = differences.paired(MEASURED, [(ONE, THREE), (ONE, SPARSE)], ("bpd", "vlb"))
    assert [(p["model_b"], p["quantity"], p["clear"]) for p in listed] == [
        ("the three", "bpd", True),
        ("the three", "vlb", True),
        ("the sparse", "vlb", True),
    ]


def test_a_differences_interval_weighs_the_quantiles_of_images_and_models():
    # Variances of the mean over 4 images: 1 / 4 * (4/3); over 2 models: 2 / 2.
    images = np.array([1.0, -1.0, 1.0, -1.0])
    ours = images + np.array([[-1.0], [1.0]])
    apart = differences.contrast(ours, np.zeros((1, 4)))
    assert apart.value == pytest.approx(0.0) and apart.error == pytest.approx(math.sqrt(1 / 3 + 1))
    t_three, t_one = 3.182446, 12.706205  # from tables
    assert apart.quantile == pytest.approx((t_three / 3 + t_one) / (4 / 3))
    # Models of opposite order: twice as far apart, 8 / 2.
    both = differences.contrast(ours, np.array([[1.0], [-1.0]]) * np.ones(4))
    assert both.error == pytest.approx(math.sqrt(1 / 3 + 4))
    assert both.quantile == pytest.approx((t_three / 3 + 4 * t_one) / (13 / 3))


def test_what_models_of_the_same_seed_share_is_no_error_of_their_difference():
    shared = NOISE + np.array([[0.3], [-0.5], [0.2]])
    apart = differences.contrast(shared + 0.1, shared)
    assert apart.value == pytest.approx(0.1) and apart.error == pytest.approx(0.0, abs=1e-12)
    assert differences.contrast(shared, shared).side == 0
    own = np.array([[0.01], [0.0], [-0.01]])
    assert differences.contrast(shared + own, shared).error == pytest.approx(0.01 / math.sqrt(3))


def test_a_difference_is_clear_beyond_its_interval():
    for sign in (-1, 1):
        assert Difference(sign * 1.001 * 2 * NORMAL, 2.0, 3, NORMAL).side == sign
        assert Difference(sign * 0.999 * 2 * NORMAL, 2.0, 3, NORMAL).side == 0
    assert Difference(0.0, 0.0, 3, NORMAL).side == 0


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0])
def test_the_interval_covers_as_often_as_it_says_with_three_models(spread):
    """Equal methods of three models each, whose deviations matter not at all, as much as the images, or far more."""
    key = np.random.default_rng(1)
    clear = 0
    for _ in range(2000):
        ours, theirs = (key.normal(size=30) + key.normal(size=(3, 1)) * spread for _ in range(2))
        clear += differences.contrast(ours, theirs).side != 0
    assert 0.02 < clear / 2000 < 0.06


def test_a_difference_over_some_images_leaves_the_others_out():
    part = {"a": found([0.0]), "b": found([0.0])}
    first = np.arange(40) < 10
    part["a"]["models"][0]["bound"][first, 2] += np.linspace(0.9, 1.1, 10)
    a, b = method("a", 1), method("b", 1)
    inside, outside = (differences.difference(part, a, b, "vlb", chosen) for chosen in (first, ~first))
    assert inside.value == pytest.approx(1.0) and inside.count == 10
    assert inside.quantile == pytest.approx(2.262157)  # from tables
    assert outside.value == outside.error == outside.side == 0
    assert differences.difference(part, a, b, "vlb", np.arange(40) == 3) is None


def test_an_image_that_one_model_failed_on_does_not_set_that_model_apart():
    values = np.array([[1.0, 5.0, 3.0], [1.0, np.nan, 3.0]])
    mean, models = differences.over_models(values)
    np.testing.assert_allclose(mean, [1.0, 5.0, 3.0])
    np.testing.assert_allclose(models, [0.0, 0.0])


def test_gains_are_relative_to_one_row_and_positive_where_a_row_is_lower():
    rows = [{"method": "the A", "vlb": 2.0, "bpd": None}, {"method": "the m", "vlb": 1.5, "bpd": 1.0}]
    nothing = {key: {"models": []} for key in "Am"}
    table.with_gains(rows, "the A", ("vlb", "bpd"), nothing, [method("A", 1), method("m", 1)])
    assert [r["gain_vlb"] for r in rows] == [0.0, 25.0]
    assert "gain_bpd" not in rows[1]


def test_the_error_of_a_gain_is_that_of_a_paired_ratio():
    def sampled(values):
        return {"models": [{"samples": {str(i): {"frechet": v} for i, v in enumerate(values)}}]}

    a, b = method("a", 1), method("b", 1)
    # Ratio 0.9 / 1.1; what is left of a - ratio b is -+0.2 / 11 with two seeds, so its error is that.
    value, error = differences.gain({"a": sampled([0.8, 1.0]), "b": sampled([1.0, 1.2])}, a, b, "frechet")
    assert value == pytest.approx(100 * 0.2 / 1.1) and error == pytest.approx(100 * 0.2 / 11 / 1.1)
    # A method that is lower by the same share everywhere has a gain without an error.
    value, error = differences.gain({"a": sampled([0.9, 1.8]), "b": sampled([1.0, 2.0])}, a, b, "frechet")
    assert value == pytest.approx(10) and error == pytest.approx(0, abs=1e-9)
    assert differences.gain({"a": sampled([1.0, -1.0]), "b": sampled([1.0, -1.0])}, a, b, "frechet") is None
    assert differences.gain(MEASURED, ONE, SPARSE, "bpd") is None


def test_gains_in_the_table_have_errors_where_they_are_paired():
    rows = [table.row(m, MEASURED[m.key]) for m in METHODS]
    table.with_gains(rows, ONE.name, ("vlb", "bpd"), MEASURED, METHODS)
    bottom = 2.2 + NOISE.mean()
    assert rows[1]["gain_vlb"] == pytest.approx(100 * 0.4 / bottom)
    apart = NOISE * (1 - (bottom - 0.4) / bottom)
    joined = math.sqrt(apart.var(ddof=1) / 40 + 0.01 / 3)
    assert rows[1]["gain_vlb_se"] == pytest.approx(100 * joined / bottom)
    assert rows[0]["gain_vlb"] == 0 and "gain_vlb_se" not in rows[0] and "gain_bpd" not in rows[2]


# --- rows --------------------------------------------------------------------------------------------


def test_a_row_has_the_error_over_images_and_the_deviation_over_models():
    row = table.row(THREE, MEASURED["three"])
    assert row["vlb"] == pytest.approx(1.8 + NOISE.mean())
    assert row["vlb_se"] == pytest.approx(NOISE.std(ddof=1) / math.sqrt(40))
    assert [row["vlb_sd"], row["bpd_sd"]] == pytest.approx([0.1, 0.1])
    assert [row["latency_ms"], row["latency_low_ms"], row["latency_high_ms"]] == pytest.approx(
        [2.0, 1.9, 2.2]
    )
    assert row["memory_mb"] == 1.0 and row["nfe_sampling"] == 35 and row["sample_seeds"] == "0 1 2"
    assert (row["bpd_images"], row["vlb_images"], row["experts_parameters"]) == (40, 40, 990)
    assert table.row(ONE, MEASURED["one"])["vlb_sd"] is None
    assert table.row(SPARSE, MEASURED["sparse"])["bpd"] is None


def test_a_failed_solve_is_left_out_of_the_mean_and_counted():
    broken = found([0.0])
    broken["models"][0]["likelihood"]["ok"][3] = False
    broken["models"][0]["likelihood"]["bpd"][3] = 1e9
    row = table.row(ONE, broken)
    assert row["bpd"] < 10 and row["n_failed"] == 1 and row["bpd_images"] == 39
    assert "1 likelihood solves failed" in about.notes([row])[1]


def test_the_table_shows_errors_deviations_ranges_and_only_columns_that_have_values():
    rows = [table.row(m, MEASURED[m.key]) for m in METHODS]
    chosen = table.columns(rows, ("frechet", "Fréchet"))
    assert {"Inception score", "of the trunk", "of the adapters"}.isdisjoint(c[0] for c in chosen)
    header, cells = tables.columns({"rows": rows, "columns": chosen})
    assert header[:3] == ["method", "bpd, exact", "bound"]
    assert re.fullmatch(r"1\.\d+ ± 0\.\d+ \[0\.1\]", cells[1][2])
    assert cells[2][1] == "–"
    shown = dict(zip(header, cells[0], strict=True))
    assert shown["ms per image"] == "2 (1.9 to 2.2)"
    assert [shown[name] for name in ("parameters", "of the experts", "of the gate")] == ["1000", "990", "10"]
    rows[0]["latency_ms"] = None
    assert tables.columns({"rows": rows, "columns": chosen})[1][0][header.index("ms per image")] == "–"


def test_the_terminal_shows_the_columns_that_fit_and_names_the_others(capsys):
    cells = [["m", "1.7", "1.75"], ["n", "1.6", "–"]]
    assert tables.fitting(["a", "bpd", "bound"], cells, 19) == (["a", "bpd", "bound"], cells)
    assert tables.fitting(["a", "bpd", "bound"], cells, 18) == (["a", "bpd"], [["m", "1.7"], ["n", "1.6"]])
    assert tables.fitting(["a", "bpd", "bound"], cells, 1)[0] == ["a", "bpd"]
    tables.print_summary(fake(), Console(width=60))
    printed = capsys.readouterr().out
    assert "the sparse" in printed and "…" not in printed and "in the report besides: Fréchet" in printed


def test_csv_and_markdown_name_config_seeds_images_and_command(tmp_path):
    command = "python main.py --config configs/x.py --config.seed=2 --config.bound.n_images 40"
    with Run(tmp_path / "w", {}, name="x", command=command) as run:
        used = frame(run, seed=2)
        used.config.bound.n_images, used.config.likelihood.n_images = 40, 12
        rows = table.rows(used, METHODS, MEASURED)
        run.write_csv("results.csv", rows)
        results = {"title": "Made up", "finding": "Nothing.", "rows": rows, "notes": ["A note."]}
        results |= {"columns": table.columns(rows, ("frechet", "Fréchet"))}
        results |= {"definitions": {"errors": "What ± is."}, "gate_width": 8}
        results |= {"tuning": [{"width": 8, "diffusion_bpd": 1.6, "se": 0.01, "best_step": 4}]}
        table.write_markdown(run, used.config, results)
        text = run.path("results.md").read_text()
        written = list(csv.DictReader(run.path("results.csv").open()))
    first, second = written[0], written[1]
    assert list(first)[-5:] == ["n_samples", "config", "command", "seed", "model_seeds"]
    assert (first["config"], first["seed"], first["model_seeds"]) == ("x", "2", "")
    assert second["model_seeds"] == "2000 2001 2002" and second["vlb_images"] == "40"
    assert "| 8 | 1.600 ± 0.010 | 4 |" in text and "chosen: 8." in text and "A note." in text
    assert "Config x, seed 2; models of a method have the seeds 2000, 2001, 2002; exact bpd of 12" in text
    assert "exact bpd of 12 test images, bound of 40 test images" in text
    assert f"Command: `{command}`" in text


@pytest.mark.parametrize("kind", ["full", "adapters"])
def test_parameters_of_a_mixture_are_the_sum_of_its_parts(monkeypatch, kind):
    monkeypatch.setattr(
        sampling_costs, "of_sampling", lambda *args, **kwargs: {"parameters": -1, "latency": 1.0}
    )
    config = default.get_config()
    config.expert.width, config.expert.depth, config.moe.experts = 8, 1, kind
    spent = measure.costs(frame(), dry_run.abstract_mixture(config, 2))
    parts = {"full": {"experts", "gate"}, "adapters": {"trunk", "adapters", "gate"}}[kind]
    counted = {
        name.removesuffix("_parameters"): n for name, n in spent.items() if name.endswith("_parameters")
    }
    assert (
        set(counted) == parts and sum(counted.values()) == spent["parameters"] and min(counted.values()) > 0
    )
    expert = toys.Recorder(0.4, gamma_range=toys.LOW, pixel_scale=PixelScale(17), image_shape=(8, 8, 1))
    assert measure.costs(frame(), expert) == {"parameters": -1, "latency": 1.0, "gate_parameters": 0}
    gated = Gated((expert, expert.replace(slope=2.0)), FixedGate(np.zeros(2, np.float32)))
    assert measure.costs(frame(), gated)["gate_parameters"] == 2


# --- what gates do -----------------------------------------------------------------------------------


def sparse_draws():
    """Two draws on two images of a gate over three experts of which the largest one is kept."""
    weights = np.array([[[0.5, 0.3, 0.2], [0.2, 0.7, 0.1]]] * 2)
    used = np.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]] * 2)
    gamma = np.array([[-1.0, 1.0], [-0.9, 0.9]])
    error = np.ones((2, 2))
    errors, there = np.ones((2, 2, 3)), np.ones((2, 2, 3), bool)
    return Measured(gamma, error, errors, weights, used, there, (-1.5, 1.5))


def test_usage_is_of_the_weights_that_were_used_and_entropy_of_the_gates():
    inside = np.array([[True, False, False], [False, True, False]])
    kept = diagnose.figures(sparse_draws(), {"classes": inside, "ink": inside}, specialised=True)
    np.testing.assert_allclose(kept["total"], [0.5, 0.5, 0.0])
    np.testing.assert_allclose(kept["slices"]["ink"]["usage"][:2], [[1, 0, 0], [0, 1, 0]])
    first, *_ = np.flatnonzero(kept["count"])
    np.testing.assert_allclose(kept["usage"][first], [1, 0, 0])
    entropy = -sum(w * math.log(w) for w in (0.5, 0.3, 0.2))
    assert kept["entropy"][first] == pytest.approx(entropy)
    assert kept["effective"][first] == pytest.approx(math.exp(entropy))
    # Only the first kind is what the experts were made for.
    np.testing.assert_allclose(kept["slices"]["classes"]["accuracy"], [1, 1, np.nan])
    assert "accuracy" not in kept["slices"]["ink"]
    assert (
        "accuracy"
        not in diagnose.figures(sparse_draws(), {"ink": inside}, specialised=False)["slices"]["ink"]
    )


def test_gates_are_averaged_over_models():
    stages = [
        {
            "usage": np.array([[v, 1 - v]]),
            "gamma": np.zeros(1),
            "entropy": np.array([v]),
            "effective": np.array([3 * v]),
        }
        for v in (0.2, 0.4)
    ]
    shown = diagnose.weights(stages)
    np.testing.assert_allclose(shown["mean"], [[0.3, 0.7]])
    np.testing.assert_allclose(shown["sd"], [[0.1414, 0.1414]], atol=1e-4)
    np.testing.assert_allclose([shown["entropy"], shown["effective"]], [[0.3], [0.9]])


def test_masks_are_the_slices_of_the_bounds_images():
    used = frame()
    used.config.bound.n_images = 50
    sets = [slices.fit(kind, 2, load("digits", "train")) for kind in ("classes", "ink")]
    found = diagnose.masks(used, sets)
    assert list(found) == [*sets[0].names, *sets[1].names]
    np.testing.assert_array_equal(found["ink low"], sets[1].members(load("digits", "test").take(50))[:, 0])


# --- words -------------------------------------------------------------------------------------------


def apart(value, error=0.01, quantile=2.0):
    return Difference(value, error, 100, quantile)


def test_words_call_a_difference_clear_only_beyond_students_interval():
    known = {"x": apart(-0.10, 0.04), "y": apart(-0.10, 0.06), "few": apart(-0.10, 0.04, quantile=T_TWO)}

    def compare(a, b, quantity):
        return known[a.key]

    x, y, few, other = (method(key, 1) for key in ("x", "y", "few", "other"))
    assert phrases.is_clear(x, other, "vlb", compare)
    assert not phrases.is_clear(y, other, "vlb", compare) and not phrases.is_clear(few, other, "vlb", compare)
    assert phrases.against(x, other, "vlb", compare) == "0.100 ± 0.040 below the other"
    for unclear in (y, few):
        assert "not distinguishable from the other" in phrases.against(unclear, other, "vlb", compare)


def test_the_merges_finding_names_the_best_and_what_is_not_told_apart_from_it():
    keys = ("edm", "vdm", "switch", "uniform", "convex", "affine", "gate_gamma", "gate_z")
    methods = [method(k, 1) for k in keys]
    values = dict(zip(keys, (1.9, 1.8, 1.7, 1.75, 1.66, 1.65, 1.655, 1.68), strict=True))
    rows = [{"method": m.name, "bpd": values[m.key]} for m in methods]

    def compare(a, b, quantity):
        return apart(values[a.key] - values[b.key])

    text = merge_words.finding(methods, rows, compare)
    assert text.startswith("Lowest exact bpd on test images: the affine, 1.6500, not told apart from")
    assert "the gate_gamma, the convex" in text and "the gate_z," not in text.split(". ")[0]
    assert "(the gate_gamma) is 0.045 ± 0.010 below the switch" in text
    assert "not distinguishable from the affine" in text and "below the vdm" in text


def test_the_merges_narrative_says_what_gates_change_and_where():
    keys = ("edm", "vdm", "switch", "uniform", "convex", "affine")
    keys += tuple(f"gate_{what}{how}" for how in ("", "_held_out") for what in ("gamma", "z"))
    methods = [method(k, 3) for k in keys]
    values = dict(zip(keys, (1.9, 1.8, 1.7, 1.75, 1.66, 1.65, 1.69, 1.68, 1.66, 1.64), strict=True))
    rows = [{"method": m.name, "vlb": values[m.key], "frechet": None} for m in methods]

    def compare(a, b, quantity, images=None):
        if quantity == "bpd":
            return None
        return apart(values[a.key] - values[b.key] if images is None else images.mean())

    told = {"first": np.full(4, -0.5), "second": np.zeros(4)}
    said = merge_words.narrative(methods, rows, compare, ("frechet", "Fréchet"), told)
    assert (
        said[0].startswith("The gate_gamma: bound not distinguishable from the switch")
        and "bpd" not in said[0]
    )
    assert "trained on training images: bound not distinguishable from the gate_gamma" in said[4]
    assert (
        "the bound of the gate_z_held_out against the switch is clearly below it in 1 of 2 (first" in said[6]
    )
    assert "the gate_gamma_held_out 0.030 ± 0.010 below the gate_gamma" in said[-1]
    assert len(merge_words.narrative(methods, rows, compare, ("frechet", "Fréchet"))) == len(said) - 1


KEYS = ("A_compute", "B", "no_load", "random")
VALUES = dict(zip(KEYS, (1.70, 1.60, 1.70, 1.90), strict=True))
FAR = dict(zip(KEYS, (3.0, 3.5, 2.0, 3.5), strict=True))
GRID = [method(k, 3, experts=1 if k == "A_compute" else 4) for k in KEYS]
ROWS = [{"method": m.name, "vlb": VALUES[m.key], "frechet": FAR[m.key]} for m in GRID]


def compare_grid(a, b, quantity, images=None):
    values = {"vlb": VALUES, "frechet": FAR}.get(quantity)
    if values is None:
        return None
    return apart(values[a.key] - values[b.key] if images is None else 0.1 * images[0])


def test_the_grids_finding_counts_what_is_clearly_better_and_worse_than_a():
    text = grid_words.finding(GRID, GRID[0], ROWS, compare_grid)
    assert "1 of 3 other rows are clearly below the A_compute (the B), 1 clearly above" in text
    said = " ".join(grid_words.narrative(GRID, GRID[0], ROWS, compare_grid, ("frechet", "Fréchet"), {}))
    assert "below the A_compute: the B; not told apart from the A_compute: the no_load" in said
    assert "does to the B in the bound: the no_load: 0.100 ± 0.010 above it; the random:" in said
    # Of the other quantities only what is clear.
    assert "In the Fréchet distance, where it is clear: the no_load: 1.500 ± 0.010 below it." in said
    assert (
        "in the bound 1 of 3 are clearly lower and 1 clearly higher; in the Fréchet distance 1 of 3 are"
        in said
    )
    assert "exact bpd" not in said and "By slices" not in said and "before it was trained on" not in said


def test_a_base_expert_that_was_better_untouched_is_told():
    base = method("vdm", 1)
    values = VALUES | {"vdm": 1.65}
    rows = [{"method": m.name, "vlb": values[m.key]} for m in (base, *GRID)]

    def compare(a, b, quantity, images=None):
        return apart(values[a.key] - values[b.key]) if quantity == "vlb" else None

    said = grid_words.narrative([base, *GRID], GRID[0], rows, compare, ("frechet", "Fréchet"), {})[-1]
    assert "better before it was trained on: the vdm has a bound 0.050 ± 0.010 below its own" in said


def test_the_grids_narrative_says_in_which_slices_the_best_mixture_helps():
    told = {"low": np.array([-1]), "middle": np.array([0]), "high": np.array([1])}
    said = grid_words.narrative(GRID, GRID[0], ROWS, compare_grid, ("frechet", "Fréchet"), {}, told)[-1]
    assert (
        "the bound of the B against the A_compute is clearly below it in 1 of 3 (low -0.100 ± 0.010)" in said
    )
    assert (
        "not told apart in 1 of 3 (middle 0.000 ± 0.010); clearly above it in 1 of 3 (high 0.100 ± 0.010)"
        in said
    )
    assert "chosen on these same images" in said
    nowhere = phrases.where(GRID[1], GRID[0], compare_grid, {"high": np.array([1])})
    assert "clearly below it in 0 of 1; clearly above it in 1 of 1" in nowhere
    assert phrases.where(GRID[1], GRID[0], lambda *_: None, told) == ""


def test_names_with_a_comma_are_quoted():
    soft = Method("B", "B, soft gates", (None,), "Made up.", 4)
    assert phrases.against(ONE, soft, "vlb", lambda *_: apart(-0.1)) == "0.100 ± 0.010 below “B, soft gates”"
    assert phrases.called(ONE) == "the one"


def test_collapse_is_told_by_its_usage_at_start_and_end():
    def curve(start, end):
        return {"usage_step": [0, 1], "usage": [[start, 1 - start], [end, 1 - end]]}

    arms = {"with L_load": [curve(0.9, 0.3), curve(0.9, 0.5)], "without L_load": [curve(0.9, 0.99)]}
    text = grid_words.collapse_words({"offset": 3.0, "arms": arms})
    assert "with L_load 0.400 (seeds 0.300, 0.500), and of all experts between 0.300 and 0.700" in text
    assert "without L_load 0.990 (seeds 0.990), and of all experts between 0.010 and 0.990" in text
    assert "starts 3 higher (usage 0.900" in text


def test_a_gate_that_gave_one_expert_nearly_everything_is_a_note():
    totals = {
        "one": [[0.94, 0.06]],
        "three": [[0.5, 0.5], [0.02, 0.98], [0.5, 0.5]],
        "sparse": [[0.02, 0.48]],
    }
    diagnosed = {key: [{"total": np.array(t)} for t in listed] for key, listed in totals.items()}
    said = about.collapse_notes(METHODS, diagnosed)
    assert said == [
        "Collapse (one expert over 95 % on test images) of the three: expert 2 has 98.0 % of the weight in gate 2 of 3.",
        # Weights that are not renormalised count by their share.
        "Collapse (one expert over 95 % on test images) of the sparse: expert 2 has 96.0 % of the weight in gate 1 of 1.",
    ]
    assert "of the three: EDM has 98.0 %" in about.collapse_notes(METHODS, diagnosed, ("VDM", "EDM"))[0]


def test_definitions_say_how_times_were_taken_and_what_a_gain_is_where_there_are_gains():
    rows = [table.row(m, MEASURED[m.key]) for m in METHODS]
    said = about.definitions(frame(), ("frechet", "Fréchet"), rows)
    assert said["ms per image"].endswith("seconds, a device.") and "gain" not in said
    table.with_gains(rows, ONE.name, ("vlb",), MEASURED, METHODS)
    assert "baseline" in about.definitions(frame(), ("frechet", "Fréchet"), rows)["gain"]
    assert "of 5 calls" in about.definitions(frame(), ("frechet", "Fréchet"), ())["ms per image"]


def test_definitions_are_those_of_every_score_in_the_table():
    judge = types.SimpleNamespace(
        definitions={"fid": "Far.", "kid": "A kernel.", "inception_score": "Clear."}
    )
    rows = [{"fid": 2.0, "kid": 0.1}, {"fid": 3.0, "inception_score": None}]
    said = about.definitions(
        frame(judge=judge), ("fid", "FID"), [r | {"latency_definition": ""} for r in rows]
    )
    assert said["FID"] == "Far. ± is the standard deviation over seeds."
    assert said["KID"].startswith("A kernel.") and "Inception score" not in said
    assert [c[0] for c in table.columns(rows, ("fid", "FID"))] == ["FID", "KID"]


# --- report ------------------------------------------------------------------------------------------


def fake():
    rows = [table.row(m, MEASURED[m.key]) for m in METHODS]
    gamma = np.linspace(-7, 8, 6)
    mean = np.tile([0.25, 0.75], (6, 1))
    sliced = {"kind": "ink", "images": 10, "in_none": 1}
    train = {"split": "train", "in_several": 1, "overlap": [[4, 1], [1, 6]]}
    test = {"split": "test", "in_several": 0, "overlap": [[4, 0], [0, 6]]}
    bounds = [{"ink": {"below": 0.3}}, {"ink": {"from": 0.3}}]
    named = [
        {"name": f"ink {end}", "images": n, "bounds": b}
        for end, n, b in zip(("low", "high"), (4, 6), bounds, strict=True)
    ]
    return plain(
        {
            "title": "Made up",
            "finding": "Nothing.",
            "rows": rows,
            "columns": table.columns(rows, ("frechet", "Fréchet")),
            "narrative": ["A <mixture> helps."],
            "paired": differences.paired(MEASURED, [(ONE, THREE)], ("vlb",)),
            "gate_weights": {
                "experts": ["VDM", "EDM"],
                "methods": {
                    "table": {"gamma": gamma, "mean": mean},
                    "gate": {
                        "gamma": gamma,
                        "mean": mean,
                        "sd": 0.1 * mean,
                        "entropy": np.full(6, 0.5),
                        "effective": [1.6, 1.7, np.nan, 1.5, 1.4, 1.3],
                    },
                },
            },
            "gate_slices": {
                "gate": {
                    "ink": {
                        "names": ["ink low", "ink high"],
                        "usage": mean[:2],
                        "bpd": [1.0, 2.0],
                        "accuracy": [0.5, 1],
                    }
                }
            },
            "slices": [sliced | split | {"slices": named} for split in (train, test)],
            "gates": [
                {
                    "method": "gate",
                    "entropy": 0.5,
                    "effective_experts": 1.6,
                    "least_used": 0.25,
                    "most_used": 0.75,
                    "experts": 2,
                }
            ],
            "tuning": [{"width": 8, "diffusion_bpd": 1.6, "se": 0.01, "best_step": 4}],
            "gate_width": 8,
            "collapse": {
                "offset": 3.0,
                "arms": {"with L_load": [{"usage_step": [1, 2], "usage": mean[:2]}] * 2},
            },
        }
    )


def test_the_page_shows_every_part_of_a_run_about_mixtures():
    results = fake()
    drawn = page.figures(results, {})
    assert set(drawn) == {"method_plane", "gate_weights", "effective_experts", "gate_slices", "collapse"}
    text = page.page(results, drawn)
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    assert headings[0] == "What changed, when a mixture helps, when not"
    assert {"Weights of the gates", "Usage per slice", "Collapse", "Measured values"} <= set(headings)
    assert "A &lt;mixture&gt; helps." in text and "1.60 of 2" in text
    assert "<th>clear</th>" in text
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) == 5
    for drawing in drawings:
        ElementTree.fromstring(drawing)


def test_the_plane_has_every_method_in_the_bound_and_those_with_a_likelihood_beside_it():
    exact, bound, close_exact, close_bound = plane.plane(fake()).axes
    assert [len(axis.containers) for axis in (exact, bound)] == [2, 3]
    assert {text.get_text() for text in close_bound.texts} == {"1", "2", "3"}
    assert {text.get_text() for text in close_exact.texts} == {"1", "2"}
    labels = [text.get_text() for text in exact.figure.legends[0].get_texts()]
    assert labels == [f"{i}  the {name}" for i, name in enumerate(("one", "three", "sparse"), 1)]
    alone = fake()
    alone["rows"] = [row | {"bpd": None} for row in alone["rows"]]
    _, close = plane.plane(alone).axes
    assert "bound" in close.get_xlabel()
    assert plane.plane(alone | {"rows": alone["rows"][:1]}) is None


def test_what_lies_far_off_is_numbered_in_the_whole_plane_alone():
    points = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [1.5, 1.5], [0.5, 50.0]])
    assert plane.near(points).tolist() == [True, True, True, True, False]
    results = fake()
    lines = zip(points, results["rows"] * 2, strict=False)
    results["rows"] = [
        row | {"method": f"m{i}", "vlb": x, "frechet": y} for i, ((x, y), row) in enumerate(lines)
    ]
    _, whole, _, close = plane.plane(results).axes
    assert [len(whole.containers), len(close.lines)] == [5, 4]
    assert [text.get_text() for text in whole.texts] == ["5"]
    assert {text.get_text() for text in close.texts} == {"1", "2", "3", "4"}


def test_bars_across_join_the_errors_over_images_and_models():
    assert plane.joined_error({"vlb_se": 0.3, "vlb_sd": 0.8, "models": 4}, "vlb") == pytest.approx(0.5)
    assert plane.joined_error({"vlb_se": 0.3, "vlb_sd": None, "models": 1}, "vlb") == pytest.approx(0.3)
    row = plain(table.row(THREE, MEASURED["three"]))
    _, _, bars = plane.plane(fake()).axes[1].containers[1].lines
    (across, _), *_ = bars[0].get_segments()
    assert row["vlb"] - across[0] == pytest.approx(plane.joined_error(row, "vlb"))


def test_numbers_of_points_that_lie_together_are_set_apart():
    results = fake()
    results["rows"] = [
        row | {"method": f"m{i}", "vlb": 1.0, "frechet": 2.0} for i, row in enumerate(results["rows"] * 2)
    ]
    texts = plane.plane(results).axes[3].texts
    places = np.array([text.get_position() for text in texts])
    gaps = np.linalg.norm(places[:, None] - places, axis=-1)[~np.eye(len(places), dtype=bool)]
    assert len(texts) == 6 and gaps.min() > 6


def test_figures_of_usage_name_their_experts():
    results = fake()
    drawn = page.figures(results, {})
    for name, wanted in (("gate_slices", ["VDM", "EDM"]), ("collapse", ["expert 1", "expert 2"])):
        assert [text.get_text() for text in drawn[name].legends[0].get_texts()] == wanted
    assert drawn["collapse"].axes[0].get_title(loc="left") == "with L_load"
    (line,) = drawn["effective_experts"].axes[0].lines
    np.testing.assert_allclose(line.get_ydata(), [1.6, 1.7, np.nan, 1.5, 1.4, 1.3])
    del results["gate_weights"]["methods"]["gate"]
    assert "effective_experts" not in page.figures(results, {})


def test_slices_are_shown_with_sizes_on_every_split_and_overlaps():
    text = moe.slices(fake())
    assert "<td>ink, 2</td><td>ink low</td><td>4</td><td>4</td><td>ink below 0.3</td>" in text
    assert "ink, 2 slices of 10 test images: 0 images in several, 1 in none" in text
    # A table only where images are in several slices.
    assert text.count("<td>ink low</td><td>4</td><td>1</td>") == 1 and text.count("images in both") == 1
    assert moe.slices({}) == ""


def test_accuracy_is_shown_only_where_there_is_some():
    results = fake()
    assert "50.0 %" in moe.per_slice(results) and "accuracy" in moe.per_slice(results)
    del results["gate_slices"]["gate"]["ink"]["accuracy"]
    assert "accuracy" not in moe.per_slice(results) and "<td>2.000</td>" in moe.per_slice(results)
    assert moe.per_slice({}) == ""


def test_results_are_plain_json():
    json.dumps(fake(), allow_nan=False)
    assert isinstance(jax.tree.leaves(fake()["rows"])[0], str | int | float)
