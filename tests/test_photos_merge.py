"""The photos end to end: the classifier that judges them, and the run that merges their experts."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import photos_merge
from jaxmerge import checkpoint, noise, settings
from jaxmerge.data import load
from jaxmerge.experts import io
from jaxmerge.metrics import classifier
from jaxmerge.tasks.quality import ClassifierJudge
from jaxmerge.training import classifier as training
from jaxmerge.training import recipes

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def network():
    return classifier.shipped("photos_classifier")


def test_the_shipped_classifier_names_the_photo_of_most_held_out_crops(network):
    data = load("photos", "validation")
    measured = classifier.accuracy(network, data.images, data.labels)
    record = checkpoint.load_metadata(classifier.shipped_path("photos_classifier"))
    assert measured == pytest.approx(record["validation_accuracy"], abs=1.5 / len(data))
    assert measured > 0.8 and record["test_accuracy"] > 0.8
    assert record["command"] == "python main.py --config configs/photos_classifier.py"
    assert record["network"]["shape"] == [32, 32, 3]


def test_the_distance_is_named_after_the_photos_and_knows_photos_from_noise(network):
    data = load("photos", "validation")
    judge = ClassifierJudge(network, data)
    assert judge.definition.startswith(
        "Fréchet distance, photos classifier: between the 64 penultimate features"
    )
    noise = np.random.default_rng(0).integers(0, 256, data.images.shape).astype(np.uint8)
    real, random = (judge.scores(images, 10**6)["frechet"] for images in (data.images, noise))
    assert real == pytest.approx(0.0, abs=1e-3) and random > 10


def test_a_classifier_of_other_images_is_refused(network):
    with pytest.raises(ValueError, match=r"must have the shape \[B, 32, 32, 3\], got \[1, 8, 8, 1\]"):
        ClassifierJudge(network, load("digits", "train"))


@pytest.mark.parametrize("shape", [(4, 4, 1), (16, 16, 3)])
def test_the_network_takes_images_of_any_power_of_two(shape):
    arguments = {"levels": 256, "shape": shape, "classes": 5, "width": 4, "num_features": 7}
    net = classifier.build(arguments, seed=0)
    images = np.random.default_rng(1).integers(0, 256, (3, *shape)).astype(np.uint8)
    assert classifier.features(net, images).shape == (3, 7) and classifier.logits(net, images).shape == (3, 5)


@pytest.mark.parametrize("shape", [(6, 6, 1), (8, 4, 1), (2, 2, 1)])
def test_the_network_refuses_other_images(shape):
    with pytest.raises(ValueError, match="must be square with a side of 4, 8, 16"):
        classifier.build({"levels": 17, "shape": shape, "classes": 3})


def test_variation_moves_mirrors_and_never_invents_pixels():
    images = np.arange(2 * 8 * 8, dtype=np.uint8).reshape(2, 8, 8, 1)
    down = training.shifted(images, np.array([[2, 0], [0, 0]]), "mirror")
    np.testing.assert_array_equal(down[0, 2:], images[0, :-2])
    np.testing.assert_array_equal(down[0, :2], images[0, [2, 1]])
    np.testing.assert_array_equal(down[1], images[1])
    flips = training.Augmentation(shift=0, flip=True)(np.repeat(images[:1], 200, 0), np.random.default_rng(0))
    same = np.all(flips == images[0], axis=(1, 2, 3))
    mirrored = np.all(flips == images[0, :, ::-1], axis=(1, 2, 3))
    assert np.all(same ^ mirrored) and 60 < mirrored.sum() < 140
    with pytest.raises(ValueError, match=r"classifier\.fill 'background' or 'mirror', got 1 and 'wrap'"):
        training.Augmentation(fill="wrap")


@pytest.mark.parametrize("name", ["photos_vdm", "photos_edm"])
def test_a_shipped_expert_says_how_it_was_trained(name):
    record = checkpoint.load_metadata(io.shipped_path(name))
    config = settings.parse(["main.py", "--config", f"configs/{name}.py"]).config
    assert record["command"] == f"python main.py --config configs/{name}.py"
    data = load("photos", "train").record
    assert record["data"] == {key: data[key] for key in ("name", "split", "images", "sha256")}
    asked = config.training.to_dict()
    for key in (
        "steps",
        "batch_size",
        "learning_rate",
        "weight_decay",
        "b2",
        "clip",
        "ema_decay",
        "eval_repeats",
    ):
        assert record[key] == asked[key], key
    assert record["expert"] == recipes.description(config.expert.to_dict(), load("photos", "train"))
    assert record["steps_done"] == record["steps"]


@pytest.mark.parametrize(
    ("gamma", "better", "worse"), [(-9.0, "photos_vdm", "photos_edm"), (2.0, "photos_edm", "photos_vdm")]
)
def test_the_shipped_experts_complement_each_other_on_held_out_crops(gamma, better, worse):
    data = load("photos", "validation").take(24)
    scale = io.shipped(better).pixel_scale
    x = scale.encode(jnp.asarray(data.images))
    eps = noise.image_normal(jax.random.key(7), jnp.asarray(data.index), x.shape[1:])
    z = noise.alpha(gamma) * x + noise.sigma(gamma) * eps

    def errors(name):
        return np.mean((np.asarray(io.shipped(name).eps_hat(z, gamma)) - eps) ** 2, axis=(1, 2, 3))

    apart = errors(worse) - errors(better)
    assert apart.mean() > 2 * apart.std(ddof=1) / len(apart) ** 0.5


def test_the_config_has_one_variant():
    small, whole = photos_merge.get_config("small"), photos_merge.get_config()
    assert small.likelihood.n_images < whole.likelihood.n_images
    assert small.metric.classifier == "photos_classifier" and small.data.name == "photos"
    with pytest.raises(ValueError, match="has the variant 'small' only, got 'large'"):
        photos_merge.get_config("large")


def untrained(path: pathlib.Path, kind: str) -> pathlib.Path:
    """The smallest networks for photos, on disk."""
    common = {"levels": 256, "shape": (32, 32, 3), "width": 4, "dropout": 0.0}
    if kind == "vdm":
        description = recipes.vdm_description(**common, depth=1, fourier=(6, 7), mid_attention=False)
    else:
        description = recipes.edm_description(
            **common, channel_mult=(1, 1), num_blocks=1, attn_resolutions=()
        )
    record = {"expert": description, "data": load("photos", "train").record}
    io.save_expert(path / kind, io.build(description, seed=0), record)
    return path / kind


@pytest.mark.slow
def test_the_run_goes_through_with_untrained_experts(tmp_path):
    smallest = {
        "experts.low": untrained(tmp_path, "vdm"),
        "experts.high": untrained(tmp_path, "edm"),
        "data.n_validation": 8,
        "merge.candidate_step": 0.25,
        "merge.etas": "0.5",
        "likelihood.n_images": 2,
        "likelihood.batch_size": 2,
        "likelihood.tolerance": 0.5,
        "bound.n_images": 8,
        "bound.batch_size": 8,
        "bound.repeats": 2,
        "sampling.heun_steps": 3,
        "sampling.n_samples": 4,
        "sampling.n_samples_other": 4,
        "sampling.batch_size": 4,
        "report.columns": 4,
    }
    command = [sys.executable, "main.py", "--config", "configs/photos_merge.py:small"]
    command += [
        "--workdir",
        str(tmp_path / "run"),
        *(f"--config.{key}={value}" for key, value in smallest.items()),
    ]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-500:] + ended.stdout[-500:]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {row["model"] for row in results["rows"]} >= {"VDM", "EDM"}
    assert "Fréchet distance, photos classifier" in (tmp_path / "run" / "report.html").read_text()
