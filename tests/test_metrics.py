"""The Fréchet distance against SciPy and closed forms, and the digits classifier behind it."""

import functools
import json
import pathlib

import jax
import numpy as np
import pytest
import scipy.linalg

from jaxmerge import checkpoint
from jaxmerge.data import digits
from jaxmerge.metrics import classifier as metric
from jaxmerge.metrics import frechet
from jaxmerge.metrics.frechet import Statistics, frechet_distance, statistics
from jaxmerge.training import classifier as training


@pytest.fixture(scope="module")
def classifier():
    return metric.shipped("digits_classifier")


@pytest.fixture(scope="module")
def features(classifier):
    return {split: metric.features(classifier, digits.load(split).images) for split in ("train", "test")}


def scipy_distance(a: Statistics, b: Statistics) -> float:
    """Equation (1) with the root of the symmetric S^1/2 S' S^1/2 by `scipy.linalg.sqrtm`."""
    root = np.real(scipy.linalg.sqrtm(a.covariance))
    cross = np.real(scipy.linalg.sqrtm(root @ b.covariance @ root))
    return float(np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance - 2.0 * cross))


def random_features(seed: int, count: int, size: int, rank: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(rank, size)) * np.exp(rng.normal(size=(rank, 1)))
    return rng.normal(size=(count, rank)) @ mixing + rng.normal(size=size)


@pytest.mark.parametrize("size", [1, 5, 64])
def test_full_rank_distance_agrees_with_sqrtm_of_the_product(size):
    a = statistics(random_features(0, 500, size, size))
    b = statistics(random_features(1, 400, size, size))
    product = np.atleast_2d(scipy.linalg.sqrtm(a.covariance @ b.covariance))
    want = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance - 2.0 * np.real(product))
    np.testing.assert_allclose(frechet_distance(a, b), want, rtol=1e-9)


@pytest.mark.parametrize(
    "count,rank", [(20, 64), (500, 7), (2, 64)], ids=["few-images", "low-rank", "two-images"]
)
def test_rank_deficient_distance_agrees_with_scipy(count, rank):
    a = statistics(random_features(0, count, 64, rank))
    b = statistics(random_features(1, 300, 64, 64))
    assert np.linalg.matrix_rank(a.covariance) < 64
    np.testing.assert_allclose(frechet_distance(a, b), scipy_distance(b, a), rtol=1e-6)
    np.testing.assert_allclose(frechet_distance(b, a), frechet_distance(a, b), rtol=1e-10)


def test_both_rank_deficient_agree_with_the_trace_norm_of_the_centred_features():
    # tr (S S')^1/2 is the trace norm of X X'^T / sqrt((n - 1)(m - 1)), with X the centred features.
    x, y = random_features(0, 20, 64, 64), random_features(1, 30, 64, 9)
    a, b = statistics(x), statistics(y)
    product = (x - a.mean) @ (y - b.mean).T / np.sqrt(19 * 29)
    cross = np.sum(scipy.linalg.svdvals(product))
    want = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance) + np.trace(b.covariance) - 2.0 * cross
    np.testing.assert_allclose(frechet_distance(a, b), want, rtol=1e-10)


def test_commuting_covariances_have_their_closed_form():
    rotation = scipy.linalg.qr(np.random.default_rng(2).normal(size=(4, 4)))[0]
    first, second = np.array([4.0, 1.0, 0.0, 9.0]), np.array([1.0, 0.0, 0.0, 16.0])
    a = Statistics(np.zeros(4), rotation @ np.diag(first) @ rotation.T, 10)
    b = Statistics(np.full(4, 0.5), rotation @ np.diag(second) @ rotation.T, 10)
    want = 4 * 0.25 + np.sum((np.sqrt(first) - np.sqrt(second)) ** 2)
    np.testing.assert_allclose(frechet_distance(a, b), want, rtol=1e-12)


def test_a_set_has_distance_zero_to_itself():
    for rank in (3, 40):
        a = statistics(random_features(0, 60, 40, rank))
        assert frechet_distance(a, a) <= 1e-12 * np.trace(a.covariance)


