"""FID, KID, Inception score, their references and their summary over seeds, on features of a cheap stand-in."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import scipy.linalg
import scipy.special
import scipy.stats

from jaxmerge import checkpoint
from jaxmerge.metrics import extractor as extractors
from jaxmerge.metrics import fid, frechet, inception, inception_score, kid, references, seeds, weights

# Fewer pool features than Inception's 2048, whose eigenvectors take seconds; the name of a FID needs all.
SIZE = 64
DRAWN = np.random.default_rng(0).normal(size=(12, SIZE)).astype(np.float32)
HEAD = np.random.default_rng(1).normal(size=(SIZE, 1008)).astype(np.float32) / 30


def stand_in(images, size: int = SIZE) -> inception.Features:
    """Cheap features of 2x2 RGB images: mixed pixels, the same whatever the batch."""
    mixed = np.einsum("np,pf->nf", np.reshape(images, (len(images), 12)).astype(np.float32) / 64, DRAWN)
    pool = np.tile(np.maximum(mixed, 0), (1, size // SIZE))
    return inception.Features(pool, pool, pool, pool, np.einsum("nf,fk->nk", pool[:, :SIZE], HEAD))


EXTRACTOR = extractors.Extractor(stand_in, "a" * 64, published=True)
AT_2048 = dataclasses.replace(EXTRACTOR, features=lambda images: stand_in(images, 2048))


def pictures(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size=(count, 2, 2, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def real():
    return extractors.activations(EXTRACTOR, pictures(0, 300), name="real", keep_features=True)


@pytest.fixture(scope="module")
def fake():
    return extractors.activations(EXTRACTOR, pictures(1, 200) // 2, keep_features=True)


@pytest.fixture(scope="module")
def reference(real):
    return references.of_activations(real, name="made-up train", identity="c0ffee" * 8)


def exact_distance(x: np.ndarray, y: np.ndarray) -> float:
    """The distance from features: tr (S S')^1/2 is the trace norm of the centred features' product."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    product = (x - x.mean(0)) @ (y - y.mean(0)).T / np.sqrt((len(x) - 1) * (len(y) - 1))
    shift, spread = x.mean(0) - y.mean(0), x.var(0, ddof=1).sum() + y.var(0, ddof=1).sum()
    return float(shift @ shift + spread - 2 * scipy.linalg.svdvals(product).sum())


def scipy_distance(x: np.ndarray, y: np.ndarray) -> float:
    """The Fréchet distance from features by scipy alone, with the root of S^1/2 S' S^1/2 by `sqrtm`."""
    s, t = np.cov(x.astype(np.float64), rowvar=False), np.cov(y.astype(np.float64), rowvar=False)
    values, vectors = scipy.linalg.eigh(s)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(scipy.linalg.eigvalsh(root @ t @ root), 0)).sum()
    shift = x.mean(0, dtype=np.float64) - y.mean(0, dtype=np.float64)
    return float(shift @ shift + np.trace(s) + np.trace(t) - 2 * cross)


