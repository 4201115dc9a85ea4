"""Sets that are prepared from archives: miniature ones, in the publishers' formats."""

import dataclasses
import io
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxmerge import data
from jaxmerge.data import builders, pickled, stored
from jaxmerge.data.builders import celeba_hq
from jaxmerge.data.dataset import InMemory
from jaxmerge.data.feed import feed
from jaxmerge.data.published import sha256
from jaxmerge.training.step import ReadAhead, batch_indices
from tests import archives

PER_BATCH = 6
CIFAR = archives.miniature(builders.find("cifar10").published, {"train": 5 * PER_BATCH, "test": PER_BATCH}, 6)


@pytest.fixture(scope="module", autouse=True)
def installed_tensorflow(tmp_path_factory):
    """An empty package of that name, so that an import of it succeeds and is seen on any machine."""
    packages = tmp_path_factory.mktemp("packages")
    (packages / "tensorflow.py").touch()
    sys.path.insert(0, str(packages))
    yield
    sys.path.remove(str(packages))


@pytest.fixture(autouse=True)
def without_tensorflow():
    """Neither preparing nor reading may import TensorFlow."""
    yield
    assert sys.modules.pop("tensorflow", None) is None


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """A prepared miniature CIFAR-10: (data folder, its batches, its record)."""
    folder = tmp_path_factory.mktemp("cifar")
    batches = archives.cifar10_batches(PER_BATCH)
    archives.cifar10_binary(folder / "cifar-10-binary.tar.gz", batches)
    return folder, batches, stored.prepare("cifar10", folder, published=CIFAR)


def opened(cifar, split):
    return stored.open_split("cifar10", split, cifar[0], published=CIFAR)


def expected(batches, split):
    names = [name for name in batches if name.startswith("test") == (split == "test")]
    return (np.concatenate([batches[name][i] for name in names]) for i in (0, 1))


@pytest.mark.parametrize("split", ["train", "test"])
def test_cifar10_comes_back_pixel_by_pixel_in_its_order(cifar, split):
    images, labels = expected(cifar[1], split)
    dataset = opened(cifar, split)
    np.testing.assert_array_equal(dataset.images, images)
    np.testing.assert_array_equal(dataset.labels, labels)
    assert (dataset.shape, dataset.levels, dataset.images.dtype) == ((32, 32, 3), 256, np.uint8)


def test_python_and_binary_archives_are_the_same_set(cifar, tmp_path):
    archives.cifar10_python(tmp_path / "cifar-10-python.tar.gz", cifar[1])
    record = stored.prepare("cifar10", tmp_path, published=CIFAR)
    assert record["splits"] == cifar[2]["splits"]


def test_held_out_images_and_the_others_make_up_the_training_images(cifar):
    train, held, rest, test = (
        opened(cifar, split) for split in ("train", "validation", "train_part", "test")
    )
    assert held.index.tolist() == [0, 5, 10, 15, 20, 25]
    np.testing.assert_array_equal(np.sort(np.concatenate([held.index, rest.index])), train.index)
    np.testing.assert_array_equal(held.images, train.images[held.index])
    np.testing.assert_array_equal(test.index, np.arange(30, 36))


@pytest.mark.parametrize("split", ["train", "validation", "train_part", "test"])
def test_the_recorded_identity_is_that_of_the_pixels(cifar, split):
    dataset = opened(cifar, split)
    in_memory = dataclasses.replace(
        dataset, source=InMemory(dataset.images), positions=np.arange(len(dataset)), recorded=None
    )
    assert in_memory.identity == dataset.identity == cifar[2]["splits"][split]["sha256"]
    assert dataset.record["sha256"] == dataset.identity


def test_one_other_pixel_is_another_identity(cifar):
    test = opened(cifar, "test")
    pixels = test.images.copy()
    pixels[3, 5, 7, 1] ^= 1
    assert dataclasses.replace(test, source=InMemory(pixels), recorded=None).identity != test.identity


