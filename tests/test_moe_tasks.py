"""The tasks about gated mixtures from the command line, in very small."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import celeba_hq_moe, cifar10_moe, default, lsun_church_moe
from jaxmerge import app
from jaxmerge.experts import io
from jaxmerge.gate.cost import parameter_counts
from jaxmerge.settings import load_config
from jaxmerge.tasks.moe import dry_run, gates, models
from jaxmerge.training import gate_recipe

ROOT = Path(__file__).resolve().parent.parent
SMALL = tuple(
    f"--config.{key}={value}"
    for key, value in {
        "moe.steps": 3,
        "moe.tuning_steps": 2,
        "moe.held_out_steps": 2,
        "moe.widths": "4,6",
        "moe.batch_size": 16,
        "moe.count": 2,
        "moe.eval_every": 2,
        "moe.eval_repeats": 2,
        "moe.seeds": 2,
        "moe.latency_repeats": 1,
        "moe.latency_batch": 4,
        "moe.strata": 4,
        "likelihood.n_images": 4,
        "likelihood.tolerance": 0.5,
        "likelihood.image_tolerance": 0.9,
        "bound.n_images": 12,
        "bound.repeats": 1,
        "sampling.n_samples": 12,
        "sampling.heun_steps": 3,
        "data.n_validation": 12,
        "merge.candidate_step": 0.2,
    }.items()
)
SMALL_GRID = tuple(
    f"--config.moe.{key}={value}"
    for key, value in {"width": 4, "warm_steps": 2, "collapse_steps": 2, "counts": "2,"}.items()
)

pytestmark = pytest.mark.usefixtures("own_folder")


def command(config: str, *more: str) -> int:
    small = SMALL if config == "digits_moe.py" else SMALL + SMALL_GRID
    return app.main(["main.py", "--config", str(ROOT / "configs" / config), "--workdir", "w", *small, *more])


def results() -> dict:
    return json.loads(Path("w/results.json").read_text())


@pytest.mark.full
def test_gates_over_two_experts_are_trained_measured_and_continued_after_a_stop(monkeypatch, capsys):
    whole, trained = gate_recipe.train_gated, []

    def stops_once(*args, **kwargs):
        trained.append(Path(kwargs["workdir"]).name)
        if trained == ["width_4", "width_6", "gate_gamma_0"]:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    monkeypatch.setattr(gate_recipe, "train_gated", stops_once)
    assert command("digits_moe.py") == 130
    assert command("digits_moe.py") == 0
    assert trained[2:4] == ["gate_gamma_0", "gate_gamma_0"] and len(trained) == 3 + 8
    found = results()
    rows = {r["method"]: r for r in found["rows"]}
    assert len(rows) == 10
    assert all(np.isfinite([r["bpd"], r["vlb"], r["frechet"], r["psnr"]]).all() for r in found["rows"])
    assert rows["gate on (z, γ)"]["models"] == 2 and rows["gate on (z, γ)"]["gate_parameters"] > 0
    assert rows["gate on γ"]["bpd_sd"] is not None and rows["EDM"]["bpd_sd"] is None
    assert "Lowest exact bpd on test images" in found["finding"]
    assert "Lowest exact bpd on test images" in capsys.readouterr().out
    text = Path("w/report.html").read_text()
    assert "Weights of the gates" in text and "hard switch" in text


@pytest.mark.full
def test_the_grid_trains_specialists_once_and_compares_with_a_single_expert():
    rows = "--config.moe.rows=A_compute,switch,B,B_top2,balanced,adapters,affine,random,aligned"
    assert command("moe/ablations.py", rows) == 0
    found = results()
    table = {r["method"]: r for r in found["rows"]}
    assert len(table) == 9 and table["A, equal compute"]["gain_vlb"] == 0
    assert table["B run as top 2"]["bpd"] is not None  # with two experts nothing is left out
    assert table["random gating"]["bpd"] is None and np.isfinite(table["random gating"]["vlb"])
    assert table["B, shared trunk"]["parameters"] < table["B, soft gates"]["parameters"]
    assert len(list(Path("w/gates").glob("experts_*"))) == 2
    assert set(found["collapse"]["arms"]) == {"with L_load", "without L_load"}
    assert found["narrative"]


@pytest.mark.full
def test_joint_training_gives_every_seed_its_own_experts():
    rows = "--config.moe.rows=B"
    assert command("moe/ablations.py:joint", rows, "--config.moe.collapse_steps=0") == 0
    assert not list(Path("w/gates").glob("experts_*"))
    line = next(r for r in results()["rows"] if r["method"] == "B, soft gates")
    assert line["vlb_sd"] > 0 and line["training_steps"] == 5


def test_a_plan_counts_every_trained_parameter_six_times():
    config = default.get_config()
    config.moe.parts, config.moe.base = "all", "fresh"
    config.expert.width, config.expert.depth = 8, 1
    gated = dry_run.abstract_mixture(config, 2)
    count = parameter_counts(gated)["total"]
    found = dry_run.plan(config, 2)
    assert found["parameters_total"] == count
    # The bias of a choice belongs to what is trained too: one number per expert.
    assert found["state_gib"] * 2**30 == pytest.approx(6 * 4 * (count + 2), rel=1e-6)
    # A batch twice as large keeps twice as much.
    config.moe.devices = 4
    assert dry_run.plan(config, 2)["kept_for_backward_gib"] == pytest.approx(
        2 * found["kept_for_backward_gib"], rel=0.05
    )


def test_a_plan_is_of_the_checkpoint_that_experts_start_from_where_it_is_there():
    config = default.get_config()
    config.moe.parts = "all"
    shipped = sum(leaf.size for leaf in jax.tree.leaves(io.shipped("digits_vdm")))
    found = dry_run.plan(config, 2)
    assert found["parameters_experts"] == 2 * shipped
    assert found["network"] == "the networks of digits_vdm"
    config.experts.low = "no/such/checkpoint"
    config.expert.width, config.expert.depth = 8, 1
    smaller = dry_run.plan(config, 2)
    assert smaller["parameters_experts"] < shipped
    assert "section expert, since there is no no/such/checkpoint" in smaller["network"]


def test_a_plan_is_of_a_pool_whose_experts_differ_and_are_not_warmed_up():
    config = default.get_config()
    config.moe.pool = ("digits_vdm", "digits_edm")
    found = dry_run.plan(config, 2)
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(io.shipped(name))) for name in config.moe.pool]
    assert sizes[0] != sizes[1] and found["parameters_experts"] == sum(sizes)
    assert found["network"] == "the networks of digits_vdm, digits_edm"
    assert (
        found["warm_up_gib"] == 0 < found["total_gib"] == found["state_gib"] + found["kept_for_backward_gib"]
    )
    config.moe.pool = ("digits_vdm", "not/there")
    config.expert.width, config.expert.depth = 8, 1
    assert dry_run.plan(config, 2)["parameters_experts"] < sizes[0]


def test_a_dry_run_of_two_frozen_experts_plans_them_under_the_widest_gate():
    config = default.get_config()
    config.moe.widths = (4, 64, 8)
    pooled = gates.as_pool(config)
    found = dry_run.plan(pooled, pooled.moe.count)
    assert found["network"] == "the networks of digits_vdm, digits_edm" and found["warm_up_gib"] == 0
    pair = tuple(io.shipped(name) for name in pooled.moe.pool)
    gate = parameter_counts(models.fresh(config.moe, pair, seed=0, width=64))["gate"]
    assert found["experts"] == 2 and found["parameters_gate"] == gate
    assert config.moe.pool == ()


def test_a_plan_counts_the_phase_that_needs_more_and_the_calls_of_the_evaluation():
    config = default.get_config()
    config.moe.base = "fresh"
    config.expert.width, config.expert.depth = 8, 1
    # Frozen experts were trained on their slices before.
    frozen = dry_run.plan(config, 2)
    assert (
        frozen["total_gib"] == frozen["warm_up_gib"] > frozen["state_gib"] + frozen["kept_for_backward_gib"]
    )
    config.moe.parts = "all"
    both = dry_run.plan(config, 2)
    assert both["total_gib"] == both["state_gib"] + both["kept_for_backward_gib"] > both["warm_up_gib"]
    weights = both["parameters_total"] * 4 / 2**30
    for name, section in (("sampling_gib", config.sampling), ("bound_gib", config.bound)):
        section.batch_size *= 2
        assert dry_run.plan(config, 2)[name] - weights == pytest.approx(2 * (both[name] - weights), rel=0.01)
    assert both["samples_host_gib"] == config.sampling.n_samples * 64 / 2**30


@pytest.mark.parametrize(
    ("count", "devices", "each"), [(16, 8, 2), (8, 8, 1), (12, 8, 2), (9, 8, 3), (11, 8, 11), (4, 8, 1)]
)
def test_as_many_devices_as_divide_a_batch_share_it(count, devices, each):
    assert dry_run.on_each(count, devices) == each


def test_arrays_that_are_alive_at_once_are_counted_until_they_are_last_read():
    def chain(x):
        for _ in range(5):
            x = jnp.sin(x)
        return x

    def spread(x):
        parts = [jnp.sin(x) * i for i in range(5)]
        return sum(parts)

    x = jax.ShapeDtypeStruct((100,), jnp.float32)
    alive = {f: dry_run.alive_bytes(jax.make_jaxpr(f)(x).jaxpr) for f in (chain, spread)}
    assert alive[chain] == 2 * 400
    assert alive[spread] > 5 * 400
    # What runs inside a call is alive with what is outside.
    inner = jax.make_jaxpr(lambda x: jax.jit(chain)(x) + jnp.cos(x))(x)
    assert dry_run.alive_bytes(inner.jaxpr) == 3 * 400


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        cifar10_moe.get_config(),
        celeba_hq_moe.get_config(),
        celeba_hq_moe.get_config("1024"),
        lsun_church_moe.get_config(),
    ],
    ids=lambda config: config.data.name,
)
def test_configs_at_full_size_fit_into_their_devices(config):
    largest = max(config.moe.counts)
    usual, most = (dry_run.plan(config, k) for k in (config.moe.count, largest))
    assert usual["experts"] == 4 and most["experts"] == largest
    # The estimate knows no temporaries: a third is left to them.
    assert 2 < usual["total_gib"] <= most["total_gib"] <= 0.67 * config.moe.device_memory


@pytest.mark.full
@pytest.mark.parametrize(
    "name", ["cifar10_moe.py", "celeba_hq_moe.py", "celeba_hq_moe.py:1024", "lsun_church_moe.py"]
)
def test_a_dry_run_takes_a_step_of_each_phase_without_the_data(name):
    arguments = [
        "main.py",
        "--config",
        str(ROOT / "configs" / name),
        "--workdir",
        "w",
        "--config.moe.dry_run=True",
    ]
    assert app.main(arguments) == 0
    assert "fits into 80 GiB" in results()["finding"]
    losses = Path("w/gates/miniature/losses.csv").read_text().splitlines()
    assert len(losses) == 3 and "usage_3" in losses[0] and "usage_4" not in losses[0]


@pytest.mark.parametrize(
    ("name", "variant"),
    [("digits_moe.py", "x"), ("moe/ablations.py", "x"), ("cifar10_moe.py", "x"), ("celeba_hq_moe.py", "512")],
)
def test_unknown_variants_are_refused(name, variant):
    with pytest.raises(ValueError, match=f"got '{variant}'"):
        load_config(f"{ROOT / 'configs' / name}:{variant}")


def test_an_unknown_row_is_refused_before_anything_is_trained(capsys):
    assert command("moe/ablations.py", "--config.moe.rows=no_such") == 1
    assert "moe.rows must be 'all' or some of" in capsys.readouterr().err
    assert not Path("w").exists()


@pytest.mark.parametrize(
    ("config", "override", "expected"),
    [
        ("moe/ablations.py", "rank=128", "adapters of rank 128 need kernels with more than 128 channels"),
        ("moe/ablations.py:joint", "embedding=5", "an even embedding of at least 4"),
        ("digits_moe.py", "embedding=2", "an even embedding of at least 4"),
        ("digits_moe.py", "experts=adapters", "got moe.experts='adapters'; leave them out or run that task"),
    ],
)
def test_what_cannot_be_built_or_would_be_ignored_is_refused_and_leaves_no_folder(
    config, override, expected, capsys
):
    assert command(config, f"--config.moe.{override}") == 1
    message = capsys.readouterr().err
    assert expected in message and message.count("\n") == 1
    assert not Path("w").exists()