def test_a_constant_feature_counts_only_by_its_mean():
    x, y = random_features(0, 50, 6, 6), random_features(1, 50, 6, 6)
    plain = frechet_distance(statistics(x), statistics(y))
    x, y = np.pad(x, ((0, 0), (0, 1)), constant_values=2.0), np.pad(y, ((0, 0), (0, 1)), constant_values=5.0)
    np.testing.assert_allclose(frechet_distance(statistics(x), statistics(y)), plain + 9.0, rtol=1e-10)


def test_statistics_are_unbiased_and_float64():
    x = random_features(3, 12, 5, 5).astype(np.float32)
    s = statistics(x, name="x")
    np.testing.assert_allclose(s.covariance, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-12)
    assert (s.mean.dtype, s.covariance.dtype, s.count, s.name) == (np.float64, np.float64, 12, "x")


@pytest.mark.parametrize(
    "bad,message",
    [
        (np.zeros((1, 3)), "samples needs at least 2 images"),
        (np.zeros((0, 3)), "samples needs at least 2 images"),
        (np.zeros(3), r"samples must be an array \[N, F\]"),
        (np.array([[0.0, np.nan], [1.0, 2.0], [np.inf, 0.0]]), "in 2 of 3 rows"),
    ],
)
def test_bad_features_are_refused_in_one_sentence(bad, message):
    with pytest.raises(ValueError, match=message) as error:
        statistics(bad, name="samples")
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


def test_bad_statistics_are_refused():
    a = statistics(random_features(0, 9, 4, 4), name="a")
    with pytest.raises(ValueError, match="got 4 in a and 3 in b"):
        frechet_distance(a, statistics(random_features(0, 9, 3, 3), name="b"))
    with pytest.raises(ValueError, match="NaN or infinite mean"):
        frechet_distance(a, Statistics(np.full(4, np.nan), np.eye(4), 9))
    with pytest.raises(ValueError, match=r"covariance of shape \[3, 3\]"):
        frechet_distance(a, Statistics(np.zeros(4), np.eye(3), 9))