def test_only_what_is_asked_for_is_read(cifar, monkeypatch):
    asked = []
    read = stored.Records.read
    monkeypatch.setattr(stored.Records, "read", lambda self, rows: asked.extend(rows) or read(self, rows))
    train = opened(cifar, "train")
    part = train.take(20).select(np.array([4, 2]))
    assert asked == []
    np.testing.assert_array_equal(part.images, train.read(np.array([4, 2])))
    assert asked == [4, 2, 4, 2]
    assert [len(b) for b in train.batches(12)] == [12, 12, 6]
    np.testing.assert_array_equal(np.concatenate([b.images for b in train.batches(12)]), train.images)


def test_a_split_that_is_too_large_is_not_read_by_accident(cifar, monkeypatch):
    monkeypatch.setattr("jaxmerge.data.dataset.MAX_BYTES", 20 * 32 * 32 * 3)
    train = opened(cifar, "train")
    with pytest.raises(ValueError, match=r"30 images of cifar10's train split .* use take\(n\)"):
        _ = train.images
    assert train.take(20).images.shape == (20, 32, 32, 3)


def test_fed_batches_follow_from_the_step_alone(cifar):
    train = opened(cifar, "train")
    places = lambda step: np.random.RandomState(step).permutation(len(train))[:4]  # noqa: E731
    fed = list(feed(train, places, start=0, stop=5, threads=2))
    again = list(feed(train, places, start=3, stop=5, threads=4))
    assert len(fed) == 5
    for step, (images, labels) in enumerate(fed):
        np.testing.assert_array_equal(images, train.images[places(step)])
        np.testing.assert_array_equal(labels, train.labels[places(step)])
    for whole, resumed in zip(fed[3:], again, strict=True):
        np.testing.assert_array_equal(whole[0], resumed[0])


def test_training_reads_ahead_what_it_would_read_step_by_step(cifar):
    train = opened(cifar, "train")
    places = lambda done: batch_indices(3, done, len(train), 4)  # noqa: E731
    fed = ReadAhead(train, places, steps=9)
    # In order, begun again in the middle, beyond the last step.
    for done in (0, 1, 2, 5, 6, 2, 8, 9, 20):
        np.testing.assert_array_equal(fed(done), train.images[places(done)])


def test_a_prepared_set_is_read_after_being_pickled(cifar):
    test = opened(cifar, "test")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(test)).images, test.images)


def test_preparing_again_changes_nothing(cifar):
    before = sorted((p, p.stat().st_mtime_ns) for p in cifar[0].rglob("*"))
    assert stored.prepare("cifar10", cifar[0], published=CIFAR) == cifar[2]
    assert sorted((p, p.stat().st_mtime_ns) for p in cifar[0].rglob("*")) == before


def test_an_interrupted_preparation_is_done_anew(cifar, tmp_path):
    archives.cifar10_binary(tmp_path / "cifar-10-binary.tar.gz", cifar[1])
    first = stored.prepare("cifar10", tmp_path, published=CIFAR)
    (tmp_path / "prepared" / "jaxmerge_cifar10" / "1.0.0" / "record.json").unlink()
    with pytest.raises(
        ValueError, match=r"cifar10 is not prepared in .*python -m jaxmerge.data cifar10 --data-dir"
    ):
        stored.open_split("cifar10", "test", tmp_path, published=CIFAR)
    assert stored.prepare("cifar10", tmp_path, published=CIFAR) == first


def test_a_miniature_is_not_taken_for_the_published_set(cifar):
    with pytest.raises(ValueError, match=r"prepared from .*30.* images, cifar10 has .*50000"):
        data.load("cifar10", "test", data_dir=cifar[0])


def test_an_unknown_split_is_refused(cifar):
    with pytest.raises(ValueError, match=r"splits train, test, validation, train_part, got 'dev'"):
        opened(cifar, "dev")


