"""The digits and their split: what docs/data.md says."""

import numpy as np
import pytest

from jaxmerge.data import digits


@pytest.fixture(scope="module")
def splits():
    return {name: digits.load(name) for name in digits.SPLITS}


def test_sizes_and_classes_are_the_documented_ones(splits):
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 1257,
        "validation": 180,
        "test": 360,
    }
    assert np.bincount(splits["test"].labels).tolist() == [36] * 10
    assert np.bincount(splits["validation"].labels).tolist() == [18] * 10


def test_images_are_uint8_with_17_levels(splits):
    for split in splits.values():
        assert split.images.dtype == np.uint8
        assert split.images.shape[1:] == (8, 8, 1)
        assert split.levels == 17
        assert split.images.min() == 0
        assert split.images.max() == 16


def test_splits_cover_every_image_once(splits):
    index = np.concatenate([split.index for split in splits.values()])
    np.testing.assert_array_equal(np.sort(index), np.arange(1797))


def test_no_two_images_are_equal(splits):
    pixels = np.concatenate([split.images.reshape(-1, 64) for split in splits.values()])
    assert len(np.unique(pixels, axis=0)) == 1797


def test_nearest_test_and_training_images_differ_as_documented(splits):
    test, train = (splits[name].images.reshape(-1, 64).astype(float) for name in ("test", "train"))
    distance = np.sqrt(((test[:, None] - train[None]) ** 2).sum(-1).min(1))
    assert round(distance.min(), 1) == 8.1
    assert round(float(np.median(distance)), 1) == 16.6


def test_index_points_into_the_original_set(splits):
    from sklearn.datasets import load_digits

    original = load_digits()
    for split in splits.values():
        np.testing.assert_array_equal(original.images[split.index][..., None], split.images)
        np.testing.assert_array_equal(original.target[split.index], split.labels)


def test_every_tenth_prefix_of_the_test_images_is_balanced(splits):
    assert np.bincount(splits["test"].labels[:180]).tolist() == [18] * 10


def test_split_is_pinned(splits):
    # Recorded when the shipped experts were trained; another value means other images in a split.
    assert splits["train"].identity.startswith("72fd35b54c9468dc")
    assert splits["validation"].identity.startswith("6e1c47b8867e8836")
    assert splits["test"].identity.startswith("5855500bcbadec9e")


def test_arrays_are_read_only(splits):
    with pytest.raises(ValueError, match="read-only"):
        splits["test"].images[0] = 0


def test_take_gives_a_prefix_and_refuses_more_than_there_is(splits):
    part = splits["test"].take(20)
    assert len(part) == 20
    assert part.split == "test"
    np.testing.assert_array_equal(part.index, splits["test"].index[:20])
    assert splits["test"].take(None) is splits["test"]
    with pytest.raises(ValueError, match=r"360 images, 361 were asked for"):
        splits["test"].take(361)


def test_other_pixels_are_refused(splits):
    images, labels = np.zeros((1797, 8, 8, 1), np.uint8), np.zeros(1797, np.int64)
    with pytest.raises(
        ValueError, match="the pixels of scikit-learn's digits must have the SHA-256 8f26b2bd"
    ):
        digits.verify(images, labels)


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split must be one of train, validation, test, got 'dev'"):
        digits.load("dev")