@pytest.mark.parametrize("sizes", [[7, 1, 92], [100], [50, 50]], ids=str)
def test_statistics_do_not_depend_on_the_batches(sizes):
    x = np.random.default_rng(0).normal(size=(100, 6)) + 1e4
    edges = np.cumsum([0, *sizes])
    parts = [frechet.moments(x[a:b]) for a, b in itertools.pairwise(edges)]
    total = parts[0]
    for part in parts[1:]:
        total = frechet.combine(total, part)
    found = total.statistics("x")
    np.testing.assert_allclose(found.mean, x.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(found.covariance, np.cov(x, rowvar=False), atol=1e-10)
    assert found.count == 100


@pytest.mark.parametrize("counts", [(600, 700), (100, 700), (60, 40)], ids=["full", "one-deficient", "both"])
def test_distance_of_many_features_agrees_with_scipy_to_one_in_a_million(counts):
    rng = np.random.default_rng(3)
    mixing = rng.normal(size=(256, 256)) * np.exp(-np.arange(256) / 40)
    x, y = (rng.normal(size=(n, 256)) @ mixing.T + shift for n, shift in zip(counts, (0, 0.3), strict=True))
    found = frechet.frechet_distance(frechet.statistics(x), frechet.statistics(y))
    np.testing.assert_allclose(found, exact_distance(x, y), rtol=1e-10)
    np.testing.assert_allclose(found, scipy_distance(x, y), rtol=1e-6)


def test_fid_is_the_distance_of_the_features_and_says_what_it_is(real, fake, reference):
    found = fid.fid(fake, reference, seeds=[4], allow_few=True)
    np.testing.assert_allclose(found.value, exact_distance(fake.features, real.features), rtol=1e-6)
    assert (found.count, found.reference_count, found.seeds) == (200, 300, (4,))
    for part in (
        f"{found.name} of 200 samples",
        "too large",
        "made-up train (identity c0ffeec0ffee)",
        "pool 64",
        "a" * 12,
        "299",
    ):
        assert part in found.definition
    assert fid.fid(real, reference, allow_few=True).value < 1e-9 * found.value


def test_only_the_published_network_at_2048_features_gives_a_fid(real, reference):
    samples = extractors.activations(AT_2048, pictures(0, 9), keep_features=True)
    assert fid.name_of(samples) == "FID"
    assert fid.name_of(dataclasses.replace(samples, published=False)) == (
        "Fréchet distance, Inception with other weights, pool 2048"
    )
    assert fid.name_of(real) == "Fréchet distance, Inception, pool 64"
    early = extractors.activations(EXTRACTOR, pictures(0, 9), block="block_64")
    assert fid.name_of(early) == "Fréchet distance, Inception, block_64 64"
    other = dataclasses.replace(real, published=False)
    assert "FID" not in fid.fid(other, reference, allow_few=True).definition
    assert "KID" not in kid.kid(other, reference, method="complete").definition
    nine = references.of_activations(samples, name="nine", identity="9" * 64)
    assert kid.kid(samples, nine, method="complete").name == "KID"
    assert not inception_score.inception_score(other, allow_few=True).name.startswith("Inception score")


def test_features_that_do_not_belong_together_are_refused(fake, reference):
    for key, value in (("block", "block_64"), ("weights", "b" * 64), ("resize", "bicubic")):
        with pytest.raises(ValueError, match=f"the same {key}"):
            fid.fid(dataclasses.replace(fake, **{key: value}), reference, allow_few=True)
    with pytest.raises(ValueError, match="must have a name"):
        fid.fid(fake, dataclasses.replace(reference, name=""), allow_few=True)


def test_few_images_are_refused_unless_asked_for(fake, reference):
    for measure in (lambda: fid.fid(fake, reference), lambda: inception_score.inception_score(fake)):
        with pytest.raises(ValueError, match=r"at least 2048 images, got 200; .* allow_few=True"):
            measure()
    enough = dataclasses.replace(fake, statistics=dataclasses.replace(fake.statistics, count=2048))
    assert "too large" not in fid.fid(enough, reference).definition


def test_activations_take_shards_of_any_size(fake):
    images, done = pictures(1, 200) // 2, []
    shards = [images[:1], images[1:1], images[1:150], images[150:]]
    found = extractors.activations(EXTRACTOR, iter(shards), keep_features=True, advance=done.append)
    np.testing.assert_array_equal(found.features, fake.features)
    np.testing.assert_array_equal(found.logits, fake.logits)
    np.testing.assert_allclose(found.statistics.covariance, fake.statistics.covariance, atol=1e-9)
    assert sum(done) == found.count == 200
    assert extractors.activations(EXTRACTOR, images[:5]).features is None
    with pytest.raises(ValueError, match="samples has no images"):
        extractors.activations(EXTRACTOR, images[:0])
    with pytest.raises(ValueError, match="block must be one of"):
        extractors.activations(EXTRACTOR, images, block="pool2")


@pytest.mark.parametrize("sizes", [(200,), (1, 0, 149, 50), (7,) * 28 + (4,)], ids=len)
def test_features_of_some_images_are_kept_and_the_statistics_are_of_all(fake, sizes):
    images, edges = pictures(1, 200) // 2, np.cumsum([0, *sizes])
    shards = [images[a:b] for a, b in itertools.pairwise(edges)]
    places = references.evenly_spread(200, 30)
    found = extractors.activations(EXTRACTOR, iter(shards), keep_features=places, keep_logits=False)
    np.testing.assert_array_equal(found.features, fake.features[places])
    np.testing.assert_allclose(found.statistics.mean, fake.statistics.mean, rtol=1e-12)
    np.testing.assert_allclose(found.statistics.covariance, fake.statistics.covariance, atol=1e-9)
    assert found.logits is None and found.count == 200
    with pytest.raises(ValueError, match="needs logits, but they were not kept"):
        inception_score.inception_score(found, allow_few=True)
    with pytest.raises(ValueError, match="features of image 250 of samples were asked for, but it has 200"):
        extractors.activations(EXTRACTOR, images, keep_features=np.array([3, 250]))


@pytest.mark.parametrize(("count", "most"), [(200, 30), (31, 30), (30, 30), (7, 30), (1, 1)])
def test_places_are_spread_evenly(count, most):
    places = references.evenly_spread(count, most)
    assert len(places) == min(count, most) and places[0] == 0 and places[-1] < count
    steps = np.diff(places)
    assert not len(steps) or (steps.min() >= 1 and steps.max() - steps.min() <= 1)
    assert references.evenly_spread(1_281_167, references.KEPT).shape == (50_000,)


def write_statistics(path, **changes):
    x = stand_in(pictures(5, 50), 2048).pool.astype(np.float64)
    arrays = {"mu": x.mean(0), "sigma": np.cov(x, rowvar=False)} | changes
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def test_a_file_of_statistics_is_a_reference_named_by_its_checksum(tmp_path):
    path = write_statistics(tmp_path / "cifar10-32x32.npz")
    read = references.read_npz(path, name="CIFAR-10 train")
    measured = extractors.activations(AT_2048, pictures(5, 50), keep_features=True)
    np.testing.assert_allclose(read.statistics.covariance, measured.statistics.covariance, atol=1e-8)
    assert read.statistics.count is None
    assert read.name.startswith("CIFAR-10 train (cifar10-32x32.npz, SHA-256 ")
    with pytest.raises(ValueError, match="KID needs the features of every image, but those of the reference"):
        kid.kid(measured, read)


@pytest.mark.slow
def test_fid_at_2048_features_against_a_file_has_its_exact_value(tmp_path):
    # 300 images have a covariance of rank 299. Truth without the root of a matrix: a trace norm of features.
    path = tmp_path / "made-up.npz"
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(40, 2048))
    x, y = (rng.normal(size=(n, 40)) @ mixing + 0.1 * rng.normal(size=(n, 2048)) for n in (300, 3000))
    np.savez(path, mu=y.mean(0), sigma=np.cov(y, rowvar=False))
    stand_ins = dataclasses.replace(EXTRACTOR, features=lambda i: stand_in(i)._replace(pool=x))
    samples, reference = extractors.activations(stand_ins, pictures(0, 300)), references.read_npz(path)
    found = fid.fid(samples, reference, allow_few=True)
    assert found.name == "FID" and found.reference_count is None
    np.testing.assert_allclose(found.value, exact_distance(x, y), rtol=1e-8)


