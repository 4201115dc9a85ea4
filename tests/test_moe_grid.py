"""Rows of the grid of mixtures: what each is trained with, those without training, and what is refused before any."""

import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from configs import cifar10_moe, default, digits_moe, lsun_church_moe, photos_moe
from jaxmerge import shipped
from jaxmerge.data import load, slices
from jaxmerge.experts.adapters import share_trunk
from jaxmerge.gate.gated import Gated
from jaxmerge.gate.network import FixedGate
from jaxmerge.noise import PixelScale
from jaxmerge.run import Run
from jaxmerge.tasks.moe import checks, models, train, untrained
from jaxmerge.tasks.moe.grid import Grid
from jaxmerge.tasks.moe.models import Method
from jaxmerge.tasks.moe.rows import variants, wanted
from jaxmerge.training import gate_recipe
from jaxmerge.training.gate_objective import Penalties
from tests import toys

SCALE = PixelScale(17)
EXPERTS = tuple(
    toys.Recorder(slope, pixel_scale=SCALE, image_shape=(8, 8, 1)) for slope in (0.2, 0.4, 0.7, 0.9)
)
Z = jnp.asarray(np.random.default_rng(0).normal(size=(5, 8, 8, 1)), jnp.float32)


def soft(weights):
    gated = Gated(EXPERTS, FixedGate.of_weights(np.array(weights)))
    return Method("B", "B, soft gates", (gated,), "", 4, 10)


def test_the_sparse_run_of_b_keeps_the_two_largest_weights_renormalised_or_as_the_article_has_them():
    ours, article = (untrained.sparse(soft([0.1, 0.5, 0.1, 0.3]), key, 2) for key in untrained.SPARSE)
    kept = [0.5 * EXPERTS[1].eps_hat(Z, 1.0), 0.3 * EXPERTS[3].eps_hat(Z, 1.0)]
    np.testing.assert_allclose(article.models[0].eps_hat(Z, 1.0), sum(kept), atol=1e-6)
    np.testing.assert_allclose(ours.models[0].eps_hat(Z, 1.0), sum(kept) / 0.8, atol=1e-6)
    assert ours.name == "B run as top 2" and article.name == "B run as top 2, not renormalised"


def test_without_a_checkpoint_the_switch_is_between_two_of_the_experts_of_b():
    table = {"pair_low": 2, "pair_high": 0, "pair_gamma": 1.5}
    method, cuts = untrained.switch_within([EXPERTS], [table])
    for gamma, expert in ((1.0, EXPERTS[2]), (2.0, EXPERTS[0])):
        np.testing.assert_allclose(method.models[0].eps_hat(Z, gamma), expert.eps_hat(Z, gamma), atol=1e-6)
    assert cuts == [1.5]


@pytest.mark.parametrize("config", [cifar10_moe.get_config(), lsun_church_moe.get_config()])
def test_rows_that_a_base_or_the_kind_of_experts_cannot_have_are_not_known(config):
    asked = config.moe
    assert "switch" in wanted(asked) and "vdm" not in wanted(asked)
    assert ("adapters" in {v.key for v in variants(asked)}) == (asked.experts == "full")
    asked.rows = ("vdm",)
    with pytest.raises(ValueError, match=r"moe\.rows must be 'all' or some of .* got 'vdm'"):
        wanted(asked)


def grid_of(config):
    return Grid(config, None, types.SimpleNamespace(train=None, validation=None, low=shipped("digits_vdm")))


def test_a_pool_of_pretrained_experts_is_taken_as_it_is():
    config = default.get_config()
    config.moe.pool, config.moe.count = ("digits_vdm", "digits_edm"), 2
    checks.check_settings(config)
    grid = grid_of(config)
    vdm, edm = grid.sources.specialists(2, "full")
    assert (vdm.gamma_range, edm.gamma_range) == (
        shipped("digits_vdm").gamma_range,
        shipped("digits_edm").gamma_range,
    )
    assert grid.steps() == config.moe.steps and not grid.has_merge
    assert {*vdm.gamma_range, *edm.gamma_range} == set(grid.sources.levels)
    keys = {v.key for v in variants(config.moe)}
    assert "B" in keys and not keys & {"adapters", "B4", "B8"}
    # Both experts and the gate on every image, with the gate's three calls, in units of three calls of the VDM.
    assert config.moe.steps / 3 < grid.equal_compute() < 2 * config.moe.steps


