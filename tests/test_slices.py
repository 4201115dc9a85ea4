"""Slices of a data set: thresholds from training images alone, sizes, overlaps, the same cut everywhere."""

import json

import numpy as np
import pytest

from jaxmerge.data import dataset, digits, slices
from jaxmerge.data.dataset import in_memory


def made(images, labels=None, attributes=None, split="train", levels=256):
    images = np.asarray(images, np.uint8)
    labels = np.zeros(len(images), np.int64) if labels is None else np.asarray(labels)
    return in_memory("made", split, images, np.arange(len(images)), labels, levels, attributes)


def photos(count=64, split="train", seed=0, **more):
    return made(np.random.default_rng(seed).integers(0, 256, (count, 6, 6, 3)), split=split, **more)


def test_statistics_are_what_their_names_say():
    flat = np.full((1, 4, 4, 3), 0.5)
    checks = np.zeros((1, 4, 4, 3))
    checks[:, ::2, ::2], checks[:, 1::2, 1::2] = 1, 1
    assert slices.colour_variance(flat)[0] == 0 and slices.texture(flat)[0] == 0
    assert slices.colour_variance(checks)[0] == pytest.approx(0.25)
    assert slices.texture(checks)[0] == pytest.approx(2.0)  # every neighbour differs by 1, in both directions
    assert slices.ink(checks)[0] == pytest.approx(0.5)
    green = np.zeros((1, 2, 2, 3))
    green[..., 1] = 1
    assert slices.lighting(green)[0] == pytest.approx(0.587)
    assert slices.lighting(np.full((1, 2, 2, 1), 0.3))[0] == pytest.approx(0.3)


@pytest.mark.parametrize("kind", list(slices.STATISTICS))
@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_bands_are_equal_parts_of_the_training_images_without_overlap(kind, count):
    data = photos()
    members = slices.fit(kind, count, data).members(data)
    assert members.shape == (64, count)
    assert members.sum(1).tolist() == [1] * 64
    assert members.sum(0).tolist() == [64 // count] * count
    values = slices.STATISTICS[kind](data.images / 255.0)
    band = members.argmax(1)
    for k in range(1, count):
        assert values[band == k].min() >= values[band == k - 1].max()


def test_thresholds_come_from_training_images_and_serve_every_split():
    train, test = photos(), photos(seed=1, split="test")
    fitted = slices.fit("lighting", 2, train)
    cut = fitted.slices[1].bounds[0][1]
    assert cut == pytest.approx(np.median(slices.lighting(train.images / 255.0)))
    expected = slices.lighting(test.images / 255.0) >= cut
    np.testing.assert_array_equal(fitted.members(test)[:, 1], expected)
    with pytest.raises(
        ValueError, match="thresholds of slices come from training images only, got the test split"
    ):
        slices.fit("lighting", 2, test)


def test_large_splits_are_cut_in_parts_with_the_same_result(monkeypatch):
    data = photos()
    whole = slices.fit("texture", 4, data)
    monkeypatch.setattr(dataset, "PART", 7 * 108)
    parted = slices.fit("texture", 4, data)
    assert parted == whole
    np.testing.assert_array_equal(parted.members(data), whole.members(data))


@pytest.mark.parametrize(
    ("kind", "count"), [(k, n) for k in ("classes", "ink", "ink+texture") for n in (2, 4, 8)]
)
def test_digits_have_slices_of_every_number_on_all_splits(kind, count):
    train, test = digits.load("train"), digits.load("test")
    fitted = slices.fit(kind, count, train)
    assert len(fitted) == count == len(set(fitted.names))
    for data in (train, test):
        members = fitted.members(data)
        assert members.sum(1).tolist() == [1] * len(data)
        assert members.sum(0).min() > len(data) / count / 4


def test_class_groups_are_neighbouring_classes():
    fitted = slices.fit("classes", 4, digits.load("train"))
    assert [s.classes for s in fitted.slices] == [(0, 1, 2), (3, 4, 5), (6, 7), (8, 9)]
    test = digits.load("test")
    np.testing.assert_array_equal(fitted.members(test)[:, 2], np.isin(test.labels, (6, 7)))


def test_attributes_may_overlap_and_leave_images_out_and_the_report_says_so():
    attributes = {name: np.zeros(8, int) for name in ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair")}
    attributes["Black_Hair"][:3], attributes["Gray_Hair"][2:5] = 1, 1
    data = photos(8, attributes=attributes)
    report = slices.fit("hair", 2, data).report(data)
    assert report == json.loads(json.dumps(report, allow_nan=False))
    assert [s["images"] for s in report["slices"]] == [3, 3]
    assert report["overlap"] == [[3, 1], [1, 3]]
    assert (report["in_none"], report["in_several"]) == (3, 1)
    assert report["slices"][0] == {
        "name": "dark hair",
        "attributes": ["Black_Hair", "Brown_Hair"],
        "images": 3,
    }
    eight = slices.fit("hair", 8, data)
    assert eight.names[:2] == ["black hair, lighting low", "black hair, lighting high"]
    assert eight.members(data).sum() == 6
    bounds = slices.fit("lighting", 2, data).report(data)["slices"]
    assert list(bounds[0]["bounds"]["lighting"]) == ["below"] and list(bounds[1]["bounds"]["lighting"]) == [
        "from"
    ]


def test_subcategories_are_the_values_of_their_attribute():
    numbers = np.array([0, 2, 0, 1, 2, 0, 0, 1, 0, 1])
    data = photos(10, attributes={"subcategory_3": numbers, "subcategory_2": numbers % 2})
    fitted = slices.fit("subcategory", 3, data)
    assert fitted.names == ["subcategory 1 of 3", "subcategory 2 of 3", "subcategory 3 of 3"]
    np.testing.assert_array_equal(fitted.members(data).argmax(1), numbers)
    report = fitted.report(data)
    assert report["slices"][1] == {"name": "subcategory 2 of 3", "subcategory": [1, 3], "images": 3}
    assert report["overlap"] == [[5, 0, 0], [0, 3, 0], [0, 0, 2]] and report["in_none"] == 0
    crossed = slices.fit("lighting+subcategory", 4, data).members(data)
    assert crossed[:, ::2].sum() == 7 and crossed[:, 1::2].sum() == 3


@pytest.mark.parametrize(
    ("kind", "count", "message"),
    [
        ("colour", 2, "must be of a kind out of .*, got 'colour'"),
        ("ink", 0, "at least 1, got 0"),
        ("classes", 4, "made has 1 classes, which make no 4 groups"),
        ("hair", 4, "need the attribute 'Black_Hair', the data set has none"),
        ("hair", 3, "hair makes 2, 4 or .* got 3"),
        ("subcategory", 2, r"made in 2 subcategories.*python -m jaxmerge\.subcategories made --count 2"),
        ("ink+texture", 3, "need an even number, got 3"),
    ],
)
def test_what_a_data_set_does_not_have_is_refused(kind, count, message):
    with pytest.raises(ValueError, match=message):
        slices.fit(kind, count, photos())


def test_slices_by_class_cannot_be_crossed_with_themselves():
    with pytest.raises(ValueError, match="both choose by classes"):
        slices.fit("classes+classes", 4, digits.load("train"))


def test_images_with_other_grey_levels_are_refused():
    fitted = slices.fit("ink", 2, photos())
    with pytest.raises(ValueError, match="made for 256 grey levels, got images with 17"):
        fitted.members(digits.load("test"))
