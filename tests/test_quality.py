"""How a run judges samples: FID, KID and Inception score on a cheap stand-in, their names, definitions and refusals."""

import contextlib
import dataclasses
import json
import re
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import cifar10_merge, default, photos_merge
from jaxmerge import app, checkpoint, data
from jaxmerge.experts import io
from jaxmerge.metrics import extractor, inception, lpips, reconstruction
from jaxmerge.noise import PixelScale
from jaxmerge.report import tables
from jaxmerge.tasks import quality, reconstructions, samples, summary, wording
from jaxmerge.training import recipes
from tests import toys

ROOT = Path(__file__).resolve().parent.parent
SIZE = 24
PIXELS = np.random.default_rng(0).normal(size=(8 * 8 * 3, SIZE)).astype(np.float32) / 800
HEAD = np.random.default_rng(1).normal(size=(SIZE, 1008)).astype(np.float32)
PUBLISHED = "ab" * 32


def stand_in(images) -> inception.Features:
    """Features of 32x32 images from every fourth pixel, the same whatever the batch."""
    few = np.reshape(images[:, ::4, ::4], (len(images), -1)).astype(np.float32)
    pool = np.maximum(np.einsum("np,pf->nf", few, PIXELS), 0)
    return inception.Features(pool, pool, pool, pool, np.einsum("nf,fk->nk", pool, HEAD))


class FakeRun:
    """Keeps nothing and shows nothing."""

    def stage(self, name, compute):
        return compute()

    def forget(self, prefix):
        pass

    @contextlib.contextmanager
    def progress(self, total, what, unit="images"):
        yield lambda n=1: None


@pytest.fixture
def measured_images(monkeypatch):
    """A stand-in for Inception; numbers of images that it has seen."""
    seen = []

    def features(images):
        seen.append(len(images))
        return stand_in(images)

    def load(path):
        return extractor.Extractor(features, PUBLISHED, published=path == "published")

    monkeypatch.setattr(extractor, "load", load)
    return seen


def judge_of(tmp_path, network="published", name="mock32", **changes) -> quality.Judge:
    config = default.get_config()
    asked = {"kind": "inception", "inception": network, "reference": str(tmp_path / "kept")} | changes
    config.metric.update(asked)
    return quality.judge(config, data.load(name, "train"), FakeRun().progress)


