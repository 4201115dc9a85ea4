"""Rows of the grid of mixtures that need no training, and what is refused before any."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from configs import cifar10_moe, default, lsun_church_moe
from jaxmerge import shipped
from jaxmerge.gate.gated import Gated
from jaxmerge.gate.network import FixedGate
from jaxmerge.noise import PixelScale
from jaxmerge.tasks.moe import checks, models, untrained
from jaxmerge.tasks.moe.grid import Grid
from jaxmerge.tasks.moe.models import Method
from jaxmerge.tasks.moe.rows import variants, wanted
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
