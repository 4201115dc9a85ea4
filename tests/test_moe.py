"""Tables, words and models of the tasks about gated mixtures."""

import dataclasses
import math
import re
import sys
import types
import xml.etree.ElementTree as ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from jaxmerge import vlb
from jaxmerge.data import load
from jaxmerge.files import plain
from jaxmerge.merge import Switch
from jaxmerge.noise import PixelScale
from jaxmerge.report import page, tables
from jaxmerge.run import Run
from jaxmerge.tasks import reconstructions
from jaxmerge.tasks.moe import diagnose, measure, models, table, train, words
from jaxmerge.tasks.moe.models import Method
from jaxmerge.tasks.moe.rows import wanted
from tests import toys

SCALE = PixelScale(17)
LOW = toys.Recorder(0.4, gamma_range=toys.LOW, pixel_scale=SCALE, image_shape=(8, 8, 1))
HIGH = toys.Recorder(0.9, gamma_range=toys.HIGH, pixel_scale=SCALE, image_shape=(8, 8, 1))
Z = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))


# --- models ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [-7.5, -3.0, 2.0, 7.0])
def test_a_table_of_weights_covers_the_union_of_the_ranges_and_mixes_where_both_answer(gamma):
    gammas = np.linspace(-7.8, 8.7, 40)
    weights = np.stack([1.2 - 0.1 * gammas, 0.1 * gammas - 0.2], axis=1)
    model = models.by_level((LOW, HIGH), gammas, weights)
    low, high = LOW.eps_hat(Z, gamma), HIGH.eps_hat(Z, gamma)
    wanted = {-7.5: low, 7.0: high}.get(gamma, (1.2 - 0.1 * gamma) * low + (0.1 * gamma - 0.2) * high)
    np.testing.assert_allclose(model.eps_hat(Z, gamma), wanted, atol=1e-5)
    assert model.gamma_range == (toys.LOW[0], toys.HIGH[1])


def test_a_table_without_levels_where_several_experts_answer_is_refused():
    with pytest.raises(ValueError, match="must have levels between gamma"):
        models.by_level((LOW, HIGH), np.array([-7.5, 8.0]), np.ones((2, 2)))


def test_a_switch_asked_in_one_stratum_is_its_expert_at_every_images_level():
    switch = Switch(LOW, HIGH, gamma=1.0)
    for levels in (jnp.array([-2.0, 0.5, 0.9]), jnp.array([1.1, 3.0, 2.0])):
        expert = LOW if levels[0] < 1 else HIGH
        np.testing.assert_allclose(
            models.AtOneLevel(switch).eps_hat(Z, levels), expert.eps_hat(Z, levels), atol=1e-6
        )


@pytest.mark.slow
def test_bounds_on_common_strata_share_their_noise_so_that_equal_models_differ_nowhere():
    images = np.random.default_rng(0).integers(0, 17, (4, 8, 8, 1)).astype(np.uint8)

    def terms(model):
        curves = vlb.error_curves(
            {"model": models.AtOneLevel(model)},
            images,
            key=jax.random.key(1),
            thresholds=[*toys.LOW, *toys.HIGH, 1.0],
            per_interval=2,
            batch_size=4,
        )
        return curves.single(0)

    always_low = models.by_level((LOW, HIGH), np.linspace(-7.8, 8.7, 30), np.tile([1.0, 0.0], (30, 1)))
    whole = terms(Switch(LOW, HIGH, gamma=toys.LOW[1]))
    np.testing.assert_allclose(terms(always_low), whole, rtol=1e-5)
    assert np.abs(terms(Switch(LOW, HIGH, gamma=1.0)) - whole).max() > 1e-3


def test_strata_have_every_jump_as_an_edge_and_none_of_almost_no_width():
    config = default.get_config()
    setup = type("S", (), {"low": LOW, "high": HIGH})
    edges = np.array(measure.strata(config, setup, [1.0]))
    assert {1.0, *toys.LOW, *toys.HIGH} <= set(edges)
    assert np.diff(edges).min() > 0.15


def test_a_fresh_gate_and_the_uniform_average_agree_and_copies_share_no_memory():
    asked = default.get_config().moe
    fresh = models.fresh(asked, (LOW, HIGH), seed=0)
    np.testing.assert_allclose(fresh.eps_hat(Z, 1.5), models.uniform((LOW, HIGH)).eps_hat(Z, 1.5), atol=1e-6)
    assert models.fresh(asked, (LOW, HIGH), seed=0, inputs="gamma").gate.inputs == "gamma"
    expert = LOW.replace(slope=jnp.ones(3))
    first, second = models.copies(expert, 2)
    assert first.slope is not second.slope and first.slope is not expert.slope


