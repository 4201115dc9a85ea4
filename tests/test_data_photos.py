"""The photos' crops and their split, and what an expert and its images must have in common."""

import dataclasses

import numpy as np
import pytest

from jaxmerge import data
from jaxmerge.data import photos
from jaxmerge.data.check import check_match


@pytest.fixture(scope="module")
def splits():
    return {split: data.load("photos", split) for split in photos.SPLITS}


@pytest.fixture(scope="module")
def covered(splits):
    """For every photo and split, which of the photo's pixels lie in one of the split's crops."""
    maps = []
    for number, (_, package, file, _) in enumerate(photos.PHOTOS):
        shape = photos.read(package, file, 1).shape[:2]
        used = {split: np.zeros(shape, np.int64) for split in splits}
        for split, dataset in splits.items():
            where = {key: values[dataset.labels == number] for key, values in dataset.attributes.items()}
            for top, left, side in zip(where["top"], where["left"], where["side"], strict=True):
                used[split][top : top + side, left : left + side] += 1
        maps.append(used)
    return maps


def test_crops_are_32x32_colour_images_of_ten_photos(splits):
    assert {split: len(dataset) for split, dataset in splits.items()} == {
        "train": 14_429,
        "validation": 304,
        "test": 484,
    }
    for dataset in splits.values():
        assert dataset.images.shape[1:] == dataset.shape == (32, 32, 3)
        assert (dataset.images.dtype, dataset.levels) == (np.uint8, 256)
        assert np.bincount(dataset.labels, minlength=10).min() >= 15
    assert splits["train"].images.min() == 0
    assert splits["train"].images.max() == 255


def test_no_pixel_of_a_photo_is_in_two_splits(covered):
    for used in covered:
        assert all(counts.any() for counts in used.values())
        assert not ((used["train"] > 0) & (used["test"] > 0)).any()
        assert not ((used["train"] > 0) & (used["validation"] > 0)).any()
        assert not ((used["validation"] > 0) & (used["test"] > 0)).any()


def test_crops_of_two_splits_are_a_margin_apart(covered):
    for (*_, factor), used in zip(photos.PHOTOS, covered, strict=True):
        for near, far in (("test", "train"), ("test", "validation"), ("validation", "train")):
            reach = photos.MARGIN * factor
            grown = photos._window_sums(np.pad(used[near] > 0, reach), 2 * reach + 1) > 0
            assert not (grown & (used[far] > 0)).any()


def test_test_and_validation_crops_never_overlap_one_another(covered):
    for used in covered:
        assert used["test"].max() == 1
        assert used["validation"].max() == 1


def test_coordinates_lead_to_the_crops_pixels(splits):
    shrunk = [photos.read(package, file, factor) for _, package, file, factor in photos.PHOTOS]
    for dataset in splits.values():
        for i in range(0, len(dataset), 37):
            number = dataset.labels[i]
            factor = photos.PHOTOS[number][3]
            top, left = (dataset.attributes[key][i] // factor for key in ("top", "left"))
            np.testing.assert_array_equal(dataset.images[i], shrunk[number][top : top + 32, left : left + 32])


def test_every_crop_has_texture(splits):
    for dataset in splits.values():
        deviation = dataset.images[::4].astype(np.float64).std((1, 2)).max(-1)
        assert deviation.min() >= photos.MIN_STD


def test_every_crop_has_its_own_number(splits):
    index = np.concatenate([dataset.index for dataset in splits.values()])
    np.testing.assert_array_equal(index, np.arange(len(index)))


def test_a_prefix_holds_all_photos(splits):
    assert np.bincount(splits["test"].labels[:20]).tolist() == [2] * 10


@pytest.mark.slow
def test_test_crops_are_as_far_from_training_crops_as_documented(splits):
    test, train = (splits[name].images.reshape(-1, 3072).astype(np.float32) for name in ("test", "train"))
    squared = (test**2).sum(1)[:, None] + (train**2).sum(1) - 2 * test @ train.T
    distance = np.sqrt(squared.min(1) / 3072)
    assert round(float(np.median(distance)), 1) == 22.2
    assert round(float(distance.min()), 1) == 1.2


def test_the_split_is_pinned(splits):
    # Experts and figures refer to these images; another value means other images in a split.
    assert splits["train"].identity.startswith("65b40ed536f1b7a1")
    assert splits["validation"].identity.startswith("54fc8cde72ae1742")
    assert splits["test"].identity.startswith("faf2491635505c03")


def test_other_photos_are_refused():
    with pytest.raises(ValueError, match=r"the ten photos must have the SHA-256 f74948c41eb2ab54"):
        photos.verify([np.zeros((4, 4, 3), np.uint8)])


def test_a_missing_package_is_asked_for(monkeypatch):
    monkeypatch.setattr(photos.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ValueError, match=r"data/ihc.png of scikit-image.*pip install scikit-image"):
        photos.read("skimage", "data/ihc.png", 1)


def test_an_expert_of_the_same_set_passes(splits):
    check_match("photos", splits["test"])
    check_match(splits["train"].record, splits["test"])
    check_match(splits["test"].record, splits["test"])


@pytest.mark.parametrize(
    ("trained_on", "message"),
    [
        ("CIFAR-10, augmented", "low was trained on CIFAR-10, augmented, the images are photos's; evaluate"),
        ({"name": "digits"}, "low was trained on digits"),
        (None, "low must say what it was trained on"),
        ("not known", "low must say .* names no data set .* --data-set NAME if you know it, or allow"),
        ({"name": "Not known"}, "low must say what it was trained on"),
        ({"split": "train"}, "low must say what it was trained on"),
    ],
)
def test_an_expert_of_another_set_is_refused_unless_overridden(splits, trained_on, message):
    with pytest.raises(ValueError, match=f"{message}.*--config.data.allow_other=True"):
        check_match(trained_on, splits["test"], expert="low")
    check_match(trained_on, splits["test"], expert="low", override=True)


def test_the_same_split_with_other_pixels_is_refused(splits):
    record = splits["test"].record | {"sha256": "0" * 64}
    message = r"whose test split has the SHA-256 0000000000000000..., this one has faf24916.*allow_other=True"
    with pytest.raises(ValueError, match=message):
        check_match(record, splits["test"])


@pytest.mark.parametrize(
    ("published", "name", "fits"),
    [
        ("CIFAR-10", "cifar10", True),
        ("CIFAR-10, augmented", "cifar10", True),
        ("ImageNet 32x32, old version", "imagenet32_old", True),
        ("ImageNet 32x32, old version", "imagenet32_new", False),
        ("imagenet32", "imagenet32_old", False),
    ],
)
def test_publishers_names_lead_to_the_right_set(splits, published, name, fits):
    evaluated = dataclasses.replace(splits["test"], name=name)
    if fits:
        check_match(published, evaluated)
    else:
        with pytest.raises(ValueError, match=r"was trained on"):
            check_match(published, evaluated)
