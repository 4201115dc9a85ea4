"""From a config to the settings of its stages."""

import contextlib

import jax
import numpy as np
import pytest
from scipy import stats

from configs import default
from jaxmerge import probability_flow as flow
from jaxmerge import settings
from jaxmerge.metrics import reconstruction
from jaxmerge.metrics.weights import weights_hash
from jaxmerge.run import Run
from jaxmerge.tasks import costs, experts, likelihoods, reconstructions, samples, summary, wording
from jaxmerge.tasks.setup import prepare

KINDS = {
    "fixed": flow.FixedGrid(3.0),
    "multistep": flow.MultistepGrid(3.0),
    "per_image": flow.PerImage(1e-3, 1e-4),
    "batch": flow.BatchCoupled(1e-3, 1e-4),
}


def test_every_step_control_of_the_config_is_known_here():
    assert set(KINDS) == set(settings.CHOICES["likelihood.control"])


@pytest.mark.parametrize("name", KINDS)
def test_a_step_control_takes_its_numbers_from_the_config(name):
    config = default.get_config()
    config.likelihood.control = name
    config.likelihood.rtol, config.likelihood.atol = 1e-3, 1e-4
    grid = {"steps_per_gamma": 3.0 if name in likelihoods.GRIDS else 0.0, "error_scale": 0.5}
    found, refinement = likelihoods.likelihood_settings(config, grid)
    assert found.control == KINDS[name]
    assert type(found.control) is type(KINDS[name])
    # Images are solved again on finer grids only.
    assert (refinement is not None) == (name in likelihoods.GRIDS)
    if refinement is not None:
        assert refinement.error_scale == 0.5 and refinement.tolerance == config.likelihood.image_tolerance


def test_a_given_grid_is_not_chosen():
    config = default.get_config()
    config.likelihood.steps_per_gamma = 1.5
    assert likelihoods.choose_grid(config, None, 0.3) == {"steps_per_gamma": 1.5, "error_scale": 1.0}


def test_every_merge_is_drawn_with_its_seeds_where_no_threshold_is_proposed():
    asked = default.get_config().sampling
    asked.seeds, asked.seeds_other, asked.n_samples, asked.n_samples_other = 2, 1, 50, 50
    assert samples.sample_plan(asked, "heun", [0.2, 0.3], None) == [(0, [0.2, 0.3], 50), (1, [0.2, 0.3], 50)]
    proposal = {"best": 0.3, "cautious": 0.2}
    with_proposal = samples.sample_plan(asked, "heun", [0.2, 0.25, 0.3], proposal)
    assert with_proposal == [(0, [0.2, 0.25, 0.3], 50), (1, [0.2, 0.3], 50)]
    asked.n_samples = asked.n_samples_other = 0
    assert samples.sample_plan(asked, "heun", [0.2, 0.3], proposal) == []


@pytest.fixture(scope="module")
def digits_setup():
    """The shipped experts and a few digits, without a judge."""
    config = default.get_config()
    config.metric.kind = "none"
    config.reconstruction.n_images, config.reconstruction.gammas = 10, (-3.0, 3.0)
    config.cost.repeats, config.cost.batch_size = 2, 3
    config.sampling.heun_steps = 2
    return config, prepare(config, None)


class FakeRun:
    """Keeps nothing and shows nothing."""

    def stage(self, name, compute):
        return compute()

    @contextlib.contextmanager
    def progress(self, total, what, unit="images"):
        yield lambda n=1: None


def test_a_run_keeps_to_the_weights_that_it_began_with(digits_setup, tmp_path):
    _, setup = digits_setup
    loaded = {"VDM": setup.low, "EDM": setup.high}
    for _ in range(2):
        records = {name: {"checkpoint": name} for name in loaded}
        with Run(tmp_path, {}) as run:
            experts.pin(run, loaded, records)
    assert records["VDM"]["weights_sha256"] == weights_hash(setup.low) != records["EDM"]["weights_sha256"]
    loaded["EDM"] = jax.tree.map(lambda leaf: leaf + 1e-6, setup.high)
    with pytest.raises(ValueError, match="the weights of EDM are not those"), Run(tmp_path, {}) as run:
        experts.pin(run, loaded, records)


