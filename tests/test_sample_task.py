"""The task that draws many samples into files."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxmerge import app, sampling, shards
from jaxmerge.tasks import sample

CONFIG = str(Path(__file__).resolve().parent.parent / "configs" / "digits_samples.py")
SMALL = (
    "--config.shards.count=50",
    "--config.shards.size=20",
    "--config.sampling.heun_steps=3",
    "--config.sampling.batch_size=10",
)

pytestmark = pytest.mark.usefixtures("own_folder")


def command(*more: str) -> int:
    return app.main(["main.py", "--config", CONFIG, "--workdir", "w", *SMALL, *more])


def test_samples_are_on_disk_scored_exported_and_continued_after_a_stop(capsys, monkeypatch):
    whole, drawn = sampling.generate, []

    def stops_once(*args, **kwargs):
        drawn.append(kwargs["first"])
        if drawn == [0, 20]:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    monkeypatch.setattr(sampling, "generate", stops_once)
    assert command("--config.shards.npz=True", "--config.shards.png=True") == 130
    assert command("--config.shards.npz=True", "--config.shards.png=True") == 0
    assert drawn == [0, 20, 20, 40]
    samples = np.concatenate(list(shards.read("w/samples")))
    assert samples.shape == (50, 8, 8, 1) and samples.max() <= 16
    np.testing.assert_array_equal(np.load("w/samples.npz")["arr_0"], samples)
    assert len(list(Path("w/png").rglob("*.png"))) == 50
    row = json.loads(Path("w/results.json").read_text())["rows"][0]
    assert row["model"] == "merged" and row["eta"] == 0.22 and row["n_samples"] == 50
    assert row["frechet"] > 0 and row["nfe_sampling"] > 4
    assert "50 samples are in 3 files" in capsys.readouterr().out


def test_samples_need_no_judge_and_no_data():
    assert (
        command("--config.metric.kind=none", "--config.shards.model=low", "--config.data.name=cifar10") == 0
    )
    row = json.loads(Path("w/results.json").read_text())["rows"][0]
    assert row["model"] == "VDM" and "frechet" not in row and row["n_samples"] == 50


@pytest.mark.parametrize(("model", "named"), [("low", "the VDM"), ("high", "the EDM"), ("merged", "the VDM")])
def test_samples_are_not_judged_by_images_of_another_set(model, named, capsys):
    judged = ("--config.data.name=photos", f"--config.shards.model={model}")
    assert command(*judged, "--config.metric.classifier=photos_classifier") == 1
    error = capsys.readouterr().err
    assert f"{named} was trained on digits, the images are photos's" in error
    assert "--config.data.allow_other=True" in error and not Path("w/samples").exists()


def test_images_of_another_set_can_be_allowed(monkeypatch):
    # No classifier takes the digits and the photos alike.
    monkeypatch.setattr(sample, "score", lambda judge, drawn: {"frechet": 1.0})
    allowed = ("--config.data.name=photos", "--config.data.allow_other=True", "--config.shards.model=low")
    assert command(*allowed, "--config.metric.classifier=photos_classifier") == 0


def test_a_threshold_that_the_experts_do_not_allow_is_refused(capsys):
    assert command("--config.shards.eta=0.01") == 1
    assert "eta" in capsys.readouterr().err
    assert not Path("w").exists()