def test_damaged_prepared_files_are_told(cifar, tmp_path):
    archives.cifar10_binary(tmp_path / "cifar-10-binary.tar.gz", cifar[1])
    stored.prepare("cifar10", tmp_path, published=CIFAR)
    file = next(tmp_path.rglob("*test.array_record*"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"prepared set in .* must be readable, .* delete that folder"):
        _ = stored.open_split("cifar10", "test", tmp_path, published=CIFAR).images


def test_an_archive_with_another_hash_is_refused(cifar, tmp_path):
    path = archives.cifar10_binary(tmp_path / "cifar-10-binary.tar.gz", cifar[1])
    form = builders.find("cifar10").published.files["archive"][0]
    assert sha256(path) != form.sha256
    with pytest.raises(ValueError, match=r"must have the SHA-256 c4a38c50a1bc5f3a.*fetch it again"):
        stored.prepare("cifar10", tmp_path)
    right = dataclasses.replace(CIFAR, files={"archive": (dataclasses.replace(form, sha256=sha256(path)),)})
    assert stored.prepare("cifar10", tmp_path, published=right)["archives"] == {path.name: sha256(path)}


def shortened(batches, name, count):
    return batches | {name: tuple(part[:count] for part in batches[name])}


def out_of_range(batches):
    return batches | {"data_batch_2": (batches["data_batch_2"][0], np.full(PER_BATCH, 10))}


@pytest.mark.parametrize(
    "write", [archives.cifar10_binary, archives.cifar10_python], ids=["binary", "python"]
)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: shortened(b, "data_batch_3", 5), "must have 30 images in its train split, got 29"),
        (lambda b: shortened(b, "test_batch", 5), "must have 6 images in its test split, got 5"),
        (
            lambda b: {k: v for k, v in b.items() if k != "data_batch_4"},
            "must be a whole archive.*data_batch_4",
        ),
        (out_of_range, "data_batch_2 of .* labels 0 to 9"),
    ],
    ids=["few train", "few test", "missing batch", "wrong label"],
)
def test_a_cifar10_archive_with_other_content_is_refused(tmp_path, write, change, message):
    name = {archives.cifar10_binary: "binary", archives.cifar10_python: "python"}[write]
    write(tmp_path / f"cifar-10-{name}.tar.gz", change(archives.cifar10_batches(PER_BATCH)))
    with pytest.raises(ValueError, match=message):
        stored.prepare("cifar10", tmp_path, published=CIFAR)
    with pytest.raises(ValueError, match=r"is not prepared"):
        stored.open_split("cifar10", "train", tmp_path, published=CIFAR)


def test_a_truncated_archive_is_refused(tmp_path):
    path = archives.cifar10_binary(tmp_path / "cifar-10-binary.tar.gz", archives.cifar10_batches(PER_BATCH))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"must be a whole archive.*fetch it again"):
        stored.prepare("cifar10", tmp_path, published=CIFAR)


def test_a_record_that_is_cut_off_is_refused(tmp_path):
    batches = archives.cifar10_batches(PER_BATCH)
    rows = np.column_stack([np.arange(PER_BATCH, dtype=np.uint8), archives.planes(batches["test_batch"][0])])
    members = {f"cifar-10-batches-bin/{name}.bin": rows.tobytes() for name in batches}
    members["cifar-10-batches-bin/data_batch_5.bin"] = rows.tobytes()[:-7]
    archives.write_tar(tmp_path / "cifar-10-binary.tar.gz", members, "w:gz")
    with pytest.raises(ValueError, match=r"data_batch_5 of .* whole records of 3073 bytes, got 18431"):
        stored.prepare("cifar10", tmp_path, published=CIFAR)


class Harmful:
    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_is_read_without_running_what_it_names(tmp_path):
    harmful = Harmful()
    harmful.path = str(tmp_path / "made")
    with pytest.raises(
        ValueError, match=r"a batch must be .* names (posix|nt).mkdir, which is no part of an array"
    ):
        pickled.read(pickle.dumps({"data": harmful}), "a batch")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickled_arrays_of_all_protocols_are_read(protocol):
    content = {
        "a": np.arange(12, dtype=np.uint8).reshape(3, 4),
        "b": np.asfortranarray(np.eye(3)),
        "c": [1, 2],
    }
    got = pickled.read(pickle.dumps(content, protocol), "it")
    np.testing.assert_array_equal(got["a"], content["a"])
    np.testing.assert_array_equal(got["b"], content["b"])
    assert got["c"] == [1, 2]