def test_a_converted_file_of_statistics_names_its_data_set_and_source(tmp_path):
    source = {
        "data_set": "CIFAR-10",
        "source": {"file": "cifar10-32x32.npz", "sha256": "abcdef012345" + "0" * 52},
    }
    path = write_statistics(tmp_path / "mine.npz", source=np.asarray(json.dumps(source)))
    assert references.read_npz(path).name == "CIFAR-10 (cifar10-32x32.npz, SHA-256 abcdef012345)"
    assert references.read_npz(path, name="CIFAR-10 train").name.startswith("CIFAR-10 train (cifar10")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mu": np.zeros(768)}, r"must have mu \[2048\]"),
        ({"sigma": np.zeros((2048, 7))}, r"sigma \[2048, 2048\], got \[2048\] and \[2048, 7\]"),
        ({"mu": np.full(2048, np.nan)}, "NaN or infinite"),
        ({"sigma": np.triu(np.ones((2048, 2048)))}, "no covariance"),
        ({"sigma": -np.eye(2048)}, "no covariance"),
        ({"sigma": None}, "arrays mu and sigma"),
    ],
)
def test_a_damaged_file_of_statistics_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        references.read_npz(write_statistics(tmp_path / "r.npz", **changes))
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    (tmp_path / "page.npz").write_text("<html>not found</html>")
    (tmp_path / "cut.npz").write_bytes(write_statistics(tmp_path / "whole.npz").read_bytes()[:1000])
    for name in ("page.npz", "cut.npz", "missing.npz"):
        with pytest.raises(ValueError, match=r"no file of FID statistics"):
            references.read_npz(tmp_path / name)