def test_reconstructions_are_those_of_the_expert_that_a_merge_asks(digits_setup):
    config, setup = digits_setup
    found = reconstructions.measure(config, FakeRun(), setup, 0.5)
    rows = {(row["gamma"], row["model"]): row for row in reconstructions.entries(config, found, 0.5)}
    assert list(rows) == [(g, m) for g in (-3.0, 3.0) for m in ("EDM", "merged", "VDM")]
    assert -3.0 < setup.gamma(0.5) < 3.0
    for gamma, asked in ((-3.0, "VDM"), (3.0, "EDM")):
        merged, expert = rows[gamma, "merged"], rows[gamma, asked]
        assert merged["eta"] == 0.5 and expert["eta"] is None
        same = {key: value for key, value in expert.items() if key not in ("model", "eta")}
        assert {key: merged[key] for key in same} == same
        assert rows[gamma, "EDM"]["psnr"] != rows[gamma, "VDM"]["psnr"]
    assert rows[-3.0, "VDM"]["psnr"] > rows[3.0, "VDM"]["psnr"] + 5
    # The same numbers as from the metric's own calls.
    data = setup.test.take(10)
    key = jax.random.fold_in(setup.keys["bound"], reconstructions.NOISE)
    images = reconstruction.reconstruct(setup.low, data.images, -3.0, key=key, index=data.index)
    alone = reconstruction.score(
        data.images,
        images,
        gamma=-3.0,
        scale=setup.low.pixel_scale,
        window=reconstructions.window_of(data.shape),
    )
    assert rows[-3.0, "VDM"]["psnr"] == pytest.approx(alone.psnr)
    assert rows[-3.0, "VDM"]["ssim"] == pytest.approx(alone.ssim)
    assert "lpips" not in rows[3.0, "EDM"]


def test_reconstructions_are_refused_before_anything_else_is_computed(digits_setup):
    config, setup = digits_setup
    config = config.copy_and_resolve_references()
    config.reconstruction.gammas = (7.0,)
    with pytest.raises(ValueError, match=r"reconstruction\.gammas"):
        reconstructions.check(config, setup)
    config.reconstruction.gammas, config.reconstruction.lpips = (0.0,), "nowhere"
    with pytest.raises(ValueError, match="nowhere"):
        reconstructions.check(config, setup)
    config.reconstruction.n_images = 0
    reconstructions.check(config, setup)


def test_costs_name_calls_parameters_and_what_the_backend_does_not_tell(digits_setup):
    config, setup = digits_setup
    found = costs.measure(config, FakeRun(), setup, 0.5)
    assert found["host_peak"] > 10**8 or found["host_peak"] == -1
    spent = costs.entries(found, 0.5)
    rows = {row["model"]: row for row in spent}
    told = wording.cost_definition(config, spent, found | {"host_peak": 3 * 2**30, "device_peak": -1})
    assert "Peaks of the process until then, since its last start: 3,072 MiB of the process." in told
    assert list(rows) == ["EDM", "merged", "VDM"] and rows["merged"]["eta"] == 0.5
    for row in rows.values():
        assert 0 < row["latency_low"] <= row["latency"] <= row["latency_high"]
        assert row["planned_bytes"] is None or row["planned_bytes"] > 0
        assert "median" in row["latency_definition"]
    # Two nodes are one interval of two calls; EDM's own sampler ends with one more, the switch is a node more.
    assert {model: row["nfe"] for model, row in rows.items()} == {"EDM": 3, "merged": 4, "VDM": 2}
    # A merge has both networks; its threshold is one more number.
    assert rows["merged"]["parameters"] - 1 == rows["EDM"]["parameters"] + rows["VDM"]["parameters"]