def test_mean_and_standard_error_over_seeds():
    mean, se = frechet.mean_and_se([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5
    np.testing.assert_allclose(se, np.sqrt(5.0 / 3.0) / 2.0, rtol=1e-12)
    mean, se = frechet.mean_and_se([0.3])
    assert mean == 0.3 and np.isnan(se)
    for bad in ([], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="at least one finite number"):
            frechet.mean_and_se(bad)


def test_floor_of_one_distribution_falls_as_one_over_the_images():
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(20000, 4)), rng.normal(size=(1200, 4))
    floor = frechet.frechet_floor(train, test, parts=(1, 2, 4, 8, 16), repeats=40)
    assert floor.counts == (1200, 600, 300, 150, 75) and floor.count == 1200
    assert floor.distance == frechet_distance(statistics(test), statistics(train))
    # Leading order for a standard normal in F dimensions: F / n from the mean and F (F + 1) / (4 n)
    # from the covariance (d is a quarter of the squared difference of covariances), so 4 + 5 here.
    np.testing.assert_allclose(floor.slope, 9.0, rtol=0.15)
    assert abs(floor.limit) < 0.01
    np.testing.assert_allclose(floor.at(300), floor.means[2], rtol=0.1)


def test_floor_of_a_stratified_test_set_counts_the_chance_of_class_shares():
    # Truth by simulation: independent draws from the mixture, against the floor from one stratified pool.
    rng = np.random.default_rng(0)
    centres = 6.0 * rng.normal(size=(5, 4))

    def draw(labels):
        return centres[labels] + rng.normal(size=(len(labels), 4))

    train, labels = draw(rng.integers(5, size=50000)), np.repeat(np.arange(5), 400)
    reference = statistics(train)
    floors = [frechet.frechet_floor(train, draw(labels), test_labels=labels, seed=i) for i in range(15)]
    chance = [frechet_distance(statistics(draw(rng.integers(5, size=2000))), reference) for _ in range(800)]
    at, at_se = frechet.mean_and_se([f.at(2000) for f in floors])
    want, want_se = frechet.mean_and_se(chance)
    assert abs(at - want) < 4.0 * np.hypot(at_se, want_se) and np.hypot(at_se, want_se) < 0.1 * want
    # The pool itself, with its shares fixed, lies far below.
    assert np.mean([f.distance for f in floors]) < 0.25 * want
    assert floors[0].counts == (2000, 1000, 665, 500)
    with pytest.raises(ValueError, match="one class per held-out image"):
        frechet.frechet_floor(train, train[:50], test_labels=labels)


def test_subsets_are_disjoint_and_complete():
    x = np.arange(12.0)[:, None]
    reference = Statistics(np.zeros(1), np.zeros((1, 1)), 2)
    distances = frechet.subset_distances(reference, x, 3)
    # Against a point mass at 0 the distance is mean^2 + variance; their sums identify the partition.
    order = np.random.default_rng(0).permutation(12).reshape(4, 3)
    assert sorted(order.ravel()) == list(range(12))
    np.testing.assert_allclose(distances, [o.mean() ** 2 + o.var(ddof=1) for o in order])
    for count in (1, 13):
        with pytest.raises(ValueError, match="from 2 to the 12 images"):
            frechet.subset_distances(reference, x, count)
    with pytest.raises(ValueError, match="ascending"):
        frechet.frechet_floor(x, x, parts=(2, 1))


def test_floor_of_the_digits(features):
    labels = digits.load("test").labels
    floor = frechet.frechet_floor(features["train"], features["test"], test_labels=labels)
    assert floor.counts == (360, 180, 120, 90)
    np.testing.assert_allclose(floor.distance, floor.means[0], rtol=1e-9)
    assert floor.means[0] < floor.means[1] < floor.means[2] < floor.means[3]
    # The split is stratified, so independent images lie above the test set at the same number.
    assert floor.distance < floor.at(360) and floor.at(1000) < floor.at(360)
    # Real images are far nearer to the training set than a single digit repeated would be.
    one_class = features["test"][labels == 1]
    assert frechet_distance(statistics(one_class), statistics(features["train"])) > 5.0 * floor.means[-1]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_shipped_classifier_is_right_on_98_percent_of_held_out_images(classifier, split):
    data = digits.load(split)
    measured = metric.accuracy(classifier, data.images, data.labels)
    assert measured >= 0.98
    recorded = checkpoint.load_metadata(metric.shipped_path("digits_classifier"))
    np.testing.assert_allclose(measured, recorded[f"{split}_accuracy"], atol=1.5 / len(data.images))


def test_shipped_asset_is_small_and_says_where_it_comes_from():
    path = pathlib.Path(metric.shipped_path("digits_classifier"))
    assert sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) <= 300_000
    record = checkpoint.load_metadata(str(path))
    assert record["command"] == "python main.py --config configs/digits_classifier.py"
    assert {"steps", "step_kept", "seed", "validation_accuracy", "test_accuracy"} <= record.keys()