@pytest.mark.parametrize(("side", "window"), [(8, 7), (9, 9), (11, 11), (12, 11), (256, 11)])
def test_the_window_of_ssim_is_odd_and_fits(side, window):
    assert reconstructions.window_of((side, side, 1)) == window


# --- tables ------------------------------------------------------------------------------------------


def method(key, count, experts=2):
    return Method(key, f"the {key}", (None,) * count, "Made up.", experts)


def found(offsets, seeds=None, count=40, smooth=True):
    """Measurements of models whose bounds are one image's noise plus an offset each."""
    noise = np.random.default_rng(0).normal(size=count)
    models = []
    for i, offset in enumerate(offsets):
        bound = np.stack([np.zeros(count), np.zeros(count), 1.7 + noise + offset], axis=1)
        scores = {"nfe": 35.0, "frechet": 1.0 + offset, "classifier_score": 9.0}
        model = {"bound": bound, "samples": {str(s): scores for s in (seeds or (i,))}}
        model |= {"psnr": 20.0, "psnr_se": 0.1, "ssim": 0.9, "ssim_se": 0.01}
        if smooth:
            zero = np.zeros(count)
            names = ("prior", "trace", "dequantization", "decoder", "error")
            model["likelihood"] = {
                "bpd": 1.8 + noise + offset,
                **dict.fromkeys(names, zero),
                "nfe": zero + 75,
                "ok": np.ones(count, bool),
                "refined": np.zeros(count, bool),
            }
        models.append(model)
    cost = {"latency": 0.002, "planned_bytes": 2**20, "parameters": 1000, "gate_parameters": 10}
    return {"models": models, "cost": cost}


ONE, THREE, SPARSE = method("one", 1), method("three", 3), method("sparse", 3)
MEASURED = {
    "one": found([0.5], seeds=(0, 1, 2)),
    "three": found([0.0, 0.1, 0.2]),
    "sparse": found([0.1, 0.1, 0.1], smooth=False),
}


def test_a_row_has_the_error_over_images_and_the_deviation_over_models():
    row = table.row(THREE, MEASURED["three"])
    noise = np.random.default_rng(0).normal(size=40)
    assert row["vlb"] == pytest.approx(1.8 + noise.mean())
    assert row["vlb_se"] == pytest.approx(noise.std(ddof=1) / math.sqrt(40))
    assert [row["vlb_sd"], row["bpd_sd"]] == pytest.approx([0.1, 0.1])
    assert row["latency_ms"] == 2.0 and row["memory_mb"] == 1.0 and row["nfe_sampling"] == 35
    assert table.row(ONE, MEASURED["one"])["vlb_sd"] is None
    assert table.row(SPARSE, MEASURED["sparse"])["bpd"] is None


def test_a_failed_solve_is_left_out_of_the_mean_and_counted():
    broken = found([0.0])
    broken["models"][0]["likelihood"]["ok"][3] = False
    broken["models"][0]["likelihood"]["bpd"][3] = 1e9
    row = table.row(ONE, broken)
    assert row["bpd"] < 10 and row["n_failed"] == 1
    assert "1 likelihood solves failed" in words.notes([row])[1]


def test_paired_differences_lose_the_images_noise_and_keep_that_of_the_models():
    value, error, count = table.difference(MEASURED, ONE, THREE, "vlb")
    assert value == pytest.approx(0.4) and count == 40
    assert error == pytest.approx(0.1 / math.sqrt(3))
    value, error, count = table.difference(MEASURED, ONE, THREE, "frechet")
    assert value == pytest.approx(0.4) and error == pytest.approx(0.1 / math.sqrt(3)) and count == 3
    assert table.difference(MEASURED, ONE, SPARSE, "bpd") is None
    listed = table.paired(MEASURED, [(ONE, THREE), (ONE, SPARSE)], ("bpd", "vlb"))
    assert [(p["model_b"], p["quantity"]) for p in listed] == [
        ("the three", "bpd"),
        ("the three", "vlb"),
        ("the sparse", "vlb"),
    ]


def test_gains_are_relative_to_one_row_and_positive_where_a_row_is_lower():
    rows = [{"method": "A", "vlb": 2.0, "bpd": None}, {"method": "m", "vlb": 1.5, "bpd": 1.0}]
    table.with_gains(rows, "A", ("vlb", "bpd"))
    assert [r["gain_vlb"] for r in rows] == [0.0, 25.0]
    assert "gain_bpd" not in rows[1]


