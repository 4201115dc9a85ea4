"""The self-check knows trained, fresh, misread and broken networks apart."""

import jax
import numpy as np
import pytest

from checkpoints_convert import arrival
from jaxmerge.experts import io

READINGS = {
    "--kind vdm-flax": (("prediction", "noise"), ("schedule", "VP")),
    "--kind idode-vp": (("prediction", "velocity"), ("schedule", "VP")),
    "--kind idode-sp": (("prediction", "velocity"), ("schedule", "SP")),
}


@pytest.mark.parametrize("name", ["digits_edm", "digits_vdm"])
def test_trained_networks_pass_and_fresh_ones_do_not(name):
    expert = io.shipped(name)
    found = arrival.examine(expert, {})
    assert found.warnings == () and found.score < 0.6 and "passed" in found.summary()
    errors = [level.error for level in found.levels]
    assert len(errors) == 5 and errors == sorted(errors)
    # Every network here starts with a last convolution of zeros.
    values = io.parameters(expert)
    values["conv_out"] = jax.tree.map(np.zeros_like, values["conv_out"])
    fresh = io.with_parameters(expert, values)
    assert "look untrained" in arrival.examine(fresh, {}).warnings[0]


@pytest.mark.parametrize("read_as", ["--kind idode-vp", "--kind idode-sp"])
def test_a_noise_network_read_as_a_velocity_network_is_pointed_out(read_as):
    expert = io.shipped("digits_vdm").replace(**dict(READINGS[read_as]))
    others = {kind: reading for kind, reading in READINGS.items() if kind != read_as}
    assert "when it is read with --kind vdm-flax" in arrival.examine(expert, others).warnings[0]


def test_a_noise_network_is_not_taken_for_a_velocity_network():
    others = {kind: reading for kind, reading in READINGS.items() if kind != "--kind vdm-flax"}
    assert arrival.examine(io.shipped("digits_vdm"), others).warnings == ()


def test_predictions_that_are_not_finite_are_refused():
    expert = io.shipped("digits_edm")
    huge = io.with_parameters(expert, jax.tree.map(lambda a: 1e30 * a, io.parameters(expert)))
    with pytest.raises(ValueError, match=r"not finite at gamma .* --no-check"):
        arrival.examine(huge, {})


def test_noise_of_another_scale_is_pointed_out():
    expert = io.shipped("digits_edm")
    values = io.parameters(expert)
    values["conv_out"] = jax.tree.map(lambda a: 30 * a, values["conv_out"])
    warnings = arrival.examine(io.with_parameters(expert, values), {}).warnings
    assert any("root mean square" in warning for warning in warnings)


def test_the_linear_denoiser_s_error_is_that_of_a_gaussian():
    # For noise variance v and images of mean square s, E|x - w y|^2 with w = s / (s + v) is s v / (s + v).
    rng, s, v = np.random.default_rng(0), 0.3, 0.7
    x, noise = rng.normal(size=400_000) * np.sqrt(s), rng.normal(size=400_000) * np.sqrt(v)
    measured = np.mean((x - s / (s + v) * (x + noise)) ** 2)
    np.testing.assert_allclose(measured, s * v / (s + v), rtol=0.01)


def test_images_are_smooth_fixed_and_of_all_shades():
    images = arrival.smooth_images((32, 32, 3), 4)
    np.testing.assert_array_equal(images, arrival.smooth_images((32, 32, 3), 4))
    assert images.shape == (4, 32, 32, 3) and images.min() > 0 and images.max() < 1 and images.std() > 0.1
    assert np.abs(np.diff(images, axis=1)).max() < 0.1 < np.ptp(images)
