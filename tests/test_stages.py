"""From a config to the settings of its stages."""

import pytest

from configs import default
from jaxmerge import probability_flow as flow
from jaxmerge import settings
from jaxmerge.tasks import likelihoods, samples

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