@pytest.mark.parametrize(
    "change",
    [{"count": 4}, {"base": "fresh"}, {"experts": "adapters"}],
    ids=lambda change: next(iter(change)),
)
def test_a_pool_that_does_not_fit_is_refused(change):
    config = default.get_config()
    config.moe.update({"pool": ("digits_vdm", "digits_edm"), "count": 2} | change)
    with pytest.raises(ValueError, match=r"moe\.pool must name moe\.count=. experts.* got 2 names"):
        checks.check_settings(config)


def test_scalars_that_nothing_could_write_are_refused_before_any_training(monkeypatch):
    config = default.get_config()
    config.moe.tensorboard = True
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package tensorboardX"):
        checks.check_settings(config)


def test_equal_compute_counts_three_calls_of_every_image_where_weights_are_trained():
    config = default.get_config()
    config.moe.width = 2  # next to nothing beside the experts
    frozen = grid_of(config).equal_compute()
    config.moe.parts = "all"
    joint = grid_of(config).equal_compute()
    warm, steps = config.moe.warm_steps, config.moe.steps
    assert frozen == pytest.approx(warm + steps * 4 / 3, rel=0.02)
    assert joint == pytest.approx(warm + steps * 4, rel=0.02)


def test_seeds_of_models_follow_from_the_runs_own():
    config = default.get_config()
    assert models.seeds(config) == [0, 1, 2]
    config.seed = 7
    assert models.seeds(config) == [7000, 7001, 7002]


def test_what_measurements_would_refuse_is_refused_before_the_training():
    config = default.get_config()
    test = types.SimpleNamespace(take=lambda count: None)
    judge = types.SimpleNamespace(fewest_seeds=3, names=types.SimpleNamespace(long="FID"))
    setup = types.SimpleNamespace(low=EXPERTS[0], high=EXPERTS[1], test=test, judge=judge)
    checks.check_measurements(config, setup)
    config.moe.seeds = 2
    with pytest.raises(ValueError, match=r"FID needs at least 3 seeds, got moe\.seeds=2"):
        checks.check_measurements(config, setup)
    config.moe.reconstruction_gamma = 99.0
    with pytest.raises(ValueError, match=r"moe\.reconstruction_gamma"):
        checks.check_measurements(config, setup)
    config.moe.seeds = 0
    with pytest.raises(ValueError, match=r"moe\.seeds must be at least 1, got 0"):
        checks.check_settings(config)


def test_the_grids_settings_are_refused_where_two_frozen_experts_are_put_under_a_gate():
    usual = default.get_config().moe
    assert {key: usual[key] for key in checks.GRID_ONLY} == checks.GRID_ONLY
    for config in (digits_moe.get_config(), photos_moe.get_config()):
        checks.check_pair_settings(config)
    changes = {"pool": ("a", "b"), "parts": "all", "base": "fresh", "experts": "adapters", "rows": ("B",)}
    for key, value in (changes | {"width": 8, "top_k": 1, "load": 0.2}).items():
        config = digits_moe.get_config()
        config.moe[key] = value
        with pytest.raises(ValueError, match=rf"task 'moe_ablations' .* got moe\.{key}=.*; leave them out"):
            checks.check_pair_settings(config)


def test_sizes_that_no_gate_can_have_are_refused_before_the_training():
    config = default.get_config()
    setup = types.SimpleNamespace(low=EXPERTS[0], high=EXPERTS[1])
    checks.check_gates(config, setup)
    config.moe.embedding = 5
    with pytest.raises(ValueError, match=r"an even embedding of at least 4 .*embedding=5"):
        checks.check_gates(config, setup)