@pytest.mark.parametrize(
    "blob", [b"", b"\x80\x04", pickle.dumps([1]), pickle.dumps({"a": np.zeros(3)})[:-20]]
)
def test_a_damaged_pickle_is_told(blob):
    with pytest.raises(ValueError, match=r"a batch must be a pickled dictionary of arrays"):
        pickled.read(blob, "a batch")


OLD = archives.miniature(builders.find("imagenet32_old").published, {"train": 12, "test": 4}, 3)
NEW = archives.miniature(builders.find("imagenet32_new").published, {"train": 20, "test": 4}, 3)
TRAIN_BATCHES = [f"train_data_batch_{i}" for i in range(1, 11)]


def old_archives(folder: Path, train: int = 12, test: int = 4) -> None:
    archives.imagenet32_old(folder / "train_32x32.tar", archives.noise(train, 0))
    archives.imagenet32_old(folder / "valid_32x32.tar", archives.noise(test, 1))


def new_archives(folder: Path, npz: bool, test: int = 4) -> None:
    end = "_npz" if npz else ""
    labels = np.arange(1, 1001, 50)
    archives.imagenet32_new(
        folder / f"Imagenet32_train{end}.zip", archives.noise(20, 2), labels, names=TRAIN_BATCHES, npz=npz
    )
    archives.imagenet32_new(
        folder / f"Imagenet32_val{end}.zip",
        archives.noise(test, 3),
        labels[:test],
        names=["val_data"],
        npz=npz,
    )


def test_old_imagenet32_comes_back_pixel_by_pixel(tmp_path):
    old_archives(tmp_path)
    stored.prepare("imagenet32_old", tmp_path, published=OLD)
    for split, count, seed in (("train", 12, 0), ("test", 4, 1)):
        dataset = stored.open_split("imagenet32_old", split, tmp_path, published=OLD)
        np.testing.assert_array_equal(dataset.images, archives.noise(count, seed))
        assert set(dataset.labels) == {-1}


def test_new_imagenet32_is_the_same_from_npz_files_and_from_pickles(tmp_path):
    records = []
    for npz in (True, False):
        folder = tmp_path / str(npz)
        folder.mkdir()
        new_archives(folder, npz)
        records.append(stored.prepare("imagenet32_new", folder, published=NEW))
        train = stored.open_split("imagenet32_new", "train", folder, published=NEW)
        np.testing.assert_array_equal(train.images, archives.noise(20, 2))
        np.testing.assert_array_equal(train.labels, np.arange(0, 1000, 50))
    assert records[0]["splits"] == records[1]["splits"]


@pytest.mark.parametrize(
    ("name", "write", "published", "message"),
    [
        (
            "imagenet32_old",
            lambda f: old_archives(f, test=5),
            OLD,
            "must have 4 images in its test split, got 5",
        ),
        (
            "imagenet32_old",
            lambda f: old_archives(f, train=11),
            OLD,
            "must have 12 images in its train split, got 11",
        ),
        (
            "imagenet32_new",
            lambda f: new_archives(f, True, 3),
            NEW,
            "must have 4 images in its test split, got 3",
        ),
        (
            "imagenet32_new",
            lambda f: new_archives(f, False, 5),
            NEW,
            "must have 4 images in its test split, got 5",
        ),
    ],
)
def test_an_imagenet32_with_another_count_is_refused(tmp_path, name, write, published, message):
    write(tmp_path)
    with pytest.raises(ValueError, match=message):
        stored.prepare(name, tmp_path, published=published)


