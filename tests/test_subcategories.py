"""Subcategories: k-means on training images, kept beside the data set, the same for whoever loads it."""

import json
import re

import numpy as np
import pytest
from sklearn.cluster import KMeans

from jaxmerge import checkpoint, data, files
from jaxmerge.data import builders, dataset, slices, stored
from jaxmerge.data import subcategories as kept
from jaxmerge.metrics import extractor
from jaxmerge.metrics.inception import Features as Activations
from jaxmerge.subcategories import features, kmeans, make
from jaxmerge.subcategories.__main__ import main
from tests import archives


def groups(count: int = 300, seed: int = 0, size: int = 16):
    """Rows around three far centres, one of them with half of the rows, and the centre of each."""
    draw = np.random.default_rng(seed)
    numbers = draw.choice(3, count, p=(0.2, 0.5, 0.3))
    centres = draw.normal(0, 20, (3, size))
    return (centres[numbers] + draw.normal(size=(count, size))).astype(np.float32), numbers, centres


def same_parts(a, b) -> bool:
    """Whether two numberings divide in the same way."""
    return len(set(zip(a.tolist(), b.tolist(), strict=True))) == len(set(a.tolist())) == len(set(b.tolist()))


def test_known_groups_are_found_as_an_independent_k_means_finds_them():
    rows, numbers, centres = groups()
    centroids = kmeans.fit(rows, 3, seed=0)
    found, squared = kmeans.nearest(rows, centroids)
    independent = KMeans(3, n_init=5, random_state=1).fit(rows)
    assert same_parts(found, numbers) and same_parts(found, independent.labels_)
    assert squared.sum() == pytest.approx(independent.inertia_, rel=0.02)
    assert np.bincount(found).tolist() == sorted(np.bincount(numbers), reverse=True)
    order = np.argsort(-np.bincount(numbers))
    np.testing.assert_allclose(centroids, centres[order], atol=0.5)


def test_the_nearest_centroid_is_that_of_all_distances_whatever_the_batch():
    rows, centroids = groups()[0], groups(7, seed=3)[0]
    distances = np.linalg.norm(rows[:, None].astype(np.float64) - centroids[None], axis=-1)
    numbers, squared = kmeans.nearest(rows, centroids)
    np.testing.assert_array_equal(numbers, distances.argmin(1))
    np.testing.assert_allclose(squared, distances.min(1) ** 2, rtol=1e-12)
    alone = [kmeans.nearest(rows[i : i + 1], centroids) for i in range(len(rows))]
    np.testing.assert_array_equal(np.concatenate([each[1] for each in alone]), squared)