def noise_images(count: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 64, (count, 32, 32, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def experts(tmp_path_factory) -> dict[str, str]:
    """The smallest networks for 32x32 images, on disk: keys of a config's section and their paths."""
    common = {"levels": 256, "shape": (32, 32, 3), "width": 4, "dropout": 0.0}
    small = {"channel_mult": (1, 1), "num_blocks": 1, "attn_resolutions": ()}
    descriptions = {
        "low": recipes.vdm_description(**common, depth=1, fourier=(6, 7), mid_attention=False),
        "high": recipes.edm_description(**common, **small),
    }
    folder = tmp_path_factory.mktemp("experts")
    for name, description in descriptions.items():
        record = {"expert": description, "data": data.load("mock32", "train").record}
        io.save_expert(folder / name, io.build(description, seed=0), record)
    return {name: str(folder / name) for name in descriptions}


@pytest.mark.parametrize(
    ("network", "names", "others"),
    [
        (
            "published",
            ("fid", "FID", "FID"),
            {"inception_score": "Inception score", "kid": "KID"},
        ),
        (
            "fresh",
            ("frechet", "Fréchet, Inception", "Fréchet distance, Inception with other weights"),
            {
                "inception_score": "score of Inception with other weights",
                "kid": "kernel distance, Inception with other weights",
            },
        ),
    ],
)
@pytest.mark.usefixtures("measured_images")
def test_scores_are_called_fid_kid_and_inception_score_with_the_published_weights_only(
    tmp_path, network, names, others
):
    judge = judge_of(tmp_path, network)
    assert tuple(judge.names) == names and judge.score_names == others
    assert quality.describe(judge) == {"quality": judge.names._asdict(), "score_names": others}
    found = judge.scores(noise_images(40), test_count=8)
    assert list(found) == [names[0], "inception_score", "kid"]
    assert found[names[0]] > 0 and found["kid"] > 0 and found["inception_score"] >= 1
    real = judge.scores(data.load("mock32", "train").images, test_count=8)
    assert real[names[0]] < 1e-6 * found[names[0]] and real["kid"] < found["kid"]
    assert judge.floor(data.load("mock32", "test"), 100)["n_images"] == 8
    if network == "fresh":
        shown = [*judge.definitions.values(), *judge.score_names.values(), *judge.names]
        assert not re.search(r"FID|KID|Inception score", " ".join(shown))


@pytest.mark.usefixtures("measured_images")
def test_every_score_says_how_it_was_measured(tmp_path):
    judge = judge_of(tmp_path)
    said, scores = judge.definitions, judge.scores(noise_images(40), test_count=8)
    assert set(scores) <= set(said)
    assert all(text.endswith(".") for text in said.values())
    for column in ("fid", "inception_score", "kid"):
        assert f"weights {PUBLISHED[:12]}, bilinear to 299 x 299" in said[column]
    identity = data.load("mock32", "train").identity
    for column in ("fid", "kid"):
        assert f"mock32 train (identity {identity[:12]})" in said[column]
    assert "mean over 10 splits" in said["inception_score"] and "no reference" in said["inception_score"]
    assert "kernel (a.b / 2048 + 1)^3" in said["kid"] and "blocks of 32 images" in said["kid"]
    assert "to 32 images of mock32 train" in said["kid"] and judge.notes == []


@pytest.mark.usefixtures("measured_images")
def test_the_error_of_kid_over_blocks_is_kept_where_there_are_several(tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "BLOCK", 16)
    found = judge_of(tmp_path).scores(noise_images(40), test_count=8)
    assert list(found)[-1] == "kid_block_error" and 0 < found["kid_block_error"] < found["kid"]


def test_the_reference_is_measured_once_and_kept(tmp_path, measured_images):
    first = judge_of(tmp_path)
    assert sum(measured_images) == 32
    again = judge_of(tmp_path)
    assert sum(measured_images) == 32
    np.testing.assert_array_equal(first.reference.features, again.reference.features)
    assert [f.name for f in (tmp_path / "kept").iterdir()] == [f"mock32_train_{PUBLISHED[:12]}"]


@pytest.mark.usefixtures("measured_images")
def test_kid_is_left_out_and_told_where_the_reference_has_no_features(tmp_path):
    path = tmp_path / "cifar10-32x32.npz"
    np.savez(path, mu=np.zeros(2048), sigma=np.eye(2048))
    judge = judge_of(tmp_path, reference=str(path))
    assert set(judge.definitions) == {"fid", "inception_score"}
    (note,) = judge.notes
    assert note.startswith(
        "KID is left out: it needs the features of every reference image, and cifar10-32x32 ("
    )
    few = judge_of(tmp_path)
    few.reference = dataclasses.replace(few.reference, features=None)
    assert list(few.scores(noise_images(40), test_count=8)) == ["fid", "inception_score"]


@pytest.mark.usefixtures("measured_images")
def test_few_samples_are_refused_unless_asked_for(tmp_path):
    judge = judge_of(tmp_path)
    with pytest.raises(ValueError, match=r"FID needs at least 2048 samples per seed, got 2047; .*allow_few"):
        judge.check(2047)
    judge.check(2048)
    judge = judge_of(tmp_path, allow_few=True)
    judge.check(10)
    with pytest.raises(ValueError, match=r"Inception score needs at least 10 samples per seed, .* got 9"):
        judge.check(9)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seeds": 2}, r"sampling\.seeds=2 with sampling\.n_samples=50000"),
        ({"seeds_other": 1}, r"sampling\.seeds_other=1 with sampling\.n_samples_other=50000"),
        ({"ancestral_seeds": 1}, r"sampling\.ancestral_seeds=1 with sampling\.ancestral_samples=50000"),
        (
            {"n_samples_other": 0, "seeds_other": 1},
            r"sampling\.seeds_other=1 with sampling\.ancestral_samples_other=50000",
        ),
    ],
)
@pytest.mark.usefixtures("measured_images")
def test_few_seeds_are_refused_unless_asked_for(tmp_path, changes, told):
    config = cifar10_merge.get_config()
    asked = config.sampling
    quality.check_counts(judge_of(tmp_path), asked)
    asked.update(changes)
    with pytest.raises(ValueError, match=rf"FID needs at least 3 seeds, got {told}; ask for more") as raised:
        quality.check_counts(judge_of(tmp_path), asked)
    assert "\n" not in str(raised.value)
    quality.check_counts(judge_of(tmp_path, allow_few=True), asked)
    asked.update(ancestral_samples=0, ancestral_samples_other=0, n_samples_other=0, seeds=3)
    quality.check_counts(judge_of(tmp_path), asked)
    quality.check_counts(None, asked)


def test_images_that_inception_would_take_for_others_are_refused(tmp_path, measured_images):
    with pytest.raises(ValueError, match=r"with 256 grey levels, digits has 17 in 1 channel.*=classifier"):
        judge_of(tmp_path, name="digits")
    assert measured_images == []