def test_a_damaged_png_is_named(tmp_path):
    old_archives(tmp_path)
    members = {
        f"train_32x32/{i:07d}.png": archives.encoded(image) for i, image in enumerate(archives.noise(12, 0))
    }
    members["train_32x32/0000007.png"] = members["train_32x32/0000007.png"][:60]
    archives.write_tar(tmp_path / "train_32x32.tar", members)
    with pytest.raises(ValueError, match=r"train_32x32/0000007.png of .* must be an image"):
        stored.prepare("imagenet32_old", tmp_path, published=OLD)


def test_a_truncated_old_imagenet32_is_refused(tmp_path):
    old_archives(tmp_path)
    path = tmp_path / "train_32x32.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        seventh = archive.getmembers()[6]
    path.write_bytes(whole[: seventh.offset_data + 100])  # within an image
    with pytest.raises(ValueError, match=r"train_32x32.tar must be a whole archive, but .*; fetch it again"):
        stored.prepare("imagenet32_old", tmp_path, published=OLD)
    path.write_bytes(whole[: seventh.offset])  # between two, where a tar archive may end
    with pytest.raises(ValueError, match=r"must have 12 images in its train split, got 6"):
        stored.prepare("imagenet32_old", tmp_path, published=OLD)


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


ROWS = archives.planes(archives.noise(2, 2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npz(data=ROWS, labels=[1, 2])[:-40], "must hold data and labels, but .*; fetch the archive again"),
        (npz(data=ROWS), "must hold data and labels, but "),
        (npz(data=ROWS, labels=[0, 2]), "with labels 1 to 1000, got 2 labels"),
        (npz(data=ROWS, labels=[1, 1001]), "with labels 1 to 1000, got 2 labels"),
        (npz(data=ROWS, labels=[1]), r"rows of 3072 bytes .* got 1 labels and \(2, 3072\) uint8"),
        (npz(data=ROWS[:, :-3], labels=[1, 2]), r"rows of 3072 bytes .* got 2 labels and \(2, 3069\) uint8"),
    ],
    ids=["cut off", "no labels", "label 0", "label 1001", "few labels", "short rows"],
)
def test_a_damaged_batch_of_new_imagenet32_is_named(tmp_path, content, message):
    new_archives(tmp_path, npz=True)
    path = tmp_path / "Imagenet32_train_npz.zip"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    archives.write_zip(path, members | {"train_data_batch_3.npz": content})
    with pytest.raises(ValueError, match=f"train_data_batch_3.npz of .*{path.name} .*{message}"):
        stored.prepare("imagenet32_new", tmp_path, published=NEW)
    del members["train_data_batch_3.npz"]
    archives.write_zip(path, members)
    with pytest.raises(ValueError, match=r"must hold train_data_batch_3 or train_data_batch_3.npz, got"):
        stored.prepare("imagenet32_new", tmp_path, published=NEW)


def test_published_counts_are_the_known_ones():
    counts = {name: dict(builders.find(name).published.counts) for name in builders.NAMES}
    assert counts["cifar10"] == {"train": 50_000, "test": 10_000}
    assert counts["imagenet32_old"] == {"train": 1_281_149, "test": 49_999}
    assert counts["imagenet32_new"] == {"train": 1_281_167, "test": 50_000}
    assert sum(counts["celeba_hq_256"].values()) == sum(counts["celeba_hq_1024"].values()) == 30_000
    assert counts["lsun_church_256"] == {"train": 126_227, "test": 300}


@pytest.mark.parametrize("name", builders.NAMES)
def test_a_missing_archive_is_asked_for_in_one_sentence(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} needs .* but none is there; .*http.*") as raised:
        stored.prepare(name, tmp_path, download=False)
    assert "\n" not in str(raised.value)


def test_plain_imagenet32_is_refused_with_both_names():
    with pytest.raises(ValueError, match=r"'imagenet32_old' .*49 999.* or 'imagenet32_new' .*50 000"):
        data.load("imagenet32", "test")


def test_a_mistyped_name_is_refused_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"data.name must be one of digits, .* got 'cifar-10' \(did you mean 'cifar10'"
    ):
        data.load("cifar-10", "test")


