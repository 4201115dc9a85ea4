"""Models, measurements and training of the tasks about gated mixtures."""

import contextlib
import dataclasses
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from jaxmerge import vlb
from jaxmerge.data import load
from jaxmerge.merge import Switch
from jaxmerge.noise import PixelScale
from jaxmerge.run import Run
from jaxmerge.tasks import reconstructions
from jaxmerge.tasks.moe import diagnose, measure, models, train
from jaxmerge.tasks.moe.rows import wanted
from jaxmerge.tasks.moe.words import about
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
    with train.scalars(asked, tmp_path) as write:
        assert write is None
    asked.tensorboard = True
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"tensorboardX, which is not .*'\.\[tensorboard\]'"):  # noqa: SIM117
        with train.scalars(asked, tmp_path):
            pass
    written = []

    class SummaryWriter(contextlib.AbstractContextManager):
        def __init__(self, *arguments, **options):
            written.append((*arguments, options))

        def add_scalar(self, *scalar):
            written.append(scalar)

        def flush(self):
            written.append("flush")

        def __exit__(self, *error):
            written.append("closed")

    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    with train.scalars(asked, tmp_path) as write:
        # A run that goes on after step 2: what was written of step 3 before is hidden.
        write("training", [{"step": 3, "loss": 1.5}, {"step": 4, "loss": 1.25}])
        write("validation", [{"step": 4, "usage_0_gamma_-3_to_0": 0.2}])
    assert written == [
        (str(tmp_path / "tensorboard"), {"purge_step": 3}),
        ("training/loss", 1.5, 3),
        ("training/loss", 1.25, 4),
        "flush",
        ("validation/usage_0_gamma_-3_to_0", 0.2, 4),
        "flush",
        "closed",
    ]


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
    assert "subcategory_2" in about.slice_notes(diagnose.subcategory_hashes(asked, made(first)))[0]