# --- what is trained ---------------------------------------------------------------------------------


@struct.dataclass
class Trunk(toys.Recorder):
    """An expert with a kernel that adapters of rank 4 fit on."""

    kernel: jax.Array = struct.field(default_factory=lambda: jnp.ones((6, 5)))


BASE = Trunk(0.5, pixel_scale=SCALE, image_shape=(8, 8, 1))
SEEDS = (7000, 7001)
WARM_STEPS, STEPS, COLLAPSE_STEPS = 10, 30, 7
USAGE = {"usage_step": np.array([1.0]), "usage": np.full((1, 4), 0.25)}


class Row(NamedTuple):
    """What a row of the grid is trained with; row B's by default."""

    load: float = 0.3
    entropy: float = 0.07
    align: float = 0.0
    bias_rate: float = 0.0
    top_k: int | None = None
    count: int = 4
    adapters: bool = False


ROWS = {
    "B": Row(),
    "C": Row(top_k=2),
    "D": Row(align=0.9),
    "aligned": Row(load=0.0, entropy=0.0, align=0.9),
    "no_load": Row(load=0.0),
    "no_entropy": Row(entropy=0.0),
    "balanced": Row(load=0.0, bias_rate=0.05, top_k=2),
    "adapters": Row(adapters=True),
    "B2": Row(count=2),
    "B3": Row(count=3),
}


def small_grid(**changes):
    """A grid over toys, every setting with a value of its own."""
    config = default.get_config()
    config.seed = 7
    config.moe.update(
        {"seeds": 2, "counts": (2, 3), "load": 0.3, "entropy": 0.07, "align": 0.9, "bias_rate": 0.05}
        | {"warm_steps": WARM_STEPS, "steps": STEPS, "collapse_steps": COLLAPSE_STEPS}
        | changes
    )
    run = types.SimpleNamespace(stage=lambda name, compute: compute())
    data = {split: load("digits", split) for split in ("train", "validation")}
    return Grid(config, run, types.SimpleNamespace(**data, low=BASE))


@pytest.fixture
def trained(monkeypatch):
    """What the grid hands over to be trained, by the training's name, with the defaults filled in."""
    calls = {}

    def record(config, run, name, gated, data, *, seed, steps=None, **settings):
        usual = {"parts": "gate", "members": None, "last": False, "warm_fraction": 0.0, "bias_rate": 0.0}
        given = dict(gated=gated, data=data, seed=seed, steps=steps or config.moe.steps)
        calls[name] = types.SimpleNamespace(**usual | given | settings)
        return gated, USAGE

    monkeypatch.setattr(train, "train", record)
    return calls


def equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)
    return True


def slices_of(grid, count):
    chosen = slices.fit("classes", count, grid.setup.train)
    return chosen.members(grid.setup.train), chosen.members(grid.setup.validation)


@pytest.mark.parametrize("parts", ["gate", "all"])
def test_every_row_is_trained_with_what_sets_it_apart(parts, trained):
    grid = small_grid(parts=parts)
    assert {v.key for v in variants(grid.asked)} == ROWS.keys()
    for variant in variants(grid.asked):
        method, row = grid.trained(variant), ROWS[variant.key]
        assert (method.experts, method.steps) == (row.count, WARM_STEPS + STEPS)
        for seed, model in zip(SEEDS, method.models, strict=True):
            call = trained[f"{variant.key}_{seed}"]
            assert model is call.gated and call.seed == seed and not call.last
            assert call.penalties == Penalties(row.load, row.entropy, row.align)
            assert (call.bias_rate, call.gated.top_k) == (row.bias_rate, row.top_k)
            assert call.data == (grid.setup.train, grid.setup.validation)
            assert equal(call.members, slices_of(grid, row.count))
            assert equal(call.gated.gate, models.fresh(grid.asked, call.gated.experts, seed=seed).gate)