def gradient(shade: int, slope: int = 0) -> np.ndarray:
    """A 1024x1024 image of one shade that changes by `slope` between its left and its right half."""
    image = np.full((1024, 1024, 3), shade, np.uint8)
    image[:, 512:] += np.uint8(slope)
    return image


CELEBA = archives.miniature(celeba_hq.PUBLISHED_256, {"train": 3, "validation": 1, "test": 1})
ORIGINALS = [162_770, 1, 162_771, 182_638, 5]
HAIRS = [["Black_Hair", "Young"], ["Blond_Hair"], ["Bald"], ["Brown_Hair", "Gray_Hair"], ["Young"]]


def write_celeba(folder: Path) -> None:
    images = [gradient(40), gradient(120), gradient(200), gradient(60, 120), gradient(128)]
    archives.celeba_hq(folder, ORIGINALS, HAIRS, images)


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
def test_celeba_hq_is_split_as_celeba_with_hair_and_light(tmp_path, zipped):
    write_celeba(tmp_path / "celeba_hq_256")
    if zipped:
        images = tmp_path / "celeba_hq_256" / "CelebA-HQ-img"
        members = {f"CelebAMask-HQ/CelebA-HQ-img/{file.name}": file.read_bytes() for file in images.iterdir()}
        members["CelebAMask-HQ/CelebAMask-HQ-mask-anno/0/0.png"] = b"a mask"
        archives.write_zip(tmp_path / "CelebAMask-HQ.zip", members)
        images.rename(tmp_path / "elsewhere")
    stored.prepare("celeba_hq_256", tmp_path, published=CELEBA)
    splits = {s: stored.open_split("celeba_hq_256", s, tmp_path, published=CELEBA) for s in CELEBA.counts}
    hair = {split: [celeba_hq.HAIR[i] for i in dataset.labels] for split, dataset in splits.items()}
    assert hair == {"train": ["black", "blond", "unclear"], "validation": ["bald"], "test": ["unclear"]}
    assert splits["train"].attributes["Blond_Hair"].tolist() == [0, 1, 0]
    assert splits["test"].attributes["Gray_Hair"].tolist() == [1]
    light = {s: [celeba_hq.LIGHTING[int(i)] for i in d.attributes["lighting"]] for s, d in splits.items()}
    assert light == {"train": ["dark", "even", "even"], "validation": ["bright"], "test": ["sided"]}
    np.testing.assert_allclose(
        splits["train"].attributes["luminance"], np.array([40, 120, 128]) / 255, atol=2e-3
    )
    assert splits["train"].images.shape == (3, 256, 256, 3)
    assert abs(int(splits["train"].images[1].mean()) - 120) <= 1


def test_celeba_hq_at_1024_has_the_files_pixels_and_256_their_means(tmp_path):
    write_celeba(tmp_path)
    large = archives.miniature(celeba_hq.PUBLISHED_1024, dict(CELEBA.counts))
    stored.prepare("celeba_hq_1024", tmp_path, published=large)
    stored.prepare("celeba_hq_256", tmp_path, published=CELEBA)
    dataset = stored.open_split("celeba_hq_1024", "train", tmp_path, published=large)
    assert dataset.shape == (1024, 1024, 3) and len(dataset) == 3
    for image, place in zip(dataset.images, (0, 1, 4), strict=True):
        with Image.open(tmp_path / "CelebA-HQ-img" / f"{place}.jpg") as original:
            np.testing.assert_array_equal(image, np.asarray(original))
    small = stored.open_split("celeba_hq_256", "train", tmp_path, published=CELEBA)
    means = dataset.images.reshape(3, 256, 4, 256, 4, 3).mean((2, 4))
    np.testing.assert_array_equal(small.images, np.floor(means + 0.5))
    assert small.labels.tolist() == dataset.labels.tolist()


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def shorten(path: Path) -> None:
    """Leaves a text file's last line out."""
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")