def test_the_classifiers_scores_say_how_they_were_measured():
    config = photos_merge.get_config("small")
    train = data.load("photos", "validation")
    judge = quality.judge(config, train, FakeRun().progress)
    found = judge.scores(train.images, test_count=len(train))
    assert set(found) == set(judge.definitions) and judge.notes == []
    for text in judge.definitions.values():
        assert re.search(r"[Ww]eights [0-9a-f]{12}, images not resized", text)
        assert "no reference" in text or f"photos validation (identity {train.identity[:12]})" in text


def stages(**counts) -> dict:
    """Measured samples of mock scores: stage's name without its prefix to (thresholds, images)."""
    score = {"fid": 2.0, "inception_score": 9.0, "nfe": 35.0, "kid_block_error": 0.1}
    return {
        f"samples_{name}": {"etas": np.zeros(etas), "count": count, "scores": {"EDM": score}}
        for name, (etas, count) in counts.items()
    }


@pytest.mark.usefixtures("measured_images")
def test_a_runs_definitions_say_how_many_samples_of_which_seeds(tmp_path):
    config, judge = cifar10_merge.get_config(), judge_of(tmp_path)
    drawn = stages(ode_0_2x50=(2, 50), ode_1_1x50=(1, 50), ancestral_0_2x40=(2, 40), ancestral_1_2x40=(2, 40))
    measured = {"etas": [0.2, 0.4], "samples": drawn | {"floor": {}}}
    said = wording.score_definitions(config, judge, measured)
    assert list(said) == ["fid", "inception_score", "kid_block_error"]
    for column, text in said.items():
        assert text == (
            f"{judge.definitions[column]} Samples: ode, 50 per seed, seeds 0, 1 (seeds 0 for thresholds that are not "
            "proposed); ancestral, 40 per seed, seeds 0, 1, all of the run's seed 0; ± is the standard error over "
            "seeds, where there are several."
        )
    assert wording.score_definitions(config, judge, {"etas": []}) == {"fid": judge.definitions["fid"]}
    found = summary.seeds(measured)
    assert [(row["sampler"], row["quantity"]) for row in found] == [
        (sampler, quantity) for sampler in ("ode", "ancestral") for quantity in ("fid", "inception_score")
    ]
    assert all(row["seed_numbers"] == [0, 1] for row in found)


def test_the_table_has_the_scores_that_rows_have():
    row = {"model": "EDM", "eta": None, "bpd": 2.0, "sampler": "ode", "fid": 2.0, "n_samples": 50}
    results = {"rows": [row], "quality": {"column": "fid", "short": "FID", "long": "FID"}}
    assert not {"KID, ode", "Inception score, ode"} & set(tables.columns(results)[0])
    row |= {"kid": 1.234e-5, "inception_score": 9.5, "inception_score_se": 0.02}
    row_ancestral = {key: row[key] for key in ("model", "eta")} | {
        "sampler": "ancestral",
        "inception_score": 8.0,
    }
    results["rows"].append(row_ancestral)
    (header, cells) = tables.columns(results)
    assert header[3:8] == [
        "FID, ode",
        "FID, ancestral",
        "Inception score, ode",
        "Inception score, ancestral",
        "KID, ode",
    ]
    assert cells[0][5:8] == ["9.500 ± 0.020", "8", "1.234e-05"]
    assert len(cells[0]) == len(header)
    results["score_names"] = {"kid": "kernel distance"}
    assert "kernel distance, ode" in tables.columns(results)[0]


def setup_of(judge=None) -> types.SimpleNamespace:
    """Two cheap experts of mock32's images."""
    facts = {"pixel_scale": PixelScale(256), "image_shape": (32, 32, 3)}
    low, high = (
        toys.Recorder(slope, gamma_range=r, **facts) for slope, r in ((0.3, toys.LOW), (0.6, toys.HIGH))
    )
    keys = {use: jax.random.key(i) for i, use in enumerate(("sampling", "bound"))}
    return types.SimpleNamespace(low=low, high=high, test=data.load("mock32", "test"), keys=keys, judge=judge)