def test_the_table_shows_errors_deviations_and_only_columns_that_have_values():
    rows = [table.row(m, MEASURED[m.key]) for m in (ONE, THREE, SPARSE)]
    chosen = table.columns(rows, ("frechet", "Fréchet"))
    assert "Inception score" not in [c[0] for c in chosen]
    header, cells = tables.columns({"rows": rows, "columns": chosen})
    assert header[:3] == ["method", "bpd, exact", "bound"]
    assert re.fullmatch(r"1\.\d+ ± 0\.\d+ \[0\.1\]", cells[1][2])
    assert cells[2][1] == "–" and "1000" in cells[0]


# --- words -------------------------------------------------------------------------------------------


def test_words_call_a_difference_clear_only_beyond_two_errors():
    def compare(a, b, quantity):
        return {"x": (-0.10, 0.04, 9), "y": (-0.10, 0.06, 9)}[a.key]

    x, y, other = method("x", 1), method("y", 1), method("other", 1)
    assert words.is_clear(x, other, "vlb", compare) and not words.is_clear(y, other, "vlb", compare)
    assert words.against(x, other, "vlb", compare) == "0.100 ± 0.040 below the other"
    assert "not distinguishable from the other" in words.against(y, other, "vlb", compare)


def test_the_merges_finding_names_the_best_and_what_is_not_told_apart_from_it():
    keys = ("edm", "vdm", "switch", "uniform", "convex", "affine", "gate_gamma", "gate_z")
    methods = [method(k, 1) for k in keys]
    values = dict(zip(keys, (1.9, 1.8, 1.7, 1.75, 1.66, 1.65, 1.655, 1.68), strict=True))
    rows = [{"method": m.name, "bpd": values[m.key]} for m in methods]

    def compare(a, b, quantity):
        return values[a.key] - values[b.key], 0.01, 100

    text = words.merge_finding(methods, rows, compare)
    assert text.startswith("Lowest exact bpd on test images: the affine, 1.6500, not told apart from")
    assert "the gate_gamma, the convex" in text and "the gate_z," not in text.split(". ")[0]
    assert "(the gate_gamma) is 0.045 ± 0.010 below the switch" in text
    assert "not distinguishable from the affine" in text and "below the vdm" in text


def test_the_grids_finding_counts_what_is_clearly_better_and_worse_than_a():
    keys = ("A_compute", "B", "no_load", "random")
    values = dict(zip(keys, (1.70, 1.60, 1.70, 1.90), strict=True))
    methods = [method(k, 3) for k in keys]
    rows = [{"method": m.name, "vlb": values[m.key]} for m in methods]

    def compare(a, b, quantity):
        return (values[a.key] - values[b.key], 0.01, 100) if quantity == "vlb" else None

    text = words.grid_finding(methods, methods[0], rows, compare)
    assert "1 of 3 other rows are clearly below the A_compute (the B), 1 clearly above" in text
    said = " ".join(words.grid_narrative(methods, methods[0], rows, compare, ("frechet", "Fréchet"), {}))
    assert "below the A_compute: the B; not told apart from the A_compute: the no_load" in said
    assert "the no_load: 0.100 ± 0.010 above the B" in said


def test_collapse_is_told_by_its_usage_at_start_and_end():
    def curve(start, end):
        return {"usage_step": [0, 1], "usage": [[start, 1 - start], [end, 1 - end]]}

    arms = {"with L_load": [curve(0.9, 0.3), curve(0.9, 0.5)], "without L_load": [curve(0.9, 0.99)]}
    text = words.collapse_words({"offset": 3.0, "arms": arms})
    assert "with L_load 0.400 (seeds 0.300, 0.500); without L_load 0.990" in text
    assert "starts 3 higher (usage 0.900" in text


# --- report ------------------------------------------------------------------------------------------