def test_rows_of_the_frozen_grid_train_gates_over_the_same_specialists(trained):
    grid = small_grid()
    for variant in variants(grid.asked):
        grid.trained(variant)
        row = ROWS[variant.key]
        made = trained[f"experts_{'adapters' if row.adapters else 'full'}_{row.count}"]
        for seed in SEEDS:
            call = trained[f"{variant.key}_{seed}"]
            assert (call.parts, call.steps, call.warm_fraction) == ("gate", STEPS, 0)
            assert call.gated.experts is made.gated.experts


@pytest.mark.parametrize(
    ("kind", "count", "parts"), [("full", 4, "all"), ("full", 2, "all"), ("adapters", 4, "adapters")]
)
def test_specialists_train_on_their_slices_alone_and_are_those_of_the_last_step(kind, count, parts, trained):
    grid = small_grid()
    grid.sources.specialists(count, kind)
    call = trained[f"experts_{kind}_{count}"]
    assert (call.parts, call.steps, call.seed, call.last) == (parts, WARM_STEPS, 7, True)
    assert call.warm_fraction < 1 and round(call.warm_fraction * WARM_STEPS) == WARM_STEPS
    assert equal(call.members, slices_of(grid, count))
    assert equal(
        call.gated.experts,
        share_trunk(BASE, count, rank=4, seed=7) if kind == "adapters" else (BASE,) * count,
    )


def test_rows_of_the_joint_grid_train_experts_of_their_own_in_both_phases(trained):
    grid = small_grid(parts="all")
    for variant in variants(grid.asked):
        grid.trained(variant)
        row = ROWS[variant.key]
        for seed in SEEDS:
            call = trained[f"{variant.key}_{seed}"]
            assert call.parts == ("adapters" if row.adapters else "all")
            assert (call.steps, call.warm_fraction) == (WARM_STEPS + STEPS, WARM_STEPS / (WARM_STEPS + STEPS))
            trunk = share_trunk(BASE, row.count, rank=4, seed=seed)
            assert equal(call.gated.experts, trunk if row.adapters else (BASE,) * row.count)
    assert not any(name.startswith("experts_") for name in trained)


@pytest.mark.parametrize("parts", ["gate", "all"])
def test_with_as_few_experts_as_are_kept_there_is_no_choice_to_balance(parts, trained):
    grid = small_grid(parts=parts, count=2, top_k=3)
    row = next(v for v in variants(grid.asked) if v.key == "balanced")
    grid.trained(row)
    assert trained["balanced_7000"].gated.top_k == 2 and trained["balanced_7000"].bias_rate == 0


@pytest.mark.parametrize("parts", ["gate", "all"])
def test_baseline_a_trains_all_of_the_base_expert_for_equal_steps_or_equal_compute(parts, trained):
    grid = small_grid(parts=parts)
    grid.baselines({"A_steps", "A_compute"})
    assert grid.equal_compute() > WARM_STEPS + STEPS
    for key, steps in (("A_steps", WARM_STEPS + STEPS), ("A_compute", grid.equal_compute())):
        for seed in SEEDS:
            call = trained[f"{key}_{seed}"]
            assert (call.parts, call.steps, call.seed, call.warm_fraction) == ("all", steps, seed, 0)
            assert equal(call.gated.experts, (BASE,)) and call.data == grid.data
    assert len(trained) == 4