@pytest.mark.usefixtures("measured_images")
def test_rows_of_a_run_have_fid_kid_and_inception_score_of_three_seeds(tmp_path):
    config, judge = default.get_config(), judge_of(tmp_path, allow_few=True)
    config.sampling.update(sampler=("heun",), heun_steps=2, n_samples=12, n_samples_other=12, seeds_other=3)
    quality.check_counts(judge, config.sampling)
    drawn = samples.measure_samples(config, FakeRun(), setup_of(judge), [0.5], None)
    measured = {"etas": [0.5], "samples": drawn}
    rows = summary.rows(config, measured)
    assert [row["model"] for row in rows] == ["EDM", "merged", "VDM"]
    for row in rows:
        assert row["n_seeds"] == 3 and row["n_samples"] == 12
        assert all(np.isfinite([row[c], row[f"{c}_se"]]).all() for c in ("fid", "kid", "inception_score"))
    header, _ = tables.columns({"rows": rows, **quality.describe(judge)})
    assert header[3:6] == ["FID, heun", "Inception score, heun", "KID, heun"]
    said = wording.score_definitions(config, judge, measured)
    assert set(said) == {"fid", "kid", "inception_score"}
    assert all("heun, 12 per seed, seeds 0, 1, 2, all of" in text for text in said.values())
    assert drawn["floor"]["n_images"] == 8


@pytest.mark.slow
@pytest.mark.usefixtures("own_folder", "measured_images")
def test_a_run_prints_fid_kid_and_inception_score_with_their_definitions(capsys, experts):
    parts = ["likelihood.n_images=0", "bound.n_images=0", "reconstruction.n_images=0", "cost.repeats=0"]
    parts += [f"experts.{name}={path}" for name, path in experts.items()]
    parts += ["sampling.n_samples=12", "sampling.n_samples_other=12", "sampling.batch_size=12"]
    parts += ["sampling.seeds=3", "sampling.seeds_other=3", "report.columns=8"]
    parts += ["metric.kind=inception", "metric.inception=published"]
    arguments = [
        "main.py",
        "--config",
        str(ROOT / "configs" / "cifar10_merge.py") + ":smoke",
        "--workdir",
        "w",
    ]
    arguments += [f"--config.{part}" for part in parts]
    assert app.main(arguments) == 1
    assert "FID needs at least 2048 samples per seed, got 12" in capsys.readouterr().err
    assert app.main([*arguments, "--config.metric.allow_few=True"]) == 0
    results = json.loads(Path("w/results.json").read_text())
    for row in results["rows"]:
        assert row["n_seeds"] == 3 and row["fid"] > 0 and row["fid_se"] > 0
        assert row["inception_score"] >= 1 and np.isfinite([row["kid"], row["kid_se"]]).all()
    assert len(results["rows"]) == 3
    for column in ("fid", "inception_score", "kid"):
        assert "heun, 12 per seed, seeds 0, 1, 2" in results["definitions"][column]
    assert {row["quantity"] for row in results["seeds"]} == {"fid", "inception_score", "kid"}
    page = Path("w/report.html").read_text()
    assert "<th>KID, heun</th>" in page and "<th>Inception score, heun</th>" in page


@pytest.mark.slow
def test_the_whole_network_judges_samples(tmp_path):
    checkpoint.save(
        tmp_path / "net", inception.parameters(inception.build(0)), {"network": {"kind": "inception"}}
    )
    config = default.get_config()
    config.metric.update(kind="inception", inception=str(tmp_path / "net"), reference=str(tmp_path / "kept"))
    judge = quality.judge(config, data.load("mock32", "train").take(12), FakeRun().progress)
    found = judge.scores(noise_images(10), test_count=8)
    assert judge.names.column == "frechet" and found["frechet"] > 0 and np.isfinite(found["kid"])
    assert judge.reference.features.shape == (12, 2048)


def test_reconstructions_have_the_lpips_of_their_images(tmp_path):
    net = lpips.build("alex", 0)
    checkpoint.save(
        tmp_path / "lpips", lpips.parameters(net), {"network": {"kind": "lpips", "backbone": "alex"}}
    )
    config, made = default.get_config(), setup_of()
    config.reconstruction.update(n_images=6, gammas=(-3.0,), batch_size=6, lpips=str(tmp_path / "lpips"))
    reconstructions.check(config, made)
    found = reconstructions.measure(config, FakeRun(), made, 0.5)
    rows = {row["model"]: row for row in reconstructions.entries(config, found, 0.5)}
    images = made.test.take(6)
    key = jax.random.fold_in(made.keys["bound"], reconstructions.NOISE)
    for model, expert in (("EDM", made.high), ("VDM", made.low)):
        done = reconstruction.reconstruct(expert, images.images, -3.0, key=key, index=images.index)
        distances = lpips.distances(net, images.images, done, scale=made.low.pixel_scale)
        assert rows[model]["lpips"] == pytest.approx(distances.mean(), rel=1e-5) and distances.mean() > 0
        assert rows[model]["lpips_se"] == pytest.approx(distances.std(ddof=1) / 6**0.5, rel=1e-4)
    assert rows["merged"]["lpips"] in (rows["EDM"]["lpips"], rows["VDM"]["lpips"])
    assert "LPIPS 0.1 with AlexNet" in found["definition"]