def move_to_test(folder: Path) -> None:
    """Calls the CelebA original 000005.jpg, a training image, 200000.jpg, which is a test image."""
    for file in (folder / "CelebA-HQ-to-CelebA-mapping.txt", folder / "list_attr_celeba.txt"):
        file.write_text(file.read_text().replace("000005.jpg", "200000.jpg"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: shorten(f / "CelebA-HQ-to-CelebA-mapping.txt"), "mapping.txt must list 5 images, got 4"),
        (move_to_test, "must have 3 images in its train split, got 2"),
        (lambda f: cut_off(f / "CelebA-HQ-img" / "1.jpg"), "image 1 of .* must be an image, but .*truncated"),
        (lambda f: shorten(f / "list_attr_celeba.txt"), "must have a line for 000005.jpg, but has none"),
        (lambda f: (f / "CelebA-HQ-img" / "2.jpg").unlink(), "CelebA-HQ-img must hold image 2"),
        (
            lambda f: (f / "CelebA-HQ-img" / "1.jpg").write_bytes(
                archives.encoded(gradient(3)[:512, :512], "JPEG")
            ),
            "image 1 of .* must be 1024x1024, got 512x512",
        ),
        (
            lambda f: (f / "CelebA-HQ-to-CelebA-mapping.txt").write_text("idx\n0 1\n"),
            "lines 'idx orig_idx orig_file'",
        ),
        (lambda f: (f / "list_attr_celeba.txt").write_text("5\nYoung\n"), "must have the columns Black_Hair"),
    ],
    ids=[
        *("few images", "other split", "truncated image", "few attributes"),
        *("missing image", "small image", "mapping", "attributes"),
    ],
)
def test_a_spoilt_celeba_hq_is_refused(tmp_path, spoil, message):
    write_celeba(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        stored.prepare("celeba_hq_256", tmp_path, published=CELEBA)


def churches(count: int, seed: int) -> list[np.ndarray]:
    return list(archives.noise(count, seed, (256, 300, 3)))


def webp(image: np.ndarray) -> bytes:
    return archives.encoded(image, "WEBP", lossless=True)


def test_lsun_churches_are_cut_to_their_centre_and_come_once(tmp_path):
    train, test = churches(4, 0), churches(2, 1)
    known = {b"%02d" % i: webp(image) for i, image in enumerate([*train, train[1], test[0]])}
    archives.lsun(tmp_path / "church_outdoor_train_lmdb", known)
    archives.lsun(
        tmp_path / "church_outdoor_val_lmdb", {b"%02d" % i: webp(image) for i, image in enumerate(test)}
    )
    zipped = tmp_path / "church_outdoor_val_lmdb"
    blob = {"church_outdoor_val_lmdb/data.mdb": (zipped / "data.mdb").read_bytes()}
    archives.write_zip(tmp_path / "church_outdoor_val_lmdb.zip", blob)
    published = archives.miniature(builders.find("lsun_church_256").published, {"train": 6, "test": 2}, 2)
    record = stored.prepare("lsun_church_256", tmp_path, published=published)
    assert record["notes"] == {"duplicates left out of train": 2, "duplicates left out of test": 0}
    dataset = stored.open_split("lsun_church_256", "train", tmp_path, published=published)
    np.testing.assert_array_equal(dataset.images, np.stack(train)[:, :, 22:278])
    few = dataclasses.replace(published, counts={"train": 7, "test": 2})
    (tmp_path / "prepared" / "jaxmerge_lsun_church_256" / "1.0.0" / "record.json").unlink()
    with pytest.raises(ValueError, match=r"must have 7 images in its train split, got 6"):
        stored.prepare("lsun_church_256", tmp_path, published=few)


def test_a_spoilt_lsun_archive_is_refused(tmp_path):
    published = archives.miniature(builders.find("lsun_church_256").published, {"train": 2, "test": 2})
    train = archives.lsun(
        tmp_path / "church_outdoor_train_lmdb", {b"0": webp(churches(1, 0)[0]), b"1": b"no image"}
    )
    archives.write_zip(tmp_path / "church_outdoor_val_lmdb.zip", {"church_outdoor_val_lmdb/lock.mdb": b""})
    with pytest.raises(ValueError, match=r"church_outdoor_val_lmdb.zip must hold a file data.mdb"):
        stored.prepare("lsun_church_256", tmp_path, published=published)
    test = {"church_outdoor_val_lmdb/data.mdb": (train / "data.mdb").read_bytes()}
    archives.write_zip(tmp_path / "church_outdoor_val_lmdb.zip", test)
    with pytest.raises(ValueError, match=r"1 of .* must be an image"):
        stored.prepare("lsun_church_256", tmp_path, published=published)


def write_folder(folder: Path, count: int, size: tuple[int, int] = (8, 8)) -> list[np.ndarray]:
    images = list(archives.noise(count, 5, (*size, 3)))
    for i, image in enumerate(images):
        path = folder / ("cats", "dogs")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(archives.encoded(image))
    return images


def test_a_folder_is_prepared_by_one_command_without_tensorflow(tmp_path):
    images = write_folder(tmp_path / "mine", 60)
    (tmp_path / "mine" / "cats" / "again.png").write_bytes(archives.encoded(images[0]))
    (tmp_path / "tensorflow.py").write_text("raise ImportError('not wanted')")
    name, here = f"folder:{tmp_path / 'mine'}", Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "jaxmerge.data", name, "--data-dir", str(tmp_path / "d")],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{here}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    parts = [data.load(name, split, data_dir=tmp_path / "d") for split in ("train", "validation", "test")]
    for part in parts:
        assert f"{part.split}: {len(part)} images, SHA-256 {part.identity}" in done.stdout
    rows = np.concatenate([part.images.reshape(len(part), -1) for part in parts])
    assert sorted(map(bytes, rows)) == sorted(image.tobytes() for image in images)
    np.testing.assert_array_equal(np.sort(np.concatenate([part.index for part in parts])), np.arange(60))
    cats = {image.tobytes() for image in images[::2]}
    labels = np.concatenate([part.labels for part in parts])
    assert [bytes(row) in cats for row in rows] == (labels == 0).tolist()


