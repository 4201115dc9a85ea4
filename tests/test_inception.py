"""FID's Inception-v3 equals the public network; its inputs are resized as TensorFlow 1 did."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checkpoints_convert.names import inception as names
from checkpoints_convert.names import origins
from jaxmerge import checkpoint
from jaxmerge.metrics import inception
from tests import public

FEATURES = dict(zip(inception.Features._fields, ("64", "192", "768", "2048", "logits_unbiased"), strict=True))


@pytest.fixture(scope="module")
def data():
    return {
        k: np.moveaxis(v, 1, -1) if v.ndim == 4 else v for k, v in public.arrays("inception_full").items()
    }


def test_resize_is_tensorflows(data):
    resized = np.asarray(inception.resize(jnp.asarray(data["img"])))
    assert resized.shape == (2, 299, 299, 3)
    np.testing.assert_allclose(resized[:, 100:116, 200:216], data["resized_crop"], atol=5e-4)


@pytest.mark.parametrize("size", [1, 2, 150, 299, 512])
def test_resize_maps_pixel_i_to_coordinate_i_times_the_ratio_of_sizes(size):
    ramp = np.arange(size)[None, :, None, None] % 256 * np.ones((1, 1, size, 1))
    resized = np.asarray(inception.resize(jnp.asarray(ramp.astype(np.uint8))))[0, :, 0, 0]
    source = np.arange(299) * size / 299
    np.testing.assert_allclose(resized, np.interp(source, np.arange(size), ramp[0, :, 0, 0]), atol=1e-3)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((2, 8, 8, 1), np.uint8),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
    ],
    ids=["float", "grey", "single", "none"],
)
def test_images_that_do_not_fit_are_refused(images):
    with pytest.raises(ValueError, match=r"Inception needs uint8 RGB images \[N, H, W, 3\], got"):
        inception.features(inception.build(), images)


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    checkpoint.save(tmp_path / "other", {"a": np.zeros(3)}, {"expert": {"kind": "vdm"}})
    with pytest.raises(ValueError, match="is a checkpoint but not of Inception-v3"):
        inception.load(tmp_path / "other")


@pytest.mark.slow
def test_features_are_those_of_the_public_network_also_from_a_checkpoint(data, tmp_path):
    net, weights = inception.build(), public.weights("inception_full")
    filled = origins.fill(net, weights, names.origin)
    back = origins.unfill(filled, names.origin)
    assert back.keys() == weights.keys()
    for key, array in weights.items():
        np.testing.assert_array_equal(back[key], array, err_msg=key)
    path = tmp_path / "inception"
    checkpoint.save(path, inception.parameters(filled), {"network": {"kind": "inception"}})
    assert json.loads((path / "metadata.json").read_text())["network"]["kind"] == "inception"
    loaded = inception.load(path)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(loaded))
    for images in ("img", "big"):
        # One image more than the fixture has, so that the last of two batches is padded.
        got = inception.features(loaded, data[images][[0, *range(len(data[images]))]], batch_size=2)
        for field, name in FEATURES.items():
            want = data[f"{images}_{name}"]
            error = np.max(np.abs(getattr(got, field)[1:] - want)) / np.max(np.abs(want))
            assert error < 1e-5, (images, field)