def test_a_kept_reference_is_read_again_without_the_images(tmp_path, real, reference):
    asked = []

    def images():
        asked.append(1)
        return [pictures(0, 300)]

    arguments = dict(name="made-up train", identity="c0ffee" * 8, keep_features=True)
    first = references.cached(tmp_path / "ref", EXTRACTOR, images, **arguments)
    second = references.cached(tmp_path / "ref", EXTRACTOR, images, **arguments)
    assert len(asked) == 1 and first.name == second.name == reference.name
    for found in (first, second):
        np.testing.assert_array_equal(found.statistics.covariance, real.statistics.covariance)
        np.testing.assert_array_equal(found.features, real.features)
        assert found.statistics.covariance.dtype == np.float64 and found.statistics.count == 300
    record = json.loads((tmp_path / "ref" / "metadata.json").read_text())["fid_reference"]
    assert record["weights"] == EXTRACTOR.weights and record["identity"] == "c0ffee" * 8


def test_a_large_reference_keeps_few_features_and_all_statistics(tmp_path, monkeypatch, real, fake):
    monkeypatch.setattr(references, "KEPT", 20)
    arguments = dict(name="made-up train", identity="c0ffee" * 8, keep_features=True, count=300)
    for _ in range(2):
        found = references.cached(tmp_path / "ref", EXTRACTOR, lambda: [pictures(0, 300)], **arguments)
        np.testing.assert_array_equal(found.statistics.covariance, real.statistics.covariance)
        np.testing.assert_array_equal(found.features, real.features[::15])
        assert found.statistics.count == 300
    said = kid.kid(fake, found, method="complete").definition
    assert "to 20 images of made-up train (identity c0ffeec0ffee), spread evenly over its 300; kernel" in said


def test_a_kept_reference_of_something_else_is_refused(tmp_path):
    arguments = dict(name="made-up train", identity="1" * 64)
    references.cached(tmp_path / "ref", EXTRACTOR, lambda: [pictures(0, 9)], **arguments)
    other = dataclasses.replace(EXTRACTOR, weights="b" * 64)
    for extractor, changes, what in (
        (EXTRACTOR, {"identity": "2" * 64}, "identity"),
        (EXTRACTOR, {"name": "made-up test"}, "name"),
        (EXTRACTOR, {"keep_features": True}, "features kept"),
        (other, {}, "weights"),
    ):
        with pytest.raises(ValueError, match=f"made from something else .{what}"):
            references.cached(tmp_path / "ref", extractor, list, **(arguments | changes))
    checkpoint.save(tmp_path / "net", {"w": np.zeros(3)}, {})
    with pytest.raises(ValueError, match="made from something else"):
        references.cached(tmp_path / "net", EXTRACTOR, list, **arguments)