@pytest.mark.parametrize("parts", ["gate", "all"])
def test_a_collapse_starts_from_a_gate_that_prefers_the_first_expert(parts, trained):
    grid = small_grid(parts=parts)
    study = grid.collapse()
    assert study["offset"] == 3 and set(study["arms"]) == {"with L_load", "without L_load"}
    specialists = trained["experts_full_4"].gated.experts
    for key, load_weight in (("with", 0.3), ("without", 0.0)):
        assert study["arms"][f"{key} L_load"] == [USAGE, USAGE]
        for seed in SEEDS:
            call = trained[f"collapse_{key}_{seed}"]
            assert call.penalties == Penalties(load_weight, 0.0, 0.0)
            assert (call.parts, call.steps, call.seed) == ("gate", COLLAPSE_STEPS, seed)
            assert (call.warm_fraction, call.bias_rate, call.gated.top_k) == (0, 0, None)
            assert call.gated.experts is specialists
            logits = call.gated.gate(Z, jnp.linspace(-5.0, 5.0, len(Z)))
            np.testing.assert_allclose(logits, np.tile([3.0, 0, 0, 0], (len(Z), 1)), atol=1e-6)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("steps", "warmup", "every"), [(None, 5, 3), (4, 3, 3), (2, 1, 2)])
def test_a_training_takes_its_sizes_from_the_config(steps, warmup, every, last, monkeypatch, tmp_path):
    config = default.get_config()
    config.bound.batch_size = 17
    asked = {"batch_size": 7, "learning_rate": 3e-3, "experts_learning_rate": 4e-4, "ema_decay": 0.9}
    config.moe.update({"steps": 13, "warmup_steps": 5, "eval_every": 3, "eval_repeats": 6} | asked)
    config.moe.checkpoint_every = 11
    start = models.uniform(models.copies(BASE, 2))
    by_validation, of_last_step = (start.but(bias=jnp.full(2, value)) for value in (1.0, 2.0))
    handed = {}

    def train_gated(gated, *data, workdir, **settings):
        handed.update(settings, gated=gated, data=data)
        (workdir / "losses.csv").write_text("step,loss,usage_0,usage_1\n1,0.5,0.25,0.75\n")
        figures = {"validation": {"diffusion_bpd": 1.0}, "validation_last": {"diffusion_bpd": 2.0}}
        return gate_recipe.GateResult(by_validation, of_last_step, figures | {"best_step": 9})

    monkeypatch.setattr(gate_recipe, "train_gated", train_gated)
    with Run(tmp_path / "w", {}) as run:
        run.path("gates", "row").mkdir(parents=True)
        found, record = train.train(
            *(config, run, "row", start, ("train", "validation")),
            seed=5,
            parts="all",
            steps=steps,
            members=("slices", "held out"),
            last=last,
            penalties=train.penalties(config.moe),
            bias_rate=0.5,
            warm_fraction=0.25,
        )
    expected = asked | {
        **{"gated": start, "data": ("train", "validation"), "seed": 5, "parts": "all", "steps": steps or 13},
        **{"warmup_steps": warmup, "eval_every": every, "repeats": 6, "eval_batch_size": 17},
        **{"members": "slices", "validation_members": "held out", "save_every": 11, "on_rows": None},
        **{"penalties": Penalties(0.1, 0.01, 0.0), "bias_rate": 0.5, "warm_fraction": 0.25},
    }
    assert {name: handed[name] for name in expected} == expected
    assert handed.keys() - expected.keys() == {"progress", "log"}
    assert float(found.bias[0]) == record["diffusion_bpd"] == (2 if last else 1)
    assert (record["steps"], record["best_step"]) == (steps or 13, 9)
    np.testing.assert_array_equal(record["usage"], [[0.25, 0.75]])


@pytest.mark.parametrize("parts", ["gate", "all"])
@pytest.mark.parametrize(
    ("change", "expected"), [({"rank": 5}, "adapters of rank 5"), ({"embedding": 5}, "an even embedding")]
)
def test_mixtures_that_cannot_be_built_are_refused_before_any_training(parts, change, expected, trained):
    grid = small_grid(parts=parts, **change)
    with pytest.raises(ValueError, match=expected):
        grid.methods({"A_compute", "B", "adapters"})
    assert not trained


def test_a_rank_is_no_concern_of_rows_without_adapters():
    grid = small_grid(rank=5)
    grid.check([v for v in variants(grid.asked) if v.key != "adapters"])