def test_a_folder_that_changed_is_refused(tmp_path):
    write_folder(tmp_path / "mine", 60)
    name = f"folder:{tmp_path / 'mine'}@4"
    stored.prepare(name, tmp_path / "d")
    assert data.load(name, "train", data_dir=tmp_path / "d").shape == (4, 4, 3)
    (tmp_path / "mine" / "cats" / "0.png").unlink()
    with pytest.raises(ValueError, match=r"are not those that .* was made of"):
        data.load(name, "train", data_dir=tmp_path / "d")


def test_a_folder_with_its_own_splits_keeps_them(tmp_path):
    for split, seed in (("train", 0), ("validation", 1), ("test", 2)):
        for i, image in enumerate(archives.noise(3, seed, (8, 8, 3))):
            (tmp_path / "mine" / split).mkdir(parents=True, exist_ok=True)
            (tmp_path / "mine" / split / f"{i}.png").write_bytes(archives.encoded(image))
    name = f"folder:{tmp_path / 'mine'}"
    stored.prepare(name, tmp_path / "d")
    got = {bytes(image) for image in data.load(name, "test", data_dir=tmp_path / "d").images}
    assert got == {image.tobytes() for image in archives.noise(3, 2, (8, 8, 3))}


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda f: None, "must be a folder with images"),
        (lambda f: write_folder(f, 2), "must have images for training, validation and test, got"),
        (
            lambda f: (
                write_folder(f, 40),
                (f / "z.png").write_bytes(archives.encoded(archives.noise(1, 9)[0])),
            ),
            "must have the size of the folder's first image, 8x8, got 32x32; ask for folder:.*@SIZE",
        ),
    ],
    ids=["none", "few", "sizes"],
)
def test_a_folder_that_is_no_data_set_is_refused(tmp_path, write, message):
    write(tmp_path / "mine")
    with pytest.raises(ValueError, match=message):
        stored.prepare(f"folder:{tmp_path / 'mine'}", tmp_path / "d")