def test_a_reference_that_failed_leaves_nothing_behind(tmp_path):
    def broken():
        yield pictures(0, 9)
        raise ValueError("shard 2 is damaged.")

    with pytest.raises(ValueError, match="shard 2"):
        references.cached(tmp_path / "ref", EXTRACTOR, broken, name="a", identity="b")
    assert not list(tmp_path.iterdir())


def naive_mmd2(x, y) -> float:
    """Equation (1), pair by pair."""

    def k(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    within = sum(k(a, b) for a, b in itertools.permutations(x, 2)) / (n * (n - 1))
    within += sum(k(a, b) for a, b in itertools.permutations(y, 2)) / (m * (m - 1))
    return within - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


@pytest.mark.parametrize("counts", [(2, 2), (5, 3), (9, 14)], ids=str)
def test_kernel_distance_agrees_with_the_sum_over_pairs(counts):
    x, y = (np.random.default_rng(i).normal(size=(n, 4)) for i, n in enumerate(counts))
    value, se = kid.mmd2(x, y)
    np.testing.assert_allclose(value, naive_mmd2(x, y), rtol=1e-10)
    if min(counts) < 3:
        assert np.isnan(se)
        return
    dropped_x = [naive_mmd2(np.delete(x, i, 0), y) for i in range(len(x))]
    dropped_y = [naive_mmd2(x, np.delete(y, i, 0)) for i in range(len(y))]
    variance = (len(x) - 1) * np.var(dropped_x) + (len(y) - 1) * np.var(dropped_y)
    np.testing.assert_allclose(se, np.sqrt(variance), rtol=1e-8)


def test_kernel_distance_does_not_depend_on_the_rows_in_memory(monkeypatch):
    x, y = (np.random.default_rng(i).normal(size=(n, 3)) for i, n in enumerate((40, 33)))
    whole = kid.mmd2(x, y)
    monkeypatch.setattr(kid, "ROWS", 7)
    np.testing.assert_allclose(kid.mmd2(x, y), whole, rtol=1e-12)


def test_kernel_distance_is_unbiased_for_two_images():
    # All 3^2 x 3^2 draws of two images each from two distributions of three points, exactly.
    p, q = (np.random.default_rng(i).normal(size=(3, 2)) for i in (0, 1))
    draws = itertools.product(itertools.product(range(3), repeat=2), repeat=2)
    mean = np.mean([kid.mmd2(p[list(i)], q[list(j)])[0] for i, j in draws])
    want = kid.kernel(p, p).mean() + kid.kernel(q, q).mean() - 2 * kid.kernel(p, q).mean()
    np.testing.assert_allclose(mean, want, rtol=1e-10)


def test_kernel_distance_of_gaussians_has_its_closed_form_at_any_number():
    # x ~ N(0, I), y ~ N(mu, I), a = |mu|^2, F features: E s, E s^2, E s^3 of the inner products s.
    features, rng = 5, np.random.default_rng(0)
    mu = np.full(features, 0.6)
    a, f = float(mu @ mu), float(features)
    within_y = 1 + 3 * a / f + 3 * (a**2 + 2 * a + f) / f**2 + (a**3 + 3 * a * (2 * a + f) + 6 * a) / f**3
    want = (1 + 3 / f) + within_y - 2 * (1 + 3 * (f + a) / f**2)
    for count, repeats in ((4, 4000), (40, 400)):
        draws = [
            kid.mmd2(rng.normal(size=(count, features)), rng.normal(size=(count, features)) + mu)
            for _ in range(repeats)
        ]
        values = np.asarray(draws)[:, 0]
        assert abs(values.mean() - want) < 4 * values.std() / np.sqrt(repeats)
    # At 40 images the jackknife's error is the real spread.
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(np.asarray(draws)[:, 1]))), values.std(), rtol=0.2)