def test_scores_over_seeds_have_mean_spread_minimum_and_interval():
    values = {"EDM": [2.0, 2.4, 1.9], "VDM": [9.0, 9.3, 9.6], "eta_0": [1.8, 2.0, 2.2]}
    stages = {
        f"samples_heun_{seed}_1x50": {
            "etas": np.array([0.3]),
            "count": 50,
            "scores": {model: {"nfe": 35.0, "fid": v[seed]} for model, v in values.items()},
        }
        for seed in range(3)
    }
    stages["floor"] = {"distance": 1.0, "n_images": 5}
    found = summary.seeds({"etas": [0.3], "samples": stages})
    assert [(row["model"], row["eta"], row["quantity"]) for row in found] == [
        ("EDM", None, "fid"),
        ("merged", 0.3, "fid"),
        ("VDM", None, "fid"),
    ]
    edm = found[0]
    assert edm["n_seeds"] == 3 and edm["minimum"] == 1.9 and edm["maximum"] == 2.4
    assert edm["mean"] == pytest.approx(2.1) and edm["std"] == pytest.approx(np.std(values["EDM"], ddof=1))
    interval = stats.t.interval(0.95, 2, loc=edm["mean"], scale=edm["std"] / 3**0.5)
    assert (edm["low"], edm["high"]) == pytest.approx(interval)
    del stages["samples_heun_1_1x50"], stages["samples_heun_2_1x50"]
    assert summary.seeds({"etas": [0.3], "samples": stages}) == []


def test_samples_drawn_part_by_part_are_those_drawn_at_once(digits_setup, monkeypatch):
    config, setup = digits_setup
    plan = samples.Plan("few", (0.3, 0.6), 2, 7, samples.sampler_settings(config, "heun"), seed=1)
    whole = samples.scored(config, FakeRun(), setup, plan)
    monkeypatch.setattr(samples, "PART", 3)
    parts = samples.scored(config, FakeRun(), setup, plan)
    assert whole["scores"] == parts["scores"] and set(parts["pictures"]) == {"EDM", "VDM", "eta_0", "eta_1"}
    for name, images in whole["pictures"].items():
        assert images.shape == (7, 8, 8, 1)
        np.testing.assert_array_equal(images, parts["pictures"][name])


def test_a_stopped_run_goes_on_with_the_part_that_it_was_drawing(digits_setup, monkeypatch, tmp_path):
    config, setup = digits_setup
    config = config.copy_and_resolve_references()
    config.sampling.sampler, config.sampling.seeds = ("heun",), 1
    config.sampling.n_samples = config.sampling.n_samples_other = 7
    drawn = []

    def draw(config, run, setup, plan, first, count):
        if len(drawn) == 2:
            drawn.append("stopped")
            raise KeyboardInterrupt
        drawn.append(first)
        return {"EDM": {"images": np.full((count, 8, 8, 1), first, np.uint8), "nfe": float(first)}}

    monkeypatch.setattr(samples, "PART", 3)
    monkeypatch.setattr(samples, "draw", draw)
    with pytest.raises(KeyboardInterrupt), Run(tmp_path / "w", {}) as run:
        samples.measure_samples(config, run, setup, [0.3], None)
    with Run(tmp_path / "w", {}) as run:
        found = samples.measure_samples(config, run, setup, [0.3], None)["samples_heun_0_1x7"]
        assert list(run.timings) == ["samples_heun_0_1x7"]
    assert drawn == [0, 3, "stopped", 6]
    assert found["scores"]["EDM"]["nfe"] == pytest.approx((3 * 0 + 3 * 3 + 1 * 6) / 7)
    assert found["pictures"]["EDM"][:, 0, 0, 0].tolist() == [0, 0, 0, 3, 3, 3, 6]
    assert [path.name for path in (tmp_path / "w" / "stages").iterdir()] == ["samples_heun_0_1x7.npz"]