def test_standardised_rows_have_mean_0_and_deviation_1_but_where_all_are_equal():
    rows = groups(2500)[0] * 3 + 5
    rows[:, 4] = 0.1
    mean, scale = kmeans.moments(rows)
    np.testing.assert_allclose(mean, rows.mean(0, dtype=np.float64), rtol=1e-6)
    assert scale[4] == 1
    kmeans.standardise(rows, mean, scale)
    np.testing.assert_allclose(rows.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(np.delete(rows, 4, axis=1).std(0), 1, rtol=1e-5)


@pytest.mark.parametrize("shape", [(32, 32, 3), (8, 8, 1), (12, 20, 3), (5, 3, 1)])
def test_pixel_features_are_means_of_equal_areas(shape):
    images = archives.noise(5, 0, shape)
    # Every pixel as 8x8 equal ones: then each cell holds whole pixels, H x W of them.
    fine = np.kron(images, np.ones((1, 8, 8, 1)))
    cells = fine.reshape(5, 8, shape[0], 8, shape[1], shape[2]).mean((2, 4)) / 255
    found = features.cells(images, 256)
    np.testing.assert_allclose(found, cells.reshape(5, -1), atol=1e-6)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(
        np.concatenate([features.cells(image[None], 256) for image in images]), found
    )


def test_images_of_every_split_have_their_nearest_centroid(tmp_path):
    (record,) = make("digits", [4], features.pixels, seed=3, data_dir=tmp_path)
    found = kept.read(kept.folder("digits", tmp_path) / "4.npz")
    assert found.record == record == json.loads(json.dumps(record))
    train = data.load("digits", "train")
    values = train.images.reshape(len(train), -1) / 16
    np.testing.assert_allclose(found.mean, values.mean(0), atol=1e-6)
    total = 0.0
    for split in data.splits("digits"):
        whole = data.load("digits", split, data_dir=tmp_path)
        values = (whole.images.reshape(len(whole), -1) / 16 - found.mean) / found.scale
        distances = ((values[:, None] - found.centroids[None]) ** 2).sum(-1)
        np.testing.assert_array_equal(whole.attributes["subcategory_4"], distances.argmin(1))
        assert record["sizes"][split] == np.bincount(distances.argmin(1), minlength=4).tolist()
        total += distances.min(1).sum() if split == "train" else 0
    assert record["inertia"] == pytest.approx(total, rel=1e-5)
    assert record["sizes"]["train"] == sorted(record["sizes"]["train"], reverse=True)
    assert (record["split"], record["images"], record["seed"]) == ("train", 1257, 3)
    assert record["splits"]["train"] == train.identity
    assert record["features"]["kind"] == "pixels" and "MiniBatchKMeans" in record["method"]


def test_the_same_seed_gives_the_same_file_whatever_is_read_at_once(tmp_path, monkeypatch):
    def contents(folder, seed=0):
        make("mock32", [3], features.pixels, seed=seed, data_dir=tmp_path / folder)
        return files.read_npz(kept.folder("mock32", tmp_path / folder) / "3.npz")

    first = contents("first")
    monkeypatch.setattr(dataset, "PART", 5 * 32 * 32 * 3)
    again, other = contents("again"), contents("other", seed=1)
    assert set(first) == {"centroids", "mean", "scale", "record"} | {
        f"assigned/{split}" for split in data.splits("mock32")
    }
    for name, values in first.items():
        np.testing.assert_array_equal(again[name], values, err_msg=name)
    assert not np.array_equal(other["centroids"], first["centroids"])


def test_loaded_slices_follow_the_images_and_nothing_else_changes(tmp_path):
    bare = data.load("mock32", "train", data_dir=tmp_path)
    assert not bare.attributes
    make("mock32", [2, 4], features.pixels, data_dir=tmp_path)
    train = data.load("mock32", "train", data_dir=tmp_path)
    assert set(train.attributes) == {"subcategory_2", "subcategory_4"}
    assert train.identity == bare.identity and train.record == bare.record
    part = train.select(np.array([5, 2]))
    np.testing.assert_array_equal(part.attributes["subcategory_4"], train.attributes["subcategory_4"][[5, 2]])
    for count in (2, 4):
        report = slices.fit("subcategory", count, train).report(train)
        sizes = np.bincount(train.attributes[f"subcategory_{count}"], minlength=count)
        assert [one["images"] for one in report["slices"]] == sizes.tolist()
        np.testing.assert_array_equal(report["overlap"], np.diag(sizes))
        assert report["in_none"] == report["in_several"] == 0


def test_embedded_sets_are_loaded_without_a_home(monkeypatch):
    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("JAXMERGE_DATA", raising=False)
    monkeypatch.setattr("pathlib.Path.expanduser", homeless)
    assert not data.load("mock32", "train").attributes


def test_other_numbers_of_subcategories_are_asked_for_by_their_command(tmp_path):
    make("mock32", [2], features.pixels, data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"need mock32 in 4 subcategories.* mock32 --count 4"):
        slices.fit("subcategory", 4, data.load("mock32", "train", data_dir=tmp_path))


def test_subcategories_of_other_images_are_refused_until_they_are_made_anew(tmp_path):
    make("mock32", [2], features.pixels, data_dir=tmp_path)
    place = kept.folder("mock32", tmp_path)
    place.rename(kept.folder("digits", tmp_path))
    with pytest.raises(
        ValueError,
        match=r"2\.npz was made of a digits whose train split has the SHA-256 .*anew with: .*--data-dir",
    ):
        data.load("digits", "train", data_dir=tmp_path)
    make("digits", [2], features.pixels, data_dir=tmp_path)
    assert len(data.load("digits", "train", data_dir=tmp_path).attributes) == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda path: path.write_bytes(path.read_bytes()[:200]),
            "2.npz must hold 2 subcategories, but .*; delete",
        ),
        (lambda path: path.write_bytes(b""), "2.npz must hold 2 subcategories, but .*; delete"),
        (
            lambda path: path.rename(path.with_name("3.npz")),
            "3.npz must hold 3 subcategories, but .*shape .2, 192.",
        ),
        (lambda path: path.rename(path.with_name("mine.npz")), "mine.npz must hold mine subcategories"),
        (
            lambda path: files.write_npz(path, files.read_npz(path) | {"assigned/train": np.full(32, 9)}),
            "numbers the train images' from 9 to 9",
        ),
        (lambda path: files.write_npz(path, {"centroids": np.zeros((2, 3))}), "but 'record'"),
    ],
    ids=["cut off", "empty", "other number", "other name", "out of range", "other arrays"],
)
def test_a_damaged_file_is_told_in_one_sentence(tmp_path, spoil, message):
    make("mock32", [2], features.pixels, data_dir=tmp_path)
    spoil(kept.folder("mock32", tmp_path) / "2.npz")
    with pytest.raises(ValueError, match=message) as raised:
        data.load("mock32", "train", data_dir=tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mock32", "--count", "33"], "from 1 to the 32 images of mock32's train split, got 33"),
        (["mock32", "--count", "2", "0"], "from 1 to the 32 images of mock32's train split, got 0"),
        (["mock32", "--count", "2", "--seed", "-1"], "seed of k-means must be from 0 to 4294967295, got -1"),
        (["mock64", "--count", "2"], "must be one of .*, got 'mock64'"),
        (["cifar10", "--count", "2"], "cifar10 is not prepared in .*python -m jaxmerge.data cifar10"),
        (
            ["mock32", "--count", "2", "--features", "inception", "--network", "nowhere"],
            "need the converted network, but nowhere has none; .*fid-inception nowhere, or take --features pixels",
        ),
        (
            ["digits", "--count", "2", "--features", "inception"],
            "RGB images with 256 grey levels, digits has 17",
        ),
    ],
)
def test_the_command_refuses_in_one_sentence_and_leaves_nothing(tmp_path, capsys, arguments, message):
    pixels = [] if "--features" in arguments else ["--features", "pixels"]
    assert main([*arguments, *pixels, "--data-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(message, error), error
    assert not list(tmp_path.rglob("*.npz"))


def test_fewer_different_images_than_subcategories_are_refused():
    rows = np.repeat(groups(2)[0], 10, axis=0)
    with pytest.raises(
        ValueError, match=r"20 training images must fall into 3 groups, .* only 2 .*ask for fewer"
    ):
        kmeans.fit(rows, 3, seed=0)


def colours(image) -> np.ndarray:
    """2048 numbers that say an image's mean colour."""
    return np.tile(image.mean((1, 2)), (1, 683))[:, :2048]


def test_inception_features_are_taken_as_they_are(tmp_path, monkeypatch):
    empty = np.zeros((0, 0))
    seen = []

    def network(images):
        seen.append(len(images))
        return Activations(empty, empty, empty, colours(images), empty)

    monkeypatch.setattr(checkpoint, "exists", lambda path: True)
    monkeypatch.setattr(extractor, "load", lambda path: extractor.Extractor(network, "ab" * 32, True))
    arguments = ["mock32", "--count", "2", "3", "--network", "here", "--data-dir", str(tmp_path)]
    assert main(arguments) == 0
    assert sum(seen) == 48, "features must be computed once for all numbers of subcategories"
    found = kept.read(kept.folder("mock32", tmp_path) / "2.npz")
    assert found.record["features"]["weights"] == "ab" * 32 and found.record["features"]["published"]
    assert not found.mean.any() and (found.scale == 1).all() and found.centroids.shape == (2, 2048)
    test = data.load("mock32", "test", data_dir=tmp_path)
    distances = ((colours(test.images)[:, None] - found.centroids) ** 2).sum(-1)
    np.testing.assert_array_equal(test.attributes["subcategory_2"], distances.argmin(1))


def churches(count: int, seed: int) -> list[bytes]:
    """Encoded images of two kinds, a dark sky over light ground and the reverse, in turns."""
    noise = archives.noise(count, seed, (256, 300, 3)) // 8
    for i, image in enumerate(noise):
        image[:128] += np.uint8(200 if i % 2 else 0)
        image[128:] += np.uint8(0 if i % 2 else 200)
    return [archives.encoded(image, "WEBP", lossless=True) for image in noise]


def test_lsun_churches_have_subcategories_that_no_held_out_image_had_a_part_in(tmp_path, monkeypatch, capsys):
    for part, count, seed in (("train", 9, 0), ("val", 4, 1)):
        images = {b"%02d" % i: image for i, image in enumerate(churches(count, seed))}
        archives.lsun(tmp_path / f"church_outdoor_{part}_lmdb", images)
    lsun = builders.find("lsun_church_256").published
    published = archives.miniature(lsun, {"train": 9, "test": 4}, 3)
    monkeypatch.setattr("jaxmerge.data.builders.lsun_church.PUBLISHED", published)
    stored.prepare("lsun_church_256", tmp_path)
    arguments = ["--count", "2", "--features", "pixels", "--data-dir", str(tmp_path)]
    assert main(["lsun_church_256", *arguments]) == 0
    out = capsys.readouterr().out
    assert "subcategory_2 from the train_part split: inertia" in out and "\n  test: 2, 2\n" in out
    splits = data.splits("lsun_church_256", tmp_path)
    loaded = {split: data.load("lsun_church_256", split, data_dir=tmp_path) for split in splits}
    kinds = {split: part.images[:, 0, 0, 0] > 128 for split, part in loaded.items()}
    light = loaded["test"].attributes["subcategory_2"][np.argmax(kinds["test"])]
    for split, part in loaded.items():
        np.testing.assert_array_equal(part.attributes["subcategory_2"] == light, kinds[split], err_msg=split)
    found = kept.read(kept.folder("lsun_church_256", tmp_path) / "2.npz")
    values = features.cells(loaded["train_part"].images, 256)
    np.testing.assert_allclose(found.mean, values.mean(0), atol=1e-6)
    assert found.record["splits"] == {split: part.identity for split, part in loaded.items()}
    report = slices.fit("subcategory", 2, loaded["train_part"]).report(loaded["validation"])
    assert sum(one["images"] for one in report["slices"]) == 3 and report["in_none"] == 0
    names = [file.name for file in kept.folder("lsun_church_256", tmp_path).iterdir()]
    assert names == ["2.npz"]