def test_blocks_are_disjoint_and_their_error_is_that_of_independent_values():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(103, 3)), rng.normal(size=(70, 3)) + 0.5
    found = kid.estimate(x, y, method="blocks", size=10, seed=3)
    draw = np.random.default_rng(3)
    rows, columns = (draw.permutation(n)[:70].reshape(7, 10) for n in (103, 70))
    values = [naive_mmd2(x[i], y[j]) for i, j in zip(rows, columns, strict=True)]
    np.testing.assert_allclose(
        found, (np.mean(values), np.std(values, ddof=1) / np.sqrt(7), np.std(values, ddof=1))
    )
    assert np.isnan(kid.estimate(x, y, method="blocks", size=60).se)


def test_subsets_estimate_the_same_distance_and_claim_no_error():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 3)), rng.normal(size=(300, 3)) + 1
    complete = kid.estimate(x, y, method="complete")
    found = kid.estimate(x, y, method="subsets", size=50, subsets=200)
    assert abs(found.value - complete.value) < 4 * found.std / np.sqrt(200) and np.isnan(found.se)


def test_kid_says_what_it_is_and_refuses_what_it_cannot_measure(fake, reference):
    found = kid.kid(fake, reference, size=50, seeds=[1])
    assert found.value > 4 * found.se > 0 and found.name == "kernel distance, Inception, pool 64"
    for part in (
        f"{found.name} of 200 samples to 300 images of made-up train",
        "disjoint blocks of 50",
        "a" * 12,
    ):
        assert part in found.definition
    assert kid.kid(fake, reference, method="complete").std is not None
    for arguments, message in (
        ({}, "from 2 to the 200 images"),
        ({"size": 1}, "from 2 to the 200 images"),
        ({"method": "all"}, "method must be"),
    ):
        with pytest.raises(ValueError, match=message):
            kid.kid(fake, reference, **arguments)
    with pytest.raises(ValueError, match="those of the samples were not kept"):
        kid.kid(dataclasses.replace(fake, features=None), reference)
    for bad, message in ((np.zeros((5, 3)), "same features"), (np.full((5, 2), np.nan), "finite")):
        with pytest.raises(ValueError, match=message):
            kid.mmd2(np.zeros((5, 2)), bad)