def fake():
    rows = [table.row(m, MEASURED[m.key]) for m in (ONE, THREE, SPARSE)]
    gamma = np.linspace(-7, 8, 6)
    mean = np.tile([0.25, 0.75], (6, 1))
    return plain(
        {
            "title": "Made up",
            "finding": "Nothing.",
            "rows": rows,
            "columns": table.columns(rows, ("frechet", "Fréchet")),
            "narrative": ["A <mixture> helps."],
            "gate_weights": {
                "experts": ["VDM", "EDM"],
                "methods": {
                    "table": {"gamma": gamma, "mean": mean},
                    "gate": {"gamma": gamma, "mean": mean, "sd": 0.1 * mean},
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
            "slices": [
                {
                    "kind": "ink",
                    "split": "train",
                    "images": 10,
                    "in_several": 0,
                    "in_none": 1,
                    "slices": [{"name": "ink low", "images": 4, "bounds": {"ink": {"below": 0.3}}}],
                }
            ],
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
                "arms": {"with L_load": [{"usage_step": [1, 2], "usage": mean[:2]}]},
            },
        }
    )


def test_the_page_shows_every_part_of_a_run_about_mixtures():
    results = fake()
    drawn = page.figures(results, {})
    assert set(drawn) == {"method_plane", "gate_weights", "gate_slices", "collapse"}
    text = page.page(results, drawn)
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    assert headings[0] == "What changed, when a mixture helps, when not"
    assert {"Weights of the gates", "Usage per slice", "Collapse", "Measured values"} <= set(headings)
    assert "A &lt;mixture&gt; helps." in text and "1.60 of 2" in text and "ink below 0.3" in text
    for drawing in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(drawing)


# --- pieces of the tasks -----------------------------------------------------------------------------


def test_usage_curves_average_neighbouring_steps_and_order_experts_by_number():
    losses = [
        {"step": str(i), "loss": "1", **{f"usage_{k}": str(i + k) for k in (10, 2)}} for i in range(120)
    ]
    curve = train.usage_curve(losses)
    assert curve["usage"].shape == (60, 2)
    np.testing.assert_allclose(curve["usage"][0], [2.5, 10.5])


def test_scalars_go_to_event_files_where_asked_for_and_the_missing_package_is_named(monkeypatch, tmp_path):
    asked = default.get_config().moe
    assert train.scalars(asked, tmp_path) is None
    asked.tensorboard = True
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="need the package tensorboardX"):
        train.scalars(asked, tmp_path)
    written = []

    class SummaryWriter:
        def __init__(self, folder):
            self.folder = folder

        def add_scalar(self, *scalar):
            written.append(scalar)

        def flush(self):
            written.append(self.folder)

    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    train.scalars(asked, tmp_path)([{"step": 3, "loss": 1.5, "usage_10": 0.2}])
    assert written == [("loss", 1.5, 3), ("usage/10", 0.2, 3), str(tmp_path / "tensorboard")]


def test_penalties_are_the_configs_or_off():
    asked = default.get_config().moe
    assert train.penalties(asked).load == 0.1 and train.penalties(asked).align == 0
    off = train.penalties(asked, load=False, entropy=False, align=True)
    assert (off.load, off.entropy, off.align) == (0, 0, 1)


def test_a_trunk_is_trained_only_where_it_is_fresh():
    asked = default.get_config().moe
    assert train.expert_parts(asked, "adapters") == "adapters"
    asked.base = "fresh"
    assert train.expert_parts(asked, "adapters") == train.expert_parts(asked, "full") == "all"


def test_rows_that_are_not_there_are_refused_and_the_reference_always_comes_along():
    asked = default.get_config().moe
    assert {"B2", "B8"} <= wanted(asked)
    asked.rows = ("no_load",)
    assert wanted(asked) == {"no_load", "A_compute", "B"}
    asked.rows = ("no_loud",)
    with pytest.raises(ValueError, match=r"must be .all. or some of .*no_load.*got .no_loud."):
        wanted(asked)


def test_gates_are_averaged_over_models():
    stages = [{"usage": np.array([[v, 1 - v]]), "gamma": np.zeros(1)} for v in (0.2, 0.4)]
    shown = diagnose.weights(stages)
    np.testing.assert_allclose(shown["mean"], [[0.3, 0.7]])
    np.testing.assert_allclose(shown["sd"], [[0.1414, 0.1414]], atol=1e-4)


def test_subcategories_made_anew_are_refused_by_a_run_that_began_with_others(tmp_path):
    train_images = load("digits", "train").take(40)
    asked = default.get_config().moe
    asked.slices = ("subcategory", "ink")

    def made(values):
        return dataclasses.replace(
            train_images, attributes={**train_images.attributes, "subcategory_2": values}
        )

    first, second = np.arange(40) % 2, np.arange(40) // 20
    with Run(tmp_path / "w", {}) as run:
        for _ in range(2):
            sets = diagnose.slice_sets(run, asked, 2, made(first))
        assert [len(found) for found in sets] == [2, 2]
        with pytest.raises(ValueError, match="subcategories of digits were made anew since this run began"):
            diagnose.slice_sets(run, asked, 2, made(second))
        asked.slices = ("ink",)
        assert diagnose.subcategory_hashes(asked, made(second)) == {}
    with pytest.raises(ValueError, match=r"python -m jaxmerge\.subcategories digits --count 4"):
        asked.slices = ("subcategory",)
        diagnose.slice_sets(None, asked, 4, made(first))
    assert "subcategory_2" in words.slice_notes(diagnose.subcategory_hashes(asked, made(first)))[0]