def test_features_do_not_depend_on_the_batch(classifier, features):
    images = digits.load("test").images
    alone = np.concatenate([metric.features(classifier, images[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(alone, features["test"][:3], rtol=1e-5, atol=1e-5)
    assert features["test"].shape == (len(images), 64) and features["test"].dtype == np.float32


def test_head_on_features_gives_the_logits(classifier, features):
    want = features["test"] @ np.asarray(classifier.head.kernel[...]) + np.asarray(classifier.head.bias[...])
    np.testing.assert_allclose(
        metric.logits(classifier, digits.load("test").images), want, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    "images,message",
    [
        (np.zeros((2, 8, 8, 1), np.float32), "must be uint8"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"shape \[B, 8, 8, 1\]"),
        (np.full((2, 8, 8, 1), 17, np.uint8), "17 grey levels"),
        (np.zeros((0, 8, 8, 1), np.uint8), "at least one image"),
    ],
)
def test_bad_images_are_refused(classifier, images, message):
    with pytest.raises(ValueError, match=message):
        metric.features(classifier, images)


def test_score_has_its_limiting_values():
    certain = np.where(np.eye(10, dtype=bool), 0.0, -200.0)
    np.testing.assert_allclose(metric.score_of_logits(certain), 10.0, rtol=1e-12)
    np.testing.assert_allclose(metric.score_of_logits(np.tile(certain[:1], (5, 1))), 1.0, rtol=1e-12)
    np.testing.assert_allclose(metric.score_of_logits(np.ones((5, 10))), 1.0, rtol=1e-12)
    # Two images, p = (q, 1 - q) and its mirror: KL to the even marginal is log 2 - H(q).
    q = 0.2
    p = np.array([[q, 1 - q], [1 - q, q]])
    entropy = -(q * np.log(q) + (1 - q) * np.log(1 - q))
    np.testing.assert_allclose(metric.score_of_logits(np.log(p) + 3.0), 2.0 * np.exp(-entropy), rtol=1e-12)
    with pytest.raises(ValueError, match="not finite"):
        metric.score_of_logits(np.full((2, 10), np.nan))


def test_score_of_real_digits_is_above_that_of_noise(classifier):
    noise = np.random.default_rng(0).integers(0, 17, size=(360, 8, 8, 1)).astype(np.uint8)
    assert metric.classifier_score(classifier, noise) >= 1.0
    assert metric.classifier_score(classifier, noise) < metric.classifier_score(
        classifier, digits.load("test").images
    )


def test_names_claim_no_imagenet_metric():
    assert metric.frechet_name("digits") == "Fréchet distance, digits classifier"
    assert metric.SCORE_NAME == "classifier score"


def test_shifts_move_the_image_and_fill_with_background():
    image = np.arange(1, 65, dtype=np.uint8).reshape(1, 8, 8, 1) % 17
    moved = training.shifted(np.repeat(image, 2, axis=0), np.array([[1, -1], [0, 0]]))
    np.testing.assert_array_equal(moved[0, 1:, :-1], image[0, :-1, 1:])
    assert not moved[0, 0].any() and not moved[0, :, -1].any()
    np.testing.assert_array_equal(moved[1], image[0])


def test_smoothed_loss_is_the_mixed_cross_entropy():
    model = metric.build(metric.DIGITS, seed=0)
    data = digits.load("validation")
    images, labels = data.images[:16], data.labels[:16]
    log_p = np.asarray(jax.nn.log_softmax(metric.logits(model, images)))
    smoothed = jax.jit(functools.partial(training.loss, smoothing=0.1))
    want = np.mean(-0.9 * log_p[np.arange(16), labels] - 0.1 * log_p.mean(axis=1))
    np.testing.assert_allclose(smoothed(model, images, labels), want, rtol=1e-5)


def splits():
    return {split: digits.load(split) for split in digits.SPLITS}


def test_short_training_learns_is_saved_and_is_a_function_of_its_seed(tmp_path):
    path, seen = str(tmp_path / "classifier"), []
    arguments = {"steps": 60, "batch_size": 64, "learning_rate": 3e-3, "seed": 7}
    data = splits()
    first = training.train_classifier(
        data, **arguments, path=path, on_progress=lambda step, m: seen.append(step)
    )
    second = training.train_classifier(data, **arguments)
    assert first.metadata == second.metadata and seen == [60]
    assert first.metadata["validation_accuracy"] > 0.5
    json.dumps(first.metadata)
    for a, b in zip(
        jax.tree.leaves(first.classifier), jax.tree.leaves(metric.load_classifier(path)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert checkpoint.load_metadata(path)["seed"] == 7


@pytest.mark.parametrize("key,value", [("steps", 0), ("batch_size", 0), ("learning_rate", 0.0)])
def test_bad_training_settings_are_refused(key, value):
    with pytest.raises(ValueError, match=f"classifier.{key}"):
        training.train_classifier({}, **{key: value})


def test_a_diverging_training_says_so():
    with pytest.raises(ValueError, match=r"lower classifier\.learning_rate"):
        training.train_classifier(splits(), steps=3, batch_size=4, learning_rate=1e30)