def test_inception_score_is_the_mean_over_splits():
    logits = np.random.default_rng(0).normal(size=(103, 8)) * 2
    scores = []
    for k in range(10):
        p = scipy.special.softmax(logits[k * 103 // 10 : (k + 1) * 103 // 10], axis=1)
        scores.append(np.exp(np.mean(scipy.stats.entropy(p, p.mean(axis=0, keepdims=True), axis=1))))
    np.testing.assert_allclose(inception_score.split_scores(logits), scores, rtol=1e-10)
    for splits in (0, 104):
        with pytest.raises(ValueError, match="from 1 to the 103 images"):
            inception_score.split_scores(logits, splits)


def test_inception_score_says_what_it_is(fake):
    found = inception_score.inception_score(fake, splits=4, seeds=[2], allow_few=True)
    scores = inception_score.split_scores(fake.logits, 4)
    assert (found.value, found.std) == (float(np.mean(scores)), float(np.std(scores)))
    assert 1 <= found.value <= 1008 and found.seeds == (2,)
    assert "Inception score of 200 samples in 4 splits" in found.definition


def test_seeds_are_summarised_with_students_interval():
    values = [2.1, 1.9, 2.3, 2.05]
    found = seeds.over_seeds(values, seeds=[0, 1, 2, 3], confidence=0.9)
    assert (found.minimum, found.maximum, found.values) == (1.9, 2.3, tuple(values))
    np.testing.assert_allclose((found.mean, found.std), (np.mean(values), np.std(values, ddof=1)))
    want = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.9)
    np.testing.assert_allclose((found.low, found.high), (want.low, want.high), rtol=1e-10)


def test_seeds_of_one_metric_are_summarised_with_its_definition(fake, reference):
    thirds = [extractors.activations(EXTRACTOR, pictures(i, 60)) for i in (7, 8, 9)]
    measured = [fid.fid(part, reference, seeds=[i], allow_few=True) for i, part in enumerate(thirds)]
    found = seeds.over_seeds(measured, seeds=[0, 1, 2])
    assert found.definition == measured[0].definition and found.minimum == min(m.value for m in measured)
    with pytest.raises(ValueError, match="measured in 2 ways"):
        seeds.over_seeds([*measured, fid.fid(fake, reference, allow_few=True)])


@pytest.mark.parametrize(
    ("results", "arguments", "message"),
    [
        ([1.0, 2.0], {}, "at least 3 values, got 2; .* allow_few=True"),
        ([], {"allow_few": True}, "at least 1 values, got 0"),
        ([1.0, float("nan"), 2.0], {}, "must be finite"),
        ([1.0, 2.0, 3.0], {"seeds": [0, 1]}, "a seed of its own"),
        ([1.0, 2.0, 3.0], {"seeds": [0, 1, 1]}, "a seed of its own"),
        ([1.0, 2.0, 3.0], {"confidence": 95}, "between 0 and 1"),
    ],
)
def test_bad_seeds_are_refused(results, arguments, message):
    with pytest.raises(ValueError, match=message):
        seeds.over_seeds(results, **arguments)


def test_a_single_seed_has_no_spread():
    found = seeds.over_seeds([1.5], allow_few=True)
    assert found.mean == found.minimum == 1.5 and np.isnan([found.std, found.low, found.high]).all()


def test_the_hash_of_weights_follows_values_names_and_shapes_only():
    tree = {"a": {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, "b": np.ones(2, np.float32)}
    same = {"b": tree["b"].copy(), "a": {"w": np.asfortranarray(tree["a"]["w"])}}
    found = weights.weights_hash(tree)
    assert found == weights.weights_hash(same) and len(found) == 64
    changed = np.array(tree["a"]["w"])
    changed[0, 0] = 1e-8
    for other in (
        {"a": {"w": changed}, "b": tree["b"]},
        {"a": {"w": tree["a"]["w"].reshape(3, 2)}, "b": tree["b"]},
        {"a": {"v": tree["a"]["w"]}, "b": tree["b"]},
        {"a": {"w": tree["a"]["w"].astype(np.float64)}, "b": tree["b"]},
    ):
        assert weights.weights_hash(other) != found


@pytest.mark.slow
def test_the_real_network_measures_from_its_checkpoint(tmp_path):
    record = {"network": {"kind": "inception"}}
    params = inception.parameters(inception.build(0))
    checkpoint.save(tmp_path / "fresh", params, record)
    checkpoint.save(
        tmp_path / "claimed", params, record | {"source": {"sha256": extractors.PUBLISHED_SHA256}}
    )
    assert extractors.load(tmp_path / "claimed").published
    extractor = extractors.load(tmp_path / "fresh", batch_size=2)
    assert not extractor.published and extractor.weights == weights.weights_hash(params)
    images = np.random.default_rng(0).integers(0, 256, size=(5, 32, 32, 3), dtype=np.uint8)
    found = extractors.activations(extractor, images, keep_features=True, chunk=3)
    assert found.features.shape == (5, 2048) and found.logits.shape == (5, 1008)
    reference = references.of_activations(found, name="five", identity="5" * 64)
    measured = fid.fid(found, reference, allow_few=True)
    assert measured.value < 1e-6 and measured.name.endswith("with other weights, pool 2048")
